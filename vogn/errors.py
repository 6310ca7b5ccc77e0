"""The error types of the library; every message names the block and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class VognError(Exception):
    """Base class of the library's own errors."""


class NotPositiveDefiniteError(VognError, ArithmeticError):
    """A curvature plus its shift is not positive definite, so it has no inverse root."""


class FactorisationError(NotPositiveDefiniteError):
    """An eigendecomposition did not converge, in double precision neither."""


class NonFiniteStatisticsError(VognError, ArithmeticError):
    """A gradient or a curvature statistic holds NaN or infinity."""


class UnsupportedObservationError(VognError, TypeError):
    """A structure, statistic or layer rule was asked for something it cannot express."""


class MissingCurvatureError(VognError, RuntimeError):
    """A step saw gradients although the curvature has never been observed."""


class RangeTestError(VognError, RuntimeError):
    """A learning-rate range test found no learning rate."""


class StoppedError(VognError, RuntimeError):
    """A run was asked to stop; its checkpoint, if it has a folder, is written."""


class CheckpointError(VognError, ValueError):
    """A file is not a checkpoint of this model, method or schema version."""


class MissingExtraError(VognError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class RecalibrationError(VognError, RuntimeError):
    """A recalibration cannot be fitted to these examples, or was used before it was fitted."""


class RecalibrationWarning(UserWarning):
    """A recalibration holds, but the examples are too few for it to be of use."""


class PosteriorWarning(UserWarning):
    """A posterior may not be what was wanted: it has collapsed to a point, its noise drowns the weights, it is the
    prior where no gradient came, or rounding errors decide it."""


@contextmanager
def in_block(name: str) -> Iterator[None]:
    """Errors about numbers and unsupported features from inside say which block they are about."""
    try:
        yield
    except (NotPositiveDefiniteError, NonFiniteStatisticsError, UnsupportedObservationError) as error:
        if f"block {name!r}" in str(error):
            raise
        raise type(error)(f"block {name!r}: {error}") from error
