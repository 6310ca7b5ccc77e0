"""Where users live: callbacks for trainers of other packages, none of which is imported before it is needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vogn.optim.base import NaturalGradient


def require(module: str, *, extra: str) -> Any:
    """An optional package.

    Args:
        module: its name, as in ``import``.
        extra: the extra of this package that installs it.

    Raises:
        ImportError: naming the extra, if it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise  # installed, but one of its own dependencies is not
        raise ImportError(f"{module.partition('.')[0]} is not installed; pip install 'vogn[{extra}]'") from error


def natural_gradient(optimizer: Any) -> NaturalGradient:
    """Our optimizer inside the wrappers that a trainer has put around it.

    Wrappers (``AcceleratedOptimizer``, ``LightningOptimizer``) keep what they wrap in ``optimizer``. Open sampled
    contexts on what this function returns, never on a wrapper.

    Args:
        optimizer: one of ours, or a wrapper.

    Raises:
        TypeError: if there is another optimizer inside.
    """
    inner = optimizer
    while (wrapped := getattr(inner, "optimizer", None)) is not None:
        inner = wrapped
    if not isinstance(inner, NaturalGradient):
        raise TypeError(
            f"{type(inner).__name__} is none of vogn's optimizers; give the trainer one, for example vogn.VOGN(model)"
        )
    return inner
