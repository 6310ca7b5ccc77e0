"""How far is a run that nobody tuned from one that somebody did?

"auto": ``ess`` counted from the data, the command line's prior of the method and its temperature to begin with (for
regression temperature 1 and a prior precision of 1 to begin with), learning rate and damping of a search on held-out
examples, for images the temperature too, ``initial_curvature="auto"``, and the prior from the evidence: of the head
alone in residual networks, whose other weights stand before norms and have no scale; of every layer in perceptrons,
whose dense curvature over all data is measured for it; both from the middle of the run on. "by hand": the configuration
that the classification study has tuned for this method and seed; for regression the best of four (learning rate, prior)
on a validation part of the first split. Both are variational, see the same batches from the same initial weights and
differ in nothing else. Images are 3000 for training and 3000 for testing, epochs fewer than the configurations were
tuned for; perceptrons are trained for 2000 steps.

    python -m benchmarks.auto_settings run --data-dir DIR --budget-minutes 25
    python -m benchmarks.auto_settings report
    python -m benchmarks.auto_settings finals        what the searches' longer runs changed
    python -m benchmarks.auto_settings rates         what range tests see, on MNIST and CIFAR-10
    python -m benchmarks.auto_settings curvature     where the curvature starts, on digits
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from benchmarks.cells import command, environment, mean_error, read_cell, write_cell
from benchmarks.classification.images import parts
from benchmarks.classification.one_run import measure, predictions, schedule
from benchmarks.classification.rows import EVERY, ROWS
from benchmarks.classification.sizes import REDUCED
from benchmarks.uci.data import split
from vogn.cli.contenders import RECIPES
from vogn.data import epoch_batches
from vogn.likelihoods import Categorical, Gaussian
from vogn.models import build_model
from vogn.optim.range_choice import choose

RESULTS = Path(__file__).parent / "results" / "auto_settings"
TUNED = Path(__file__).parent / "results" / "classification"
SIZES = {
    "digits": replace(REDUCED["digits"], epochs=6, samples=8, calibration=256),
    "mnist": replace(REDUCED["mnist"], train=3000, test=3000, epochs=4, samples=8),
    "cifar10": replace(REDUCED["cifar10"], train=3000, test=3000, epochs=6, samples=8),
}
REGRESSIONS = ("boston", "concrete", "energy", "yacht")
METHODS = ("kfac", "vogn")
SEEDS = dict.fromkeys(SIZES, 3) | dict.fromkeys(REGRESSIONS, 6) | {"yacht": 20}
STEPS, HIDDEN, BATCH, SAMPLES = 2000, 50, 32, 32
RUNS = 5
"""Of a perceptron with the same settings, from other initial weights and in other orders: on yacht a single one's RMSE
scatters by a quarter."""
HELD_OUT = 5
"""A fifth of the training data is held out in searches."""
GRID = [{"lr": 0.03, "prior": 1.0}, {"lr": 0.1, "prior": 1.0}, {"lr": 0.3, "prior": 1.0}, {"lr": 0.1, "prior": 10.0}]
PREDICTION_TEMPERATURE = 0.3
RULE = "the lowest mean loss, also far from a sweep that chose little, confirmed by runs as long as the training, "
RULE += "in which another rate must win by a standard error"
IMAGE_RULE = RULE + "; the temperature by runs as long too"
"""Rules of the searches. Cells of another rule are run again."""
Found = dict[str, Any]


def rule_of(data: str) -> str:
    """The rule of the searches on these data."""
    return IMAGE_RULE if data in SIZES else RULE


def loop(
    model: nn.Module,
    optimizer: vogn.NaturalGradient,
    likelihood: Any,
    data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch: int,
    seed: int,
    tuner: vogn.PriorTuner | None = None,
    noise: torch.optim.Optimizer | None = None,
) -> None:
    """Train with warm-up and cosine decay; ``noise`` optimises the likelihood's own parameters."""
    (x, y), rates, step = data, [group["lr"] for group in optimizer.param_groups], 0
    steps = epochs * len(epoch_batches(len(x), batch, seed, 0))
    for epoch in range(epochs):
        for indices in epoch_batches(len(x), batch, seed, epoch):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps)
            optimizer.zero_grad()
            if noise is not None:
                noise.zero_grad()
            with optimizer.sampled_params():
                likelihood(model(x[indices]), y[indices]).backward()
            optimizer.step()
            if noise is not None:
                noise.step()
            if tuner is not None:
                tuner.step()
            step += 1


def search(
    optimizer: vogn.NaturalGradient,
    model: nn.Module,
    likelihood: Any,
    data: tuple[Tensor, Tensor],
    batch: int,
    seed: int,
    steps: int,
    training_steps: int,
    temperature: bool = False,
) -> Found:
    """Set and return learning rate and damping of a search that trains on four fifths of the data and compares on the
    rest; the run has all of them again. The longer runs of the search take ``training_steps``. On request the
    temperature too, by a search that follows."""
    torch.manual_seed(seed)
    order = torch.randperm(len(data[0]))
    count = len(order) // HELD_OUT
    outside, inside = (TensorDataset(*(tensor[part] for tensor in data)) for part in (order[:count], order[count:]))
    loader = DataLoader(inside, batch_size=batch, shuffle=True)
    held_out = DataLoader(outside, batch_size=256)
    longer = training_steps / steps
    found = vogn.damping_search(optimizer, model, likelihood, loader, held_out=held_out, steps=steps, longer=longer)
    for group in optimizer.param_groups:
        group.update(lr=found.suggestion, damping=found.damping)
    tests = [
        [damping, None if test is None else {"lr": test.suggestion, "loss": float(np.mean(test.final))}]
        for damping, test in found.tests
    ]
    chosen = {"lr": found.suggestion, "damping": found.damping, "tests": tests, "finals": found.to_dict()["finals"]}
    if temperature:
        colder = vogn.temperature_search(
            optimizer, model, likelihood, loader, held_out=held_out, steps=training_steps
        )
        for group in optimizer.param_groups:
            group["ess"] *= colder.factor
        chosen |= {"ess_factor": colder.factor, "ess_factors": colder.to_dict()["trials"]}
    return chosen


def automatic(method: str, model: nn.Module, loader: DataLoader[Any], seed: int) -> vogn.NaturalGradient:
    """The optimizer of a residual network, with everything automatic but the rate and the prior of the head."""
    recipe = RECIPES[method]
    ess = vogn.effective_sample_size(loader, temperature=recipe.temperature)
    options = {key: value for key, value in recipe.options.items() if key != "lr"} | EVERY
    return vogn.METHODS[method].build(
        model,
        ess=ess,
        weight_decay=recipe.prior_precision / ess,
        initial_curvature="auto",
        seed=seed,
        groups=[{"params": list(model.classifier.parameters())}],
        **options,
    )


def classify(name: str, method: str, seed: int, directory: Path) -> dict[str, Found]:
    """Both runs of a residual network."""
    study = SIZES[name]
    (x, y), _, (x_test, y_test) = parts(name, directory, study, seed, tuning=False)
    tuned = json.loads((TUNED / name / "final" / f"{method}-{seed}.json").read_text())["configuration"]
    recipe, found = RECIPES[method], {}
    loader = DataLoader(TensorDataset(x, y), batch_size=study.batch, shuffle=True)
    epoch = len(epoch_batches(len(x), study.batch, seed, 0))
    for way in ("hand", "auto"):
        torch.manual_seed(seed)
        model = build_model("resnet8", num_classes=10, in_channels=x.shape[1], width=study.width)
        start, tuner = time.process_time(), None
        chosen = {"lr": tuned["lr"], "damping": tuned.get("damping", recipe.options.get("damping"))}
        if way == "hand":
            optimizer = ROWS[method].build(model, len(x), seed=seed, **tuned)
        else:
            optimizer = automatic(method, model, loader, seed)
            start_tuning = study.epochs // 2 * epoch
            training_steps = study.epochs * epoch
            chosen = search(
                optimizer, model, Categorical(), (x, y), study.batch, seed, 100, training_steps, temperature=True
            )
            temperature = recipe.temperature / chosen["ess_factor"]
            tuner = vogn.PriorTuner(
                optimizer, every=epoch, start=start_tuning, temperature=temperature, only=["classifier"]
            )
        before = time.process_time()
        loop(
            model, optimizer, Categorical(), (x, y), epochs=study.epochs, batch=study.batch, seed=seed, tuner=tuner
        )
        end = time.process_time()
        p = predictions(
            ROWS[method], model, optimizer, x_test, study.samples, x[: study.calibration], PREDICTION_TEMPERATURE
        )["posterior"]
        found[way] = chosen | {
            "setting_seconds": round(before - start, 2),
            "training_seconds": round(end - before, 2),
            **measure(p, y_test),
        }
    return found


def regress(
    method: str,
    seed: int,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    configuration: Found | None,
    searched: Found | None = None,
) -> Found:
    """One run of a perceptron; ``configuration=None`` is "auto", with what was ``searched`` if that is known."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    likelihood = Gaussian("learn", initial=0.5)
    noise = torch.optim.Adam(likelihood.parameters(), lr=0.02)
    start, tuner = time.process_time(), None
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    prior = 1.0 if configuration is None else configuration["prior"]
    epoch = len(epoch_batches(len(x), BATCH, seed, 0))
    epochs = math.ceil(STEPS / epoch)
    optimizer = vogn.METHODS[method].build(
        model,
        ess="auto",
        data=loader,
        weight_decay=prior / len(x),
        initial_curvature="auto",
        fisher="ggn",
        seed=seed,
        groups=vogn.layer_groups(model),
    )
    if configuration is None:
        batches = [(x, y)]
        tuner = vogn.PriorTuner(
            optimizer,
            every=5 * epoch,
            start=epochs // 2 * epoch,
            measure=lambda: vogn.laplace(model, likelihood, batches, structure="dense"),
        )
        chosen = searched or search(optimizer, model, likelihood, (x, y), BATCH, seed, STEPS // 5, STEPS)
    else:
        chosen = {"lr": configuration["lr"]}
    for group in optimizer.param_groups:
        group.update({key: chosen[key] for key in ("lr", "damping") if key in chosen})
    before = time.process_time()
    loop(model, optimizer, likelihood, (x, y), epochs=epochs, batch=BATCH, seed=seed, tuner=tuner, noise=noise)
    end = time.process_time()
    found = vogn.predict(model, optimizer.posterior(), x_test, samples=SAMPLES, likelihood=likelihood)
    return chosen | {
        "prior_precision": [group["weight_decay"] * len(x) for group in optimizer.param_groups],
        "noise": float(likelihood.log_noise.detach().exp()),
        "rmse": float((found.mean.reshape(-1) - y_test.reshape(-1)).square().mean().sqrt()),
        "setting_seconds": round(before - start, 2),
        "training_seconds": round(end - before, 2),
    }


def hand_tuned(name: str, method: str, directory: Path, results: Path) -> Found:
    """The configuration that is best on the last fifth of the first split's training part."""
    path = results / f"{name}-{method}-grid.json"
    record = read_cell(path)
    if record is None:
        train, _ = split(directory, name, 0, tuning=False)
        x, y = train.x, train.y.unsqueeze(1)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        inside, outside = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
        losses = [
            regress(method, 0, x[inside], y[inside], x[outside], y[outside], configuration)["rmse"]
            for configuration in GRID
        ]
        record = {"grid": GRID, "validation_rmse": losses, "environment": environment()}
        write_cell(path, record)
    losses = [loss if math.isfinite(loss) else math.inf for loss in record["validation_rmse"]]
    return dict(record["grid"][int(np.argmin(losses))])


def regressions(name: str, method: str, seed: int, directory: Path, results: Path, found: Found) -> Found:
    """:data:`RUNS` runs of a perceptron each way; their mean RMSE is what counts.

    Args:
        found: of a cell that has runs already, all or the first, with what the search chose; empty if there is none.
    """
    train, test = split(directory, name, seed, tuning=False)
    hand = hand_tuned(name, method, directory, results)
    data = train.x, train.y.unsqueeze(1), test.x, test.y.unsqueeze(1)
    new: Found = {}
    for way, configuration in (("hand", hand), ("auto", None)):
        if "rmses" in found.get(way, {}):
            new[way] = found[way]
            continue
        first = dict(found.get(way) or regress(method, seed, *data, configuration))
        scale = 1.0 if way in found else test.scale
        searched = {key: first[key] for key in ("lr", "damping") if key in first}
        others = [
            regress(method, seed + 1000 * k, *data, configuration, searched)["rmse"] * test.scale
            for k in range(1, RUNS)
        ]
        rmses = [first["rmse"] * scale, *others]
        new[way] = first | {"rmse": float(np.mean(rmses)), "rmses": rmses}
    return new


def finished_cell(record: Found | None, data: str) -> bool:
    """Whether a cell is there, of today's rule, with all its runs."""
    if record is None or record.get("rule") != rule_of(data):
        return False
    return data in SIZES or "rmses" in record["auto"]


def run(arguments: argparse.Namespace) -> int:
    """All cells that have no file yet, or one of another rule, in this process."""
    deadline = time.monotonic() + 60 * arguments.budget_minutes if arguments.budget_minutes else math.inf
    names = arguments.data or [*SIZES, *REGRESSIONS]
    most = max(SEEDS.values())
    methods = arguments.methods or METHODS
    cells = [(d, method, seed) for seed in range(most) for d in names for method in methods if seed < SEEDS[d]]
    for data, method, seed in cells:
        path = arguments.results / f"{data}-{method}-{seed}.json"
        before = read_cell(path)
        if finished_cell(before, data):
            continue
        if time.monotonic() > deadline:
            print("the time is up; call again to continue")
            return 1
        if data in SIZES:
            found = classify(data, method, seed, arguments.data_dir)
        else:
            known = {way: before[way] for way in ("hand", "auto")} if before is not None else {}
            if before is not None and before.get("rule") != rule_of(data):
                del known["auto"]
            found = regressions(data, method, seed, arguments.data_dir, arguments.results, known)
        record = {"data": data, "method": method, "seed": seed, "command": command("benchmarks.auto_settings")}
        record["rule"] = rule_of(data)
        write_cell(path, record | found | {"environment": environment()})
        print(path.stem, {way: found[way].get("accuracy", found[way].get("rmse")) for way in found}, flush=True)
    return 0


TESTED = (("mnist", "vogn"), ("mnist", "kfac"), ("cifar10", "kfac"), ("cifar10", "vogn"))


def rates(arguments: argparse.Namespace) -> None:
    """What range tests see and choose, seed 0: the sweep's choice, and the short runs that follow; the table."""
    path = arguments.results / "rates.json"
    line = command("benchmarks.auto_settings")
    record = read_cell(path) or {"environment": environment(), "command": line, "rows": []}
    done = {(row["data"], row["method"]) for row in record["rows"]}
    for data, method in TESTED:
        if (data, method) in done:
            continue
        study = SIZES[data]
        (x, y), _, _ = parts(data, arguments.data_dir, study, 0, tuning=False)
        torch.manual_seed(0)
        model = build_model("resnet8", num_classes=10, in_channels=x.shape[1], width=study.width)
        loader = DataLoader(TensorDataset(x, y), batch_size=study.batch, shuffle=True)
        start = time.process_time()
        found = vogn.learning_rate_range_test(automatic(method, model, loader, 0), model, Categorical(), loader)
        seconds = round(time.process_time() - start, 1)
        row = {"data": data, "method": method, "sweep": choose(found.rates, found.losses), "seconds": seconds}
        record["rows"].append(row | {key: found.to_dict()[key] for key in ("suggestion", "runs")})
        write_cell(path, record)
    print("| data, method | choice of the sweep | short runs: final loss at rate | choice | seconds |")
    print("|---|---|---|---|---|")
    for row in record["rows"]:
        runs = ", ".join("failed" if loss is None else f"{loss:.2f} at {rate:.2g}" for rate, loss in row["runs"])
        print(
            f"| {row['data']}, {row['method']} | {row['sweep']:.2g} | {runs} | {row['suggestion']:.2g} | "
            f"{row['seconds']:.0f} |"
        )


STARTS: dict[str, tuple[Any, ...]] = {
    "vogn": ("first_batch", 0.0, 1e-3, 0.1),
    "kfac": ("first_batch", 0.0, 1e-3, 0.1),
    "ivon": ("auto", 1.0, 0.3, 0.03),
}


def curvature(arguments: argparse.Namespace) -> None:
    """Accuracy and NLL on digits, two folds, by where the curvature starts; the table."""
    path = arguments.results / "initial_curvature.json"
    record = read_cell(path) or {"environment": environment(), "rows": []}
    study = replace(SIZES["digits"], epochs=4)
    done = {(row["method"], row["start"]) for row in record["rows"]}
    for method, start in ((m, start) for m, starts in STARTS.items() for start in starts):
        if (method, start) in done:
            continue
        recipe, scores = RECIPES[method], []
        for seed in (0, 1):
            (x, y), _, (x_test, y_test) = parts("digits", None, study, seed, tuning=False)
            torch.manual_seed(seed)
            model = build_model("resnet8", num_classes=10, in_channels=1, width=study.width)
            ess = vogn.effective_sample_size(len(x), temperature=recipe.temperature)
            options = dict(recipe.options) | {"initial_curvature": start, "ess": ess, "seed": seed}
            optimizer = vogn.METHODS[method].build(model, weight_decay=recipe.prior_precision / ess, **options)
            loop(model, optimizer, Categorical(), (x, y), epochs=study.epochs, batch=study.batch, seed=seed)
            p = predictions(ROWS[method], model, optimizer, x_test, 8, x[:256], PREDICTION_TEMPERATURE)["posterior"]
            scores.append(measure(p, y_test))
        row = {"method": method, "start": start, "resolved": optimizer.param_groups[0]["initial_curvature"]}
        record["rows"].append(row | {key: [score[key] for score in scores] for key in ("accuracy", "nll")})
        write_cell(path, record)
    print("| method | initial_curvature | accuracy % | NLL |")
    print("|---|---|---|---|")
    for row in record["rows"]:
        start = f"auto ({row['resolved']:.2g})" if row["start"] == "auto" else row["start"]
        print(f"| {row['method']} | {start} | {100 * np.mean(row['accuracy']):.2f} | {np.mean(row['nll']):.4f} |")


def finished(results: Path) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Data, method and finished cells of every row that has some, in the order of the tables."""
    for data in (*SIZES, *REGRESSIONS):
        for method in METHODS:
            records = [read_cell(results / f"{data}-{method}-{seed}.json") for seed in range(SEEDS[data])]
            cells = [record for record in records if record is not None]
            if cells:
                yield data, method, cells


def report(results: Path) -> None:
    """Print the table: means over seeds, and the mean paired difference with its standard error."""
    print("| data, method | by hand | auto | auto minus hand | lr by hand | lr auto | target met |")
    print("|---|---|---|---|---|---|---|")
    for data, method, cells in finished(results):
        key, factor = ("accuracy", 100.0) if data in SIZES else ("rmse", 1.0)
        hand, auto = (np.array([factor * cell[way][key] for cell in cells]) for way in ("hand", "auto"))
        relative = 1.0 if data in SIZES else 0.01 * hand.mean()
        gap = (auto - hand) / relative
        _, error = mean_error(gap)
        unit = "%" if data in SIZES else ""
        met = gap.mean() >= -0.5 if data in SIZES else gap.mean() <= 3.0
        rates = [sorted(cell[way]["lr"] for cell in cells) for way in ("hand", "auto")]
        lrs = [f"{r[0]:.2g}" + (f" to {r[-1]:.2g}" if f"{r[0]:.2g}" != f"{r[-1]:.2g}" else "") for r in rates]
        difference = f"{gap.mean():+.2f} ± {error:.2f} " + ("points" if data in SIZES else "%")
        title = f"{data}, {method}" + (f" ({len(cells)} seeds)" if len(cells) < SEEDS[data] else "")
        other = sum(cell.get("rule") != rule_of(data) for cell in cells)
        title += f" ({other} of {len(cells)} by an earlier rule)" if other else ""
        digits = 2 if data in SIZES else 3
        print(
            f"| {title} | {hand.mean():.{digits}f} {unit} | {auto.mean():.{digits}f} {unit} | {difference} | "
            f"{lrs[0]} | {lrs[1]} | {'yes' if met else 'no'} |"
        )


def finals(results: Path) -> None:
    """Print in how many cells of each row the longer runs kept the setting that won short ones, and what else won."""
    heads = [f"{damping}{rate}" for damping in ("", "first damping, ") for rate in ("its rate", "higher", "lower")]
    print(f"| data, method | cells | damping that won short runs | {' | '.join(heads)} |")
    print("|---" * (3 + len(heads)) + "|")
    for data, method, cells in finished(results):
        ways = [cell["auto"] for cell in cells if "finals" in cell["auto"]]
        if not ways:
            continue
        counts, winners = [0] * len(heads), {way["finals"][0][0] for way in ways}
        for way in ways:
            # the first run of each damping is at the rate that won short ones
            rate = next(rate for damping, rate, _ in way["finals"] if damping == way["damping"])
            place = 0 if way["lr"] == rate else 1 if way["lr"] > rate else 2
            counts[place + 3 * (way["damping"] != way["finals"][0][0])] += 1
        dampings = ", ".join(f"{damping:.0e}" for damping in sorted(winners))
        print(f"| {data}, {method} | {len(ways)} | {dampings} | {' | '.join(map(str, counts))} |")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report", "finals", "rates", "curvature"])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--data", nargs="*", choices=list(SEEDS), help="only these; all by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these; all by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    arguments = parser.parse_args()
    if arguments.command in ("rates", "curvature"):
        {"rates": rates, "curvature": curvature}[arguments.command](arguments)
        return 0
    if arguments.command == "finals":
        finals(arguments.results)
        return 0
    status = run(arguments) if arguments.command == "run" else 0
    report(arguments.results)
    return status


if __name__ == "__main__":
    sys.exit(main())
