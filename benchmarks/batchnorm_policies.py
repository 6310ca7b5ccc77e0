"""How much does it cost to share batch norm statistics between weight samples?

A classifier with six batch norm layers (two classes, inside and outside of a circle), trained to its mean weights; then
independent noise on all weights of the linear layers. Mean negative log-likelihood of 200 test points in nats.

    python -m benchmarks.batchnorm_policies
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, write_cell
from vogn.likelihoods import Categorical
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import PosteriorBlock
from vogn.structures import Diagonal

RESULTS = Path(__file__).parent / "results" / "batchnorm_policies" / "summary.json"
DEVIATIONS, SAMPLES, SEEDS = (0.05, 0.1, 0.15, 0.2), 8, 5


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(n, 2)`` and whether they are outside of the circle."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))
    return x, (x.square().sum(1) > 1.4).long()


def trained(seed: int) -> nn.Module:
    """Six hidden layers of 16 units with batch norm; running statistics of the mean weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for depth in range(6):
        layers += [nn.Linear(2 if depth == 0 else 16, 16), nn.BatchNorm1d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16, 2))
    x, y = points(256, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    vogn.update_batchnorm(model, list(x.split(64)))
    return model


def noisy(model: nn.Module, deviation: float) -> vogn.GaussianPosterior:
    """Independent noise of a standard deviation on the weights of the linear layers."""
    blocks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shape = tuple(module.weight.shape)
            layout = MatrixLayout((f"{name}.weight",), (shape,), shape)
            state = Diagonal().init(shape, initial=1.0, dtype=torch.float32, device="cpu")
            blocks.append(PosteriorBlock(f"{name}.weight", layout, Diagonal(), state, shift=0.0, ess=deviation**-2))
    means = {name: p.detach() for name, p in model.named_parameters()}
    return vogn.GaussianPosterior(blocks, means, likelihood=Categorical().to_dict())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    train, (x, y) = points(256, 1)[0], points(200, 2)
    options = {
        "mean weights": {"method": "mean"},
        "recalibrate": {"calibration": list(train.split(64))},
        "running statistics for all": {"batchnorm": "mean"},
    }
    lines: dict[str, dict[str, list[float]]] = {}
    for deviation in DEVIATIONS:
        line: dict[str, list[float]] = {name: [] for name in options}
        for seed in range(SEEDS):
            model = trained(seed)
            for name, chosen in options.items():
                found = vogn.predict(model, noisy(model, deviation), x, samples=SAMPLES, seed=seed, **chosen)
                line[name].append(float(found.nll(y).mean()))
        lines[f"{deviation:.2f}"] = line
    write_cell(
        arguments.results,
        {"lines": lines, "samples": SAMPLES, "seeds": SEEDS, "environment": environment()}
        | {"command": "python -m benchmarks.batchnorm_policies"},
    )
    print("| noise on the weights (standard deviation) | " + " | ".join(options) + " |")
    print("| --- |" + " --- |" * len(options))
    for deviation, line in lines.items():
        texts = []
        for values in line.values():
            numbers = torch.tensor(values)
            texts.append(f"{float(numbers.mean()):.3f} ± {float(numbers.std()) / SEEDS**0.5:.3f}")
        print(f"| {deviation} | " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
