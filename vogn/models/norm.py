"""The normalisation layers that the models choose from by name."""

from __future__ import annotations

from torch import nn

from vogn.models.frn import FilterResponseNorm2d


def group_count(channels: int) -> int:
    """Groups of a group norm: the largest divisor of ``channels`` up to 32 that leaves 4 or more channels per group."""
    return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 4))


def make_norm(norm: str, channels: int, *, relu: bool) -> nn.Module:
    """A normalisation layer, with the ReLU (for ``"frn"``: the threshold) that follows it if ``relu``.

    Args:
        norm: ``"batch"``, ``"group"`` (see :func:`group_count`) or ``"frn"``.
        channels: number of channels, >= 1.
        relu: whether the activation is included.

    Raises:
        ValueError: if the name is unknown.
    """
    if norm == "frn":
        return FilterResponseNorm2d(channels, threshold=relu)
    if norm == "batch":
        layer: nn.Module = nn.BatchNorm2d(channels)
    elif norm == "group":
        layer = nn.GroupNorm(group_count(channels), channels)
    else:
        raise ValueError(f"norm={norm!r}; known norms: batch, group, frn")
    return nn.Sequential(layer, nn.ReLU()) if relu else layer
