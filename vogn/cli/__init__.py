"""Floor 7: the command line. Nothing here is loaded before :func:`main` is called."""

from __future__ import annotations


def main() -> None:
    """Run ``vogn``; the entry point of the console script."""
    from vogn.cli.app import app

    app(prog_name="vogn")
