"""From exceptions to one clear line and an exit code."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vogn.data import DataError
from vogn.errors import CheckpointError, MissingExtraError, VognError

BAD_INPUT = 2
FAILED = 1


class UsageError(VognError, ValueError):
    """The command line asks for something impossible; the message says what is allowed."""


class DivergedError(VognError, ArithmeticError):
    """The training loss became NaN or infinite."""


class InterruptedRunError(VognError):
    """A signal ended the run after its checkpoint was written.

    Args:
        message: what to do to go on.
        signal_number: which signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


_BAD_INPUT_TYPES = (UsageError, DataError, CheckpointError, MissingExtraError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the library's own errors into one line on standard error and :class:`SystemExit`.

    Bad input exits with 2, a run that failed by itself (it diverged, say) with 1, an interrupted one with 128 plus the
    signal's number. A file or folder that cannot be read or written is bad input. Any other exception is a defect of
    the program and keeps its traceback.
    """
    try:
        yield
    except InterruptedRunError as error:
        _say(str(error))
        raise SystemExit(error.exit_code) from None
    except _BAD_INPUT_TYPES as error:
        _say(f"Error: {error}")
        raise SystemExit(BAD_INPUT) from None
    except VognError as error:
        _say(f"Error: {error}")
        raise SystemExit(FAILED) from None
    except BrokenPipeError:  # the reader of our output has gone; typer ends quietly
        raise
    except OSError as error:
        _say(f"Error: {error}")
        raise SystemExit(BAD_INPUT) from None
    except KeyboardInterrupt:
        _say("Interrupted")
        raise SystemExit(128 + signal.SIGINT) from None


def _say(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
