"""The committed table is that of the tests as they are."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).parent
TABLE = FOLDER.parent.parent / "docs" / "promises.md"


def promises() -> set[str]:
    """The text of every ``@pytest.mark.promise`` of this folder, and the names of the layers."""
    found = set()
    for path in FOLDER.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                found.add(ast.literal_eval(node.args[0]))
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
                assert isinstance(node.value, ast.Dict)
                found |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
    return found - {"layer"}


def test_the_committed_table_has_a_row_for_every_promise_and_layer_and_no_failure():
    text = TABLE.read_text()
    rows = {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")}
    assert rows - {"promise", "layer"} == promises(), "run pytest tests/promises --promise-table docs/promises.md"
    assert "✗" not in text
