"""The documentation names every method."""

from pathlib import Path

from vogn.continual import CONTINUAL_METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "continual.md"


def test_the_table_of_the_page_has_all_methods():
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    named = {name.strip(" `") for row in rows for name in row.split(",")}
    assert set(CONTINUAL_METHODS) <= named


def test_every_method_says_what_it_is():
    assert all(info.summary for info in CONTINUAL_METHODS.values())
