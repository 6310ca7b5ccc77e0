"""How a likelihood tells whoever listens that it has been evaluated.

Likelihoods announce, capture listens; neither imports the other, so imports only go down the floors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakMethod

from torch import Tensor


@dataclass(frozen=True)
class LikelihoodCall:
    """One evaluation of a likelihood.

    Args:
        likelihood: the likelihood object (see :mod:`vogn.likelihoods`).
        outputs: network outputs, attached to the graph.
        targets: the labels.
        weight: factor on the loss: a number, or one value per loss term.
        mask: boolean, one value per loss term; ``False`` terms do not count. ``None`` counts all.
        count: number of loss terms that the mean was taken over.
    """

    likelihood: Any
    outputs: Tensor
    targets: Tensor | None
    weight: float | Tensor
    mask: Tensor | None
    count: int


Listener = Callable[[LikelihoodCall], None]

_listeners: ContextVar[tuple[Callable[[], Listener | None], ...]] = ContextVar("vogn_likelihood_listeners", default=())


def announce(call: LikelihoodCall) -> None:
    """Tell every listener about ``call``."""
    for reference in _listeners.get():
        listener = reference()
        if listener is not None:
            listener(call)


def start_listening(listener: Listener) -> None:
    """Add ``listener``; it stays until :func:`stop_listening`. Bound methods do not keep their object alive."""
    reference = WeakMethod(listener) if isinstance(listener, MethodType) else lambda: listener
    _listeners.set((*_heard(None), reference))


def stop_listening(listener: Listener) -> None:
    """Remove ``listener``; a listener that is not registered is ignored."""
    _listeners.set(_heard(listener))


def _heard(but: Listener | None) -> tuple[Callable[[], Listener | None], ...]:
    """References to the listeners that are alive, without one."""
    return tuple(reference for reference in _listeners.get() if reference() not in (None, but))
