"""A table of numbers to predict, and what runs of the command line leave."""

import json

import numpy as np

TINY = ["--epochs", "4", "--batch-size", "16", "--width", "4", "--samples", "3", "--device", "cpu"]


def save(path, rows=64, unit=1.0, offset=0.0, **changes):
    """``npz:FILE`` of a noisy linear function of three features."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows + 30, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.5 * generator.normal(size=rows + 30)
    y = y * unit + offset
    arrays = {"x_train": x[:rows], "y_train": y[:rows], "x_test": x[rows:], "y_test": y[rows:]}
    arrays = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(path, **arrays)
    return f"npz:{path}"


def results(folder):
    return json.loads((folder / "results.json").read_text())["test"]


def refused(outcome, *words):
    assert outcome.code == 2, outcome.out
    assert len(outcome.err.strip().splitlines()) == 1 and outcome.err.startswith("Error: ")
    for word in words:
        assert word in outcome.err
