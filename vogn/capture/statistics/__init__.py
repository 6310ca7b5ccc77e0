"""Statistics: what is measured about the curvature. One file each, one line in :data:`REGISTRY`."""

from __future__ import annotations

from vogn.capture.statistics.base import Statistic
from vogn.capture.statistics.empirical import Empirical
from vogn.capture.statistics.ggn import GGN
from vogn.capture.statistics.gradient import Gradient
from vogn.capture.statistics.hutchinson import Hutchinson
from vogn.capture.statistics.inputs import Inputs
from vogn.capture.statistics.monte_carlo import MonteCarlo
from vogn.capture.statistics.price import Price

REGISTRY: dict[str, type[Statistic]] = {
    "empirical": Empirical,
    "mc": MonteCarlo,
    "ggn": GGN,
    "gradient": Gradient,
    "hutchinson": Hutchinson,
    "price": Price,
    "inputs": Inputs,
}


def make_statistic(statistic: str | Statistic) -> Statistic:
    """The statistic of that name, or the instance itself.

    Raises:
        ValueError: if the name is unknown.
    """
    if isinstance(statistic, Statistic):
        return statistic
    if statistic not in REGISTRY:
        raise ValueError(f"unknown statistic {statistic!r}; choose one of {', '.join(REGISTRY)}, or pass an instance")
    return REGISTRY[statistic]()


__all__ = [
    "GGN",
    "REGISTRY",
    "Empirical",
    "Gradient",
    "Hutchinson",
    "Inputs",
    "MonteCarlo",
    "Price",
    "Statistic",
    "make_statistic",
]
