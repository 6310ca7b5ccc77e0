"""What is wrong with a data set, in one line."""

from __future__ import annotations

from vogn.errors import VognError


class DataError(VognError, ValueError):
    """A data set cannot be used; the message says which file or array, what was found and what is allowed."""
