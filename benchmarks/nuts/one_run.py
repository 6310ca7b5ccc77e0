"""One cell: the reference of a data set, or a method with its tuning, compared with the reference."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import command, environment, read_cell, write_cell
from benchmarks.nuts.rows import ROWS, Row
from benchmarks.nuts.sizes import FORMS, HIDDEN, NOISE, PRIOR_PRECISION, Split, folder, load
from vogn.check import Reference, Sampler, make_reference
from vogn.check.target import make_target
from vogn.likelihoods import Gaussian
from vogn.posterior import GaussianPosterior, Prior

MODULE = "benchmarks.nuts"
ELBO_SAMPLES = 256
DIGITS = 7


def network(columns: int, seed: int) -> nn.Module:
    """One hidden layer."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(columns, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()


def to_text(tensor: Tensor) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in tensor.flatten().tolist()]


def reference_path(arguments: argparse.Namespace, data: str) -> Path:
    return folder(arguments, data) / "reference.json"


def run_reference(arguments: argparse.Namespace) -> None:
    """NUTS; the cell keeps moments and interval ends of every prediction, which is all that a check needs."""
    form, split = FORMS[arguments.form], load(arguments.data, arguments.data_dir)
    model, likelihood = network(split.x.shape[1], 0), Gaussian(NOISE[arguments.data])
    prior = Prior(precision=PRIOR_PRECISION)
    target = make_target(model, vogn.Point(model), likelihood, (split.x, split.y), prior=prior)
    sampler = Sampler(warmup=form.warmup, draws=form.draws, tree_depth=form.tree_depth)
    start = time.process_time()
    found = make_reference(target, split.x_test, "nuts", sampler=sampler)
    seconds = time.process_time() - start
    record = {
        "data": arguments.data,
        "parameters": target.numel,
        "train": len(split.x),
        "noise": NOISE[arguments.data],
        "r_hat": found.r_hat,
        "effective_samples": found.effective_samples,
        "divergences": found.divergences,
        "draws": found.draws,
        "ceiling": found.ceiling,
        "test_rmse": float((found.mean - split.y_test).square().mean().sqrt()),
        "mean": to_text(found.mean),
        "variance": to_text(found.variance),
        "intervals": {str(level): [to_text(end) for end in ends] for level, ends in found.intervals.items()},
        "cpu_seconds": round(seconds, 1),
        "command": command(MODULE),
        "environment": environment(),
    }
    write_cell(arguments.cell, record)


def read_reference(path: Path) -> Reference:
    """The reference that :func:`run_reference` wrote."""
    record = read_cell(path)
    if record is None:
        raise SystemExit(f"the reference {path.name} of this data set is missing: it is the first cell of run")

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    intervals = {float(level): tuple(map(column, ends)) for level, ends in record["intervals"].items()}
    keys = ("r_hat", "effective_samples", "divergences", "draws", "ceiling")
    return Reference(
        "nuts",
        column(record["mean"]),
        column(record["variance"]),
        intervals,  # type: ignore[arg-type]
        **{key: record[key] for key in keys},
    )


def objective(row: Row, posterior: GaussianPosterior, model: nn.Module, likelihood: Gaussian, split: Split) -> float:
    """What chooses the rate, on the training rows: the ELBO, with Laplace the log joint density at the mean."""
    x, y = split.x, split.y
    if row.method == "linearized":
        penalty = sum(float(m.square().sum()) for m in posterior.mean().values())
        return -len(x) * float(likelihood(model(x), y).detach()) - 0.5 * PRIOR_PRECISION * penalty
    outputs = vogn.predict(model, posterior, x, samples=ELBO_SAMPLES, likelihood=likelihood, seed=1).samples
    assert outputs is not None
    fit = -sum(float(likelihood.terms(one, y).sum()) for one in outputs) / len(outputs)
    return fit - float(posterior.kl(Prior(precision=PRIOR_PRECISION)))


def run_method(arguments: argparse.Namespace) -> None:
    """All rates with seed 0, the best one with the other seeds."""
    form, split, row = FORMS[arguments.form], load(arguments.data, arguments.data_dir), ROWS[arguments.method]
    reference = read_reference(reference_path(arguments, arguments.data))
    likelihood = Gaussian(NOISE[arguments.data])

    def trained(rate: float, seed: int) -> tuple[dict[str, Any], nn.Module, GaussianPosterior]:
        model, start = network(split.x.shape[1], seed), time.process_time()
        posterior = row.make(model, likelihood, split.x, split.y, rate, form.steps, seed)
        seconds = time.process_time() - start
        value = objective(row, posterior, model, likelihood, split)
        return {"rate": rate, "seed": seed, "objective": value, "cpu_seconds": round(seconds, 2)}, model, posterior

    tried = [trained(rate, 0) for rate in row.rates]
    best = max(tried, key=lambda run: run[0]["objective"])
    kept = [best, *(trained(best[0]["rate"], seed) for seed in range(1, form.seeds))]
    runs = []
    for record, model, posterior in kept:
        check = vogn.check_posterior(
            model,
            posterior,
            likelihood,
            (split.x, split.y),
            at=split.x_test,
            method=row.method,
            reference=reference,
            prior=Prior(precision=PRIOR_PRECISION),
            ess=len(split.x),
        )
        estimates = ("mean_rmse", "mean_error", "variance_correlation", "std_correlation", "variance_ratio")
        runs.append(
            record
            | {name: list(getattr(check, name)) for name in estimates}
            | {"coverage": {str(level): list(value) for level, value in check.coverage.items()}}
            | {"verdict": check.verdict.word}
        )
    record = {
        "method": arguments.method,
        "data": arguments.data,
        "steps": form.steps,
        "tried": [run[0] for run in tried],
        "runs": runs,
        "command": command(MODULE),
        "environment": environment(),
    }
    write_cell(arguments.cell, record)
