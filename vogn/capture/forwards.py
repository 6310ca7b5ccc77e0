"""Explicit forwards: bound to an instance while somebody listens to its sites, and gone afterwards."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from vogn.errors import UnsupportedObservationError
from vogn.layers import find_explicit

Listener = Callable[[nn.Module, str, Tensor], Callable[[tuple[Tensor, ...]], None]]
"""``keep = listener(module, site, output)``: a site is evaluated; ``keep(saved)`` follows."""

_LISTENERS = "_site_listeners"


class _Listeners(list[Listener]):
    """Those who listen to one module. A copy of the module is another model, which nobody listens to."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Listeners, ())


def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The explicit forward for those who listen; without gradients, or in a copy, the stock forward.

    Its name is ``forward`` because bound methods are pickled by name: the stock one is then found.
    """
    listeners = vars(module).get(_LISTENERS)
    if not listeners:
        _remove(module)
    if not listeners or not torch.is_grad_enabled():
        return type(module).forward(module, *args, **kwargs)
    rule = find_explicit(module)
    assert rule is not None

    def tap(site: str, output: Tensor) -> Callable[..., None]:
        keeps = [listener(module, site, output) for listener in listeners] if output.requires_grad else []

        def keep(*saved: Tensor) -> None:
            for listen in keeps:
                listen(tuple(tensor.detach() for tensor in saved))

        return keep

    return rule.forward(module, tap, *args, **kwargs)


def is_replaced(module: nn.Module) -> bool:
    """Whether somebody else has given the instance a forward of its own."""
    found = vars(module).get("forward")
    function = found.__func__ if isinstance(found, MethodType) else found
    return found is not None and function is not forward and function is not type(module).forward


def bind(module: nn.Module, listener: Listener, name: str) -> None:
    """Listen to the sites of a module.

    Args:
        module: a module with an explicit forward.
        listener: called at every evaluation of a site whose output requires a gradient.
        name: one of its parameters, for messages.

    Raises:
        UnsupportedObservationError: if the instance has a forward of its own.
    """
    if is_replaced(module):
        raise UnsupportedObservationError(
            f"the forward of the {type(module).__name__} that holds {name!r} was replaced on the instance after the "
            "optimizer was built; replace it before, or not at all"
        )
    vars(module).setdefault(_LISTENERS, _Listeners()).append(listener)
    vars(module)["forward"] = MethodType(forward, module)


def unbind(module: nn.Module, listener: Listener) -> None:
    """Stop listening; the last one to leave restores the stock forward."""
    listeners = vars(module).get(_LISTENERS)
    if listeners and listener in listeners:
        listeners.remove(listener)
    if not listeners:
        _remove(module)


def _remove(module: nn.Module) -> None:
    vars(module).pop(_LISTENERS, None)
    if not is_replaced(module):
        vars(module).pop("forward", None)
