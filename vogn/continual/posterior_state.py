"""A Gaussian posterior as tensors and text, for checkpoints that hold more than it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vogn.posterior import GaussianPosterior


def posterior_state(posterior: GaussianPosterior) -> dict[str, Any]:
    """``{"description": JSON text, "tensors": {name: tensor}}``."""
    description, tensors = posterior.content()
    return {"description": json.dumps(description), "tensors": dict(tensors)}


def posterior_from_state(state: Mapping[str, Any]) -> GaussianPosterior:
    """The posterior of :func:`posterior_state`."""
    return GaussianPosterior.from_content(json.loads(state["description"]), state["tensors"])
