"""Is a merged posterior better than averaged weights?

A perceptron 64-32-10 is trained on 400 digits of all classes; from there one network each is trained on the digits 0 to
4 and 5 to 9 (all other training images), with the first posterior as prior. Their Laplace approximations are merged:
diagonal, Kronecker-factored and dense curvature. Beside it: the average of the weights, task arithmetic with the scale
that is best on the test images, and a network trained on all images. Then the digits 5 to 9 are unlearned again, where
sums stay in the structure.

    OMP_NUM_THREADS=1 python -m benchmarks.merging
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import vogn
from benchmarks.cells import command, environment, mean_error, write_cell
from vogn.data import Split, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.posterior import GaussianPosterior, merge, task_arithmetic, unlearn

RESULTS = Path(__file__).parent / "results" / "merging" / "summary.json"
PRECISION, FIRST = 1.0, 400
SCALES = (0.3, 0.5, 0.7, 1.0)
STRUCTURES = ("diagonal", "kronecker", "dense")
Posteriors = Mapping[str, GaussianPosterior]


def fitted(model: nn.Module, x: Tensor, y: Tensor, seed: int, start: Posteriors | None, epochs: int) -> nn.Module:
    """A copy of the network, trained under the prior, or under the (Kronecker-factored) posterior of the base."""
    model, likelihood = copy.deepcopy(model), Categorical()
    opt = torch.optim.Adam(model.parameters(), lr=1e-2 if start is None else 3e-3)
    base = None if start is None else start["kronecker"]
    for epoch in range(epochs):
        for group in opt.param_groups:
            group["lr"] = (1e-2 if start is None else 3e-3) * (1.0 - epoch / epochs)
        for batch in epoch_batches(len(x), 64, seed=seed, epoch=epoch):
            opt.zero_grad()
            weights = dict(model.named_parameters())
            if base is None:
                penalty = 0.5 * PRECISION * sum(p.square().sum() for p in weights.values())
            else:
                penalty = -base.log_prob(weights)
            (likelihood(model(x[batch]), y[batch]) + penalty / len(x)).backward()
            opt.step()
    return model


def posteriors(model: nn.Module, part: Split) -> dict[str, GaussianPosterior]:
    """Laplace approximations on these data alone."""
    batches = list(zip(part.x.split(256), part.y.split(256), strict=True))
    return {
        name: vogn.laplace(model, Categorical(), batches, structure=name, prior_precision=PRECISION)
        for name in STRUCTURES
    }


@torch.no_grad()
def scores(model: nn.Module, weights: Mapping[str, Tensor], test: Split) -> list[float]:
    """Accuracy, NLL, and accuracy on the digits 0 to 4 and 5 to 9, of one set of weights."""
    outputs = functional_call(model, dict(weights), (test.x,))
    right = (outputs.argmax(1) == test.y).double()
    low = test.y < 5
    nll = float(Categorical()(outputs, test.y))
    return [float(right.mean()), nll, float(right[low].mean()), float(right[~low].mean())]


def one(seed: int) -> dict[str, list[float]]:
    """All rows of a seed."""
    data = load_data("digits", seed=seed)
    x, y, test = data.train.x, data.train.y, data.test
    first, rest = Split(x[:FIRST], y[:FIRST]), Split(x[FIRST:], y[FIRST:])
    tasks = [Split(rest.x[mask], rest.y[mask]) for mask in (rest.y < 5, rest.y >= 5)]
    torch.manual_seed(seed)
    base = fitted(build_model("mlp", sizes=(64, 32, 10)), first.x, first.y, seed, None, 60)
    start = posteriors(base, first)
    tuned = [fitted(base, task.x, task.y, seed, start, 30) for task in tasks]
    known = [posteriors(model, task) for model, task in zip(tuned, tasks, strict=True)]
    weights = [{name: p.detach() for name, p in model.named_parameters()} for model in (base, *tuned)]
    rows = {"base": weights[0], "task 0 to 4": weights[1], "task 5 to 9": weights[2]}
    rows["average"] = task_arithmetic(weights[1:], weights[0], 0.5)
    arithmetic = {scale: task_arithmetic(weights[1:], weights[0], scale) for scale in SCALES}
    best = max(SCALES, key=lambda scale: scores(base, arithmetic[scale], test)[0])
    rows["task arithmetic, best scale"] = arithmetic[best]
    for name in STRUCTURES:
        both = merge([each[name] for each in known], start[name], includes_base=False)
        rows[f"merged, {name}"] = both.mean()
        if name != "kronecker":
            rows[f"unlearned 5 to 9, {name}"] = unlearn(
                both, known[1][name], start[name], includes_base=False
            ).mean()
    everything = fitted(build_model("mlp", sizes=(64, 32, 10)), x, y, seed, None, 60)
    rows["all data together"] = {name: p.detach() for name, p in everything.named_parameters()}
    return {name: scores(base, row, test) for name, row in rows.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    start = time.process_time()
    runs = [one(seed) for seed in range(arguments.seeds)]
    record: dict[str, Any] = {"rows": {}}
    print("| weights | accuracy | NLL | digits 0 to 4 | 5 to 9 |\n|---|---|---|---|---|")
    for name in runs[0]:
        line = [mean_error([run[name][k] for run in runs]) for k in range(4)]
        record["rows"][name] = dict(zip(("accuracy", "nll", "low", "high"), line, strict=True))
        print(f"| {name} | " + " | ".join("{:.3f} ± {:.3f}".format(*value) for value in line) + " |", flush=True)
    record |= {"seeds": arguments.seeds, "cpu_seconds": round(time.process_time() - start, 1)}
    write_cell(arguments.results, record | {"environment": environment(), "command": command("benchmarks.merging")})


if __name__ == "__main__":
    main()
