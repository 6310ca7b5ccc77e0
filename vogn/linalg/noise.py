"""Counter-based randomness: every draw is a pure function of its coordinates.

Nothing here touches the global random state, so checkpoints store counters instead of generator states, and switching
between the two modes does not shift any other stream.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from vogn.kernels import native
from vogn.types import Shape


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
    return torch.Generator(device=device).manual_seed(key(seed, stream, step, sample, name, rank) & ((1 << 63) - 1))


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
    """Write the numbers of :func:`normal` into a contiguous tensor.

    In single precision on the CPU they are those of :func:`vogn.kernels.native.fill_normal` where a compiler was found;
    elsewhere those of PyTorch's generator. A run is repeated exactly where both times or neither time there is a
    compiler.
    """
    if native.takes(room) and native.available():
        native.fill_normal(room, seed=key(seed, stream, step, sample, name, rank))
        return
    source = generator(seed=seed, stream=stream, step=step, sample=sample, name=name, rank=rank, device=room.device)
    torch.randn(room.shape, generator=source, out=room)
