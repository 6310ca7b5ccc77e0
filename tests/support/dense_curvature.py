"""Dense curvature of a model: what the capture says, and what a loop over examples says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vogn import NaturalGradient
from vogn.capture import oracle
from vogn.capture.statistics import GGN, Empirical
from vogn.posterior import GaussianPosterior
from vogn.structures import Dense

Blocks = dict[str, Tensor]


def watch(model: nn.Module, statistic: Any, **options: Any) -> NaturalGradient:
    """An optimizer that only measures: no learning, no memory."""
    defaults = {
        "lr": 0.0,
        "ess": 1.0,
        "weight_decay": 1.0,
        "curvature_decay": 0.0,
        "momentum": 0.0,
        "variational": False,
        "partition": "model",
    }
    return NaturalGradient(model, Dense(), statistic, **(defaults | options))


def measured(opt: NaturalGradient) -> tuple[Blocks, GaussianPosterior]:
    """``({block: C}, posterior)`` after a step."""
    opt.step()
    posterior = opt.posterior()
    return {n: m - torch.eye(len(m)) for n, m in posterior.precision_matrices().items()}, posterior


def measure(
    model: nn.Module, statistic: Any, likelihood: Any, x: Tensor, y: Tensor, **options: Any
) -> tuple[Blocks, GaussianPosterior]:
    """``({block: C}, posterior)`` of one batch."""
    opt = watch(model, statistic, **options)
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    return measured(opt)


def block_rows(posterior: GaussianPosterior, named: dict[str, Tensor]) -> Blocks:
    """Per-example gradients ``{name: (N, *shape)}`` as ``{block: (N, D)}``."""
    return {
        block.name: block.layout.pack({n: named[n] for n in block.layout.names}).flatten(1)
        for block in posterior.blocks
    }


def jacobian_rows(model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """``{name: (N, K, *shape)}`` of the outputs flattened to ``K``."""
    flat, named, position = oracle.jacobian(model, inputs), {}, 0
    for name, p in oracle.trainable(model).items():
        named[name] = flat[:, :, position : position + p.numel()].reshape(*flat.shape[:2], *p.shape)
        position += p.numel()
    return named


def ggn_blocks(
    model: nn.Module,
    posterior: GaussianPosterior,
    inputs: Tensor,
    hessian: Callable[[Tensor], Tensor],
    count: int,
) -> Blocks:
    """``{block: sum_n J_n^T H_n J_n / count}`` with ``hessian`` from outputs to ``(N, K, K)``."""
    named = jacobian_rows(model, inputs)
    with torch.no_grad():
        matrices = hessian(model(inputs))
    out = {}
    for block in posterior.blocks:
        rows = block.layout.pack({n: named[n] for n in block.layout.names}).flatten(2)
        out[block.name] = torch.einsum("nkd,nkl,nle->de", rows, matrices, rows) / count
    return out


def empirical(model: nn.Module, posterior: GaussianPosterior, x: Tensor, y: Tensor) -> Blocks:
    """``{block: mean_n g_n g_n^T}`` from a loop over examples."""
    rows = block_rows(posterior, oracle.per_example_gradients(model, x, y, cross_entropy))
    return {name: r.T @ r / len(x) for name, r in rows.items()}


def exact(model: nn.Module, statistic: Any, posterior: GaussianPosterior, x: Tensor, y: Tensor) -> Blocks:
    """The empirical Fisher, or the exact GGN of a softmax."""
    if isinstance(statistic, Empirical):
        return empirical(model, posterior, x, y)
    assert isinstance(statistic, GGN)
    return ggn_blocks(model, posterior, x, softmax_hessian, len(x))


def softmax_hessian(outputs: Tensor) -> Tensor:
    """Of the summed loss over positions: ``(N, T, C)`` to ``(N, T C, T C)``."""
    p = torch.softmax(outputs.reshape(len(outputs), -1, outputs.shape[-1]), -1)
    small = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.stack([torch.block_diag(*matrices) for matrices in small])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum")


def assert_blocks(ours: Blocks, theirs: Blocks, **tolerances: float) -> None:
    assert theirs and set(ours) == set(theirs), (set(ours), set(theirs))
    for name in theirs:
        torch.testing.assert_close(
            ours[name],
            theirs[name],
            **({"rtol": 1e-9, "atol": 1e-12} | tolerances),
            msg=lambda text, n=name: f"{n}: {text}",
        )
