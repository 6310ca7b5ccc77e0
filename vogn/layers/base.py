"""The interface of a layer rule: from a layer's input and output gradient to rows.

Adding a layer is one decorated class::

    @register_layer(torch.nn.Linear)
    class LinearRule(LayerRule): ...
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, ClassVar, Literal, TypeVar

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vogn.linalg.layout import Layout
from vogn.linalg.rows import IndexedRows, Rows
from vogn.types import Shape

RuleT = TypeVar("RuleT", bound="type[LayerRule]")
ExplicitT = TypeVar("ExplicitT", bound="type[ExplicitRule]")
EntryT = TypeVar("EntryT")
ClassT = TypeVar("ClassT", bound="type[Any]")
KeyT = TypeVar("KeyT")

Axes = Literal["examples", "batch_first", "time_first"]
"""Where examples are in a layer's input and output: ``"examples"``: dimension 0. The other two say that a layer lives
inside a sequence module: ``(N, T, d)`` or ``(T, N, d)``, and a two-dimensional input ``(T, d)`` is one example."""

Tap = Callable[[str, Tensor], Callable[..., None]]
"""``keep = tap(site, output)``: an explicit forward evaluates a site; ``output`` is the tensor where its gradient will
arrive. It comes before any use of the output, as a compiled graph may end there. ``keep(*saved)`` follows, in the same
forward, with what the site's rule will need."""


class LayerRule(ABC):
    """How one family of modules yields rows. Rules are stateless: one instance serves all modules.

    Class attributes:
        NORMALISES: whether the layer normalises its input, so that its parameters are *norm parameters*.
        ATTRIBUTES: the parameters that the rule knows; empty if it knows all of its modules' own parameters.
        LOOKS_UP: whether the layer looks up indices (which all examples may share) instead of multiplying.
    """

    NORMALISES: ClassVar[bool] = False
    ATTRIBUTES: ClassVar[tuple[str, ...]] = ()
    LOOKS_UP: ClassVar[bool] = False

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


class SiteRule(LayerRule):
    """One map with parameters inside a module whose forward is rebuilt by an :class:`ExplicitRule`.

    ``layout`` and ``rows`` are a layer's, with attributes that are paths from the module (``"out_proj.weight"``);
    ``rows`` gets what the forward has kept as ``saved`` and a gradient whose first dimensions are ``(K, N)``.

    Attributes:
        parameters: paths of the parameters; those that do not exist or are not tracked are left out.
        axes: where examples are in the tapped output.
    """

    parameters: tuple[str, ...]
    axes: Axes


class ExplicitRule(ABC):
    """A forward for modules that use their parameters without calling sub-modules: the same function as the stock
    forward, built from tapped maps. It replaces the stock forward only while taps are attached.

    Class attributes:
        NOTE: what it costs while it is in force, for the coverage table; ``""`` if nothing.
    """

    NOTE: ClassVar[str] = ""

    @abstractmethod
    def sites(self, module: nn.Module) -> Mapping[str, SiteRule]:
        """The maps by name. Every parameter belongs to at most one."""

    @abstractmethod
    def forward(self, module: nn.Module, tap: Tap, *args: Any, **kwargs: Any) -> Any:
        """The module's outputs for the arguments of its forward; calls ``tap`` at most once per site."""


RULES: dict[type[nn.Module], LayerRule] = {}
"""Module type to rule. Filled by :func:`register_layer`; looked up by exact type, then by base classes."""


def register_layer(*types: type[nn.Module]) -> Callable[[RuleT], RuleT]:
    """Class decorator: use the rule for the given module types."""
    return _register(RULES, types)


EXPLICIT: dict[type[nn.Module], ExplicitRule] = {}
"""Module type to explicit forward. Filled by :func:`register_explicit`; looked up as :data:`RULES`."""


def register_explicit(*types: type[nn.Module]) -> Callable[[ExplicitT], ExplicitT]:
    """Class decorator: use the explicit forward for the given module types."""
    return _register(EXPLICIT, types)


SEQUENCES: dict[type[nn.Module], Callable[[Any], Mapping[str, Axes]]] = {}
"""Module type to a function that says where examples are in the inputs of its children, by their paths."""


FOREIGN: dict[str, LayerRule] = {}
"""``"module.Class"`` to rule, for classes of packages that are not imported. Filled by :func:`register_foreign`."""


def register_foreign(*names: str) -> Callable[[RuleT], RuleT]:
    """Class decorator: use the rule for classes given by qualified name, without importing their package.

    Args:
        names: ``f"{cls.__module__}.{cls.__qualname__}"`` of each class, e.g. ``"transformers.pytorch_utils.Conv1D"``.
    """
    return _register(FOREIGN, names)


def _register(registry: MutableMapping[KeyT, Any], keys: Iterable[KeyT]) -> Callable[[ClassT], ClassT]:
    """Class decorator: an instance of the class under each of the keys."""

    def decorate(kind: ClassT) -> ClassT:
        registry.update((key, kind()) for key in keys)
        return kind

    return decorate


BYPASSED: tuple[type[nn.Module], ...] = (NonDynamicallyQuantizableLinear,)
"""Modules whose owner uses their parameters without calling them (the output projection of multi-head attention)."""


def find_rule(module: nn.Module) -> LayerRule | None:
    """The rule for ``module``: of its type or, failing that, of the nearest registered base class that shares its
    ``forward``. A subclass that overrides ``forward`` gets ``None``: its mathematics is unknown. So does a foreign
    class whose ``forward`` was replaced by another module."""
    if isinstance(module, BYPASSED):
        return None
    for module_type in type(module).__mro__:
        foreign = FOREIGN.get(f"{module_type.__module__}.{module_type.__qualname__}")
        if foreign is not None and module.forward.__module__ != module_type.__module__:
            return None
        rule = foreign or RULES.get(module_type)
        if rule is not None:
            return rule if type(module).forward is getattr(module_type, "forward", None) else None
    return None


def find_explicit(module: nn.Module) -> ExplicitRule | None:
    """The explicit forward for ``module``: of its type or of the nearest registered base class that shares its
    ``forward``."""
    return nearest(EXPLICIT, module)


def child_axes(module: nn.Module) -> Mapping[str, Axes]:
    """Where examples are in the inputs of the children of ``module``, by their paths; empty if it is unknown."""
    find = nearest(SEQUENCES, module)
    return {} if find is None else find(module)


def nearest(registry: Mapping[type[nn.Module], EntryT], module: nn.Module) -> EntryT | None:
    """The entry of the module's type or of its nearest base class in the registry, if both have the same forward."""
    for module_type in type(module).__mro__:
        entry = registry.get(module_type)
        if entry is not None:
            return entry if type(module).forward is getattr(module_type, "forward", None) else None
    return None


def positional_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """The arguments of a call in the order of ``forward``; keywords that were left out get their defaults."""
    if not kwargs:
        return args
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    bound.apply_defaults()
    return tuple(bound.arguments.values())[1:]
