"""Inverse square and fourth roots of small matrices by the coupled Newton iteration, one program per matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import jit, matrices, power_of_two, tl
from vogn.kernels.reference import NEAR, NEWTON_STEPS


@jit()
def _kernel(
    a: tl.tensor,
    out: tl.tensor,
    errors: tl.tensor,
    size: tl.tensor,
    a_batch: tl.tensor,
    a_row: tl.tensor,
    a_column: tl.tensor,
    tolerance: tl.tensor,
    ROOT: tl.constexpr,
    STEPS: tl.constexpr,
    NEAR: tl.constexpr,
    SIZE: tl.constexpr,
) -> None:
    batch = tl.program_id(0).to(tl.int64)
    i, j = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :]
    inside = (i < size) & (j < size)
    eye = (i == j).to(tl.float32)
    matrix = tl.load(a + batch * a_batch + i * a_row + j * a_column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.max(tl.abs(matrix), axis=1), axis=0)
    scaled = matrix / largest
    norm = largest * tl.sqrt(tl.sum(tl.sum(scaled * scaled, axis=1), axis=0))
    z = (1.0 + ROOT) / (2.0 * norm)
    root = tl.sqrt(z)
    if ROOT == 4:
        root = tl.sqrt(root)
    m = tl.where(inside, z * matrix, eye)  # what pads the matrix is a fixed point
    x = root * eye
    error = tl.max(tl.max(tl.abs(m - eye), axis=1), axis=0)
    previous = error + 1.0
    step = 0
    while (step < STEPS) & (error > tolerance) & ((error < 0.5 * previous) | (previous >= NEAR)):
        t = ((ROOT + 1.0) * eye - m) / ROOT
        power = tl.dot(t, t, input_precision="ieee")
        if ROOT == 4:
            power = tl.dot(power, power, input_precision="ieee")
        m = tl.dot(power, m, input_precision="ieee")
        x = tl.dot(x, t, input_precision="ieee")
        previous = error
        error = tl.max(tl.max(tl.abs(m - eye), axis=1), axis=0)
        step += 1
    x = 0.5 * (x + tl.trans(x))
    undefined = tl.max(tl.max((x != x).to(tl.int32), axis=1), axis=0)  # maxima of floating-point numbers skip NaN
    error = tl.where(undefined > 0, float("nan"), error)
    tl.store(out + batch * size * size + i * size + j, x.to(out.dtype.element_ty), mask=inside)
    tl.store(errors + batch, error)


def inverse_root(a: Tensor, root: int) -> tuple[Tensor, Tensor]:
    """See :func:`vogn.kernels.inverse_root`."""
    size = a.shape[-1]
    out = torch.empty(a.shape, dtype=a.dtype, device=a.device)
    errors = torch.zeros(a.shape[:-2], dtype=torch.float32, device=a.device)
    if out.numel():
        flat = matrices(a)
        _kernel[(flat.shape[0],)](
            flat,
            out,
            errors,
            size,
            *flat.stride(),
            4.0 * torch.finfo(torch.float32).eps,
            ROOT=root,
            STEPS=NEWTON_STEPS,
            NEAR=NEAR,
            SIZE=power_of_two(size, least=16),
        )
    return out, errors
