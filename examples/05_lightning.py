"""How does a LightningModule become Bayesian?

Return one of vogn's optimizers from ``configure_optimizers`` and give the trainer its callback. It samples the weights
around forward and backward, logs diagnostics of the curvature, and writes the posterior beside the checkpoints.
Needs ``pip install 'vogn[lightning]'``.
"""

from __future__ import annotations

import logging
import tempfile
import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import vogn
from vogn.data import load_data
from vogn.interop.lightning import NaturalGradientCallback
from vogn.likelihoods import Categorical
from vogn.models import mlp


class Digits(pl.LightningModule):
    """A small network, trained by noisy K-FAC."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.network, self.likelihood = mlp((64, 64, 10)), Categorical()
        self.ess = 30 * examples  # a cold posterior: temperature 1/30

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return self.likelihood(self.network(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return vogn.KFAC(self.network, lr=0.03, ess=self.ess, weight_decay=30 / self.ess, damping=0.01)


def entropy(probabilities: Tensor) -> Tensor:
    """In nats, the mean over the inputs."""
    return torch.special.entr(probabilities).sum(-1).mean()


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    pl.seed_everything(0, verbose=False)
    data = load_data("digits")
    train = DataLoader(TensorDataset(data.train.x, data.train.y), batch_size=64, shuffle=True)

    with tempfile.TemporaryDirectory() as folder:
        module, callback = Digits(len(data.train)), NaturalGradientCallback(log_every=50)
        trainer = pl.Trainer(
            max_epochs=10, accelerator="cpu", logger=CSVLogger(folder), log_every_n_steps=50,
            callbacks=[callback, ModelCheckpoint(folder)], enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, train)
        posterior = vogn.GaussianPosterior.load(callback.posterior_path)
        opt = trainer.optimizers[0]

    for name, number in opt.diagnostics().items():
        print(f"  {name:24s} {number:12.5g}")
    x, y = data.test.x, data.test.y
    for method in ("mean", "mc"):
        found = vogn.predict(module.network, posterior, x, method=method, samples=32)
        noise = vogn.predict(module.network, posterior, torch.randn_like(x), method=method, samples=32)
        accuracy, nll, ece = (f(found.mean, y) for f in (vogn.metrics.accuracy, vogn.metrics.nll, vogn.metrics.ece))
        print(
            f"{method:5s} accuracy {accuracy:.3f}  NLL {nll:.3f}  calibration error {ece:.3f}  "
            f"entropy of digits {entropy(found.mean):.2f}, of noise {entropy(noise.mean):.2f}"
        )


if __name__ == "__main__":
    main()
