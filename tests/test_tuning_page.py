"""The Python blocks of docs/tuning.md run, and train."""

from pathlib import Path

import pages
import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tuning.md"


def test_the_page_s_code_trains():
    torch.manual_seed(0)
    names = pages.run(PAGE)
    x, model = names["x"], names["model"]
    assert (model(x).argmax(1) == x[:, :3].argmax(1)).float().mean() > 0.9
