"""Errors of continual learning."""

from __future__ import annotations

from vogn.errors import StoppedError

__all__ = ["StoppedError"]
