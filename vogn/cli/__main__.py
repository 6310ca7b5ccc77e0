"""``python -m vogn.cli``."""

from vogn.cli import main

main()
