"""Errors of active learning."""

from __future__ import annotations

from vogn.errors import VognError


class PoolError(VognError, ValueError):
    """A pool is empty, or holds examples that cannot be used."""


class PoolExhaustedError(VognError, RuntimeError):
    """Every example of the pool has a label: there is nothing left to ask for."""


class LabelError(VognError, ValueError):
    """A label is missing, of the wrong kind, out of range, or was not asked for. No label given before it is lost."""
