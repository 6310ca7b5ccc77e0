"""Layers whose backward is ours for a while: it decides what gradient reaches the parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from vogn.capture.partition import Member
from vogn.layers.weighted import Weights, find_weighted

_WEIGHTS = "_example_weights"


class _Bound:
    """What a bound module runs with. A copy of the module is another model, whose backward is its own.

    Args:
        weights: for the weighted forward; ``None`` in a copy.
        positions: whether linear layers of single vectors keep the stock forward.
    """

    def __init__(self, weights: Weights | None = None, positions: bool = False) -> None:
        self.weights = weights
        self.positions = positions

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Bound, ())


def forward(module: nn.Module, x: Tensor) -> Any:
    """The weighted forward; without gradients, in a copy, or where a graph is compiled, the stock one.

    Its name is ``forward`` because bound methods are pickled by name: the stock one is then found.
    """
    if torch.compiler.is_compiling():
        return type(module).forward(module, x)
    bound = vars(module).get(_WEIGHTS)
    if bound is None or bound.weights is None:
        _unbind(module)
        return type(module).forward(module, x)
    if not torch.is_grad_enabled() or (bound.positions and isinstance(module, nn.Linear) and x.ndim < 3):
        return type(module).forward(module, x)
    weighted = find_weighted(module)
    assert weighted is not None
    return weighted(module, x, bound.weights)


@cache
def _uncompiled() -> Callable[..., Any]:
    """:func:`forward`, which compiled models call as it is; not a decorator, as that imports the compiler."""
    disabled: Callable[..., Any] = torch.compiler.disable(forward)
    return disabled


def _unbind(module: nn.Module) -> None:
    vars(module).pop(_WEIGHTS, None)
    vars(module).pop("forward", None)


class OwnBackwards:
    """The layers of one optimizer that run a weighted forward (:mod:`vogn.layers.weighted`).

    Args:
        compiled: whether compiled models call it too, which splits their graph, or keep the stock forward.
        positions: whether linear layers of single vectors keep the stock forward.
    """

    def __init__(self, *, compiled: bool = True, positions: bool = False) -> None:
        self._compiled = compiled
        self._positions = positions
        self._whole: dict[Member, bool] = {}
        self._modules: list[nn.Module] = []

    def bind(self, member: Member, weights: Weights) -> bool:
        """Give a layer the weighted forward; whether that can be done: the member must be all there is of a layer with
        one, and nobody have replaced its forward."""
        if member not in self._whole:
            self._whole[member] = _is_whole_layer(member)
        module = member.module
        if module is None or not self._whole[member] or "forward" in vars(module):
            return False
        vars(module)[_WEIGHTS] = _Bound(weights, self._positions)
        vars(module)["forward"] = MethodType(_uncompiled() if self._compiled else forward, module)
        self._modules.append(module)
        return True

    def unbind(self) -> None:
        """Give all layers their stock forward back."""
        for module in self._modules:
            _unbind(module)
        self._modules.clear()


def _is_whole_layer(member: Member) -> bool:
    """Whether the member is all there is of a layer whose type has a weighted forward."""
    module = member.module
    if member.rule is None or module is None or member.uses or member.site or member.axes != "examples":
        return False
    if find_weighted(module) is None:
        return False
    own = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return all(any(parameter is mine for mine in member.parameters) for parameter in own)
