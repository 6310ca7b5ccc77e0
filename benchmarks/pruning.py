"""How many weights can go by signal-to-noise, beside magnitude?

A perceptron 64-64-64-10 on scikit-learn's digits, three seeds, no retraining. VOGN's posterior is pruned by the ratio
of mean and standard deviation and by the size of the mean, single weights and whole units; AdamW's network by the size
of the weights. Predictions average 32 weight samples; AdamW's network is one set of weights.

    OMP_NUM_THREADS=1 python -m benchmarks.pruning
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vogn
from benchmarks.cells import command, environment, mean_error, write_cell
from vogn.data import Data, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.pruning import pruning_curve

RESULTS = Path(__file__).parent / "results" / "pruning" / "summary.json"
SHARES = (0.0, 0.5, 0.75, 0.85, 0.9, 0.95, 0.98)
EPOCHS = 60


def trained(data: Data, seed: int, bayesian: bool) -> tuple[nn.Module, Any]:
    """Network and posterior."""
    torch.manual_seed(seed)
    x, y = data.train.x, data.train.y
    model, likelihood = build_model("mlp", sizes=(64, 64, 64, 10)), Categorical()
    if bayesian:
        opt: Any = vogn.VOGN(
            model, lr=0.1, ess=len(x), weight_decay=1 / len(x), damping=0.01, fisher="mc", initial_curvature=1.0,
            curvature_decay=0.999, seed=seed,
        )  # fmt: skip
    else:
        opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    top = opt.param_groups[0]["lr"]
    for epoch in range(EPOCHS):
        for group in opt.param_groups:
            group["lr"] = top * min(1.0, 2.0 * (1.0 - epoch / EPOCHS))
        for batch in epoch_batches(len(x), 64, seed=seed, epoch=epoch):
            opt.zero_grad()
            if bayesian:
                with opt.sampled_params():
                    likelihood(model(x[batch]), y[batch]).backward()
            else:
                likelihood(model(x[batch]), y[batch]).backward()
            opt.step()
    return model, opt.posterior() if bayesian else vogn.Point(model, likelihood=likelihood)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    start, found = time.process_time(), {}
    for seed in range(arguments.seeds):
        data = load_data("digits", seed=seed)
        for bayesian in (True, False):
            model, posterior = trained(data, seed, bayesian)
            for score in ("snr", "magnitude") if bayesian else ("magnitude",):
                for by in ("weight", "unit"):
                    curve = pruning_curve(
                        model, posterior, data.test.x, data.test.y, SHARES, score=score, by=by,
                        method="mc" if bayesian else "mean",
                    )  # fmt: skip
                    name = f"{'VOGN' if bayesian else 'AdamW'}, {score}, {by}s"
                    found.setdefault(name, []).append([[point.quality, point.nll] for point in curve])
    record: dict[str, Any] = {"shares": list(SHARES), "rows": {}}
    print("| pruned | " + " | ".join(f"{100 * share:.0f} %" for share in SHARES) + " |")
    print("|---" * (len(SHARES) + 1) + "|")
    for name, runs in found.items():
        lines = {
            key: [mean_error([run[k][i] for run in runs]) for k in range(len(SHARES))]
            for i, key in enumerate(("accuracy", "nll"))
        }
        record["rows"][name] = lines
        cells = [f"{100 * a[0]:.1f} % / {n[0]:.3f}" for a, n in zip(lines["accuracy"], lines["nll"], strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |")
    record |= {"seeds": arguments.seeds, "cpu_seconds": round(time.process_time() - start, 1)}
    write_cell(arguments.results, record | {"environment": environment(), "command": command("benchmarks.pruning")})


if __name__ == "__main__":
    main()
