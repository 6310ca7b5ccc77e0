"""Checks of numbers that the methods share."""

from __future__ import annotations

import math


def check_not_negative(**values: float) -> None:
    """All of these are finite and at least zero.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} must be a finite number >= 0")


def check_positive(**values: float) -> None:
    """All of these are finite and more than zero.

    Raises:
        ValueError: naming the first that is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} must be a finite number > 0")
