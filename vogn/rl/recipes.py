"""Options of the natural-gradient methods that suit regression of rewards and values on small networks."""

from __future__ import annotations

from typing import Any

from vogn.optim.kfac import clipped_chain
from vogn.optim.methods import METHODS

RECIPES: dict[str, dict[str, Any]] = {
    "vogn": {"lr": 0.03, "damping": 0.1, "fisher": "ggn", "curvature_decay": 0.98, "steps": clipped_chain(0.1)},
    "kfac": {"lr": 0.1, "fisher": "ggn", "curvature_decay": 0.98, "refresh_every": 5},
    "ekfac": {"lr": 0.1, "fisher": "ggn", "curvature_decay": 0.98, "refresh_every": 5},
    "slang": {"lr": 0.03, "damping": 0.1, "curvature_decay": 0.98, "steps": clipped_chain(0.1)},
    "vadam": {"lr": 3e-3},
}
"""Method to options. The exact Gauss-Newton matrix is used where a method has the choice: the empirical Fisher matrix
falls to zero together with the errors, and a posterior of rewards without noise would never get narrow."""


def recipe_of(method: str) -> dict[str, Any]:
    """Options of a method, for those that have some here.

    Raises:
        ValueError: for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown; choose one of {', '.join(METHODS)}")
    return dict(RECIPES.get(method, {}))
