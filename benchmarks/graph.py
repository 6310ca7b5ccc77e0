"""Is a graph network better calibrated with a posterior over its weights? A two-layer GCN on Cora.

Public split (140 training, 500 validation, 1000 test nodes). Every method has two configurations; the one with the
lowest NLL on the validation nodes (mean over two seeds) is measured on the test nodes with five seeds. Examples are
nodes: gradients per example are those of rows, and the 140 nodes with a label are the loss terms (``mask=``).

    python -m benchmarks.graph run --data-dir DIR
    python -m benchmarks.graph report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, finish, mean_error, study_parser, write_cell
from vogn import metrics
from vogn.likelihoods import Categorical

RESULTS = Path(__file__).parent / "results" / "graph"
STEPS, TUNING_SEEDS, SEEDS, HIDDEN, SAMPLES = 200, 2, 5, 16, 32

CONFIGURATIONS: dict[str, list[dict[str, float]]] = {
    "adamw": [{"lr": 0.01, "weight_decay": decay} for decay in (0.1, 1.0)],
    "vogn": [{"lr": 0.05, "prior": prior, "damping": 1e-4, "temperature": 1e-3} for prior in (30.0, 100.0)],
    "kfac": [{"lr": 0.1, "prior": prior, "damping": 1e-3, "temperature": 1e-3} for prior in (30.0, 100.0)],
}
ROWS = ("adamw", "vogn", "vogn-det", "kfac", "kfac-det")


class GraphConvolution(nn.Module):
    """Two layers ``A_hat H W``. Source: Kipf and Welling (2017), Eq. 9."""

    def __init__(self, adjacency: Tensor, features: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first, self.second = nn.Linear(features, HIDDEN), nn.Linear(HIDDEN, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``(nodes, classes)`` of features ``(nodes, features)``."""
        hidden = torch.relu(self.adjacency @ self.first(self.dropout(x)))
        scores: Tensor = self.adjacency @ self.second(self.dropout(hidden))
        return scores


def load(directory: Path | None) -> dict[str, Tensor]:
    """Row-normalised features, ``D^-1/2 (A + I) D^-1/2``, labels and the three sets of nodes."""
    if directory is None or not (directory / "graph_cora.npz").exists():
        sys.exit(
            "Cora needs --data-dir with the file graph_cora.npz (arrays as in benchmarks/README.md); it is missing"
        )
    with np.load(directory / "graph_cora.npz", allow_pickle=False) as archive:
        arrays = {key: torch.tensor(archive[key]) for key in archive.files}
    nodes, features = (int(n) for n in arrays["x_shape"])
    x = torch.zeros(nodes, features)
    rows = torch.repeat_interleave(torch.arange(nodes), arrays["x_indptr"].long().diff())
    x[rows, arrays["x_indices"].long()] = arrays["x_data"]
    a, b = arrays["edge_index"].long()
    loops = torch.arange(nodes)
    index = torch.stack([torch.cat([a, b, loops]), torch.cat([b, a, loops])])
    degree = torch.bincount(index[0], minlength=nodes).float()
    weights = (degree[index[0]] * degree[index[1]]).rsqrt()
    return {
        "x": x / x.sum(1, keepdim=True).clamp_min(1.0),
        "adjacency": torch.sparse_coo_tensor(index, weights, (nodes, nodes), check_invariants=True).coalesce(),
        "y": arrays["y"],
        **{name: arrays[f"idx_{name}"] for name in ("train", "val", "test")},
    }


def build(row: str, configuration: dict[str, float], model: nn.Module, terms: int, seed: int) -> Any:
    """The optimizer of a row."""
    options = dict(configuration)
    if row == "adamw":
        return torch.optim.AdamW(model.parameters(), **options)
    ess = terms / options.pop("temperature")
    prior = options.pop("prior")
    method = vogn.METHODS[row.removesuffix("-det")]
    return method.build(
        model, ess=ess, weight_decay=prior / ess, variational=not row.endswith("-det"), seed=seed, **options
    )


def simulate(row: str, configuration: dict[str, float], data: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """Train once; probabilities of all nodes are of the posterior predictive for variational rows."""
    torch.manual_seed(seed)
    model = GraphConvolution(data["adjacency"], data["x"].shape[1], int(data["y"].max()) + 1)
    optimizer = build(row, configuration, model, len(data["train"]), seed)
    known = torch.zeros(len(data["y"]), dtype=torch.bool)
    known[data["train"]] = True
    likelihood = Categorical()
    start = time.process_time()
    for _ in range(STEPS):
        optimizer.zero_grad()
        if row == "adamw":
            likelihood(model(data["x"]), data["y"], mask=known).backward()
        else:
            with optimizer.sampled_params():
                likelihood(model(data["x"]), data["y"], mask=known).backward()
        optimizer.step()
    seconds = time.process_time() - start
    model.eval()
    with torch.no_grad():
        if row == "adamw" or row.endswith("-det"):
            probabilities = model(data["x"]).softmax(-1)
        else:
            posterior, x = optimizer.posterior(), data["x"]
            probabilities = vogn.predict(
                model,
                posterior,
                x,
                likelihood=likelihood,
                samples=SAMPLES,
                keep_samples=False,
                batch_size=len(x),
            ).mean
    found: dict[str, Any] = {"cpu_seconds": round(seconds, 2)}
    for part in ("val", "test"):
        p, y = probabilities[data[part]], data["y"][data[part]]
        found[part] = {name: float(getattr(metrics, name)(p, y)) for name in ("accuracy", "nll", "ece")}
    return found


def run_cell(arguments: argparse.Namespace) -> None:
    """Tune a row on the validation nodes and measure the best configuration on the test nodes."""
    data = load(arguments.data_dir)
    tried = []
    for configuration in CONFIGURATIONS[arguments.method.removesuffix("-det")]:
        runs = [simulate(arguments.method, configuration, data, seed) for seed in range(TUNING_SEEDS)]
        tried.append((float(np.mean([run["val"]["nll"] for run in runs])), configuration, runs))
    validation, configuration, runs = min(tried, key=lambda item: item[0])
    runs += [simulate(arguments.method, configuration, data, seed) for seed in range(TUNING_SEEDS, SEEDS)]
    write_cell(
        arguments.cell,
        {
            "method": arguments.method,
            "configuration": configuration,
            "validation_nll": validation,
            "tried": [[value, tested] for value, tested, _ in tried],
            "seeds": SEEDS,
            "steps": STEPS,
            "samples": 0 if arguments.method == "adamw" or arguments.method.endswith("-det") else SAMPLES,
            "cpu_seconds": float(np.mean([run["cpu_seconds"] for run in runs])),
            "test": [run["test"] for run in runs],
            "command": "python -m benchmarks.graph run",
            "environment": environment(),
        },
    )


def report(results: Path) -> None:
    """Print the table; differences are paired by seed."""
    records = {row: json.loads(path.read_text()) for row in ROWS if (path := results / f"{row}.json").exists()}
    if not records:
        sys.exit(f"no finished cells in {results}; run the study first")
    print("| method | CPU s | accuracy % | NLL | ECE | NLL minus AdamW |")
    print("|---|---|---|---|---|---|")
    for row, record in records.items():
        columns = {name: np.array([run[name] for run in record["test"]]) for name in ("accuracy", "nll", "ece")}
        texts = [_pm(100 * columns["accuracy"], 2), _pm(columns["nll"], 4), _pm(columns["ece"], 4)]
        base = np.array([run["nll"] for run in records["adamw"]["test"]]) if "adamw" in records else columns["nll"]
        texts.append("" if row == "adamw" else _pm(columns["nll"] - base, 4, sign="+"))
        print(f"| {row} | {record['cpu_seconds']:.1f} | " + " | ".join(texts) + " |")


def _pm(values: np.ndarray, digits: int, sign: str = "") -> str:
    mean, error = mean_error(values)
    return f"{mean:{sign}.{digits}f} ± {error:.{digits}f}"


def main() -> int:
    """Command line."""
    parser = study_parser(__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--method", choices=ROWS)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "run":
        load(arguments.data_dir)
        cells = []
        for row in ROWS:
            path = arguments.results / f"{row}.json"
            line = ["cell", "--method", row, "--cell", str(path), "--data-dir", str(arguments.data_dir)]
            cells.append((path, line))
        if not finish("benchmarks.graph", cells, arguments):
            return 1
    report(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
