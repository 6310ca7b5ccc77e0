"""The Python blocks of docs/tuning.md run, and train."""

import re
from pathlib import Path

import torch

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tuning.md").read_text()


def test_the_page_s_code_trains():
    torch.manual_seed(0)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    x, model = names["x"], names["model"]
    assert (model(x).argmax(1) == x[:, :3].argmax(1)).float().mean() > 0.9
