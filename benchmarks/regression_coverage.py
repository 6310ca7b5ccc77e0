"""Do credible intervals of a linear regression cover the coefficients at their nominal rate, with default settings?

The simulation that IVON's users began with: 1000 observations, 12 standard normal covariates, coefficients uniform in
[1, 5], intercept 5, noise with standard deviation 2. Every method is used with its defaults and ess = n; only the
learning rate follows a cosine to zero, as in any training. Coverage is over coefficients and simulations; the ratio is
posterior standard deviation over the exact one; the exact posterior's own coverage on
the same data is the control.

    python -m benchmarks.regression_coverage run --jobs 2
    python -m benchmarks.regression_coverage report
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, finish, mean_error, study_parser, write_cell
from vogn.likelihoods import Gaussian

RESULTS = Path(__file__).parent / "results" / "regression_coverage"
OBSERVATIONS, COVARIATES, NOISE, BATCH = 1000, 12, 2.0, 50
LEVELS = (0.5, 0.9, 0.95)
METHODS: dict[str, Callable[[nn.Module], vogn.NaturalGradient]] = {
    "ivon": lambda model: vogn.IVON(model, ess=OBSERVATIONS),
    "vogn (ggn)": lambda model: vogn.VOGN(model, ess=OBSERVATIONS, fisher="ggn"),
    "kfac": lambda model: vogn.KFAC(model, ess=OBSERVATIONS),
    "slang": lambda model: vogn.SLANG(model, ess=OBSERVATIONS),
}


def simulate(method: str, simulation: int, steps: int) -> dict[str, Any]:
    """One data set, one run: which intervals cover, and how wide they are relative to the exact posterior."""
    generator = torch.Generator().manual_seed(simulation)
    x = torch.randn(OBSERVATIONS, COVARIATES, generator=generator)
    truth = 1.0 + 4.0 * torch.rand(COVARIATES, generator=generator)
    y = (x @ truth + 5.0 + NOISE * torch.randn(OBSERVATIONS, generator=generator)).unsqueeze(1)
    torch.manual_seed(simulation)
    model = nn.Linear(COVARIATES, 1)
    optimizer = METHODS[method](model)
    optimizer.seed = simulation
    rates = [group["lr"] for group in optimizer.param_groups]
    likelihood = Gaussian(NOISE)
    start = time.process_time()
    for step in range(steps):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        batch = torch.randint(OBSERVATIONS, (BATCH,), generator=generator)
        optimizer.zero_grad()
        with optimizer.sampled_params():
            likelihood(model(x[batch]), y[batch]).backward()
        optimizer.step()
    seconds = time.process_time() - start
    posterior = optimizer.posterior()
    mean = posterior.mean()["weight"].squeeze(0)
    std = posterior.variance()["weight"].squeeze(0).sqrt()
    design = torch.cat([x, torch.ones(OBSERVATIONS, 1)], 1).double()
    decay = OBSERVATIONS * optimizer.param_groups[0]["weight_decay"]
    precision = design.T @ design / NOISE**2 + decay * torch.eye(COVARIATES + 1, dtype=torch.float64)
    exact = torch.cholesky_inverse(torch.linalg.cholesky(precision)).diagonal()[:COVARIATES].sqrt()
    centre = torch.cholesky_solve(design.T @ y.double() / NOISE**2, torch.linalg.cholesky(precision))[:COVARIATES, 0]

    def covered(mean: Tensor, std: Tensor) -> dict[str, list[bool]]:
        z = ((mean - truth) / std).abs()
        return {str(level): (z <= NormalDist().inv_cdf(0.5 + level / 2)).tolist() for level in LEVELS}

    return {
        "covered": covered(mean, std),
        "covered_exact": covered(centre, exact),
        "std_ratio": (std / exact).tolist(),
        "cpu_seconds": round(seconds, 2),
    }


def run_cell(arguments: argparse.Namespace) -> None:
    """All simulations of one method."""
    runs = [simulate(arguments.method, k, arguments.steps) for k in range(arguments.simulations)]
    record: dict[str, Any] = {
        "method": arguments.method,
        "simulations": arguments.simulations,
        "steps": arguments.steps,
        "command": f"python -m benchmarks.regression_coverage run --simulations {arguments.simulations}",
        "environment": environment(),
        "cpu_seconds": sum(run["cpu_seconds"] for run in runs),
        "std_ratio": float(np.mean([run["std_ratio"] for run in runs])),
    }
    for level in LEVELS:
        for key, name in (("covered", f"coverage {level}"), ("covered_exact", f"exact coverage {level}")):
            record[name] = mean_error([np.mean(run[key][str(level)]) for run in runs])
    write_cell(arguments.cell, record)


def report(results: Path) -> None:
    """Print the table."""
    print("| method | " + " | ".join(f"{100 * level:.0f} % interval" for level in LEVELS) + " | std / exact std |")
    print("|---|" + "---|" * (len(LEVELS) + 1))
    records = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    for record in records:
        cells = [_percent(record[f"coverage {level}"]) for level in LEVELS]
        print(f"| {record['method']} | " + " | ".join(cells) + f" | {record['std_ratio']:.3f} |")
    if records:
        exact = [_percent(records[0][f"exact coverage {level}"]) for level in LEVELS]
        print("| exact posterior | " + " | ".join(exact) + " | 1 |")


def _percent(pair: list[float]) -> str:
    return f"{100 * pair[0]:.1f} ± {100 * pair[1]:.1f}"


def main() -> int:
    """Command line."""
    parser = study_parser(__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--simulations", type=int, default=40)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--method", choices=list(METHODS))
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
    elif arguments.command == "run":
        cells = []
        for method in METHODS:
            path = arguments.results / f"{method.split()[0]}.json"
            line = ["cell", "--method", method, "--cell", str(path)]
            line += ["--simulations", str(arguments.simulations), "--steps", str(arguments.steps)]
            cells.append((path, line))
        if not finish("benchmarks.regression_coverage", cells, arguments):
            return 1
    if arguments.command != "cell":
        report(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
