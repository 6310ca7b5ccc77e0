"""Gymnasium, imported when it is first needed."""

from __future__ import annotations

from typing import Any

from vogn.errors import MissingExtraError


def gymnasium() -> Any:
    """The package.

    Raises:
        MissingExtraError: if it is not installed, naming the extra that brings it.
    """
    try:
        import gymnasium as package
    except ImportError as error:
        raise MissingExtraError("environments need Gymnasium: pip install 'vogn[rl]'") from error
    return package
