"""What does a network that somebody else has trained not know?

Adam trains a network. Its Laplace approximation reads the curvature at these weights in one pass over the data; the
evidence chooses the prior of every layer without any other images; the linearised network makes the predictions. On
images like those of training the weights alone predict best, and the full posterior is too wide; where the images are
rotated, the weights stay confident and wrong, and the posterior does not. ``tempered`` moves between the two.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

import vogn
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

EPOCHS = 30
TEMPERATURES = (0.1, 1.0)


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate images ``(N, 1, H, W)`` about their centre."""
    angle = torch.deg2rad(torch.tensor(degrees))
    row = torch.stack([angle.cos(), -angle.sin(), torch.tensor(0.0)])
    other = torch.stack([angle.sin(), angle.cos(), torch.tensor(0.0)])
    grid = F.affine_grid(torch.stack([row, other]).expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def main() -> None:
    torch.manual_seed(0)
    data, likelihood = load_data("digits"), Categorical()
    x, y = data.train.x, data.train.y
    model = mlp((64, 32, 10))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(EPOCHS):
        for batch in epoch_batches(len(x), 64, seed=0, epoch=epoch):
            adam.zero_grad()
            likelihood(model(x[batch]), y[batch]).backward()
            adam.step()

    posterior = vogn.laplace(model, likelihood, list(zip(x.split(256), y.split(256), strict=True)))
    tuned = vogn.tune_prior_precision(posterior)
    log_likelihood = -len(x) * likelihood(model(x), y).detach()
    for name, found in (("prior precision 1", posterior), ("tuned", tuned)):
        precisions = ", ".join(f"{block.name} {block.shift * block.ess:.2f}" for block in found.blocks)
        print(f"log evidence {float(vogn.log_evidence(found, log_likelihood)):9.1f}  {name} ({precisions})")

    print("\nNLL (and ECE)     the weights" + "".join(f"    temperature {t:3.1f}" for t in TEMPERATURES))
    scores: dict[float, list[float]] = {}
    for degrees in (0.0, 30.0, 60.0):
        images = rotate(data.test.x, degrees)
        found = [vogn.predict(model, tuned, images, method="mean")]
        for temperature in TEMPERATURES:
            narrower = tuned.tempered(temperature)
            found.append(vogn.predict(model, narrower, images, method="linearized", samples=32))
        scores[degrees] = [float(each.nll(data.test.y).mean()) for each in found]
        errors = [float(vogn.metrics.ece(each.mean, data.test.y)) for each in found]
        cells = [f"{nll:6.3f} ({ece:5.3f})" for nll, ece in zip(scores[degrees], errors, strict=True)]
        print(f"{degrees:2.0f} degrees    " + "    ".join(cells))
    assert scores[60.0][-1] < scores[60.0][0], "away from the data the posterior should be less confident"


if __name__ == "__main__":
    main()
