"""What the estimators use for a method where they are told nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vogn.optim import METHODS

NARROW: dict[str, Any] = {"initial_curvature": 1.0, "curvature_decay": 0.999}
"""The posterior begins narrow and widens in the first half of a run."""

_KRONECKER: dict[str, Any] = {"lr": 0.3, "damping": 0.01, "kl_clip": None, "refresh_every": 10}

RECIPES: dict[str, dict[str, Any]] = {
    "vogn": {"lr": 0.1, "damping": 0.01, "fisher": "mc"},
    "von": {"lr": 0.1, "damping": 0.01},
    "kfac": _KRONECKER,
    "ekfac": _KRONECKER,
    "ivon": {"lr": 0.1},
}
"""Method to keyword arguments; methods that are not listed use their own defaults."""

NARROW_METHODS = frozenset({"vogn", "von", "kfac", "ekfac", "ivon"})
"""Methods whose variational runs begin narrow."""


def check_method(method: str, variational: bool) -> None:
    """Raise unless the method exists and runs in this mode.

    Raises:
        ValueError: naming what is allowed.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; allowed are {', '.join(METHODS)}")
    mode = "variational" if variational else "deterministic"
    if mode not in METHODS[method].modes:
        raise ValueError(f"method={method!r} does not run with variational={variational}")


def recipe(method: str, variational: bool, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the method's optimizer, those that are given in place of the recipe's."""
    chosen = dict(RECIPES.get(method, {}))
    if method in NARROW_METHODS:
        chosen |= NARROW if variational else {"lr": 0.03}
    return chosen | dict(given)
