"""Standard augmentation of image tensors, deterministic in (seed, epoch, batch)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_AUGMENTATION_STREAM = 0xA06E
_SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Augmentation:
    """Random shifts (crops of an edge-padded image) and horizontal flips.

    Args:
        shift: largest shift in pixels, in each direction; 0 for none.
        flip: whether to mirror every image left to right with probability one half.
        factor: how many times larger the training set effectively becomes, the default augmentation factor of the
            effective sample size.
            Source: Osawa et al. 2019, section 3 (10 for crops and flips on CIFAR-10).
    """

    shift: int
    flip: bool
    factor: float

    def __call__(self, x: Tensor, *, seed: int, epoch: int, batch: int) -> Tensor:
        """Augment images ``(B, C, H, W)``; the same arguments give the same result."""
        generator = np.random.default_rng([_AUGMENTATION_STREAM, seed, epoch, batch])
        count, _, height, width = x.shape
        offsets = torch.from_numpy(generator.integers(-self.shift, self.shift + 1, size=(2, count))).to(x.device)
        mirrored = torch.from_numpy(generator.random(count) < (0.5 if self.flip else 0.0)).to(x.device)
        columns = torch.arange(width, device=x.device).expand(count, width)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
        rows = (torch.arange(height, device=x.device) + offsets[0, :, None]).clamp(0, height - 1)
        columns = (columns + offsets[1, :, None]).clamp(0, width - 1)
        examples = torch.arange(count, device=x.device)[:, None, None]
        return x.permute(0, 2, 3, 1)[examples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def standard_augmentation(input_shape: tuple[int, ...]) -> Augmentation | None:
    """What is customary for inputs of this shape.

    Args:
        input_shape: shape of one example: ``(C, H, W)`` for images, ``(F,)`` for feature vectors.

    Returns:
        For colour images shifts of up to an eighth of the side and flips; for grey images (digits, letters: a mirrored
        letter is another letter) shifts only; ``None`` for feature vectors and for images below 16 pixels.
    """
    if len(input_shape) != 3 or min(input_shape[1:]) < _SMALLEST_SIDE:
        return None
    shift = max(1, min(input_shape[1:]) // 8)
    colour = input_shape[0] >= 3
    return Augmentation(shift=shift, flip=colour, factor=10.0 if colour else 5.0)
