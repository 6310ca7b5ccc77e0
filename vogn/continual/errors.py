"""Errors of continual learning."""

from __future__ import annotations

from vogn.errors import VognError


class StoppedError(VognError, RuntimeError):
    """A run was asked to stop; its checkpoint, if it has a folder, is written."""
