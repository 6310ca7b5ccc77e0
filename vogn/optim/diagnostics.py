"""Numbers that tell how an optimizer is doing: flat names to floats, for any logger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import whole
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.types import State

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


@dataclass(frozen=True)
class BlockReport:
    """One block. ``None`` where a number is not defined.

    Args:
        name: block name.
        group: index of its param group.
        parameters: their number ``D``.
        weight_squares: sum of the squared means.
        variance: trace of the posterior covariance; ``None`` for point masses and without ``ess``.
        effective: effective number of parameters.
        condition: condition number of the curvature in the step, or its bound.
        kept_factors: failed factorisations that kept the old factors.
        observations: observations of its curvature.
    """

    name: str
    group: int
    parameters: int
    weight_squares: float
    variance: float | None = None
    effective: float | None = None
    condition: float | None = None
    kept_factors: int = 0
    observations: int = 0


def diagnostics(optimizer: NaturalGradient, *, per_block: bool = False) -> dict[str, float]:
    """Numbers that tell how an optimizer is doing.

    ``C (+) shift`` is what the structure's ``to_dense(shift)`` says.

    Args:
        optimizer: nothing of it is changed.
        per_block: also ``block/NAME/...`` of every block.

    Returns:
        ======================== ==========================================================================
        ``steps``                finished steps
        ``parameters``           their number ``D``
        ``weight_rms``           root mean square of the means
        ``observations``         observations of the curvature, of the block that has most
        ``kept_factors``         failed factorisations that kept the last good factors
        ``posterior_std``        root mean square of the posterior standard deviations of sampled parameters
        ``relative_std``         ``posterior_std`` over the root mean square of these parameters' means
        ``effective_parameters`` ``tr (1 - weight_decay (C (+) weight_decay)^-1)``, which is
                                 ``sum_j lambda_j / (lambda_j + weight_decay)``
        ``condition_number``     of ``C (+) (weight_decay + damping)``, largest over the blocks; an upper bound
                                 for ``DiagonalLowRank`` and for ``Dense`` beyond 1024 parameters
        ``damping``              in force; left out if the groups differ
        ``weight_decay``         in force; left out if the groups differ
        ``refused_share``        steps that raised because of numbers, of all attempts
        ``tolerated_share``      steps that used the old curvature because nothing was measured when it was due
        ``kl_clipped_share``     steps that the KL clip made shorter; ``kl_clip_factor`` is its mean factor
        ``elements_clipped_share`` elements that ``clip_radius`` cut
        ======================== ==========================================================================

        With several groups also ``group0/...`` and so on. The shares count from the construction of this optimizer.

    Source: MacKay (1992), "Bayesian Interpolation", for the effective number of parameters.
    """
    table, _ = optimizer._build()
    place = {id(group): k for k, group in enumerate(optimizer.param_groups)}
    reports = []
    for block, group in table:
        entry = optimizer.state.get(block.parameters[0], {})  # table.state() would make one where there is none yet
        known = "curvature" in entry and table.known(block)
        mean = block.layout.pack({n: whole(p) for n, p in zip(block.layout.names, block.parameters, strict=True)})
        reports.append(_report(block, group, place[id(group)], mean, table.gathered(block) if known else {}))
    out = {"steps": float(max((group["steps_done"] for group in optimizer.param_groups), default=0))}
    out |= optimizer._evidence.record.shares()
    out |= _summary(reports)
    for key in ("damping", "weight_decay"):
        values = {float(group[key]) for group in optimizer.param_groups}
        out |= {key: values.pop()} if len(values) == 1 else {}
    for k, group in enumerate(optimizer.param_groups) if len(optimizer.param_groups) > 1 else ():
        numbers = _summary([report for report in reports if report.group == k])
        numbers |= {key: float(group[key]) for key in ("damping", "weight_decay")}
        out |= {f"group{k}/{key}": value for key, value in numbers.items()}
    for report in reports if per_block else ():
        out |= {f"block/{report.name}/{key}": value for key, value in _summary([report]).items()}
    return out


def _report(block: Block, group: dict[str, Any], place: int, mean: Tensor, entry: dict[str, Any]) -> BlockReport:
    """Measure one block; an empty ``entry`` is a block without curvature."""
    size, squares = block.layout.numel, float(mean.double().square().sum())
    if not entry:
        return BlockReport(block.name, place, size, squares)
    curvature, memory = entry["curvature"], entry["memory"]
    weight_decay = float(group["weight_decay"])
    inverse = inverse_diagonal(block, curvature, weight_decay)
    variance = effective = None
    if inverse is not None:
        effective = float((1.0 - weight_decay * inverse).sum())
        if group["sampled"] and group["ess"] is not None:
            variance = float(inverse.sum()) / float(group["ess"])
    return BlockReport(
        block.name,
        place,
        size,
        squares,
        variance,
        effective,
        _condition(block, curvature, weight_decay + float(group["damping"])),
        int(memory.get("kept_factors", 0)),
        int(memory["observations"]),
    )


def inverse_diagonal(block: Block, curvature: State, shift: float) -> Tensor | None:
    """``diag((C (+) shift)^-1)`` in double precision, or ``None`` where it does not exist."""
    if "inverse_diagonal" not in block.structure.SUPPORTS:
        return None
    try:
        return block.structure.inverse_diagonal(curvature, shift).double()
    except (NotPositiveDefiniteError, NonFiniteStatisticsError):
        return None


def _condition(block: Block, curvature: State, shift: float) -> float | None:
    """Largest over smallest eigenvalue of ``C (+) shift``, or ``None`` where it is not positive definite."""
    if "eigenvalue_bounds" not in block.structure.SUPPORTS:
        return None
    try:
        low, high = (float(bound) for bound in block.structure.eigenvalue_bounds(curvature, shift))
    except (NotPositiveDefiniteError, NonFiniteStatisticsError):
        return None
    return high / low if low > 0.0 else None


def _summary(reports: Sequence[BlockReport]) -> dict[str, float]:
    """Several blocks as one."""
    if not reports:
        return {}
    parameters = sum(report.parameters for report in reports)
    weight_rms = math.sqrt(sum(report.weight_squares for report in reports) / parameters)
    out = {
        "parameters": float(parameters),
        "weight_rms": weight_rms,
        "observations": float(max(report.observations for report in reports)),
        "kept_factors": float(sum(report.kept_factors for report in reports)),
    }
    effective = [report.effective for report in reports if report.effective is not None]
    if effective:
        out["effective_parameters"] = math.fsum(effective)
    conditions = [report.condition for report in reports if report.condition is not None]
    if conditions:
        out["condition_number"] = max(conditions)
    spread = [(report, report.variance) for report in reports if report.variance is not None]
    if spread:
        size = sum(report.parameters for report, _ in spread)
        out["posterior_std"] = math.sqrt(math.fsum(variance for _, variance in spread) / size)
        scale = math.sqrt(sum(report.weight_squares for report, _ in spread) / size)
        if scale > 0.0:
            out["relative_std"] = out["posterior_std"] / scale
    return out
