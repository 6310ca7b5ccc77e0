"""The interface of a layer rule: from a layer's input and output gradient to rows.

Adding a layer is one decorated class::

    @register_layer(torch.nn.Linear)
    class LinearRule(LayerRule): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vogn.linalg.layout import Layout
from vogn.linalg.rows import IndexedRows, Rows
from vogn.types import Shape

RuleT = TypeVar("RuleT", bound="type[LayerRule]")


class LayerRule(ABC):
    """How one family of modules yields rows. Rules are stateless: one instance serves all modules.

    Class attributes:
        NORMALISES: whether the layer normalises its input, so that its parameters are *norm parameters*.
    """

    NORMALISES: ClassVar[bool] = False

    @abstractmethod
    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """The packing of this module's tracked parameters.

        Args:
            module: the layer.
            names: attribute (``"weight"``, ``"bias"``) to full parameter name, tracked parameters only.
            shapes: attribute to shape, tracked parameters only.
        """

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """What forward must keep for :meth:`rows`; by default the first input, detached."""
        return (inputs[0].detach(),)

    @abstractmethod
    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows | IndexedRows:
        """Rows of one call.

        Args:
            module: the layer.
            attributes: tracked attributes in the order of the layout, e.g. ``("weight", "bias")``.
            saved: what :meth:`saved` returned at forward.
            grad_output: gradient of the loss with respect to the output, ``(K, *output.shape)``: column ``k`` first.

        Returns:
            Rows whose sum over examples (for ``K = 1``) equals the batch gradient in the layout's packing.
        """


RULES: dict[type[nn.Module], LayerRule] = {}
"""Module type to rule. Filled by :func:`register_layer`; looked up by exact type, then by base classes."""


def register_layer(*types: type[nn.Module]) -> Callable[[RuleT], RuleT]:
    """Class decorator: use the rule for the given module types."""

    def decorate(rule: RuleT) -> RuleT:
        for module_type in types:
            RULES[module_type] = rule()
        return rule

    return decorate


BYPASSED: tuple[type[nn.Module], ...] = (NonDynamicallyQuantizableLinear,)
"""Modules whose owner uses their parameters without calling them (the output projection of multi-head attention)."""


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule for ``module``: of its type or, failing that, of the nearest registered base class that shares its
    ``forward``. A subclass that overrides ``forward`` gets ``None``: its mathematics is unknown."""
    if isinstance(module, BYPASSED):
        return None
    for module_type in type(module).__mro__:
        rule = RULES.get(module_type)
        if rule is not None:
            return rule if type(module).forward is getattr(module_type, "forward", None) else None
    return None
