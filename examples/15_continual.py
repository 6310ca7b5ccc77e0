"""How much of the first task is left after the fourth, and what keeps it?

Four orders of the digits' pixels, one after the other. No examples are kept, but by the last row.
"""

from __future__ import annotations

import warnings

import torch

from vogn.continual import CONTINUAL_METHODS, permuted_tasks, run_tasks
from vogn.data import load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

OPTIONS = {
    "finetune": {},
    "ewc": {"strength": 10.0},
    "vcl": {"temperature": 0.1, "samples": 8},
    "vcl-kfac": {"samples": 8},
    "kronecker": {"strength": 10.0},
    "replay": {"memory": 40},
}


def main() -> None:
    warnings.filterwarnings("ignore")  # posteriors of a network that is larger than its data
    data = load_data("digits")
    arrays = (data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y)
    tasks = permuted_tasks(*arrays, tasks=4)
    print(f"{'':12s}{'first task':>12s}{'last task':>12s}{'average':>10s}{'forgetting':>12s}")
    for name, options in OPTIONS.items():
        torch.manual_seed(0)
        method = CONTINUAL_METHODS[name].build(mlp((64, 100, 100, 10)), Categorical(), **options)
        found = run_tasks(method, tasks, epochs=6)
        first, last = found.matrix[-1][0], found.matrix[-1][-1]
        metrics = found.metrics
        print(f"{name:12s}{first:12.3f}{last:12.3f}{metrics['average_accuracy']:10.3f}{metrics['forgetting']:12.3f}")


if __name__ == "__main__":
    main()
