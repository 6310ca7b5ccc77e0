"""From ``--model`` to a network that fits the data."""

from __future__ import annotations

import inspect
import math
import os
import pkgutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vogn.cli.errors import UsageError
from vogn.cli.settings import Settings
from vogn.models import MODELS, build_model

if TYPE_CHECKING:
    from typing_extensions import Self

_DEFAULT_FOR_IMAGES = "resnet8"
_DEFAULT_FOR_FEATURES = "mlp"
_HIDDEN_FEATURES = 64
HIDDEN_REAL = 50
"""Hidden units of the default network of a regression, as in :class:`vogn.sklearn.VOGNRegressor`."""


@dataclass(frozen=True)
class ModelSpec:
    """What determines the architecture; a checkpoint holds it and refuses another one.

    Args:
        name: key of :data:`vogn.models.MODELS` or ``package.module:callable``.
        input_shape: shape of one input.
        num_classes: number of outputs.
        width: as given on the command line.
        norm: as given on the command line.
    """

    name: str
    input_shape: tuple[int, ...]
    num_classes: int
    width: int | None = None
    norm: str | None = None

    @classmethod
    def of(cls, settings: Settings, input_shape: tuple[int, ...], num_classes: int) -> Self:
        """The specification that the settings and the data amount to."""
        default = _DEFAULT_FOR_IMAGES if len(input_shape) == 3 else _DEFAULT_FOR_FEATURES
        name = default if settings.model is None else settings.model
        return cls(name, input_shape, num_classes, settings.width, settings.norm)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return {
            "name": self.name,
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "width": self.width,
            "norm": self.norm,
        }

    def offered(self) -> dict[str, Any]:
        """Keyword arguments that a constructor may take."""
        features = math.prod(self.input_shape)
        return {
            "num_classes": self.num_classes,
            "input_shape": self.input_shape,
            "in_channels": self.input_shape[0],
            "image_size": self.input_shape[-1],
            "sizes": (features, self.width or _HIDDEN_FEATURES, self.num_classes),
        }

    def mismatch(self, shape: Any) -> str:
        """What is wrong with outputs of this shape for two inputs."""
        return (
            f"class-count mismatch: model {self.name!r} gives outputs of shape {shape} for 2 inputs, "
            f"but the data has {self.num_classes} classes, so (2, {self.num_classes}) is wanted"
        )


@dataclass(frozen=True)
class RealModelSpec(ModelSpec):
    """What determines a network that predicts one number; constructors are offered ``num_outputs`` too."""

    def to_dict(self) -> dict[str, Any]:
        """See :class:`ModelSpec`."""
        return super().to_dict() | {"real": True}

    def offered(self) -> dict[str, Any]:
        """See :class:`ModelSpec`."""
        found = super().offered()
        sizes = (found["sizes"][0], self.width or HIDDEN_REAL, self.num_classes)
        return found | {"num_outputs": self.num_classes, "sizes": sizes}

    def mismatch(self, shape: Any) -> str:
        """See :class:`ModelSpec`."""
        return (
            f"model {self.name!r} gives outputs of shape {shape} for 2 inputs, "
            f"but one number per input is predicted, so (2, {self.num_classes}) is wanted"
        )


def build_network(spec: ModelSpec, *, seed: int) -> nn.Module:
    """Build and try the network.

    A constructor is offered ``num_classes``, ``in_channels``, ``input_shape``, ``image_size``, ``sizes`` (features of a
    fully connected network) and takes those that its signature names; ``width`` and ``norm`` must be accepted if given.

    Args:
        spec: the architecture.
        seed: of the initial weights; torch's global generator is left as it was.

    Raises:
        UsageError: unknown model, options it does not take, or outputs that do not fit the number of classes.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    arguments = _arguments(spec)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = build_model(spec.name, **arguments)
        except (Exception, SystemExit) as error:  # whatever a foreign module raises while it is imported or called
            raise UsageError(_failure(spec.name, error)) from error
        _try_out(model, spec)
    return model


def _arguments(spec: ModelSpec) -> dict[str, Any]:
    offered = spec.offered()
    accepted = _parameters(spec.name)
    if accepted is None:
        return {}
    chosen = {name: value for name, value in offered.items() if name in accepted}
    for name, value in (("width", spec.width), ("norm", spec.norm)):
        if value is None or (name == "width" and "sizes" in accepted):
            continue
        if name not in accepted:
            raise UsageError(f"model {spec.name!r} takes no --{name}; it takes {', '.join(accepted) or 'no arguments'}")
        chosen[name] = value
    return chosen


def _parameters(name: str) -> list[str] | None:
    """Names of the constructor's parameters; ``None`` when there is no such constructor (building tells why)."""
    try:
        constructor = pkgutil.resolve_name(name) if ":" in name else MODELS[name]
        return list(inspect.signature(constructor).parameters)
    except (Exception, SystemExit):
        return None


def _failure(name: str, error: BaseException) -> str:
    """Why a model could not be built, with its name."""
    reason = str(error).strip().splitlines() or [""]
    if isinstance(error, (ValueError, TypeError)) and repr(name) in reason[0]:
        return reason[0]
    return f"model {name!r} cannot be built: {type(error).__name__}: {reason[0]}"


def _try_out(model: nn.Module, spec: ModelSpec) -> None:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(torch.zeros(2, *spec.input_shape))
    except Exception as error:  # whatever a foreign model raises on inputs it was not made for
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"model {spec.name!r} fails on inputs of shape {spec.input_shape}: {reason[0]}") from error
    finally:
        for module, flag in flags:
            module.training = flag
    shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if shape != (2, spec.num_classes):
        raise UsageError(spec.mismatch(shape))


def try_training(model: nn.Module, spec: ModelSpec, x: torch.Tensor) -> None:
    """A forward pass in training mode; it may change buffers, so try a network that is not used afterwards.

    Args:
        model: the network.
        spec: the architecture.
        x: a training batch.

    Raises:
        UsageError: the pass fails, or nothing in the outputs can be trained.
    """
    model.train()
    with torch.random.fork_rng():
        try:
            outputs = model(x)
        except Exception as error:  # as above
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(f"model {spec.name!r} fails in training on a batch of {len(x)}: {reason[0]}") from error
    if not outputs.requires_grad:
        raise UsageError(f"the outputs of model {spec.name!r} do not depend on any parameter that requires a gradient")


def known_models() -> str:
    """Names for help texts."""
    return ", ".join(MODELS)
