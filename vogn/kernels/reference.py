"""Plain PyTorch meaning of every kernel.

Shapes: ``a`` is ``(*lead, N, T, d_in)``, ``g`` is ``(*lead, K, N, T, d_out)``; the row of example ``n`` and column
``k`` is ``J[k, n] = sum_t g[k, n, t] a[n, t]^T`` of shape ``(*lead, d_out, d_in)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.kernels import philox, rooms

CHUNK_ELEMENTS = 1 << 22
"""Per-example gradients are materialised in chunks of at most this many numbers."""

CACHED_ELEMENTS = 1 << 18
"""Where a sum over examples is all that is wanted, chunks of this many stay in the processor's cache, and one buffer
serves all of them."""

GPU_CHUNK_ELEMENTS = 1 << 26
"""Chunks elsewhere than on the CPU, where a call is dear and memory fast."""


def chunk_elements(like: Tensor, *, cached: bool = False) -> int:
    """How many numbers a chunk may hold on the device of a tensor; ``cached``: in the processor's cache."""
    if like.device.type != "cpu":
        return GPU_CHUNK_ELEMENTS
    return CACHED_ELEMENTS if cached else CHUNK_ELEMENTS


def row_dense(a: Tensor, g: Tensor) -> Tensor:
    """Per-example gradients, ``(*lead, K, N, d_out, d_in)``."""
    return g.transpose(-1, -2) @ a.unsqueeze(-4)


def row_squares(a: Tensor, g: Tensor, total: Tensor | None = None) -> Tensor:
    """Sum over ``k`` and ``n`` of the elementwise squares of the rows, ``(*lead, d_out, d_in)``.

    The sum of the rows themselves is added to ``total``, which needs more than one position.
    """
    if a.shape[-2] == 1:  # one position: (g a^T)^2 = g^2 (a^2)^T
        left, right = g.squeeze(-2).square().sum(-3).transpose(-1, -2), a.squeeze(-2).square()
        if not (rooms.plain(left, right) and left.ndim == right.ndim == 2):
            return left @ right
        return torch.mm(left, right, out=rooms.empty((len(left), right.shape[-1]), dtype=a.dtype, device=a.device))
    squares = a.new_zeros((*a.shape[:-3], g.shape[-1], a.shape[-1]))
    per_example = g.shape[-4] * max(1, squares.numel())
    chunk = max(1, chunk_elements(a, cached=True) // per_example)
    rows = a.new_empty(0)
    for start in range(0, a.shape[-3], chunk):
        part = slice(start, min(start + chunk, a.shape[-3]))
        if part.stop - start < chunk:
            rows = a.new_empty(0)  # a buffer of another size
        rows = torch.matmul(g[..., part, :, :].mT, a[..., part, :, :].unsqueeze(-4), out=rows)
        add_squares(rows, squares, total)
    return squares


def add_squares(rows: Tensor, squares: Tensor, total: Tensor | None) -> None:
    """Add the squares of explicit rows ``(*lead, K, n, d_out, d_in)``, which are used up, and the rows to ``total``."""
    if rows.shape[-4] == rows.shape[-3] == 1:
        row = rows[..., 0, 0, :, :]
        squares.addcmul_(row, row)
        if total is not None:
            total += row
        return
    if total is not None:
        total += rows.sum((-4, -3))
    squares += rows.square_().sum((-4, -3))


def row_matvec(a: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """``<J[k, n], v>`` for a block vector ``v`` of shape ``(*lead, d_out, d_in)``; returns ``(K, N)``."""
    products = (g * (a @ v.transpose(-1, -2).unsqueeze(-3)).unsqueeze(-4)).sum((-1, -2))
    return products.reshape(-1, *products.shape[-2:]).sum(0)


def row_rmatvec(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """``sum_{k,n} c[k, n] J[k, n]`` for ``c`` of shape ``(K, N)``; returns ``(*lead, d_out, d_in)``."""
    weighted = (g * c[..., None, None]).sum(-4).flatten(-3, -2)
    return weighted.transpose(-1, -2) @ a.flatten(-3, -2)


def row_gram(a: Tensor, g: Tensor) -> Tensor:
    """Inner products of the rows, ``(K N, K N)``, summed over the leading dimensions.

    By pairs of positions, ``sum_tu (a_nt . a_mu) (g_nt . g_mu)``, or by explicit rows: whichever takes fewer
    multiply-adds. Either way in pieces of at most :data:`CHUNK_ELEMENTS` numbers, where one example's positions against
    all others, or one output column of all rows, are not more than that.
    """
    return gram_by_pairs(a, g) if gram_costs(a, g)[0] < gram_costs(a, g)[1] else gram_by_rows(a, g)


def gram_costs(a: Tensor, g: Tensor) -> tuple[int, int]:
    """Multiply-adds of :func:`gram_by_pairs` and of :func:`gram_by_rows`."""
    *lead, columns, examples, positions, d_out = g.shape
    blocks, rows, d_in = math.prod(lead), columns * examples, a.shape[-1]
    pairs = (examples * positions) ** 2 * d_in + (rows * positions) ** 2 * (d_out + 1)
    explicit = rows * positions * d_out * d_in + rows**2 * d_out * d_in
    return blocks * pairs, blocks * explicit


def gram_by_pairs(a: Tensor, g: Tensor) -> Tensor:
    """:func:`row_gram` without per-example gradients."""
    columns, examples, positions = g.shape[-4:-1]
    total = a.new_zeros((columns, examples, columns, examples))
    chunk = max(1, chunk_elements(a) // max(1, examples * positions * positions))
    for inputs, outputs in zip(a.reshape(-1, *a.shape[-3:]), g.reshape(-1, *g.shape[-4:]), strict=True):
        flat_inputs, flat_outputs = inputs.flatten(0, 1), outputs.flatten(1, 2)
        for start in range(0, examples, chunk):
            stop = min(start + chunk, examples)
            shape = (stop - start, positions, examples, positions)
            products = inputs[start:stop].flatten(0, 1) @ flat_inputs.T
            for k, left in enumerate(outputs[:, start:stop].flatten(1, 2)):
                for j, right in enumerate(flat_outputs):
                    total[k, start:stop, j] += (left @ right.T).mul_(products).view(shape).sum((1, 3))
    return total.flatten(0, 1).flatten(1)


def gram_by_rows(a: Tensor, g: Tensor) -> Tensor:
    """:func:`row_gram` from per-example gradients, some leading indices or output columns at a time."""
    rows, d_in, d_out = g.shape[-4] * g.shape[-3], a.shape[-1], g.shape[-1]
    total = a.new_zeros((rows, rows))
    a, g = a.reshape(-1, *a.shape[-3:]), g.reshape(-1, *g.shape[-4:])
    blocks = max(1, chunk_elements(a) // max(1, rows * d_out * d_in))
    columns = d_out if blocks > 1 else max(1, chunk_elements(a) // max(1, rows * d_in))
    for inputs, outputs in zip(a.split(blocks), g.split(blocks), strict=True):
        for part in outputs.split(max(1, columns), -1):
            explicit = row_dense(inputs, part).flatten(-2).flatten(-3, -2)  # (blocks, K N, columns d_in)
            explicit = explicit.movedim(-2, 0).flatten(1)
            total.addmm_(explicit, explicit.T)
    return total


class StepOptions(TypedDict):
    """Keyword arguments of every :func:`diagonal_step`; see :func:`vogn.kernels.diagonal_step`."""

    lr: float
    decay: float
    weight: float
    momentum_rate: float
    weight_decay: float
    damping: float
    retract: bool
    prior_in_momentum: bool
    root: bool
    correction: float
    ess: float | None
    clip_radius: float
    seed: int
    offset: int


class DiagonalStep(NamedTuple):
    """What :func:`diagonal_step` computes; ``sample`` is ``None`` without ``ess``, ``finite`` says whether all of it is
    finite where the kernel has looked, ``write`` writes it where that is still to be done, ``clipped`` is the number of
    elements that a finite ``clip_radius`` has cut, on the device of the operands."""

    curvature: Tensor
    momentum: Tensor
    mean: Tensor
    sample: Tensor | None
    finite: bool | None = None
    write: Callable[[], None] | None = None
    clipped: Tensor | None = None


def widen(x: Tensor) -> Tensor:
    """Half precision becomes single precision, in which the kernels compute."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def diagonal_step(
    mean: Tensor,
    curvature: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    evidence: Tensor,
    *,
    lr: float,
    decay: float,
    weight: float,
    momentum_rate: float,
    weight_decay: float,
    damping: float,
    retract: bool,
    prior_in_momentum: bool,
    root: bool,
    correction: float,
    ess: float | None,
    clip_radius: float,
    seed: int,
    offset: int,
) -> DiagonalStep:
    """See :func:`vogn.kernels.diagonal_step`."""
    m, c, average, g, h = (widen(x) for x in (mean, curvature, momentum, gradient, evidence))
    if retract:
        delta = weight * h - (1.0 - decay) * c
        c = c + delta + 0.5 * delta.square() / (c + weight_decay)
        c = c.clamp_min((4.0 * torch.finfo(curvature.dtype).eps - 1.0) * weight_decay)
    else:
        c = decay * c + weight * h
    prior = weight_decay * m
    average = average + momentum_rate * ((g + prior if prior_in_momentum else g) - average)
    metric = (correction * c).clamp_min(0.0).sqrt() if root else correction * c
    update = (average if prior_in_momentum else average + prior) / (metric + (weight_decay + damping))
    clipped = None if math.isinf(clip_radius) else (update.abs() > clip_radius).sum()
    m = m - lr * update.clamp(-clip_radius, clip_radius)
    sample = None
    if ess is not None:
        noise = philox.normal(m.numel(), seed=seed, offset=offset, device=m.device).view(m.shape)
        sample = (m + noise / (ess * (c + weight_decay)).sqrt()).to(mean.dtype)
    new = c.to(curvature.dtype), average.to(momentum.dtype), m.to(mean.dtype)
    return DiagonalStep(*new, sample, clipped=clipped)


class LinearBlock(NamedTuple):
    """One block of :func:`linear_step`.

    Args:
        means: ``m``, the parameters of the block.
        gradients: ``g``, in their shapes.
        momentum: ``u``, a block vector, which holds the numbers of the parameters and nothing else; ``None``:
            ``u' = x``, which is not kept.
        places: where the block vector holds those of each parameter: place of the first; number of rows into which the
            parameter is cut, each of which is in one piece; distance of the first numbers of two rows.
        lr: learning rate.
        momentum_rate: as in :func:`vogn.kernels.diagonal_step`.
        entering, leaving: factors.
    """

    means: Sequence[Tensor]
    gradients: Sequence[Tensor]
    momentum: Tensor | None
    places: Sequence[tuple[int, int, int]]
    lr: float
    momentum_rate: float
    entering: tuple[float, float]
    leaving: tuple[float, float]


class LinearStep(NamedTuple):
    """What :func:`linear_step` computes.

    Args:
        blocks: new parameters of every block, and the new block vector of its momentum.
        finite: whether all of it is, where the kernel has looked.
        write: where there is one, parameters and momenta are the memory in which the result is once that has been
            called.
    """

    blocks: Sequence[tuple[Sequence[Tensor], Tensor | None]]
    finite: bool | None = None
    write: Callable[[], None] | None = None


def linear_step(blocks: Sequence[LinearBlock]) -> LinearStep:
    """A whole step of blocks whose curvature does not enter it, from their parameters as they lie in memory.

    ====================  ================================================================
    momentum ``u'``       ``u + momentum_rate (x - u)``, ``x = entering[0] g + entering[1] m``
    mean ``m'``           ``m - lr (leaving[0] u' + leaving[1] m)``
    ====================  ================================================================
    """
    return LinearStep([_linear_block(block) for block in blocks])


def _linear_block(block: LinearBlock) -> tuple[list[Tensor], Tensor | None]:
    average = None if block.momentum is None else torch.empty_like(block.momentum)
    new = []
    for m, g, (start, rows, stride) in zip(block.means, block.gradients, block.places, strict=True):
        u = block.entering[0] * g + block.entering[1] * m
        if block.momentum is not None and average is not None:
            lines = (rows, m.numel() // rows), (stride, 1), start
            u = block.momentum.as_strided(*lines).reshape(m.shape).lerp(u, block.momentum_rate)
            average.as_strided(*lines).copy_(u.view(lines[0]))
        new.append(m - block.lr * (block.leaving[0] * u + block.leaving[1] * m))
    return new, average


def squared_gradients(g: Tensor, a: Tensor) -> Tensor:
    """See :func:`vogn.kernels.squared_gradients`."""
    return widen(g).square().T @ widen(a).square()


def symmetric_update(c: Tensor | None, a: Tensor, *, decay: float, weight: float, ones: bool) -> Tensor:
    """See :func:`vogn.kernels.symmetric_update`."""
    wide = widen(F.pad(a, (0, 1), value=1.0) if ones else a)
    lower = weight * (wide.mT @ wide)
    lower = (lower if c is None else decay * widen(c) + lower).tril()
    return (lower + lower.tril(-1).mT).to(a.dtype if c is None else c.dtype)


def woodbury_solve(d: Tensor, u: Tensor, v: Tensor, *, wide: bool) -> Tensor:
    """See :func:`vogn.kernels.woodbury_solve`."""
    dtype, (d, u, v) = v.dtype, (x.double() if wide else widen(x) for x in (d, u, v))
    scaled = u / d.unsqueeze(-1)
    inner = u.mT @ scaled + torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    y = torch.linalg.solve(inner, scaled.mT @ v.mT)
    return ((v - (u @ y).mT) / d.unsqueeze(-2)).to(dtype)


def eigenbasis_solve(g: Tensor, q_s: Tensor, q_a: Tensor, eigenvalues: Tensor, *, shift: float) -> Tensor:
    """See :func:`vogn.kernels.eigenbasis_solve`."""
    left, right = widen(q_s), widen(q_a)
    middle = (left.mT @ widen(g) @ right) / (widen(eigenvalues) + shift)
    return (left @ middle @ right.mT).to(g.dtype)


NEWTON_STEPS = 60
"""Most iterations of :func:`inverse_root`; each brings small eigenvalues nearer to 1 by a factor above 2."""
NEAR = 0.1
"""Below this error the iteration converges quadratically, and ends once the error no longer halves."""


def inverse_root(a: Tensor, root: int) -> tuple[Tensor, Tensor]:
    """See :func:`vogn.kernels.inverse_root`."""
    wide = widen(a)
    if not wide.numel():
        return a.clone(), wide.new_zeros(a.shape[:-2])
    eye = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
    largest = wide.abs().amax((-1, -2), keepdim=True)
    z = (1.0 + root) / (2.0 * largest * torch.linalg.matrix_norm(wide / largest, keepdim=True))
    m, x = z * wide, z.pow(1.0 / root) * eye
    error = (m - eye).abs().amax((-1, -2), keepdim=True)
    previous = error + 1.0
    for _ in range(NEWTON_STEPS):
        going = (error > 4.0 * torch.finfo(wide.dtype).eps) & ((error < 0.5 * previous) | (previous >= NEAR))
        if not bool(going.any()):
            break
        t = ((root + 1.0) * eye - m) / root
        m = torch.where(going, torch.linalg.matrix_power(t, root) @ m, m)
        x = torch.where(going, x @ t, x)
        previous = torch.where(going, error, previous)
        error = (m - eye).abs().amax((-1, -2), keepdim=True)
    return (0.5 * (x + x.mT)).to(a.dtype), error[..., 0, 0]


def patch_factor(
    x: Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    out_size: tuple[int, int],
    ones: bool,
) -> Tensor:
    """See :func:`vogn.kernels.patch_factor`; patches of some images at a time."""
    x = widen(x)
    features, positions = x.shape[1] * kernel_size[0] * kernel_size[1], out_size[0] * out_size[1]
    total = x.new_zeros((features + ones, features + ones))
    if not positions or not features:
        if ones:
            total[-1, -1] = len(x) * positions
        return total
    for images in x.split(max(1, chunk_elements(x) // (features * positions))):
        patches = F.unfold(images, kernel_size, dilation, padding, stride).transpose(0, 1).flatten(1)
        rows = F.pad(patches, (0, 0, 0, 1), value=1.0) if ones else patches
        total.addmm_(rows, rows.T)
    return total
