"""One pass over the parameters for a whole step of a diagonal Gaussian; the noise never reaches memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vogn.kernels.gpu.language import blocks, jit, tl
from vogn.kernels.reference import DiagonalStep, StepOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

BLOCK = 1024
"""Elements per program; not tuned: the kernel is bound by memory and every size from 512 to 2048 fills a cache line."""


@jit(keep_general=("size", "seed", "offset"))
def _kernel(
    mean: tl.tensor,
    curvature: tl.tensor,
    momentum: tl.tensor,
    gradient: tl.tensor,
    evidence: tl.tensor,
    new_mean: tl.tensor,
    new_curvature: tl.tensor,
    new_momentum: tl.tensor,
    sample: tl.tensor,
    clipped: tl.tensor,
    size: tl.tensor,
    lr: tl.tensor,
    decay: tl.tensor,
    forgotten: tl.tensor,
    weight: tl.tensor,
    momentum_rate: tl.tensor,
    weight_decay: tl.tensor,
    damping: tl.tensor,
    lowest: tl.tensor,
    ess: tl.tensor,
    clip_radius: tl.tensor,
    seed: tl.tensor,
    offset: tl.tensor,
    correction: tl.tensor,
    RETRACT: tl.constexpr,
    PRIOR_IN_MOMENTUM: tl.constexpr,
    ROOT: tl.constexpr,
    SAMPLE: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < size
    m = tl.load(mean + index, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(curvature + index, mask=inside, other=1.0).to(tl.float32)
    average = tl.load(momentum + index, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gradient + index, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(evidence + index, mask=inside, other=0.0).to(tl.float32)
    if RETRACT:
        delta = weight * h - forgotten * c
        c_new = c + delta + 0.5 * delta * delta / (c + weight_decay)
        c_new = tl.where(c_new < lowest, lowest, c_new)  # NaN stays
    else:
        c_new = decay * c + weight * h
    prior = weight_decay * m
    metric = correction * c_new
    if ROOT:
        metric = tl.sqrt(tl.where(metric < 0.0, 0.0, metric))  # NaN stays
    if PRIOR_IN_MOMENTUM:
        average += momentum_rate * (g + prior - average)
        update = average / (metric + (weight_decay + damping))
    else:
        average += momentum_rate * (g - average)
        update = (average + prior) / (metric + (weight_decay + damping))
    if CLIP:
        above, below = update > clip_radius, update < -clip_radius
        update = tl.where(above, clip_radius, tl.where(below, -clip_radius, update))
        tl.store(clipped + tl.program_id(0), tl.sum(((above | below) & inside).to(tl.int32)))
    m -= lr * update
    tl.store(new_curvature + index, c_new.to(new_curvature.dtype.element_ty), mask=inside)
    tl.store(new_momentum + index, average.to(new_momentum.dtype.element_ty), mask=inside)
    tl.store(new_mean + index, m.to(new_mean.dtype.element_ty), mask=inside)
    if SAMPLE:
        counter = index + offset
        low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
        zero = low * 0
        first, second, _, _ = tl.philox(seed, low, high, zero, zero)
        noise, _ = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(first), tl.uint_to_uniform_float(second))
        theta = m + noise / tl.sqrt(ess * (c_new + weight_decay))
        tl.store(sample + index, theta.to(sample.dtype.element_ty), mask=inside)


def diagonal_step(
    mean: Tensor,
    curvature: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    evidence: Tensor,
    **options: Unpack[StepOptions],
) -> DiagonalStep:
    """See :func:`vogn.kernels.diagonal_step`."""
    inputs = [x.contiguous() for x in (mean, curvature, momentum, gradient, evidence)]
    new_mean, new_curvature, new_momentum = (
        torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (mean, curvature, momentum)
    )
    ess = options["ess"]
    sample = torch.empty_like(new_mean) if ess is not None else None
    size, bounded = mean.numel(), math.isfinite(options["clip_radius"])
    counts = torch.empty(blocks(size, BLOCK), dtype=torch.int32, device=mean.device) if bounded else None
    if size:
        _kernel[(blocks(size, BLOCK),)](
            *inputs,
            new_mean,
            new_curvature,
            new_momentum,
            new_mean if sample is None else sample,
            new_mean if counts is None else counts,
            size,
            float(options["lr"]),
            float(options["decay"]),
            1.0 - options["decay"],
            float(options["weight"]),
            float(options["momentum_rate"]),
            float(options["weight_decay"]),
            float(options["damping"]),
            (4.0 * torch.finfo(curvature.dtype).eps - 1.0) * options["weight_decay"],
            1.0 if ess is None else float(ess),
            float(options["clip_radius"]),
            options["seed"],
            options["offset"],
            float(options["correction"]),
            RETRACT=options["retract"],
            PRIOR_IN_MOMENTUM=options["prior_in_momentum"],
            ROOT=options["root"],
            SAMPLE=sample is not None,
            CLIP=bounded,
            BLOCK=BLOCK,
        )
    clipped = None if counts is None else counts.sum()
    return DiagonalStep(new_curvature, new_momentum, new_mean, sample, clipped=clipped)
