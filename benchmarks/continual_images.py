"""Does what holds on small digits hold on images: permuted MNIST, split MNIST, split CIFAR-10?

    OMP_NUM_THREADS=1 python -m benchmarks.continual_images run --data-dir DIR    # all studies, about an hour of CPU
    python -m benchmarks.continual_images report --data-dir DIR

``DIR`` holds ``mnist.npz`` (``x_train``, ``y_train``, ``x_test``, ``y_test``) and ``cifar10_jpegbytes.npz`` (the images
as JPEG files one after the other). Every method has a small grid of strengths; the one with the best average accuracy
on validation images with seed 0 (for permuted MNIST with fewer images) is run with the other seeds on test
images. Cells are files: a run that was stopped goes on where it was, within a cell too.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cells import (
    command,
    deadline_of,
    environment,
    mean_error,
    read_cell,
    write_cell,
)
from benchmarks.continual import SEEDED, show, strengths
from vogn.continual import (
    CONTINUAL_METHODS,
    ContinualResult,
    MultiHead,
    Task,
    adam,
    permuted_tasks,
    run_tasks,
    split_tasks,
)
from vogn.data import Preprocessing
from vogn.likelihoods import Categorical
from vogn.models import mlp, small_convolutional

RESULTS = Path(__file__).parent / "results" / "continual_images"
MODULE = "benchmarks.continual_images"
VALIDATION = 5000
"""The last training images, on which grids are looked at."""
KFAC = {"refresh_every": 100, "observe_every": 8}
"""Fewer factorisations than the default: those of the 785 x 785 factor are most of a step."""


@dataclass(frozen=True)
class Study:
    """Tasks, network and grids of one benchmark; the table has the order of the grids."""

    kind: str
    data: str
    scenario: str
    grids: dict[str, list[dict[str, Any]]]
    images: int = 20_000
    epochs: int = 5
    batch_size: int = 256
    tasks: int = 10
    hidden: tuple[int, ...] = (100, 100)
    looked_at: dict[str, int] = field(default_factory=dict)
    """Sizes of the grid, where they are others: a quarter of images and batch leaves as many steps."""


def memory(*values: float, size: int = 40) -> list[dict[str, Any]]:
    return strengths(*values, memory=size)


def variational(*values: float, **fixed: Any) -> list[dict[str, Any]]:
    return strengths(*values, prior_precision=100.0, samples=4, **fixed)


BAYES = [*variational(1.0, 3.0, temperature=1.0, lr=0.003), *variational(1.0, 3.0, temperature=1.0, lr=0.01)]
"""VOGN without a temperature: a posterior as wide as Bayes' rule says, which ``ess`` examples leave."""


def grids(**changes: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {
        "finetune": [{}],
        "ewc": strengths(1.0, 10.0, 100.0),
        "si": strengths(1.0, 10.0, 100.0),
        "mas": strengths(0.001, 0.01, 0.1, 1.0),
        "vcl": [*BAYES, *variational(3.0, 10.0, temperature=0.1, lr=0.003)],
        "vcl-kfac": [
            *variational(1.0, 3.0, temperature=1.0, lr=0.01, **KFAC),
            *variational(1.0, 3.0, temperature=0.3, lr=0.01, **KFAC),
        ],
        "kronecker": strengths(1.0, 10.0, 100.0, combine="nearest"),
        "l2": memory(1.0, 10.0, 100.0, 1000.0),
        "fromp": memory(10.0, 100.0, 1000.0, 10_000.0),
        "kpriors": memory(0.1, 1.0, 10.0, 100.0),
        "replay": [{"memory": 40}],
        "joint": [{"batch_size": 256}],
    }
    return found | changes


SPLIT = grids(
    ewc=strengths(10.0, 100.0, 1000.0, 10_000.0),
    si=strengths(1.0, 10.0, 100.0, 1000.0),
    mas=strengths(0.01, 0.1, 1.0, 10.0),
    vcl=variational(1.0, 3.0, 10.0, 30.0, 100.0, temperature=0.1, lr=0.003),
    **{"vcl-kfac": variational(1.0, 3.0, temperature=0.3, lr=0.01, **KFAC)},
    kronecker=strengths(1.0, 10.0, 100.0, 1000.0, combine="nearest"),
    l2=memory(1.0, 10.0, 100.0, 1000.0),
    fromp=memory(100.0, 1000.0, 10_000.0, 40_000.0, 100_000.0),
    kpriors=memory(0.1, 1.0, 10.0, 100.0),
)
"""Wider ones: these runs are short."""
STUDIES = {
    "permuted-mnist": Study(
        "permuted", "mnist.npz", "domain", grids(), looked_at={"images": 5_000, "batch_size": 64},
    ),
    "split-mnist-heads": Study("split", "mnist.npz", "task", SPLIT, batch_size=128),
    "split-mnist": Study("split", "mnist.npz", "domain", SPLIT, batch_size=128),
    "split-cifar10": Study("split", "cifar10_jpegbytes.npz", "task", SPLIT, images=5000, batch_size=32),
}  # fmt: skip
FULL: dict[str, dict[str, int]] = {
    "vcl": {"images": 60_000, "epochs": 30},
    "vcl-kfac": {"images": 60_000, "epochs": 10},
}
"""All of permuted MNIST."""
FULL_LOOKED_AT = {"vcl": {"images": 60_000 - VALIDATION, "epochs": 10}}
"""Sizes of the grid for that; methods that are not here take the configuration that was best with fewer images."""
SIZES = ("images", "tasks", "epochs", "batch_size")


def jpeg_images(archive: Any, part: str, chosen: slice) -> np.ndarray:
    """Decoded images ``(N, 32, 32, 3)``, 8-bit."""
    from PIL import Image

    data, offsets = archive[f"jpeg_{part}"], archive[f"offset_{part}"]
    numbers = range(len(offsets) - 1)[chosen]
    return np.stack([np.asarray(Image.open(io.BytesIO(data[offsets[n] : offsets[n + 1]].tobytes()))) for n in numbers])


@lru_cache(maxsize=2)
def arrays_of(path: Path, images: int, part: str) -> tuple[torch.Tensor, ...]:
    """Training images and those to be tested on, standardised by the former; of the test images every second one."""
    tested = ("train", slice(-VALIDATION, None)) if part == "validation" else ("test", slice(None, None, 2))
    with np.load(path, allow_pickle=False) as archive:
        found = []
        for name, chosen in (("train", slice(images)), tested):
            jpeg = f"jpeg_{name}" in archive.files
            found += [jpeg_images(archive, name, chosen) if jpeg else archive[f"x_{name}"][chosen]]
            found += [archive[f"y_{name}"][chosen].astype(np.int64)]
    x, y, x_tested, y_tested = found
    preprocessing = Preprocessing.fit(x, name="training images")
    inputs = [preprocessing.apply(part, name="images") for part in (x, x_tested)]
    return inputs[0], torch.from_numpy(y), inputs[1], torch.from_numpy(y_tested)


def tasks_of(settings: dict[str, Any], data_dir: Path) -> list[Task]:
    study = STUDIES[settings["benchmark"]]
    x, y, x_tested, y_tested = arrays_of(data_dir / study.data, settings["images"], settings["part"])
    if x.shape[1] == 1:
        x, x_tested = x.flatten(1), x_tested.flatten(1)
    if study.kind == "permuted":
        return permuted_tasks(x, y, x_tested, y_tested, tasks=settings["tasks"], seed=settings["seed"])
    return split_tasks(x, y, x_tested, y_tested, scenario=study.scenario)  # type: ignore[arg-type]


def network(tasks: list[Task], hidden: tuple[int, ...], seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    shape = tasks[0].x_train.shape[1:]
    if len(shape) == 3:
        return MultiHead(small_convolutional(shape[0]), 64, [task.outputs for task in tasks])
    sizes = (shape[0], *hidden)
    if tasks[-1].head:
        return MultiHead(torch.nn.Sequential(mlp(sizes), torch.nn.ReLU()), hidden[-1], [t.outputs for t in tasks])
    return mlp((*sizes, tasks[0].outputs))


def cell(settings: dict[str, Any], data_dir: Path, path: Path) -> None:
    """One run: a method with its options on one benchmark with one seed."""
    study = STUDIES[settings["benchmark"]]
    tasks = tasks_of(settings, data_dir)
    options = dict(settings["options"])
    info = CONTINUAL_METHODS[settings["method"]]
    if info.penalised:
        options["optimizer"] = adam(1e-3)
    if settings["method"] in SEEDED:
        options["seed"] = settings["seed"]
    method = info.build(network(tasks, study.hidden, settings["seed"]), Categorical(), **options)
    scratch = path.with_suffix(".run")
    started = time.process_time()
    found = run_tasks(
        method, tasks, epochs=settings["epochs"], batch_size=settings["batch_size"], seed=settings["seed"],
        folder=scratch, checkpoint_every=5000,
    )  # fmt: skip
    write_cell(path, {"settings": settings, "result": found.to_dict(), "seconds": time.process_time() - started})
    (scratch / "checkpoint.pt").unlink()
    scratch.rmdir()


def planned(
    arguments: argparse.Namespace, benchmark: str, method: str, options: dict[str, Any], seed: int, **full: int
) -> Any:
    """File and settings of a cell; seed 0 is looked at on validation images."""
    study = STUDIES[benchmark]
    sizes = {key: getattr(study, key) for key in SIZES}
    if full:
        full = full if seed else FULL_LOOKED_AT[method]
        sizes |= full
    elif not seed:
        sizes |= study.looked_at
    settings = {
        "benchmark": benchmark, "method": method, "options": options, "seed": seed,
        "part": "test" if seed else "validation", **sizes,
    }  # fmt: skip
    words = [f"{key}{value:g}" if isinstance(value, (int, float)) else str(value) for key, value in options.items()]
    name = "_".join([method, *words, *(f"{key}{value}" for key, value in full.items()), f"seed{seed}"])
    path = arguments.results / benchmark / f"{name}.json"
    return path, settings


def run_here(cells: list[Any], arguments: argparse.Namespace, deadline: float | None) -> int:
    """Run the cells that are missing in this process, which loads the images once; how many are left."""
    missing = [entry for entry in cells if not entry[0].exists()]
    for number, (path, settings) in enumerate(missing):
        if deadline is not None and time.monotonic() > deadline:
            return len(missing) - number
        path.parent.mkdir(parents=True, exist_ok=True)
        cell(settings, arguments.data_dir, path)
        print(f"{path.parent.name}/{path.stem}: {accuracy_of(path):.4f}", flush=True)
    return 0


def accuracy_of(path: Path) -> float | None:
    record = read_cell(path)
    return None if record is None else float(record["result"]["average_accuracy"])


def looked_at(arguments: argparse.Namespace, benchmark: str, method: str, **full: int) -> list[dict[str, Any]]:
    """The grid, with average accuracies on validation images with seed 0."""
    grid = STUDIES[benchmark].grids[method]
    full = full if method in FULL_LOOKED_AT else {}
    if len(grid) == 1:
        return []
    cells = [(planned(arguments, benchmark, method, options, 0, **full)[0], options) for options in grid]
    return [{**options, "average_accuracy": accuracy_of(path)} for path, options in cells]


def chosen(arguments: argparse.Namespace, benchmark: str, method: str, **full: int) -> dict[str, Any] | None:
    """The configuration that is best on validation images, the first of equals; ``None`` if cells are missing."""
    grid = STUDIES[benchmark].grids[method]
    if len(grid) == 1:
        return grid[0]
    found = [row["average_accuracy"] for row in looked_at(arguments, benchmark, method, **full)]
    return None if None in found else grid[max(range(len(grid)), key=lambda k: found[k])]


def row_of(
    arguments: argparse.Namespace, benchmark: str, method: str, options: dict[str, Any], **full: int
) -> dict[str, Any] | None:
    """Figures over seeds; ``None`` if cells are missing."""
    paths = [planned(arguments, benchmark, method, options, seed, **full)[0] for seed in arguments.seeds]
    records = [record for record in map(read_cell, paths) if record is not None]
    if len(records) < len(paths):
        return None
    results = [ContinualResult.from_dict(record["result"]) for record in records]
    figures = {key: mean_error([r.metrics[key] for r in results]) for key in results[0].metrics}
    first = mean_error([r.matrix[0][0] for r in results])
    curve = [mean_error(values) for values in zip(*(r.averages for r in results), strict=True)]
    seconds = mean_error([record["seconds"] for record in records])
    sizes = {key: records[0]["settings"][key] for key in SIZES}
    each = [r.metrics["average_accuracy"] for r in results]
    return {
        "options": options, **sizes, **figures, "each": each, "first task alone": first, "curve": curve,
        "cpu s": seconds,
    }  # fmt: skip


def summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Chosen options and figures, mean and standard error over seeds, of all studies and methods with all cells; rows
    whose cells are not on this machine stay as the last summary has them."""
    before = (read_cell(arguments.results / "summary.json") or {"benchmarks": {}})["benchmarks"]
    tables: dict[str, Any] = {}
    for benchmark, study in STUDIES.items():
        planned_rows: list[tuple[str, str, dict[str, int]]] = [(method, method, {}) for method in study.grids]
        if benchmark == "permuted-mnist":
            planned_rows += [(f"{method}, all images", method, sizes) for method, sizes in FULL.items()]
        rows = tables.setdefault(benchmark, {})
        for title, method, full in planned_rows:
            options = chosen(arguments, benchmark, method, **full)
            row = None if options is None else row_of(arguments, benchmark, method, options, **full)
            if row is not None:
                rows[title] = row | {"validation": looked_at(arguments, benchmark, method, **full)}
            elif title in before.get(benchmark, {}):
                rows[title] = before[benchmark][title]
    return {"command": command(MODULE), "environment": environment(), "benchmarks": tables}


def report(arguments: argparse.Namespace) -> None:
    found = summary(arguments)
    write_cell(arguments.results / "summary.json", found, sort_keys=False)
    show(found["benchmarks"], arguments.results, seeds=len(arguments.seeds), parts="test images", title="{}")


def cells_of(arguments: argparse.Namespace, benchmark: str, method: str, **full: int) -> list[Any]:
    """The cells that come next: those of the grid, and once they are there those of the other seeds."""
    options = chosen(arguments, benchmark, method, **full)
    if options is None:
        size = full if method in FULL_LOOKED_AT else {}
        return [planned(arguments, benchmark, method, one, 0, **size) for one in STUDIES[benchmark].grids[method]]
    return [planned(arguments, benchmark, method, options, seed, **full) for seed in arguments.seeds]


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "full", "report"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--benchmarks", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--methods", nargs="+", choices=list(CONTINUAL_METHODS))
    arguments = parser.parse_args()
    deadline = deadline_of(arguments)
    left = 0
    wanted: list[tuple[str, str, dict[str, int]]] = []
    if arguments.command == "run":
        wanted = [(b, m, {}) for b in arguments.benchmarks for m in arguments.methods or STUDIES[b].grids]
    elif arguments.command == "full":
        kept = {method: sizes for method, sizes in FULL.items() if method in (arguments.methods or FULL)}
        wanted = [("permuted-mnist", method, sizes) for method, sizes in kept.items()]
    for benchmark, method, full in wanted:
        for _ in ("grid", "seeds"):
            left += run_here(cells_of(arguments, benchmark, method, **full), arguments, deadline)
    if left:
        print("cells are left; call again to continue")
    report(arguments)


if __name__ == "__main__":
    main()
