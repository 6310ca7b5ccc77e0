"""What the exact posterior of the same networks reaches: Pyro's NUTS, one chain per split.

Noise and the scales of both layers' priors are sampled too, so that nothing is tuned.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from benchmarks.cells import command, environment, write_cell
from benchmarks.uci.data import split
from benchmarks.uci.methods import HIDDEN, tested

NAME = "NUTS"
SPLITS = {"yacht": 3, "boston": 2}
"""The first so many splits of these data sets."""
WARMUP, DRAWS, TREE_DEPTH = 150, 150, 8


def outputs_of(draws: dict[str, Tensor], x: Tensor) -> Tensor:
    """``(S, n)`` from weights with a leading dimension ``S``, or ``(n,)`` from one draw."""
    hidden = x @ (draws["w1"] * draws["s1"].unsqueeze(-1)) + (draws["b1"] * draws["s1"]).unsqueeze(-2)
    return (hidden.relu() @ (draws["w2"] * draws["s2"]).unsqueeze(-1)).squeeze(-1) + draws["b2"] * draws["s2"]


def sample(x: Tensor, y: Tensor, seed: int) -> dict[str, Tensor]:
    """Draws of all weights (in units of their scales), scales and the noise; float64."""
    import pyro
    from pyro import distributions
    from pyro.infer import MCMC, NUTS

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    zero, one = torch.zeros((), dtype=x.dtype), torch.ones((), dtype=x.dtype)
    shapes = {"w1": (x.shape[1], HIDDEN), "b1": (HIDDEN,), "w2": (HIDDEN,), "b2": (1,)}

    def model() -> None:
        scale = distributions.HalfNormal(one).expand((1,)).to_event(1)
        draws = {name: pyro.sample(name, scale) for name in ("s1", "s2")}
        for name, shape in shapes.items():
            draws[name] = pyro.sample(name, distributions.Normal(zero, one).expand(shape).to_event(len(shape)))
        noise = pyro.sample("noise", distributions.HalfNormal(0.5 * one))
        pyro.sample("y", distributions.Normal(outputs_of(draws, x), noise).to_event(1), obs=y)

    kernel = NUTS(model, max_tree_depth=TREE_DEPTH, jit_compile=True, ignore_jit_warnings=True)
    chain = MCMC(kernel, num_samples=DRAWS, warmup_steps=WARMUP, disable_progbar=True)
    chain.run()
    found: dict[str, Tensor] = chain.get_samples()
    return found


def run_cell(arguments: argparse.Namespace) -> None:
    """The cell of a data set."""
    start, lines = time.process_time(), []
    for number in range(SPLITS[arguments.data]):
        train, held = split(arguments.data_dir, arguments.data, number, tuning=False)
        draws = sample(train.x.double(), train.y.double(), seed=number)
        lines.append(tested(number, outputs_of(draws, held.x.double()), draws["noise"].unsqueeze(-1), held))
    record = {"method": NAME, "data": arguments.data, "splits": lines}
    record |= {"warmup": WARMUP, "draws": DRAWS, "tree_depth": TREE_DEPTH}
    record |= {"cpu_seconds": round(time.process_time() - start, 1), "environment": environment()}
    write_cell(arguments.cell, record | {"command": command("benchmarks.uci")})
