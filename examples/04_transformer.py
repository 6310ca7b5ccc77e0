"""Is a Transformer better calibrated when it averages over its weights?

A digit is read as eight rows of eight pixels, and a small encoder learns from 300 images with noisy K-FAC. It predicts
with the mean weights and with samples from the posterior; AdamW stands beside them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import vogn
from vogn.data import epoch_batches, load_data
from vogn.likelihoods import Categorical

IMAGES, EPOCHS, WIDTH = 300, 30, 24


class RowTransformer(nn.Module):
    """Eight tokens, two encoder layers, the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, WIDTH)
        self.position = nn.Embedding(8, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``(N, 1, 8, 8)``."""
        rows = images.squeeze(1)
        positions = torch.arange(8, device=rows.device).expand(len(rows), -1)  # a row of positions per example
        hidden = self.encoder(self.embed(rows) + self.position(positions))
        return self.head(hidden.mean(1))


def report(name: str, probabilities: Tensor, labels: Tensor) -> None:
    """Accuracy, negative log-likelihood and calibration error."""
    accuracy = vogn.metrics.accuracy(probabilities, labels)
    nll, ece = vogn.metrics.nll(probabilities, labels), vogn.metrics.ece(probabilities, labels)
    print(f"{name:34s} accuracy {accuracy:.3f}  NLL {nll:.3f}  calibration error {ece:.3f}")


def main() -> None:
    data = load_data("digits")
    x, y = data.train.x[:IMAGES], data.train.y[:IMAGES]
    likelihood = Categorical()

    torch.manual_seed(0)
    model = RowTransformer()
    ess = 100 * IMAGES  # a cold posterior: temperature 0.01
    opt = vogn.KFAC(model, lr=0.3, ess=ess, weight_decay=30 / ess, damping=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, EPOCHS)
    for epoch in range(EPOCHS):
        for batch in epoch_batches(IMAGES, 32, seed=0, epoch=epoch):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(x[batch]), y[batch]).backward()
            opt.step()
        schedule.step()
    numbers = opt.diagnostics()
    print(f"{numbers['effective_parameters']:.0f} of {numbers['parameters']:.0f} parameters are determined by the data")

    torch.manual_seed(0)
    plain = RowTransformer()
    adam = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.01)
    for epoch in range(EPOCHS):
        for batch in epoch_batches(IMAGES, 32, seed=0, epoch=epoch):
            adam.zero_grad()
            likelihood(plain(x[batch]), y[batch]).backward()
            adam.step()

    test_x, test_y = data.test.x, data.test.y
    with torch.no_grad():
        report("AdamW", plain.eval()(test_x).softmax(-1), test_y)
    for name, method in (("noisy K-FAC, mean weights", "mean"), ("noisy K-FAC, 32 weight samples", "mc")):
        report(name, vogn.predict(model, opt.posterior(), test_x, method=method).mean, test_y)


if __name__ == "__main__":
    main()
