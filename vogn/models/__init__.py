"""Floor 5: models for examples, benchmarks and the command line."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from vogn.models.frn import FilterResponseNorm2d
from vogn.models.lenet import lenet5
from vogn.models.mlp import mlp
from vogn.models.resnet import resnet8, resnet14, resnet18, resnet20, resnet32, resnet34, resnet50
from vogn.models.small_convolutional import small_convolutional

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": lenet5,
    "mlp": mlp,
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet34": resnet34,
    "resnet50": resnet50,
}
"""Name to constructor."""


def build_model(name: str, /, **arguments: Any) -> nn.Module:
    """Build a model by name.

    Args:
        name: a key of :data:`MODELS`, or ``"package.module:callable"`` for a constructor of your own (it is imported,
            so only use names that you trust).
        arguments: keyword arguments of the constructor.

    Raises:
        ValueError: if the name is unknown or cannot be imported.
        TypeError: if the constructor does not take these arguments or does not return a module.
    """
    constructor = _import(name) if ":" in name else MODELS.get(name)
    if constructor is None:
        raise ValueError(
            f"unknown model {name!r}; known models: {', '.join(MODELS)}; or give 'package.module:callable'"
        )
    try:
        signature = inspect.signature(constructor)
    except ValueError:  # some callables of C extensions have none
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise TypeError(f"model {name!r}: {error}; its signature is {signature}") from None
    model = constructor(**arguments)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model {name!r} returned {type(model).__name__}; a torch.nn.Module is needed")
    return model


def _import(name: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.startswith("."):
        raise ValueError(f"model {name!r} does not have the form 'package.module:callable'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(f"model {name!r}: importing {module_name!r} failed: {error}") from error
    if attribute not in vars(module):
        raise ValueError(f"model {name!r}: module {module_name!r} has no name {attribute!r}")
    constructor = vars(module)[attribute]
    if not callable(constructor):
        raise TypeError(f"model {name!r} is a {type(constructor).__name__}; a callable is needed")
    return constructor


__all__ = [
    "MODELS",
    "FilterResponseNorm2d",
    "build_model",
    "lenet5",
    "mlp",
    "resnet8",
    "resnet14",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet50",
    "small_convolutional",
]
