"""Does the network know when it does not know?

Train on upright digits, then rotate the test images step by step. Entropy of the averaged probabilities is the total
uncertainty; what is left after subtracting the mean entropy of the single weight samples is the part that comes from
not knowing the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import vogn
from vogn.data import Data, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

EPOCHS = 20


def train(model: torch.nn.Module, data: Data) -> vogn.GaussianPosterior:
    """Variational online Gauss-Newton on the training part."""
    likelihood = Categorical()
    ess = 10 * len(data.train)  # a cold posterior: temperature 0.1
    opt = vogn.VOGN(model, lr=0.01, ess=ess, weight_decay=30 / ess)
    for epoch in range(EPOCHS):
        for batch in epoch_batches(len(data.train), 64, seed=0, epoch=epoch):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(data.train.x[batch]), data.train.y[batch]).backward()
            opt.step()
    return opt.posterior()


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate images ``(N, 1, H, W)`` about their centre."""
    angle = torch.deg2rad(torch.tensor(degrees))
    row = torch.stack([angle.cos(), -angle.sin(), torch.tensor(0.0)])
    other = torch.stack([angle.sin(), angle.cos(), torch.tensor(0.0)])
    grid = F.affine_grid(torch.stack([row, other]).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last dimension."""
    return torch.special.entr(probabilities).sum(dim=-1)


def main() -> None:
    torch.manual_seed(0)
    data = load_data("digits")
    model = mlp((64, 64, 10))
    posterior = train(model, data)
    print("rotation  accuracy  confidence  entropy  from the weights")
    totals = {}
    for degrees in (0, 15, 30, 45, 60):
        x = rotate(data.test.x, float(degrees))
        found = vogn.predict(model, posterior, x, samples=64, likelihood=Categorical())
        total = entropy(found.mean).mean()
        assert found.samples is not None
        weights = total - entropy(found.samples).mean()
        accuracy = vogn.metrics.accuracy(found.mean, data.test.y)
        confidence = found.mean.max(dim=-1).values.mean()
        print(f"{degrees:6d}    {accuracy:8.3f}  {confidence:10.3f}  {total:7.3f}  {weights:10.3f}")
        totals[degrees] = total
    assert totals[45] > 2 * totals[0], "rotated digits should be more uncertain"


if __name__ == "__main__":
    main()
