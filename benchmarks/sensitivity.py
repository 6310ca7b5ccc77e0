"""Do leave-one-out predictions find wrong labels, and do they track the loss on new data?

A perceptron 64-32-10 on scikit-learn's digits. First question: a tenth of the training labels are wrong (each is
replaced by another class); examples are ranked by their leave-one-out NLL, by how far their outputs move,
and, to compare with, by their training loss. Second: over prior precisions, the leave-one-out NLL of the training
examples beside the NLL of 937 images that were never used: 500 training images, a network 64-16-10, two curvatures
(exact Gauss-Newton over all weights, Kronecker factors per layer) and both forms.

    OMP_NUM_THREADS=1 python -m benchmarks.sensitivity
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

import vogn
from benchmarks.cells import command, environment, mean_error, write_cell
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.sensitivity import LeaveOneOut, leave_one_out

RESULTS = Path(__file__).parent / "results" / "sensitivity" / "summary.json"
PRECISIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EPOCHS, MARKS = 40, (5, 10, 20, 40)
FLIPPED = 0.1
RUNS = {
    "deterministic": (False, 3.0, 32),
    "variational": (True, 3.0, 32),
    "deterministic, learned by heart": (False, 0.1, 64),
}
"""Mode, prior precision and hidden units; under the last prior the network fits all wrong labels."""


def flipped(y: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Labels a tenth of which are another class, and which ones."""
    source = torch.Generator().manual_seed(seed)
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[torch.randperm(len(y), generator=source)[: round(FLIPPED * len(y))]] = True
    other = (y + torch.randint(1, 10, y.shape, generator=source)) % 10
    return torch.where(wrong, other, y), wrong


def trained(
    x: Tensor, y: Tensor, precision: float, seed: int, variational: bool, looks: tuple[int, ...] = (), hidden: int = 32
) -> Any:
    """Network, optimizer and, after the epochs in ``looks``, the leave-one-out predictions."""
    torch.manual_seed(seed)
    model, likelihood = build_model("mlp", sizes=(64, hidden, 10)), Categorical()
    options: dict[str, Any] = {"initial_curvature": 1.0, "curvature_decay": 0.999} if variational else {}
    opt = vogn.KFAC(
        model, lr=0.3 if variational else 0.1, ess=len(x), weight_decay=precision / len(x), damping=0.01,
        variational=variational, kl_clip=None if variational else 1e-2, seed=seed, **options,
    )  # fmt: skip
    found = {}
    for epoch in range(EPOCHS):
        for group in opt.param_groups:
            group["lr"] = (0.3 if variational else 0.1) * min(1.0, 2.0 * (1.0 - epoch / EPOCHS))
        for batch in epoch_batches(len(x), 64, seed=seed, epoch=epoch):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(x[batch]), y[batch]).backward()
            opt.step()
        if epoch + 1 in looks:
            found[epoch + 1] = leave_one_out(
                model, posterior_of(model, opt, x, y, precision, variational), x, y, order="first"
            )
    return model, opt, found


def posterior_of(
    model: nn.Module, opt: vogn.NaturalGradient, x: Tensor, y: Tensor, precision: float, variational: bool
) -> vogn.GaussianPosterior:
    """That of the run, or the Laplace approximation of a deterministic one."""
    if variational:
        return opt.posterior()
    return vogn.laplace(model, Categorical(), list(zip(x.split(256), y.split(256), strict=True)),
                        prior_precision=precision)  # fmt: skip


def scores(found: LeaveOneOut, wrong: Tensor) -> dict[str, float]:
    """Areas under the ROC curve of three rankings."""
    rows = {"leave-one-out NLL": found.nll, "change of outputs": found.sensitivity, "training NLL": found.training_nll}
    return {name: float(roc_auc_score(wrong.numpy(), score.numpy())) for name, score in rows.items()}


def wrong_labels(seeds: int) -> dict[str, Any]:
    """AUROC of wrong labels, by method and epoch."""
    record: dict[str, Any] = {}
    for name, (variational, precision, hidden) in RUNS.items():
        runs = []
        for seed in range(seeds):
            data = load_data("digits", seed=seed)
            y, wrong = flipped(data.train.y, seed)
            _, _, found = trained(data.train.x, y, precision, seed, variational, MARKS, hidden)
            runs.append({epoch: scores(each, wrong) for epoch, each in found.items()})
        record[name] = {
            str(epoch): {key: mean_error([run[epoch][key] for run in runs]) for key in runs[0][epoch]}
            for epoch in MARKS
        }
        for epoch, line in record[name].items():
            cells = " | ".join("{:.3f} ± {:.3f}".format(*value) for value in line.values())
            print(f"| {name} | {epoch} | {cells} |", flush=True)
    return record


CURVATURES: dict[str, dict[str, Any]] = {
    "exact": {"structure": "dense", "partition": "model"},
    "Kronecker": {"structure": "kronecker"},
}


def sweep(seeds: int) -> dict[str, Any]:
    """Leave-one-out NLL and NLL of new images over prior precisions, on few training images."""
    names = [f"{curvature}, {order}" for curvature in CURVATURES for order in ("leverage", "first")]
    columns = ["training", *names, "new"]
    record: dict[str, Any] = {"precision": list(PRECISIONS), "nll": {key: [] for key in columns}}
    record |= {key: {name: [] for name in names} for key in ("spearman", "chosen", "excess")}
    for seed in range(seeds):
        data = load_data("digits", seed=seed)
        x, y = data.train.x[:500], data.train.y[:500]
        fresh_x, fresh_y = data.train.x[500:], data.train.y[500:]
        lines: dict[str, list[float]] = {key: [] for key in columns}
        for precision in PRECISIONS:
            model, _, _ = trained(x, y, precision, seed, variational=False, hidden=16)
            for curvature, options in CURVATURES.items():
                posterior = vogn.laplace(model, Categorical(), [(x, y)], prior_precision=precision, **options)
                for order in ("leverage", "first"):
                    found = leave_one_out(model, posterior, x, y, order=order)
                    lines[f"{curvature}, {order}"].append(float(found.mean_nll))
            lines["training"].append(float(found.training_nll.mean()))
            with torch.no_grad():
                lines["new"].append(float(Categorical()(model(fresh_x), fresh_y)))
        for key, values in lines.items():
            record["nll"][key].append(values)
        for name in names:
            best = min(range(len(PRECISIONS)), key=lines[name].__getitem__)
            record["spearman"][name].append(float(spearmanr(lines[name], lines["new"]).statistic))
            record["chosen"][name].append(PRECISIONS[best])
            record["excess"][name].append(lines["new"][best] - min(lines["new"]))
    print("\n| prior precision | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for k, precision in enumerate(PRECISIONS):
        cells = [f"{mean_error([line[k] for line in record['nll'][key]])[0]:.3f}" for key in columns]
        print(f"| {precision:g} | " + " | ".join(cells) + " |", flush=True)
    for key in ("spearman", "chosen", "excess"):
        print(key, {name: [round(value, 3) for value in values] for name, values in record[key].items()})
    return record


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="of the wrong labels; the sweep takes three at most")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    start = time.process_time()
    print("| run | epoch | leave-one-out NLL | change of outputs | training NLL |\n|---|---|---|---|---|")
    record: dict[str, Any] = {"wrong labels": wrong_labels(arguments.seeds)}
    record["sweep"] = sweep(min(arguments.seeds, 3))
    record |= {"seeds": arguments.seeds, "cpu_seconds": round(time.process_time() - start, 1)}
    record |= {"environment": environment(), "command": command("benchmarks.sensitivity")}
    write_cell(arguments.results, record)


if __name__ == "__main__":
    main()
