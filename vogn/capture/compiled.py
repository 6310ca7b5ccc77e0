"""Taps in compiled graphs: an operator in the backward graph that hands over what a layer has left behind.

Tracing runs a forward hook once, and what it registers becomes part of the graph: the operator below, with a constant
key. At run time the key leads to the optimizer that captures, or to nobody.
"""

from __future__ import annotations

import itertools
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor


class Listener(Protocol):
    """Who hears of the gradients of a compiled graph."""

    def on_compiled(self, key: int, saved: tuple[Tensor, ...], grad: Tensor) -> None:
        """The gradient ``grad`` has arrived at the output of the layer with this key."""
        ...


_LISTENERS: weakref.WeakValueDictionary[int, Listener] = weakref.WeakValueDictionary()
_NUMBERS = itertools.count()


def new_key(listener: Listener) -> int:
    """A key that leads to ``listener`` for as long as it lives."""
    key = next(_NUMBERS)
    _LISTENERS[key] = listener
    return key


@torch.library.custom_op("vogn::tap", mutates_args=())
def tap(grad: Tensor, saved: list[Tensor], key: int) -> Tensor:
    """A copy of ``grad``; on the way the listener of ``key`` is told."""
    listener = _LISTENERS.get(key)
    if listener is not None:
        listener.on_compiled(key, tuple(saved), grad)
    return grad.clone()


@tap.register_fake
def _(grad: Tensor, saved: list[Tensor], key: int) -> Tensor:
    return torch.empty_like(grad)


@contextmanager
def keeping_buffers() -> Iterator[None]:
    """Graphs that are compiled meanwhile may run backward more than once."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    import torch._functorch.config as config

    with config.patch(donated_buffer=False):
        yield
