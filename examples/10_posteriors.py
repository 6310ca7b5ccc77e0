"""Which way of not trusting one set of weights pays, and what does it cost?

One small network on handwritten digits, and seven posteriors over its weights. ``vogn.predict`` takes them all in the
same way. Each goes through a file first: ``load_posterior`` finds the kind in it. The last columns are images that are
turned by 30 degrees, where a network should know that it does not know.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vogn
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical

EPOCHS, SAMPLES = 16, 30
DATA = load_data("digits", seed=0)
LIKELIHOOD = Categorical()
ESS = 10 * len(DATA.train)  # cold: temperature 0.1


def network(seed: int, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    hidden = [nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def train(
    model: nn.Module, opt: torch.optim.Optimizer, seed: int = 0, after: Callable[[int], None] = lambda epoch: None
) -> None:
    """Any optimizer of torch, or one of ours inside its context."""
    for epoch in range(EPOCHS):
        for batch in epoch_batches(len(DATA.train), 64, seed=seed, epoch=epoch):
            x, y = DATA.train.x[batch], DATA.train.y[batch]
            opt.zero_grad()
            if isinstance(opt, vogn.NaturalGradient):
                with opt.sampled_params():
                    LIKELIHOOD(model(x), y).backward()
            else:
                LIKELIHOOD(model(x), y).backward()
            opt.step()
        after(epoch)


def adam(seed: int, dropout: float = 0.0) -> nn.Module:
    model = network(seed, dropout)
    train(model, torch.optim.AdamW(model.parameters(), lr=3e-3), seed)
    return model.eval()


def point() -> vogn.Posterior:
    return vogn.Point(adam(0), likelihood=LIKELIHOOD)


def dropout() -> vogn.Posterior:
    return vogn.MCDropout(adam(0, dropout=0.2), likelihood=LIKELIHOOD)


def ensemble() -> vogn.Posterior:
    return vogn.Ensemble([adam(seed) for seed in range(5)], likelihood=LIKELIHOOD)


def swag() -> vogn.Posterior:
    model, posterior = network(0), vogn.SWAG(rank=10, likelihood=LIKELIHOOD)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    train(model, sgd, after=lambda epoch: posterior.collect(model) if epoch >= EPOCHS // 2 else None)
    return posterior


def vogn_run() -> vogn.Posterior:
    model = network(0)
    opt = vogn.VOGN(model, lr=0.01, ess=ESS, weight_decay=30 / ESS)
    train(model, opt)
    return opt.posterior()


def ivon(seed: int = 0) -> vogn.Posterior:
    model = network(seed)
    opt = vogn.IVON(model, lr=0.1, ess=ESS, weight_decay=30 / ESS, seed=seed)
    train(model, opt, seed)
    return opt.posterior()


def several_ivons() -> vogn.Posterior:
    return vogn.Mixture([ivon(seed) for seed in range(3)])


POSTERIORS = {
    "one set of weights": point,
    "MC dropout": dropout,
    "SWAG": swag,
    "VOGN": vogn_run,
    "IVON": ivon,
    "mixture of 3 IVON": several_ivons,
    "ensemble of 5": ensemble,
}


def turned(images: Tensor, degrees: float) -> Tensor:
    """Rotate images ``(N, 1, H, W)`` about their centre."""
    angle = torch.deg2rad(torch.tensor(degrees))
    rows = torch.stack([angle.cos(), -angle.sin(), torch.zeros(()), angle.sin(), angle.cos(), torch.zeros(())])
    grid = F.affine_grid(rows.reshape(1, 2, 3).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def scores(posterior: vogn.Posterior, x: Tensor) -> list[float]:
    found = vogn.predict(network(0, dropout=0.2), posterior, x, samples=SAMPLES)
    metrics = vogn.metrics
    return [float(metric(found.mean, DATA.test.y)) for metric in (metrics.accuracy, metrics.nll, metrics.ece)]


def main() -> None:
    print("                        upright                     turned by 30 degrees")
    print("posterior               accuracy    NLL    ECE      accuracy    NLL    ECE      training")
    upright, rotated = {}, {}
    for name, make in POSTERIORS.items():
        begin = perf_counter()
        posterior = make()
        seconds = perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "posterior.safetensors"
            posterior.save(path)
            loaded = vogn.load_posterior(path)
        upright[name], rotated[name] = scores(loaded, DATA.test.x), scores(loaded, turned(DATA.test.x, 30.0))
        cells = ["{:8.3f}  {:5.3f}  {:5.3f}".format(*row[name]) for row in (upright, rotated)]
        print(f"{name:22s}  {cells[0]}      {cells[1]}      {seconds:6.1f} s")
    for name in ("MC dropout", "mixture of 3 IVON"):
        assert rotated[name][1] < rotated["one set of weights"][1], "averaging should help where images are turned"


if __name__ == "__main__":
    main()
