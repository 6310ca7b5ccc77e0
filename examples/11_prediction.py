"""Which part of the uncertainty is noise, and which part is not knowing the weights?

First a curve with a gap in its data: the noise of the observations (aleatoric) is the same everywhere, the variance of
the model (epistemic) grows where there were no data, and the interval is as wide as both. Then digits beside images
that are none: how well every score of ``vogn.ood_score`` tells them apart (AUROC, 0.5 is guessing).
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score

import vogn
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.models import mlp

NOISE = 0.2
SCORES = ("max_probability", "entropy", "mutual_information", "variance", "energy")


def fitted(model: torch.nn.Module, likelihood: Likelihood, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Adam, 64 examples at a time."""
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for batch in epoch_batches(len(x), 64, seed=0, epoch=epoch):
            adam.zero_grad()
            likelihood(model(x[batch]), y[batch]).backward()
            adam.step()


def regression() -> None:
    x = torch.cat([torch.linspace(-3, -1, 100), torch.linspace(1, 3, 100)]).unsqueeze(1)
    y = torch.sin(2 * x) + NOISE * torch.randn(x.shape)
    likelihood = Gaussian(noise=NOISE)
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    fitted(model, likelihood, x, y, epochs=300)
    posterior = vogn.laplace(model, likelihood, [(x, y)], structure="dense", partition="model")
    posterior = vogn.tune_prior_precision(posterior)
    places = torch.tensor([[-2.0], [-1.0], [-0.5], [0.0], [0.5], [1.0], [2.0]])
    found = vogn.predict(model, posterior, places, method="linearized")  # exact for real targets, without samples
    low, high = found.interval(0.9)
    print("    x  noise std  model std  90 % interval")
    for row in torch.cat([places, found.aleatoric.sqrt(), found.epistemic.sqrt(), low, high], 1).tolist():
        print("{:5.1f}  {:9.3f}  {:9.3f}  [{:6.2f}, {:6.2f}]".format(*row))
    assert found.epistemic[3] > 4 * found.epistemic[0], "the gap should be more uncertain"
    assert torch.allclose(found.total, found.aleatoric + found.epistemic)


def digits() -> None:
    data, likelihood = load_data("digits"), Categorical()
    model = mlp((64, 64, 10))
    x, y = data.train.x, data.train.y
    fitted(model, likelihood, x, y, epochs=30)
    posterior = vogn.laplace(model, likelihood, list(zip(x.split(256), y.split(256), strict=True)))
    posterior = vogn.tune_prior_precision(posterior).tempered(0.1)
    strangers = {
        "turned by 90 degrees": data.test.x.rot90(1, (2, 3)),
        "pixels in another order": data.test.x.flatten(1)[:, torch.randperm(64)].view_as(data.test.x),
        "uniform noise": torch.empty_like(data.test.x).uniform_(float(x.min()), float(x.max())),
    }
    known = vogn.predict(model, posterior, data.test.x, method="linearized", samples=64)
    low, high = known.interval(0.9)  # of the probabilities, over the weight samples
    width = (high - low).amax(-1)
    print(f"\naccuracy {float(vogn.metrics.accuracy(known.mean, data.test.y)):.3f}")
    print(f"widest 90 % interval of a probability: median image {width.median():.3f}, worst {width.max():.3f}")
    print("\n                  mean of   total  expected entropy  mutual information")
    print(f"{'digits':26s}{known.total.mean():7.3f}{known.aleatoric.mean():18.3f}{known.epistemic.mean():20.3f}")
    areas = {}
    for name, images in strangers.items():
        found = vogn.predict(model, posterior, images, method="linearized", samples=64)
        print(f"{name:26s}{found.total.mean():7.3f}{found.aleatoric.mean():18.3f}{found.epistemic.mean():20.3f}")
        is_strange = torch.cat([torch.zeros(len(data.test.x)), torch.ones(len(images))])
        for score in SCORES:
            values = torch.cat([vogn.ood_score(known, score), vogn.ood_score(found, score)])
            areas[name, score] = roc_auc_score(is_strange, values)
    print("\nAUROC                     " + "".join(f"{score:>20s}" for score in SCORES))
    for name in strangers:
        print(f"{name:26s}" + "".join(f"{areas[name, score]:20.3f}" for score in SCORES))
    assert all(areas[name, "entropy"] > 0.75 for name in strangers)


def main() -> None:
    torch.manual_seed(0)
    regression()
    digits()


if __name__ == "__main__":
    main()
