"""Do variational methods give better calibrated image classifiers than first-order training at the same cost?

Every method is tuned by the same rule: four configurations, a few epochs on part of the training images, the lowest
negative log-likelihood on the rest of them (of the posterior predictive for variational methods). The chosen
configuration is then trained with paired seeds (same initial weights, same data order) and measured once on the test
images. Digits: five-fold cross-validation, tuned inside the training part of each fold.

    python -m benchmarks.classification run --data digits
    python -m benchmarks.classification run --data mnist --data-dir DIR --jobs 2 --budget-minutes 60
    python -m benchmarks.classification report --data mnist

``--full`` runs the full sizes (about a day of CPU); without it the reduced sizes that the README reports.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, read_cell, run_cells, write_cell
from vogn import metrics
from vogn.data.order import epoch_batches
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.predict import update_batchnorm

RESULTS = Path(__file__).parent / "results" / "classification"


@dataclass(frozen=True)
class Study:
    """Sizes of one study.

    Args:
        train, test: numbers of images; 0 takes all.
        epochs: of the final runs.
        tune_train, tune_validation, tune_epochs: sizes of the tuning runs.
        seeds: paired seeds, or folds.
        samples: weight samples of the posterior predictive.
    """

    train: int
    test: int
    epochs: int
    tune_train: int
    tune_validation: int
    tune_epochs: int
    seeds: int = 5
    samples: int = 32
    width: int = 16
    batch: int = 64


FULL = {
    "digits": Study(0, 0, 30, 0, 0, 30),
    "mnist": Study(12000, 0, 6, 6000, 2000, 4),
    "cifar10": Study(12000, 0, 12, 6000, 2000, 4),
}
REDUCED = {
    "digits": Study(0, 0, 30, 0, 0, 30),
    "mnist": Study(3000, 2000, 6, 1500, 500, 4, samples=16, batch=32),
    "cifar10": Study(2000, 2000, 12, 1000, 500, 4, samples=16, batch=32),
}

EVERY = {"observe_every": 5}


def _natural(name: str, variational: bool, **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    def build(model: nn.Module, n: int, *, lr: float, prior: float, temperature: float, seed: int, **rest: Any) -> Any:
        ess = n / temperature
        options = fixed | rest
        return vogn.METHODS[name].build(
            model, lr=lr, ess=ess, weight_decay=prior / ess, variational=variational, seed=seed, **options
        )

    return build


def _adamw(model: nn.Module, n: int, *, lr: float, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def _sgd(model: nn.Module, n: int, *, lr: float, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)


def _ivon_opt(
    model: nn.Module, n: int, *, lr: float, prior: float, temperature: float, initial_curvature: float, seed: int
) -> Any:
    try:
        import ivon
    except ImportError:
        sys.exit("the ivon-opt row needs the bench extra: pip install 'vogn[bench]'")
    ess = n / temperature
    return ivon.IVON(model.parameters(), lr=lr, ess=ess, weight_decay=prior / ess, hess_init=initial_curvature)


def grid(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The base configuration with each of the changes."""
    return tuple(dict(base) | dict(change) for change in changes)


def _rates(*rates: float, **values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"lr": lr} | values for lr in rates)


@dataclass(frozen=True)
class Row:
    """A method: how it is built and its four configurations."""

    build: Callable[..., Any]
    configurations: tuple[dict[str, Any], ...]
    samples: bool = False
    """Whether weights are sampled, so that the posterior predictive is what counts."""
    epochs_of: str = ""
    """Train for the wall time of this other row instead of the same number of epochs."""


_VOGN = grid(
    {"lr": 0.05, "damping": 0.03, "prior": 1000.0, "temperature": 0.001},
    {},
    {"lr": 0.1, "damping": 0.1},
    {"prior": 300.0},
    {"temperature": 0.003},
)
_KRON = grid({"lr": 0.1, "prior": 100.0, "temperature": 0.01}, {}, {"prior": 10.0}, {"temperature": 0.001}, {"lr": 0.3})
_IVON = grid(
    {"lr": 2.0, "prior": 10.0, "temperature": 0.1, "initial_curvature": 0.3},
    {},
    {"lr": 1.0},
    {"temperature": 0.01, "initial_curvature": 0.1},
    {"lr": 1.0, "temperature": 0.01, "initial_curvature": 0.1},
)
_DECAY = grid({"weight_decay": 5e-4}, {"lr": 0.1}, {"lr": 0.03}, {"lr": 0.1, "weight_decay": 5e-3}, {"lr": 0.3})
_ADAMW = grid({"weight_decay": 1e-2}, {"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-3, "weight_decay": 1e-1})
ROWS: dict[str, Row] = {
    "vogn": Row(_natural("vogn", True, **EVERY), _VOGN, samples=True),
    "vogn-det": Row(_natural("vogn", False, **EVERY), _VOGN),
    "ivon": Row(_natural("ivon", True), _IVON, samples=True),
    "ivon-det": Row(_natural("ivon", False, **EVERY), _IVON),
    "kfac": Row(_natural("kfac", True, **EVERY), _KRON, samples=True),
    "kfac-det": Row(_natural("kfac", False, **EVERY), _KRON),
    "ekfac": Row(_natural("ekfac", True, **EVERY), _KRON, samples=True),
    "ekfac-det": Row(_natural("ekfac", False, **EVERY), _KRON),
    "adamw": Row(_adamw, _ADAMW),
    "sgd": Row(_sgd, _DECAY),
    "ivon-opt": Row(_ivon_opt, _IVON, samples=True),
    "adamw-time": Row(_adamw, _ADAMW, epochs_of="vogn"),
    "sgd-time": Row(_sgd, _DECAY, epochs_of="vogn"),
}


# ---------------------------------------------------------------------- data


def load(data: str, directory: Path | None) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Images ``(N, C, H, W)`` in [0, 1] and labels: training and, if the data set has one, test part."""
    if data == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0, torch.tensor(y), None, None
    name = {"mnist": "mnist.npz", "cifar10": "cifar10_jpegbytes.npz"}[data]
    if directory is None or not (directory / name).exists():
        sys.exit(f"{data} needs --data-dir with the file {name} (arrays as in benchmarks/README.md); it is missing")
    with np.load(directory / name, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    if data == "mnist":
        images = [torch.tensor(arrays[f"x_{part}"]).unsqueeze(1).float() / 255.0 for part in ("train", "test")]
    else:
        images = [_decode(arrays[f"jpeg_{part}"], arrays[f"offset_{part}"]) for part in ("train", "test")]
    labels = [torch.tensor(arrays[f"y_{part}"].astype(np.int64)) for part in ("train", "test")]
    return images[0], labels[0], images[1], labels[1]


def _decode(stream: np.ndarray, offsets: np.ndarray, limit: int = 12000) -> Tensor:
    from PIL import Image

    count = min(len(offsets) - 1, limit)
    out = np.empty((count, 32, 32, 3), dtype=np.uint8)
    for k in range(count):
        with Image.open(io.BytesIO(stream[offsets[k] : offsets[k + 1]].tobytes())) as image:
            out[k] = np.asarray(image.convert("RGB"))
    return torch.tensor(out).permute(0, 3, 1, 2).float() / 255.0


def parts(
    data: str, directory: Path | None, study: Study, seed: int, *, tuning: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and held-out part of one cell, standardised with the training part's moments."""
    x, y, x_test, y_test = load(data, directory)
    if x_test is None or y_test is None:
        from sklearn.model_selection import StratifiedKFold, train_test_split

        folds = StratifiedKFold(study.seeds, shuffle=True, random_state=0).split(x.numpy(), y.numpy())
        train, test = list(folds)[seed]
        if tuning:
            train, test = train_test_split(train, test_size=0.2, random_state=0, stratify=y.numpy()[train])
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    elif tuning:
        split = study.tune_train + study.tune_validation
        x_test, y_test = x[study.tune_train : split], y[study.tune_train : split]
        x, y = x[: study.tune_train], y[: study.tune_train]
    else:
        x, y = x[: study.train or None], y[: study.train or None]
        x_test, y_test = x_test[: study.test or None], y_test[: study.test or None]
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return (x - mean) / std, y, (x_test - mean) / std, y_test


# ---------------------------------------------------------------------- one run


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then cosine to zero."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train(
    row: Row, configuration: Mapping[str, Any], x: Tensor, y: Tensor, study: Study, epochs: int, seed: int
) -> tuple[nn.Module, Any, float]:
    """Train a ResNet-8; returns the model, the optimizer and the CPU seconds of the loop."""
    torch.manual_seed(seed)
    model = build_model("resnet8", num_classes=10, in_channels=x.shape[1], width=study.width)
    optimizer = row.build(model, len(x), seed=seed, **configuration)
    rates = [group["lr"] for group in optimizer.param_groups]
    likelihood = Categorical()
    steps = epochs * len(epoch_batches(len(x), study.batch, seed, 0))
    step, start = 0, time.process_time()
    for epoch in range(epochs):
        for batch in epoch_batches(len(x), study.batch, seed, epoch):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps)
            optimizer.zero_grad()
            if isinstance(optimizer, vogn.NaturalGradient):
                with optimizer.sampled_params():
                    likelihood(model(x[batch]), y[batch]).backward()
            elif hasattr(optimizer, "sampled_params"):
                with optimizer.sampled_params(train=True):
                    likelihood(model(x[batch]), y[batch]).backward()
            else:
                likelihood(model(x[batch]), y[batch]).backward()
            optimizer.step()
            step += 1
    return model, optimizer, time.process_time() - start


@torch.no_grad()
def predictions(
    row: Row, model: nn.Module, optimizer: Any, x: Tensor, samples: int, train_x: Tensor
) -> dict[str, Tensor]:
    """Class probabilities at the mean and, for methods that sample, of the posterior predictive.

    Batch norm statistics: the running ones for methods without weight noise, computed anew from training images for
    the mean and for every weight sample of the others.
    """
    calibration = list(train_x[:1024].split(128))
    model.eval()

    def forward(*, recompute: bool) -> Tensor:
        if recompute:
            update_batchnorm(model, calibration)
        return torch.cat([model(part).softmax(-1) for part in x.split(500)])

    out = {"mean": forward(recompute=row.samples)}
    if isinstance(optimizer, vogn.NaturalGradient) and row.samples:
        posterior = optimizer.posterior()
        out["posterior"] = vogn.predict(
            model, posterior, x, samples=samples, keep_samples=False, calibration=calibration
        ).mean
    elif row.samples:
        total = torch.zeros_like(out["mean"])
        for _ in range(samples):
            with optimizer.sampled_params():
                total += forward(recompute=True)
        out["posterior"] = total / samples
    return out


def measure(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE."""
    return {name: float(getattr(metrics, name)(probabilities, labels)) for name in ("accuracy", "nll", "brier", "ece")}


def command() -> str:
    """This process's command line without the places of this machine."""
    words = list(sys.argv[1:])
    for option in ("--cell", "--data-dir"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return " ".join(["python -m benchmarks.classification", *words])


def run_cell(arguments: argparse.Namespace) -> None:
    """Train and measure one (method, configuration, seed)."""
    study, row = sizes(arguments), ROWS[arguments.method]
    configuration = row.configurations[arguments.configuration]
    tuning = arguments.tuning
    x, y, x_test, y_test = parts(arguments.data, arguments.data_dir, study, arguments.seed, tuning=tuning)
    epochs = arguments.epochs or (study.tune_epochs if tuning else study.epochs)
    model, optimizer, seconds = train(row, configuration, x, y, study, epochs, arguments.seed)
    probabilities = predictions(row, model, optimizer, x_test, study.samples, x)
    record = {
        "method": arguments.method,
        "data": arguments.data,
        "configuration": configuration,
        "seed": arguments.seed,
        "tuning": tuning,
        "epochs": epochs,
        "train": len(x),
        "held_out": len(x_test),
        "samples": study.samples if row.samples else 0,
        "cpu_seconds": round(seconds, 2),
        "command": command(),
        "environment": environment(),
        **{kind: measure(p, y_test) for kind, p in probabilities.items()},
    }
    best = probabilities.get("posterior", probabilities["mean"])
    if not tuning:
        nll = -best[torch.arange(len(y_test)), y_test].clamp_min(1e-30).log()
        record["per_example_nll"] = [round(float(v), 5) for v in nll] if arguments.data == "digits" else []
    write_cell(arguments.cell, record)


# ---------------------------------------------------------------------- the study


def sizes(arguments: argparse.Namespace) -> Study:
    """The study's sizes."""
    study = (FULL if arguments.full else REDUCED)[arguments.data]
    return replace(study, seeds=arguments.seeds) if arguments.seeds else study


def folder(arguments: argparse.Namespace) -> Path:
    """Where this study's cells are."""
    return arguments.results / (arguments.data + ("-full" if arguments.full else ""))


def arguments_of(arguments: argparse.Namespace, method: str, configuration: int, seed: int, **extra: Any) -> list[str]:
    """Command line of one cell."""
    line = ["cell", "--data", arguments.data, "--method", method, "--configuration", str(configuration)]
    line += ["--seed", str(seed), "--cell", str(extra.pop("cell"))]
    line += ["--full"] if arguments.full else []
    line += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    for key, value in extra.items():
        line += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return line


def score(record: Mapping[str, Any]) -> float:
    """What tuning minimises: the NLL of the prediction that the method is meant for."""
    value = float(record.get("posterior", record["mean"])["nll"])
    return value if math.isfinite(value) else math.inf


def tuned(arguments: argparse.Namespace, method: str, seed: int) -> int | None:
    """Index of the best configuration, or ``None`` while tuning is unfinished."""
    row = ROWS[method]
    name = method.removesuffix("-time")
    split = seed if arguments.data == "digits" else 0
    records = [
        read_cell(folder(arguments) / "tuning" / f"{name}-{k}-{split}.json") for k in range(len(row.configurations))
    ]
    if any(record is None for record in records):
        return None
    return int(np.argmin([score(record) for record in records if record is not None]))


def run_study(arguments: argparse.Namespace) -> int:
    """Tune, then run all seeds, within the time budget; a later call continues."""
    study, root = sizes(arguments), folder(arguments)
    deadline = time.monotonic() + 60 * arguments.budget_minutes if arguments.budget_minutes else None
    load(arguments.data, arguments.data_dir)
    methods = arguments.methods.split(",") if arguments.methods else list(ROWS)
    splits = range(study.seeds) if arguments.data == "digits" else range(1)
    tuning = []
    for seed in splits:
        for method in methods:
            for k in range(len(ROWS[method].configurations)):
                if not ROWS[method].epochs_of:
                    path = root / "tuning" / f"{method}-{k}-{seed}.json"
                    tuning.append((path, arguments_of(arguments, method, k, seed, cell=path, tuning=True)))
    _, left = run_cells("benchmarks.classification", tuning, jobs=arguments.jobs, deadline=deadline)
    if left:
        print(f"{left} tuning cells left; call again to continue")
        return 1
    for timed in (False, True):
        final = []
        for seed in range(study.seeds):
            for method in methods:
                row = ROWS[method]
                best = tuned(arguments, method, seed)
                if bool(row.epochs_of) != timed or best is None:
                    continue
                path = root / "final" / f"{method}-{seed}.json"
                extra: dict[str, Any] = {}
                if timed:
                    slow, fast = (cpu_per_epoch(root, name) for name in (row.epochs_of, method.removesuffix("-time")))
                    if slow is None or fast is None:
                        continue
                    extra["epochs"] = max(1, round(study.epochs * slow / fast))
                final.append((path, arguments_of(arguments, method, best, seed, cell=path, **extra)))
        _, left = run_cells("benchmarks.classification", final, jobs=arguments.jobs, deadline=deadline)
        if left:
            print(f"{left} cells left; call again to continue")
            return 1
    report(arguments)
    return 0


def cpu_per_epoch(root: Path, method: str) -> float | None:
    """Median CPU seconds per epoch of a method's final cells."""
    records = [json.loads(path.read_text()) for path in root.glob(f"final/{method}-[0-9]*.json")]
    return float(np.median([r["cpu_seconds"] / r["epochs"] for r in records])) if records else None


# ---------------------------------------------------------------------- report


def summarise(root: Path) -> list[dict[str, Any]]:
    """One line per method: means, standard errors, and paired differences to AdamW with bootstrap intervals."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(root.glob("final/*.json")):
        record = json.loads(path.read_text())
        cells.setdefault(record["method"], {})[record["seed"]] = record
    generator = np.random.default_rng(0)
    lines = []
    for method in ROWS:
        if method not in cells:
            continue
        line: dict[str, Any] = {"method": method, "n": len(cells[method])}
        line["cpu_seconds"] = float(np.mean([r["cpu_seconds"] for r in cells[method].values()]))
        line["epochs"] = float(np.mean([r["epochs"] for r in cells[method].values()]))
        for kind in ("mean", "posterior"):
            if kind not in next(iter(cells[method].values())):
                continue
            for metric in ("accuracy", "nll", "brier", "ece"):
                values = np.array([r[kind][metric] for r in cells[method].values()])
                error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                line[f"{kind} {metric}"] = [float(values.mean()), float(error)]
        if "adamw" in cells and method != "adamw":
            shared = sorted(set(cells[method]) & set(cells["adamw"]))
            for metric in ("accuracy", "nll", "ece"):
                pairs = np.array(
                    [best(cells[method][s])[metric] - best(cells["adamw"][s])[metric] for s in shared], dtype=float
                )
                if len(pairs) < 2:
                    continue
                draws = generator.choice(pairs, (10000, len(pairs))).mean(1)
                line[f"minus adamw {metric}"] = [
                    float(pairs.mean()),
                    float(pairs.std(ddof=1) / math.sqrt(len(pairs))),
                    *(float(q) for q in np.quantile(draws, [0.025, 0.975])),
                ]
        lines.append(line)
    return lines


def best(record: Mapping[str, Any]) -> Mapping[str, float]:
    """The prediction that the method is meant for."""
    return record.get("posterior", record["mean"])


def report(arguments: argparse.Namespace) -> None:
    """Print the table as Markdown and write it as JSON beside the cells."""
    root = folder(arguments)
    lines = summarise(root)
    if not lines:
        sys.exit(f"no finished cells in {root}; run the study first")
    write_cell(root / "summary.json", {"lines": lines, "environment": environment()})
    titles = ["method", "epochs", "CPU s", "accuracy %", "NLL", "ECE"]
    titles += ["NLL minus AdamW (95 % bootstrap)", "points minus AdamW"]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for line in lines:
        kind = "posterior" if "posterior nll" in line else "mean"
        accuracy, nll, ece = (line[f"{kind} {metric}"] for metric in ("accuracy", "nll", "ece"))
        versus, points = line.get("minus adamw nll"), line.get("minus adamw accuracy")
        texts = [line["method"], f"{line['epochs']:.0f}", f"{line['cpu_seconds']:.0f}"]
        texts.append(f"{100 * accuracy[0]:.2f} ± {100 * accuracy[1]:.2f}")
        texts += [f"{value:.4f} ± {error:.4f}" for value, error in (nll, ece)]
        texts.append(f"{versus[0]:+.4f} ± {versus[1]:.4f} [{versus[2]:+.4f}, {versus[3]:+.4f}]" if versus else "")
        texts.append(f"{100 * points[0]:+.2f} ± {100 * points[1]:.2f}" if points else "")
        print("| " + " | ".join(texts) + " |")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "cell", "report"])
    parser.add_argument("--data", choices=sorted(FULL), required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds or folds; 0 takes the study's")
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    parser.add_argument("--methods", default="", help="comma-separated subset of the rows")
    parser.add_argument("--method", choices=list(ROWS))
    parser.add_argument("--configuration", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--tuning", action="store_true")
    parser.add_argument("--cell", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "report":
        report(arguments)
        return 0
    return run_study(arguments)


if __name__ == "__main__":
    sys.exit(main())
