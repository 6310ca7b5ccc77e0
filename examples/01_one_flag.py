"""Can a deterministic run become a Bayesian one, in the middle, from the same curvature?

Train a small network with K-FAC, flip ``variational`` half-way, and go on with noisy K-FAC: same optimizer, same mean,
same Kronecker factors. The mean keeps its accuracy, and the weights now carry uncertainty.
"""

from __future__ import annotations

import torch

import vogn
from vogn.data import Data, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

EPOCHS = 10


def train_epoch(model: torch.nn.Module, opt: vogn.NaturalGradient, data: Data, epoch: int) -> float:
    """One pass over the data; the loop does not know in which mode it runs."""
    likelihood, total = Categorical(), 0.0
    for batch in epoch_batches(len(data.train), 64, seed=0, epoch=epoch):
        x, y = data.train.x[batch], data.train.y[batch]
        opt.zero_grad()
        with opt.sampled_params():
            loss = likelihood(model(x), y)
            loss.backward()
        opt.step()
        total += loss.item() * len(batch)
    return total / len(data.train)


def test_scores(model: torch.nn.Module, opt: vogn.NaturalGradient, data: Data, method: str) -> str:
    """Accuracy and negative log-likelihood on the test part."""
    p = vogn.predict(model, opt.posterior(), data.test.x, method=method, samples=32, likelihood=Categorical()).mean
    accuracy, nll = vogn.metrics.accuracy(p, data.test.y), vogn.metrics.nll(p, data.test.y)
    return f"accuracy {accuracy:.3f}  NLL {nll:.3f}"


def main() -> None:
    torch.manual_seed(0)
    data = load_data("digits")
    model = mlp((64, 64, 10))
    ess = 10 * len(data.train)  # a cold posterior: temperature 0.1
    opt = vogn.KFAC(model, lr=0.03, ess=ess, weight_decay=100 / ess, damping=0.01, variational=False)

    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            print(f"before the switch: {test_scores(model, opt, data, 'mean')}")
            for group in opt.param_groups:
                group["variational"] = True  # the one flag
        mode = "variational" if opt.param_groups[0]["variational"] else "deterministic"
        print(f"epoch {epoch + 1:2d}  {mode:13s}  training loss {train_epoch(model, opt, data, epoch):.4f}")

    print(f"at the mean:        {test_scores(model, opt, data, 'mean')}")
    print(f"over 32 samples:    {test_scores(model, opt, data, 'mc')}")


if __name__ == "__main__":
    main()
