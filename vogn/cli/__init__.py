"""Floor 7: the command line. Nothing here is loaded before :func:`main` is called."""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run ``vogn``; the entry point of the console script."""
    try:
        from vogn.cli.app import app
    except KeyboardInterrupt:  # loading takes seconds
        raise SystemExit(130) from None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the characters of our tables gets question marks
    app(prog_name="vogn")
