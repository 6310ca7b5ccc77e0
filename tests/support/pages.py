"""The Python blocks of a page of documentation."""

import re
from pathlib import Path
from typing import Any


def blocks(page: Path) -> list[str]:
    """The code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def run(page: Path) -> dict[str, Any]:
    """Run all blocks of a page in one namespace, top to bottom; the names that they leave."""
    found = blocks(page)
    assert found, f"{page.name} has no Python block"
    names: dict[str, Any] = {}
    for number, block in enumerate(found):
        exec(compile(block, f"{page.name}, block {number}", "exec"), names)
    return names
