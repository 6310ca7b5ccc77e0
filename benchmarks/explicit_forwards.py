"""What do explicit forwards cost while curvature is captured, and what do they save?

Forward and backward of modules that use their parameters without calling sub-modules: as they are, inside the context
of a VOGN optimizer (explicit forward, rows), and inside it without their rule (one more vectorised backward per batch).
The three are timed in turn, in one process; ratios are medians over the rounds.

    python -m benchmarks.explicit_forwards
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, write_cell
from vogn.layers import EXPLICIT
from vogn.likelihoods import Gaussian

RESULTS = Path(__file__).parent / "results" / "explicit_forwards" / "summary.json"
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "MultiheadAttention 64, 4 heads": (lambda: nn.MultiheadAttention(64, 4, batch_first=True), (8, 32, 64)),
    "TransformerEncoderLayer 64": (
        lambda: nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True),
        (8, 32, 64),
    ),
    "LSTM 64": (lambda: nn.LSTM(64, 64, batch_first=True), (16, 32, 64)),
    "GRU 64": (lambda: nn.GRU(64, 64, batch_first=True), (16, 32, 64)),
}


class First(nn.Module):
    """The first output of a module, averaged over the positions."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """``(N, d)`` of ``(N, T, d)``."""
        given = (x, x, x) if isinstance(self.inner, nn.MultiheadAttention) else (x,)
        found = self.inner(*given)
        return (found[0] if isinstance(found, tuple) else found).mean(1)


def measure(name: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of the stock module, and median ratios to it."""
    make, shape = CASES[name]
    torch.manual_seed(0)
    model, likelihood = First(make()), Gaussian(noise=1.0)
    x, y = torch.randn(shape), torch.randn(shape[0], shape[2])
    stock, captured, bare = [], [], []

    def once(opt: vogn.NaturalGradient | None) -> float:
        model.zero_grad()
        if opt is not None:
            opt.zero_grad()
        start = time.perf_counter()
        if opt is None:
            likelihood(model(x), y).backward()
        else:
            with opt.sampled_params():
                likelihood(model(x), y).backward()
        return time.perf_counter() - start

    def vogn_on_it() -> vogn.NaturalGradient:
        opt = vogn.VOGN(model, lr=0.0, ess=100.0, weight_decay=1e-2, variational=False)
        once(opt)
        return opt

    with_rule = vogn_on_it()
    with mock.patch.dict(EXPLICIT, clear=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        without_rule = vogn_on_it()
        for _ in range(rounds):
            stock.append(once(None))
            bare.append(once(without_rule))
            with mock.patch.dict(EXPLICIT, EXPLICIT_RULES):
                captured.append(once(with_rule))
    base = np.array(stock)
    return {
        "stock ms": float(1e3 * np.median(base)),
        "captured / stock": float(np.median(np.array(captured) / base)),
        "captured without the rule / stock": float(np.median(np.array(bare) / base)),
    }


EXPLICIT_RULES = dict(EXPLICIT)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    lines = {name: measure(name, arguments.rounds) for name in CASES}
    write_cell(
        arguments.results,
        {"lines": lines, "rounds": arguments.rounds, "environment": environment()}
        | {"command": "python -m benchmarks.explicit_forwards"},
    )
    print("| module, forward and backward | stock ms | captured | captured without the rule |")
    print("|---|---|---|---|")
    for name, line in lines.items():
        numbers = list(line.values())
        print(f"| {name} | {numbers[0]:.1f} | {numbers[1]:.2f} x | {numbers[2]:.1f} x |")


if __name__ == "__main__":
    main()
