"""Counter-based randomness: every draw is a pure function of its coordinates.

Nothing here touches the global random state, so checkpoints store counters instead of generator states, and switching
between the two modes does not shift any other stream.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vogn.kernels import native
from vogn.kernels.dispatch import fitting
from vogn.types import Shape

SEEDS = (1 << 63) - 1
"""Largest seed of PyTorch's generators that is used."""
SINGLE = torch.float32


class _Generators(threading.local):
    """One generator of this thread on every device: making one takes longer than drawing a few numbers."""

    def __init__(self) -> None:
        self._made: dict[torch.device, torch.Generator] = {}

    def seeded(self, device: torch.device, seed: int) -> torch.Generator:
        """It draws what a fresh one draws, until it is asked for again."""
        made = self._made.get(device)
        if made is None:
            made = self._made[device] = torch.Generator(device=device)
        return made.manual_seed(seed)


_generators = _Generators()


def generator(
    *, seed: int, stream: str, step: int, sample: int, name: str = "", rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one draw.

    Args:
        seed: the user's seed.
        stream: what is drawn (``"weights"``, ``"labels"``, ``"probes"`` ...); streams are independent.
        step: optimizer step, >= 0.
        sample: index of the weight sample within the step, >= 0.
        name: block name.
        rank: process rank if the processes draw independently.
        device: where the generator lives.
    """
    return torch.Generator(device=device).manual_seed(key(seed, stream, step, sample, name, rank) & SEEDS)


def key(seed: int, stream: str, step: int, sample: int, name: str, rank: int) -> int:
    """64 bits for the coordinates of a draw."""
    text = f"{seed}|{stream}|{step}|{sample}|{name}|{rank}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def normal(
    shape: Shape,
    *,
    seed: int,
    stream: str,
    step: int,
    sample: int,
    name: str = "",
    rank: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of the given shape; see :func:`generator` for the coordinates."""
    room = torch.empty(shape, dtype=dtype, device=device)
    fill_normal(room, seed=seed, stream=stream, step=step, sample=sample, name=name, rank=rank)
    return room


def fill_normal(room: Tensor, *, seed: int, stream: str, step: int, sample: int, name: str = "", rank: int = 0) -> None:
    """Write the numbers of :func:`normal` into a contiguous tensor; see :func:`fill_normals`."""
    fill_normals(room, [room.numel()], [key(seed, stream, step, sample, name, rank)])


def fill_normals(room: Tensor, sizes: Sequence[int], keys: Sequence[int]) -> None:
    """Write standard normal numbers into the parts of a contiguous tensor.

    The numbers of a part are a function of its key, the same alone and together with others. In single precision they
    are those of the code in C on the CPU, where a compiler was found, and those of Triton's kernel on CUDA, where
    triton is installed: the same ones, which half precision on CUDA rounds. Elsewhere, and under
    ``VOGN_KERNELS=reference``, PyTorch's generator draws. A run is repeated exactly where :func:`source` is the same.

    Args:
        room: of ``sum(sizes)`` numbers.
        sizes: of the parts, which lie one after the other.
        keys: of the parts, see :func:`key`.

    Raises:
        ValueError: if the sizes do not add up, or ``VOGN_KERNELS`` has an unknown value.
        MissingExtraError: if that forces Triton, which is not installed.
    """
    if sum(sizes) != room.numel():
        raise ValueError(f"parts of {sum(sizes)} numbers do not fill a tensor of {room.numel()}")
    flat = room.view(-1)
    kernel = fitting("fill_normal", flat)
    if kernel is None and native.takes(flat) and native.available():
        kernel = native.fill_normals
    if kernel is not None:
        kernel(flat, sizes, keys)
        return
    for part, seed in zip(flat.split(list(sizes)), keys, strict=True):
        torch.randn(part.shape, generator=_generators.seeded(room.device, seed & SEEDS), out=part)


def source(devices: Iterable[torch.device]) -> int:
    """A number for what draws single precision: 1 if there is code in C for the CPU, plus 2 if it is Triton's kernel on
    any of the devices."""
    rooms = (torch.empty(0, dtype=SINGLE, device=device) for device in devices)
    return native.available() + 2 * any(fitting("fill_normal", room) is not None for room in rooms)
