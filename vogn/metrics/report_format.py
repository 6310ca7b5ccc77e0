"""What the reports of all kinds share: figures with intervals, as text and as plain values."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vogn.metrics.bootstrap import BootstrapInterval


def figures_as_text(title: str, figures: Mapping[str, float], intervals: Mapping[str, list[float]]) -> str:
    """A title and a line for each figure, with its interval if it has one."""
    width = max(map(len, figures))
    lines = [title]
    for name, value in figures.items():
        ends = "  [{:.4g}, {:.4g}]".format(*intervals[name]) if name in intervals else ""
        lines.append(f"  {name:{width}s}  {value:.4g}{ends}")
    return "\n".join(lines)


def plain_intervals(names: list[str], found: BootstrapInterval) -> dict[str, list[float]]:
    """Name to ``[low, high]``, of an interval for several figures at once."""
    return {name: [float(a), float(b)] for name, a, b in zip(names, found.low, found.high, strict=True)}


def check_replicates(bootstrap: int) -> None:
    """Raise ValueError unless it is 0 or a number of replicates."""
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap={bootstrap}; give 0 for no intervals, or a number of replicates such as 1000")


def device_free(tensor: Tensor) -> Tensor:
    """In float64 on the CPU, where batches of any device and precision add up."""
    return tensor.detach().cpu().double()
