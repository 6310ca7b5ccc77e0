"""Is a merged posterior better than averaged weights?

A perceptron 64-32-10, or a softmax regression, is trained on 400 digits of all classes; from there one each is trained
on the digits 0 to 4 and 5 to 9 (all other training images), with the first posterior as prior. Their Laplace
approximations are merged; beside it, of the same networks, the average of the weights and the sum of the task vectors.
Once each with diagonal, Kronecker-factored and dense curvature, in the prior of the tasks too.

    OMP_NUM_THREADS=1 python -m benchmarks.merging
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import vogn
from benchmarks.cells import command, environment, mean_error, write_cell
from vogn.data import Split, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.posterior import GaussianPosterior, merge, task_arithmetic

RESULTS = Path(__file__).parent / "results" / "merging" / "summary.json"
PRECISION, FIRST = 1.0, 400
NETWORKS = {"perceptron": (64, 32, 10), "softmax regression": (64, 10)}
STRUCTURES = ("diagonal", "kronecker", "dense")


def fitted(
    model: nn.Module, x: Tensor, y: Tensor, seed: int, start: GaussianPosterior | None, epochs: int
) -> nn.Module:
    """A copy of the network, trained under the prior, or under the posterior of the base."""
    model, likelihood = copy.deepcopy(model), Categorical()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2 if start is None else 3e-3)
    centre = None if start is None else start.mean()
    for epoch in range(epochs):
        for group in opt.param_groups:
            group["lr"] = (1e-2 if start is None else 3e-3) * (1.0 - epoch / epochs)
        for batch in epoch_batches(len(x), 64, seed=seed, epoch=epoch):
            opt.zero_grad()
            weights = dict(model.named_parameters())
            if start is None or centre is None:
                penalty = 0.5 * PRECISION * sum(p.square().sum() for p in weights.values())
            else:
                moved = {name: p - centre[name] for name, p in weights.items()}
                penalty = 0.5 * sum(b.quadratic(b.layout.pack(moved)) for b in start.sampled_blocks)
            (likelihood(model(x[batch]), y[batch]) + penalty / len(x)).backward()
            opt.step()
    return model


def posterior(model: nn.Module, part: Split, structure: str) -> GaussianPosterior:
    """The Laplace approximation on these data alone."""
    batches = list(zip(part.x.split(256), part.y.split(256), strict=True))
    return vogn.laplace(model, Categorical(), batches, structure=structure, prior_precision=PRECISION)


@torch.no_grad()
def scores(model: nn.Module, weights: Mapping[str, Tensor], test: Split) -> list[float]:
    """Accuracy, NLL, and accuracy on the digits 0 to 4 and 5 to 9, of one set of weights."""
    outputs = functional_call(model, dict(weights), (test.x,))
    right = (outputs.argmax(1) == test.y).double()
    low = test.y < 5
    nll = float(Categorical()(outputs, test.y))
    return [float(right.mean()), nll, float(right[low].mean()), float(right[~low].mean())]


def one(seed: int, sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """All rows of a seed."""
    data = load_data("digits", seed=seed)
    x, y, test = data.train.x, data.train.y, data.test
    first, rest = Split(x[:FIRST], y[:FIRST]), Split(x[FIRST:], y[FIRST:])
    tasks = [Split(rest.x[mask], rest.y[mask]) for mask in (rest.y < 5, rest.y >= 5)]
    torch.manual_seed(seed)
    base = fitted(build_model("mlp", sizes=sizes), first.x, first.y, seed, None, 60)
    origin = {name: p.detach() for name, p in base.named_parameters()}
    rows = {"base": origin}
    for structure in STRUCTURES:
        start = posterior(base, first, structure)
        tuned = [fitted(base, task.x, task.y, seed, start, 30) for task in tasks]
        known = [posterior(model, task, structure) for model, task in zip(tuned, tasks, strict=True)]
        weights = [{name: p.detach() for name, p in model.named_parameters()} for model in tuned]
        rows |= {f"{structure}: task {name}": each for name, each in zip(("0 to 4", "5 to 9"), weights, strict=True)}
        rows[f"{structure}: average"] = task_arithmetic(weights, origin, 0.5)
        rows[f"{structure}: sum of task vectors"] = task_arithmetic(weights, origin, 1.0)
        rows[f"{structure}: merged"] = merge(known, start, includes_base=False).mean()
    everything = fitted(build_model("mlp", sizes=sizes), x, y, seed, None, 60)
    rows["all data together"] = {name: p.detach() for name, p in everything.named_parameters()}
    return {name: scores(base, row, test) for name, row in rows.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    start = time.process_time()
    record: dict[str, Any] = {}
    for network, sizes in NETWORKS.items():
        runs = [one(seed, sizes) for seed in range(arguments.seeds)]
        lines, differences = record.setdefault(network, {"rows": {}, "merged minus average": {}}).values()
        print(f"\n| {network} | accuracy | NLL | digits 0 to 4 | 5 to 9 |\n|---|---|---|---|---|")
        for name in runs[0]:
            line = [mean_error([run[name][k] for run in runs]) for k in range(4)]
            lines[name] = dict(zip(("accuracy", "nll", "low", "high"), line, strict=True))
            print(f"| {name} | " + " | ".join("{:.3f} ± {:.3f}".format(*value) for value in line) + " |", flush=True)
        for structure in STRUCTURES:
            pairs = [(run[f"{structure}: merged"], run[f"{structure}: average"]) for run in runs]
            differences[structure] = {
                key: mean_error([merged[k] - average[k] for merged, average in pairs])
                for k, key in enumerate(("accuracy", "nll"))
            }
        print("merged minus average:", differences)
    record |= {"seeds": arguments.seeds, "cpu_seconds": round(time.process_time() - start, 1)}
    write_cell(arguments.results, record | {"environment": environment(), "command": command("benchmarks.merging")})


if __name__ == "__main__":
    main()
