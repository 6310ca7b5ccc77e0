"""How many weight samples does a prediction need, what do they cost, and what do closed forms give up?

A multilayer perceptron on scikit-learn's digits, trained by Adam, with a Laplace posterior (Kronecker factors, prior
precision by evidence). Errors are root mean squares over all probabilities of the test images and over seeds, against a
long average; times are the shortest of several runs on one core.

    OMP_NUM_THREADS=1 python -m benchmarks.prediction
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import command, environment, write_cell
from benchmarks.speed.measuring import call_seconds
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.predict import vectorised

RESULTS = Path(__file__).parent / "results" / "prediction" / "summary.json"
LONG = 4000
SAMPLES = (8, 32, 128)
NOISES = ("independent", "antithetic", "sobol")
TOLERANCES = (0.05, 0.02)


def trained() -> tuple[nn.Module, list[vogn.GaussianPosterior], Tensor, Tensor]:
    """Network, posteriors over all weights and over the last layer's, test images and labels."""
    torch.manual_seed(0)
    data, likelihood = load_data("digits"), Categorical()
    x, y = data.train.x, data.train.y
    model = build_model("mlp", sizes=(64, 32, 10))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(30):
        for batch in epoch_batches(len(x), 64, seed=0, epoch=epoch):
            adam.zero_grad()
            likelihood(model(x[batch]), y[batch]).backward()
            adam.step()
    batches = list(zip(x.split(256), y.split(256), strict=True))
    posteriors = [vogn.laplace(model, likelihood, batches, subset=subset) for subset in ("all", "last_layer")]
    return model, [vogn.tune_prior_precision(posterior) for posterior in posteriors], data.test.x, data.test.y


def errors_of_noise(name: str, predict: Callable[..., vogn.Predictive], seeds: int) -> dict[str, dict[str, float]]:
    """Root mean square errors, by noise and number of samples."""
    exact = predict(samples=LONG, seed=12345).mean
    lines: dict[str, dict[str, float]] = {}
    for noise in NOISES:
        lines[noise] = {}
        for samples in SAMPLES:
            found = [predict(samples=samples, noise=noise, seed=seed).mean - exact for seed in range(seeds)]
            lines[noise][str(samples)] = float(torch.stack(found).square().mean().sqrt())
        cells = " | ".join(f"{error:.5f}" for error in lines[noise].values())
        print(f"| {name} | {noise} | {cells} |", flush=True)
    return lines


def stops(predict: Callable[..., vogn.Predictive], seeds: int) -> dict[str, dict[str, float]]:
    """Weight samples drawn under a tolerance, and the root mean square error over all probabilities."""
    exact = predict(samples=LONG, seed=12345).mean
    lines = {}
    for tolerance in TOLERANCES:
        found = [predict(samples=LONG, tolerance=tolerance, seed=seed) for seed in range(seeds)]
        error = torch.stack([each.mean - exact for each in found]).square().mean().sqrt()
        lines[str(tolerance)] = {"samples": sum(each.samples_used for each in found) / seeds, "error": float(error)}
        print(f"| {tolerance} | {lines[str(tolerance)]['samples']:.0f} | {float(error):.5f} |", flush=True)
    return lines


def links(predict: Callable[..., vogn.Predictive], y: Tensor) -> dict[str, dict[str, float]]:
    """What closed forms give, beside samples of the same linearised network."""
    exact = predict(method="linearized", samples=LONG // 2).mean
    options: dict[str, dict[str, Any]] = {
        "mean weights": {"method": "mean"},
        "32 weight samples": {"method": "mc", "samples": 32},
        "linearised, 32 weight samples": {"method": "linearized", "samples": 32},
        "linearised, probit": {"method": "linearized", "link": "probit"},
        "linearised, Laplace bridge": {"method": "linearized", "link": "laplace_bridge"},
    }
    lines = {}
    for name, chosen in options.items():
        found = predict(**chosen)
        line = lines[name] = {
            "difference": float((found.mean - exact).abs().mean()),
            "NLL": float(found.nll(y).mean()),
            "ECE": float(vogn.metrics.ece(found.mean, y)),
            "seconds": min(call_seconds(lambda chosen=chosen: predict(**chosen)) for _ in range(3)),
        }
        print(f"| {name} | " + " | ".join(f"{value:.4f}" for value in line.values()) + " |", flush=True)
    return lines


def calls() -> dict[str, dict[str, float]]:
    """Milliseconds of 32 weight samples: one call of the network for each, and one for all."""
    cases: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "perceptron 64-32-10": (build_model("mlp", sizes=(64, 32, 10)), (64,)),
        "perceptron 64-256-256-10": (build_model("mlp", sizes=(64, 256, 256, 10)), (64,)),
        "LeNet-5": (build_model("lenet5"), (1, 28, 28)),
        "ResNet-8, 8 x 8 images": (build_model("resnet8"), (3, 8, 8)),
    }
    lines = {}
    allowed = vectorised.WORK
    for name, (model, shape) in cases.items():
        posterior = vogn.Ensemble([model] * 32, likelihood=Categorical())
        for count in (1, 16, 64):
            x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
            size = sum(p.numel() for p in model.parameters()) * x.numel()

            def call(x: Tensor = x, model: nn.Module = model, posterior: Any = posterior) -> vogn.Predictive:
                return vogn.predict(model, posterior, x, batchnorm="mean", keep_samples=False)

            line = {}
            for way, work in (("each", 0), ("all", 1 << 62)):
                vectorised.WORK = work
                line[way] = 1e3 * min(call_seconds(call) for _ in range(3))
            vectorised.WORK = allowed
            lines[f"{name}, batch {count}"] = line | {"chosen": "all" if size <= allowed else "each"}
            print(f"| {name} | {count} | {line['each']:.1f} | {line['all']:.1f} | {size <= allowed} |", flush=True)
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model, (posterior, last), x, y = trained()

    def predict(**options: Any) -> vogn.Predictive:
        return vogn.predict(model, posterior, x, batch_size=len(x), keep_samples=False, **options)

    def of_the_last_layer(**options: Any) -> vogn.Predictive:
        return vogn.predict(
            model, last, x, method="linearized", link="mc", batch_size=len(x), keep_samples=False, **options
        )

    numbers = " | ".join(f"{samples} samples" for samples in SAMPLES)
    print(f"| weights | noise | {numbers} |\n|---|---|---|---|---|")
    record: dict[str, Any] = {
        "noise": {
            "all": errors_of_noise("all", predict, arguments.seeds),
            "last layer": errors_of_noise("last layer", of_the_last_layer, arguments.seeds),
        }
    }
    print("\n| tolerance | samples | error |\n|---|---|---|")
    record["tolerance"] = stops(predict, arguments.seeds)
    print("\n| prediction | difference | NLL | ECE | s |\n|---|---|---|---|---|")
    record["links"] = links(predict, y)
    print("\n| network | batch | one call for each, ms | one for all, ms | chosen |\n|---|---|---|---|---|")
    record["calls"] = calls()
    record |= {"seeds": arguments.seeds, "environment": environment(), "command": command("benchmarks.prediction")}
    write_cell(arguments.results, record)


if __name__ == "__main__":
    main()
