"""A posterior as tensors and text, for checkpoints that hold more than it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vogn.posterior.files import SavedPosterior
from vogn.posterior.loading import KINDS


def posterior_state(posterior: Any) -> dict[str, Any]:
    """``{"format": kind, "description": JSON text, "tensors": {name: tensor}}``.

    Args:
        posterior: one that can be saved.

    Raises:
        TypeError: if it cannot.
    """
    if not isinstance(posterior, SavedPosterior) or type(posterior).FORMAT not in KINDS:
        raise TypeError(
            f"a {type(posterior).__name__} cannot be written into a checkpoint; the posteriors of vogn.posterior can"
        )
    description, tensors = posterior.content()
    return {"format": type(posterior).FORMAT, "description": json.dumps(description), "tensors": dict(tensors)}


def posterior_from_state(state: Mapping[str, Any]) -> SavedPosterior:
    """The posterior of :func:`posterior_state`."""
    return KINDS[state["format"]].from_content(json.loads(state["description"]), state["tensors"])
