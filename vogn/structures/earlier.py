"""Curvature of earlier data in a state: it comes to everything that is observed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from vogn.types import State


def with_earlier(evidence: Tensor, state: State, key: str) -> Tensor:
    """The evidence plus what the state holds of earlier data under this key; the evidence itself if there is none."""
    return evidence + state[key] if key in state else evidence


def kept(state: State, keys: Iterable[str]) -> State:
    """The tensors of earlier data in a state."""
    return {key: state[key] for key in keys if key in state}
