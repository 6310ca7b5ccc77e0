"""The functional core of the optimizer: tensors in, tensors out; the shell around it does no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError
from vogn.linalg.noise import normal
from vogn.optim.steps import Step, StepContext
from vogn.structures.base import Structure
from vogn.types import Observation, Shape, State


def displacement(
    structure: Structure,
    state: State,
    shape: Shape,
    *,
    ess: float,
    shift: float,
    seed: int,
    step: int,
    sample: int,
    name: str,
    antithetic: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``(ess (C + shift I))^(-1/2) eps``: a draw from the posterior minus its mean, as a block vector.

    With ``antithetic`` the samples ``2 k`` and ``2 k + 1`` are each other's mirror images.
    """
    index = sample // 2 if antithetic else sample
    noise = normal(shape, seed=seed, stream="weights", step=step, sample=index, name=name, dtype=dtype, device=device)
    if antithetic and sample % 2:
        noise = -noise
    return structure.sample(state, noise, shift) * ess**-0.5


def check_finite(name: str, gradient: Tensor, observation: Observation) -> None:
    """Refuse NaN and infinity before anything is written.

    Raises:
        NonFiniteStatisticsError: naming the block and what is not finite.
    """
    suspects = {"gradient": gradient} | {f"curvature statistic {key!r}": leaf for key, leaf in observation.items()}
    for what, tensor in suspects.items():
        if not bool(torch.isfinite(tensor.sum())):
            raise NonFiniteStatisticsError(
                f"block {name!r}: the {what} holds NaN or infinity; nothing was updated. Check the loss and the "
                "inputs, lower lr, or raise damping"
            )


def natural_gradient_step(context: StepContext, steps: Sequence[Step], rates: Sequence[float]) -> list[Tensor]:
    """New means of all blocks: ``m - rate * chain(gradient)``.

    Args:
        context: views of the blocks.
        steps: the chain.
        rates: learning rate of each block.
    """
    updates = [block.gradient for block in context.blocks]
    for step in steps:
        updates = step(updates, context)
    return [
        block.mean.sub(update, alpha=rate) for block, update, rate in zip(context.blocks, updates, rates, strict=True)
    ]
