"""Small operands for every kernel that exists twice, and how far the two may be apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Make = Callable[[torch.dtype, torch.device], tuple[tuple[Tensor, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Case:
    """Operands of one call.

    Args:
        op: the operation.
        make: its tensors and options for a dtype and a device.
        tolerance: on the results in float32, relative to the largest element; the products of one call are summed in
            another order, so this is a few rounding errors, more where the operation itself amplifies them.
        written: how many of the first tensors the operation writes over, instead of only reading them.
    """

    op: str
    make: Make
    tolerance: float = 2e-6
    written: int = 0


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diagonal(shape: tuple[int, ...], *, strided: bool = False, **options: Any) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        tensors = [normal(*shape, seed=seed) for seed in range(5)]
        tensors[1] = tensors[1].square() + 0.1
        tensors = [x.to(device, dtype) for x in tensors]
        if strided:
            tensors = [x.mT.contiguous().mT for x in tensors]
        common = {"lr": 0.1, "decay": 0.9, "weight": 0.1, "momentum_rate": 0.3, "weight_decay": 0.01, "damping": 0.02}
        more = {"ess": 100.0, "retract": True, "clip_radius": float("inf"), "seed": 3, "offset": 5}
        adam = {"prior_in_momentum": False, "root": False, "correction": 1.0}
        return tuple(tensors), common | more | adam | options

    return Case("diagonal_step", make, 1e-5)  # logarithm, cosine and root differ by a few units in the last place


def squares(n: int, d_out: int, d_in: int, *, strided: bool = False) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        g, a = normal(n, d_out, seed=0).to(device, dtype), normal(n, d_in, seed=1).to(device, dtype)
        return ((g.T.contiguous().T, a.repeat(1, 2)[:, ::2] if d_in > 1 else a) if strided else (g, a)), {}

    return Case("squared_gradients", make)


def update(
    batch: tuple[int, ...], n: int, size: int, *, ones: bool = False, strided: bool = False, old: bool = True
) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        root = normal(*batch, size, size, seed=0)
        c, a = (root @ root.mT).to(device, dtype), normal(*batch, n, size - ones, seed=1).to(device, dtype)
        if strided:
            c, a = c.mT, a.mT.contiguous().mT
        return (c if old else None, a), {"decay": 0.95, "weight": 0.3, "ones": ones}

    return Case("symmetric_update", make)


def woodbury(batch: tuple[int, ...], size: int, rank: int, vectors: int, *, wide: bool, strided: bool = False) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        d, u = normal(*batch, size, seed=0).square() + 0.5, normal(*batch, size, rank, seed=1)
        v = normal(*batch, vectors, size, seed=2)
        d, u, v = (x.to(device, dtype) for x in (d, u, v))
        return ((d, u.mT.contiguous().mT, v.mT.contiguous().mT) if strided else (d, u, v)), {"wide": wide}

    return Case("woodbury_solve", make, 2e-6 if wide else 1e-4)


def eigenbasis(batch: tuple[int, ...], d_out: int, d_in: int, *, strided: bool = False) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        g, values = normal(*batch, d_out, d_in, seed=0), normal(*batch, d_out, d_in, seed=1).square()
        q_s = torch.linalg.qr(normal(*batch, d_out, d_out, seed=2)).Q
        q_a = torch.linalg.qr(normal(*batch, d_in, d_in, seed=3)).Q
        tensors = [x.to(device, dtype) for x in (g, q_s, q_a, values)]
        if strided:
            tensors = [x.mT.contiguous().mT for x in tensors]
        return tuple(tensors), {"shift": 0.3}

    return Case("eigenbasis_solve", make, 5e-6)


def root(batch: tuple[int, ...], size: int, p: int, *, strided: bool = False) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        wide = normal(*batch, size, 2 * size + 1, seed=0)
        a = (wide @ wide.mT / (2 * size + 1) + 0.05 * torch.eye(size)).to(device, dtype)
        return ((a.repeat(*[1] * len(batch), 2, 2)[..., ::2, ::2] if strided and size % 2 else a),), {"root": p}

    return Case("inverse_root", make, 2e-5)  # rounding errors times the condition number, below 100


def patches(
    shape: tuple[int, int, int, int],
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    ones: bool = False,
    strided: bool = False,
) -> Case:
    out_size = tuple(
        (shape[2 + k] + 2 * padding[k] - dilation[k] * (kernel_size[k] - 1) - 1) // stride[k] + 1 for k in (0, 1)
    )
    options = {"kernel_size": kernel_size, "stride": stride, "padding": padding, "dilation": dilation}

    def make(dtype: torch.dtype, device: torch.device) -> Any:
        x = normal(*shape, seed=0).to(device, dtype)
        x = x.contiguous(memory_format=torch.channels_last) if strided else x
        return (x,), {**options, "out_size": out_size, "ones": ones}

    return Case("patch_factor", make)


def streams(*sizes: int, seeds: Sequence[int] = ()) -> Case:
    def make(dtype: torch.dtype, device: torch.device) -> Any:
        out = torch.full((sum(sizes),), torch.nan, dtype=dtype, device=device)
        own = seeds or [7919 * (k + 1) for k in range(len(sizes))]
        return (out,), {"sizes": sizes, "seeds": own}

    return Case("fill_normal", make, 0.0, written=1)  # the same operations in the same order


CASES = {
    "diagonal step, retracted": diagonal((3, 7)),
    "diagonal step, more than one block": diagonal((1500,)),
    "diagonal step, blended and clipped": diagonal((33,), retract=False, clip_radius=0.2, weight_decay=8.0),
    "diagonal step, clipped in more than one block": diagonal((2100,), ess=None, clip_radius=0.5),
    "diagonal step, all clipped": diagonal((1030,), ess=None, clip_radius=1e-6),
    "diagonal step, none clipped": diagonal((35,), clip_radius=1e6),
    "diagonal step, empty with a clip": diagonal((0, 3), clip_radius=0.1),
    "diagonal step, as in Adam": diagonal(
        (4, 9), retract=False, prior_in_momentum=True, root=True, correction=2.5, weight_decay=0.4
    ),
    "diagonal step, debiased without a root": diagonal((19,), correction=1.7),
    "diagonal step, no sample": diagonal((2, 5), ess=None),
    "diagonal step, long seed and offset": diagonal((17,), seed=(1 << 62) + 12345, offset=(1 << 40) + 7),
    "diagonal step, offset across 32 bits": diagonal((17,), offset=(1 << 32) - 9),
    "diagonal step, strided": diagonal((5, 9), strided=True),
    "diagonal step, empty": diagonal((0, 3)),
    "squared gradients": squares(70, 35, 33),
    "squared gradients, one of each": squares(1, 1, 1),
    "squared gradients, strided": squares(5, 3, 40, strided=True),
    "squared gradients, no example": squares(0, 3, 2),
    "squared gradients, no output": squares(4, 0, 2),
    "symmetric update": update((), 37, 35),
    "symmetric update, three tiles a side": update((), 5, 70),
    "symmetric update, batch and ones": update((2,), 9, 17, ones=True),
    "symmetric update, only ones": update((), 9, 1, ones=True),
    "symmetric update, strided": update((2,), 9, 40, strided=True),
    "symmetric update, of nothing": update((2,), 9, 40, old=False, strided=True),
    "symmetric update, of nothing, ones": update((), 9, 17, old=False, ones=True),
    "symmetric update, no row": update((2,), 0, 3),
    "symmetric update, no matrix": update((0,), 4, 3),
    "woodbury": woodbury((), 300, 5, 2, wide=True),
    "woodbury, full rank of registers": woodbury((), 40, 32, 1, wide=True),
    "woodbury, one column": woodbury((), 7, 1, 1, wide=True),
    "woodbury, batch": woodbury((2,), 17, 3, 3, wide=True),
    "woodbury, more vectors than one launch": woodbury((), 9, 2, 17, wide=True),
    "woodbury, single precision": woodbury((2,), 200, 6, 2, wide=False),
    "woodbury, strided": woodbury((2,), 19, 3, 2, wide=True, strided=True),
    "woodbury, no vector": woodbury((), 4, 2, 0, wide=True),
    "woodbury, nothing": woodbury((2,), 0, 2, 1, wide=True),
    "eigenbasis": eigenbasis((), 35, 40),
    "eigenbasis, batch": eigenbasis((2,), 3, 5),
    "eigenbasis, strided": eigenbasis((2,), 7, 33, strided=True),
    "eigenbasis, one of each": eigenbasis((), 1, 1),
    "eigenbasis, empty": eigenbasis((2,), 0, 3),
    "inverse root, square": root((3,), 5, 2),
    "inverse root, fourth": root((2,), 16, 4),
    "inverse root, odd size": root((), 31, 4),
    "inverse root, one number": root((4,), 1, 2),
    "inverse root, strided": root((2,), 7, 2, strided=True),
    "inverse root, no matrix": root((0,), 3, 2),
    "inverse root, empty matrix": root((2,), 0, 4),
    "patch factor": patches((2, 2, 6, 5), (3, 3), padding=(1, 1)),
    "patch factor, every option": patches(
        (3, 2, 9, 11), (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 3), ones=True
    ),
    "patch factor, several tiles and parts": patches((2, 4, 10, 9), (3, 3), padding=(1, 1), ones=True),
    "patch factor, strided": patches((2, 3, 5, 4), (2, 2), strided=True),
    "patch factor, one by one": patches((2, 3, 2, 2), (1, 1), stride=(2, 2), ones=True),
    "patch factor, no image": patches((0, 2, 4, 4), (3, 3), ones=True),
    "normal numbers": streams(1000, 3, 64),
    "normal numbers, one stream": streams(1000, seeds=[(1 << 63) + 12345]),
    "normal numbers, one number": streams(1, seeds=[(1 << 64) - 1]),
    "normal numbers, one of each": streams(*17 * [1]),
    "normal numbers, longer than a program": streams(1023, 1025, 2500, 1024, seeds=[1, 1 << 40, (1 << 64) - 1, 3]),
    "normal numbers, many streams": streams(*range(1, 80, 3), seeds=[(k << 57) + k for k in range(27)]),
    "normal numbers, some empty": streams(0, 5, 0, 300, 0),
    "normal numbers, none": streams(0),
    "normal numbers, no stream": streams(),
}


def results(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for x in found if x is not None]


def assert_same(found: Any, expected: Any, tolerance: float) -> None:
    """Shapes and dtypes are equal, elements up to the tolerance and one rounding of the dtype that is stored."""
    found, expected = results(found), results(expected)
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
        if not y.numel():
            continue
        if not y.is_floating_point():
            assert torch.equal(x, y)  # a count
            continue
        stored = 0.0 if y.dtype == torch.float32 else torch.finfo(y.dtype).eps
        scale = max(1.0, float(y.float().abs().max()))
        torch.testing.assert_close(x, y, rtol=tolerance + stored, atol=tolerance * scale + stored * 1e-2)
