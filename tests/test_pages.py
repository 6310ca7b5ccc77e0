"""The Python blocks of every page of the documentation run; pages with tests of what they leave have them elsewhere."""

from pathlib import Path

import pages
import pytest
import torch

DOCS = Path(__file__).resolve().parent.parent / "docs"
ELSEWHERE = {"tuning.md", "laplace.md", "coverage.md", "posteriors.md"}
FRAGMENTS = {"distributed.md", "numerics.md"}
"""Their code stands in a loop, or a launcher, that the page does not repeat."""
PAGES = [page for page in sorted(DOCS.glob("*.md")) if pages.blocks(page) and page.name not in ELSEWHERE | FRAGMENTS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    pages.run(page)


def test_the_pages_that_are_left_out_exist():
    assert all(pages.blocks(DOCS / name) for name in ELSEWHERE | FRAGMENTS)
