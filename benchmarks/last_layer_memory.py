"""How much more memory than a plain forward does a linearised prediction need, with 1000 classes?

ResNet-18 (64 x 64 images, batch 64) with a Laplace posterior over its last layer, 513 x 1000 weights. Every row runs in
a process of its own (a fork of one that has built the network and the posterior); what is reported is the most memory
held during the call minus what was held before, next to that of a plain forward.

    OMP_NUM_THREADS=1 python -m benchmarks.last_layer_memory
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vogn
from benchmarks.cells import command, environment, write_cell
from benchmarks.speed.measuring import call_seconds, in_child
from benchmarks.speed.predictive import held
from vogn.likelihoods import Categorical
from vogn.models import build_model

RESULTS = Path(__file__).parent / "results" / "last_layer_memory" / "summary.json"
CLASSES = 1000
LIMIT_SECONDS = 300.0


def measured(call: Callable[[], Any]) -> Mapping[str, float]:
    """MB that the call held at most, and seconds of processor time, in this process."""
    seconds: list[float] = []
    memory = held(lambda: lambda: seconds.append(call_seconds(call)))
    return {"MB": memory["bytes"] / 1e6, "seconds": seconds[0]}


def rows(structure: str, batch: Tensor) -> dict[str, Callable[[], Any]]:
    """Name to call."""
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=CLASSES).eval()
    source = torch.Generator().manual_seed(1)
    data = [(torch.randn(64, *batch.shape[1:], generator=source), torch.randint(CLASSES, (64,), generator=source))]
    posterior = vogn.laplace(model, Categorical(), data, structure=structure, subset="last_layer", fisher="mc")

    @torch.no_grad()
    def forward() -> Tensor:
        return torch.as_tensor(model(batch))

    def predict(**options: Any) -> Callable[[], Any]:
        return lambda: vogn.predict(
            model, posterior, batch, method="linearized", batchnorm="mean", keep_samples=False, **options
        )

    return {
        "plain forward": forward,
        "linearised, probit": predict(link="probit"),
        "linearised, Laplace bridge": predict(link="laplace_bridge"),
        "linearised, 32 weight samples": predict(samples=32),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", nargs="*", default=["kronecker", "diagonal"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    batch = torch.randn(arguments.batch, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    print("| last layer | prediction | MB | above a plain forward | processor s |\n|---|---|---|---|---|")
    lines: dict[str, dict[str, Mapping[str, float]]] = {}
    for structure in arguments.structures:
        lines[structure] = {}
        for name, call in rows(structure, batch).items():
            line = lines[structure][name] = in_child(lambda call=call: measured(call), LIMIT_SECONDS)
            above = line["MB"] - lines[structure]["plain forward"]["MB"]
            print(f"| {structure} | {name} | {line['MB']:.0f} | {above:+.0f} | {line['seconds']:.2f} |", flush=True)
    record = {"lines": lines, "batch": arguments.batch, "classes": CLASSES, "environment": environment()}
    write_cell(arguments.results, record | {"command": command("benchmarks.last_layer_memory")})


if __name__ == "__main__":
    main()
