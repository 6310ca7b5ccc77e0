"""What a network would say had it not seen a group of examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior import GaussianPosterior
from vogn.sensitivity.perturbation import (
    Order,
    check_options,
    checked_targets,
    find_likelihood,
    leveraged,
    linearised,
    roots,
    vectors,
)


def without(
    model: nn.Module,
    posterior: GaussianPosterior,
    x: Any,
    y: Tensor,
    *,
    order: Order = "leverage",
    likelihood: Likelihood | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> dict[str, Tensor]:
    """The mean weights after a group of training examples is taken out of the data, in one Newton step.

    Their outputs anywhere follow by ``torch.func.functional_call``, or by ``model.load_state_dict(..., strict=False)``.

    Args:
        model, likelihood, temperature, batch_size: see :func:`vogn.sensitivity.leave_one_out`.
        posterior: of all training data, the group among them.
        x: inputs of the group.
        y: targets of the group.
        order: ``"leverage"`` solves a system of (examples times outputs) unknowns; ``"first"`` needs none.

    Returns:
        ``{name: shape}`` of all parameters of the posterior.

    Raises:
        ValueError: see :func:`vogn.sensitivity.leave_one_out`; or if the group has leverage 1 or more, so that the
            posterior cannot contain it.

    Source: Nickl et al. (2023), "The Memory Perturbation Equation", for a group; the leverage form is a Newton
    step with the remaining curvature.
    """
    check_options(order, temperature)
    likelihood = find_likelihood(posterior, likelihood)
    parts = list(linearised(model, posterior, x, batch_size))
    outputs = torch.cat([found for found, _ in parts])
    slopes = {name: torch.cat([slope[name] for _, slope in parts]) for name in parts[0][1]}
    count, size = outputs.shape
    # one "example" with count * size outputs: its functional variance is the joint one of the group
    joint = {name: slope.reshape(1, count * size, *slope.shape[2:]) for name, slope in slopes.items()}
    blocks = posterior.sampled_blocks
    dtype = posterior.functional_variance({name: slope[:, :1] for name, slope in joint.items()}).dtype
    f, y = checked_targets(likelihood, outputs.to(dtype), y)
    moving = vectors(likelihood.score(f, y)).reshape(-1)
    if order == "leverage":
        variance = posterior.functional_variance(joint)[0] / temperature
        root = torch.block_diag(*roots(likelihood, f))
        moving, leverage = leveraged(variance, root, moving)
        if not bool(leverage < 1.0):
            raise ValueError(
                f"the group has leverage {float(leverage):.3g}, but a posterior that contains it has less than 1: use "
                "order='first', or a posterior with more exact curvature (vogn.laplace)"
            )
    moved = posterior.mean()
    gradient = {name: torch.tensordot(moving.to(slope), slope[0], 1) for name, slope in joint.items()}
    for block in blocks:
        packed = block.layout.pack({name: gradient[name].to(moved[name]) for name in block.layout.names})
        step = block.layout.unpack(block.covariance_product(packed) / temperature)
        moved |= {name: moved[name] + change for name, change in step.items()}
    return moved
