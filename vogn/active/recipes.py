"""Settings of methods with which small networks learn from few labels."""

from __future__ import annotations

from typing import Any

RECIPES: dict[str, dict[str, Any]] = {
    "kfac": {
        "lr": 0.03,
        "damping": 0.01,
        "kl_clip": None,
        "refresh_every": 10,
        "initial_curvature": 1.0,
        "curvature_decay": 0.99,
    },
    "vogn": {"lr": 0.03, "damping": 0.01, "fisher": "mc", "initial_curvature": 1.0, "curvature_decay": 0.99},
    "ivon": {"lr": 0.1, "initial_curvature": 1.0, "curvature_decay": 0.999},
}
"""Method to keyword arguments, found on the validation part of scikit-learn's digits with one seed and random queries;
methods that are not listed use their own defaults."""
