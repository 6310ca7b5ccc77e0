"""Images that get worse by degrees: noise, blur, contrast, rotation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.data.errors import DataError

SEVERITIES = (1, 2, 3, 4, 5)
_NOISE = (0.05, 0.10, 0.15, 0.20, 0.30)
_BLUR = (0.4, 0.6, 0.8, 1.0, 1.5)
_CONTRAST = (0.75, 0.50, 0.40, 0.30, 0.15)
_ROTATION = (10.0, 20.0, 30.0, 45.0, 60.0)


def _gaussian_noise(x: Tensor, strength: float, seed: int) -> Tensor:
    """Independent noise of that standard deviation on every value."""
    generator = torch.Generator().manual_seed(seed)
    return x + strength * torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)


def _blur(x: Tensor, strength: float, seed: int) -> Tensor:
    """Gaussian blur of that standard deviation in pixels, borders repeated."""
    radius = math.ceil(3 * strength)
    offsets = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (offsets / strength).square())
    kernel = kernel / kernel.sum()
    channels = x.shape[1]
    padded = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    across = F.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(-1, 1).expand(channels, 1, -1, 1), groups=channels)


def _contrast(x: Tensor, strength: float, seed: int) -> Tensor:
    """Deviations from the mean of each image and channel, times the strength."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + strength * (x - mean)


def _rotation(x: Tensor, strength: float, seed: int) -> Tensor:
    """Counter-clockwise turn about the centre by that many degrees, borders repeated."""
    angle = math.radians(strength)
    height, width = x.shape[2:]
    # coordinates run from -1 to 1 whatever the side, so a turn in pixels needs their ratio
    rows = [
        [math.cos(angle), -math.sin(angle) * height / width, 0.0],
        [math.sin(angle) * width / height, math.cos(angle), 0.0],
    ]
    turn = torch.tensor(rows, dtype=x.dtype, device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: Mapping[str, tuple[Callable[[Tensor, float, int], Tensor], tuple[float, ...]]] = {
    "blur": (_blur, _BLUR),
    "contrast": (_contrast, _CONTRAST),
    "gaussian_noise": (_gaussian_noise, _NOISE),
    "rotation": (_rotation, _ROTATION),
}
"""Name to function and strengths at severities 1 to 5."""


def corrupt(
    x: Tensor,
    corruption: str,
    severity: int,
    *,
    seed: int = 0,
    value_range: tuple[float, float] = (0.0, 1.0),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Tensor:
    """Corrupted copies of images; severity 0 returns them as they are.

    Strengths at severities 1 to 5, for values in [0, 1]: ``"gaussian_noise"``: standard deviation 0.05, 0.1, 0.15, 0.2,
    0.3. ``"blur"``: standard deviation 0.4, 0.6, 0.8, 1, 1.5 pixels. ``"contrast"``: deviations from the image's mean
    times 0.75, 0.5, 0.4, 0.3, 0.15. ``"rotation"``: by 10, 20, 30, 45, 60 degrees counter-clockwise. Results are
    clipped to the range of values. Kinds and severities follow Hendrycks and Dietterich; the numbers are chosen for
    images of 8 to 32 pixels and are not theirs.

    Args:
        x: images ``(N, C, H, W)``, either raw, with values in ``value_range``, or standardised as
            ``(raw - mean) / std`` per channel; then ``mean`` and ``std`` say how, and the result is standardised too.
        corruption: a name of the above.
        severity: 0 to 5.
        seed: the noise is a function of it and of the shape of ``x``, whatever the device: corrupt all images in one
            call, since two batches of one seed have the same noise.
        value_range: smallest and largest raw value, (0, 1) for ``eight_bit`` images of :func:`vogn.data.load_data`,
            (0, 16) for its digits.
        mean, std: one per channel, in raw units, for example of ``data.preprocessing``; ``None`` for raw images.

    Raises:
        DataError: for an unknown name or severity, images of another shape or type, a mean without a standard
            deviation, or raw values outside the range.

    Example:
        >>> from vogn.data import corrupt, load_data
        >>> data = load_data("digits")
        >>> how = dict(value_range=(0, 16), mean=data.preprocessing.mean, std=data.preprocessing.std)
        >>> corrupt(data.test.x, "blur", 3, **how).shape == data.test.x.shape
        True

    Source: Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and
    perturbations", for the idea.
    """
    if corruption not in CORRUPTIONS:
        raise DataError(f"unknown corruption {corruption!r}; known corruptions: {', '.join(sorted(CORRUPTIONS))}")
    if severity not in (0, *SEVERITIES):
        raise DataError(f"severity={severity} must be a whole number from 0 (as they are) to 5")
    if x.ndim != 4 or not x.is_floating_point() or 0 in x.shape:
        raise DataError(f"images are {x.dtype} {tuple(x.shape)}; floating-point numbers (N, C, H, W) are needed")
    if severity == 0:
        return x.clone()
    low, high = value_range
    if not low < high:
        raise DataError(f"value_range={value_range}; the smallest value first, then the largest")
    shift, scale = _standardisation(x, mean, std)
    unit = (x * scale + shift - low) / (high - low)
    if not bool(((unit >= -0.01) & (unit <= 1.01)).all()):
        raw = unit * (high - low) + low
        raise DataError(
            f"raw values run from {float(raw.min()):g} to {float(raw.max()):g}, outside value_range={value_range}; of "
            "standardised images give mean= and std= too"
        )
    function, strengths = CORRUPTIONS[corruption]
    worse = function(unit, strengths[severity - 1], seed).clamp(0.0, 1.0)
    return (worse * (high - low) + low - shift) / scale


def _standardisation(x: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of raw values, ``(C, 1, 1)``."""
    if (mean is None) != (std is None):
        raise DataError("mean and std belong together: give both for standardised images, or neither for raw ones")
    channels = x.shape[1]
    values = []
    for name, given in (("mean", mean), ("std", std)):
        numbers = [0.0 if name == "mean" else 1.0] * channels if given is None else [float(value) for value in given]
        if len(numbers) != channels:
            raise DataError(f"{name} has {len(numbers)} values but the images have {channels} channels")
        values.append(torch.tensor(numbers, dtype=x.dtype, device=x.device).view(-1, 1, 1))
    if not bool((values[1] > 0).all()):
        raise DataError("std must be positive")
    return values[0], values[1]
