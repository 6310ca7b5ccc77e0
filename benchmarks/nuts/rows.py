"""The methods: how each makes a posterior with the given learning rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.nuts.sizes import PRIOR_PRECISION
from vogn.cli.schedule import cosine
from vogn.likelihoods import Gaussian
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import Diagonal

Make = Callable[[nn.Module, Gaussian, Tensor, Tensor, float, int, int], GaussianPosterior]
"""``(model, likelihood, x, y, rate, steps, seed)`` to a posterior; the model ends at its mean."""


@dataclass(frozen=True)
class Row:
    """A method.

    Args:
        make: trains.
        rates: the learning rates that are tried.
        method: of prediction.
    """

    make: Make
    rates: tuple[float, ...]
    method: str = "mc"


def variational(build: Callable[..., vogn.NaturalGradient], **options: Any) -> Make:
    """Training with one of our optimizers."""

    def make(
        model: nn.Module, likelihood: Gaussian, x: Tensor, y: Tensor, rate: float, steps: int, seed: int
    ) -> GaussianPosterior:
        settings = {"ess": len(x), "weight_decay": PRIOR_PRECISION / len(x), "seed": seed}
        optimizer = build(model, lr=rate, **(settings | options))
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(step, steps, 0)
            optimizer.zero_grad()
            with optimizer.sampled_params():
                likelihood(model(x), y).backward()
            optimizer.step()
        return optimizer.posterior()

    return make


def bayes_by_backprop(
    model: nn.Module, likelihood: Gaussian, x: Tensor, y: Tensor, rate: float, steps: int, seed: int
) -> GaussianPosterior:
    """Pyro's AutoDiagonalNormal, reparameterised gradients of the ELBO, Adam."""
    import pyro
    from pyro import distributions, poutine
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoDiagonalNormal
    from pyro.optim import PyroLRScheduler
    from torch.func import functional_call

    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}

    def log_joint(x: Tensor, y: Tensor) -> None:
        weights = {
            name: pyro.sample(
                name, distributions.Normal(torch.zeros_like(p), PRIOR_PRECISION**-0.5).to_event(p.ndim)
            )
            for name, p in start.items()
        }
        pyro.factor("data", -len(x) * likelihood(functional_call(model, weights, (x,)), y))

    guide = AutoDiagonalNormal(
        poutine.block(log_joint, hide=["data"]),
        init_loc_fn=lambda site: start[site["name"]] if site["name"] in start else site["value"],
        init_scale=0.05,
    )
    schedule = PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": rate}, "lr_lambda": lambda step: cosine(step, steps, 0)},
    )
    svi = SVI(log_joint, guide, schedule, Trace_ELBO())
    for _ in range(steps):
        svi.step(x, y)
        schedule.step()
    flat = guide.get_posterior().base_dist
    mean, precision = flat.loc.detach(), flat.scale.detach() ** -2
    return diagonal_posterior(start, mean, precision)


def diagonal_posterior(like: dict[str, Tensor], mean: Tensor, precision: Tensor) -> GaussianPosterior:
    """Independent parameters; ``mean`` and ``precision`` ``(D,)`` in the order of ``like``."""
    blocks, means, start = [], {}, 0
    for name, parameter in like.items():
        size, shape = parameter.numel(), tuple(parameter.shape)
        matrix = shape if len(shape) == 2 else (size, 1)
        means[name] = mean[start : start + size].view(shape)
        state = {"c": precision[start : start + size].view(matrix)}
        blocks.append(PosteriorBlock(name, MatrixLayout((name,), (shape,), matrix), Diagonal(), state, 0.0, 1.0))
        start += size
    return GaussianPosterior(blocks, means)


def laplace(structure: str) -> Make:
    """The maximum a posteriori by Adam, then the curvature there; the prior is the same, not tuned."""

    def make(
        model: nn.Module, likelihood: Gaussian, x: Tensor, y: Tensor, rate: float, steps: int, seed: int
    ) -> GaussianPosterior:
        adam = torch.optim.Adam(model.parameters(), lr=rate)
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate * cosine(step, steps, 0)
            adam.zero_grad()
            penalty = 0.5 * PRIOR_PRECISION / len(x) * sum(p.square().sum() for p in model.parameters())
            (likelihood(model(x), y) + penalty).backward()
            adam.step()
        options: dict[str, Any] = {"partition": "model"} if structure == "dense" else {}
        return vogn.laplace(
            model, likelihood, [(x, y)], structure=structure, prior_precision=PRIOR_PRECISION, **options
        )

    return make


GGN: dict[str, Any] = {"fisher": "ggn", "curvature_decay": 0.99}
NATURAL, ADAM = (0.01, 0.03, 0.1), (0.005, 0.02, 0.05)
ROWS: dict[str, Row] = {
    "dense": Row(variational(vogn.VON, structure="dense", damping=1e-3, momentum=0.9, curvature_decay=0.99), NATURAL),
    "kfac": Row(variational(vogn.KFAC, **GGN), NATURAL),
    "kfac-exact": Row(variational(vogn.KFAC, factored=False, **GGN), NATURAL),
    "ekfac": Row(variational(vogn.EKFAC, **GGN), NATURAL),
    "slang": Row(variational(vogn.SLANG, rank=16, **GGN), NATURAL),
    "vogn": Row(variational(vogn.VOGN, **GGN), NATURAL),
    "ivon": Row(variational(vogn.IVON, curvature_decay=0.995), NATURAL),
    "bbb": Row(bayes_by_backprop, ADAM),
    "laplace-kron": Row(laplace("kronecker"), ADAM, "linearized"),
    "laplace-dense": Row(laplace("dense"), ADAM, "linearized"),
}
