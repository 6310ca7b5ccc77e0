"""Lightning does what the plain loop does."""

from __future__ import annotations

import csv

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision

import vogn
from plain_loop import BATCH, METHODS, OPTIONS, loader, network, plain_loop
from tiny_models import flat
from vogn.interop.lightning import NaturalGradientCallback
from vogn.likelihoods import Categorical

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed.*"),
    pytest.mark.filterwarnings("error:.*part of its gradient does not come through.*"),
]


class Classifier(pl.LightningModule):
    def __init__(self, method="vogn", dtype=torch.float64, **options):
        super().__init__()
        self.network, self.method = network(dtype), method
        self.options = OPTIONS | options
        self.validated_at = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        return Categorical()(self.network(x), y)

    def validation_step(self, batch, batch_idx):
        self.validated_at.append(flat(self.network))

    def configure_optimizers(self):
        return METHODS[self.method](self.network, **self.options)


def trainer(folder, *callbacks, **options):
    defaults = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | options))


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_fit_takes_the_steps_of_the_plain_loop(tmp_path, method, variational):
    module = Classifier(method, variational=variational)
    trainer(tmp_path, NaturalGradientCallback(posterior=None)).fit(module, loader())
    expected = plain_loop(method, variational=variational)
    torch.testing.assert_close(flat(module.network), flat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_and_clipping_are_those_of_the_plain_loop(tmp_path, method):
    module = Classifier(method)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}
    trainer(tmp_path, NaturalGradientCallback(posterior=None), **options).fit(module, loader())
    expected = plain_loop(method, accumulate=2, clip=0.05)
    unclipped = plain_loop(method, accumulate=2)
    torch.testing.assert_close(flat(module.network), flat(expected), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(flat(expected), flat(unclipped))


def test_without_the_callback_the_closure_of_step_is_enough(tmp_path):
    module = Classifier()
    trainer(tmp_path).fit(module, loader())
    torch.testing.assert_close(flat(module.network), flat(plain_loop("vogn")), rtol=1e-12, atol=1e-12)


def test_several_weight_samples_run_the_training_step_several_times(tmp_path):
    module = Classifier(mc_samples=2)
    steps = []
    module.training_step = lambda batch, batch_idx: (
        steps.append(batch_idx) or Classifier.training_step(module, batch, 0)
    )
    trainer(tmp_path, NaturalGradientCallback(posterior=None), max_epochs=1).fit(module, loader())
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="mc_samples=2 needs several passes per batch"):
        trainer(tmp_path, NaturalGradientCallback(), accumulate_grad_batches=2).fit(Classifier(mc_samples=2), loader())


@pytest.mark.parametrize("method", METHODS)
def test_a_scaled_loss_changes_nothing(tmp_path, method):
    """``16-mixed`` multiplies the loss by 65536 and divides the gradients before they are clipped."""
    scaled = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    scaled.autocast_context_manager = lambda: torch.autocast("cpu", enabled=False)  # the scale alone
    module = Classifier(method)
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05, "plugins": [scaled]}
    trainer(tmp_path, NaturalGradientCallback(posterior=None), **options).fit(module, loader())
    expected = plain_loop(method, accumulate=2, clip=0.05)
    torch.testing.assert_close(flat(module.network), flat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_autocast_trains_float32_weights(tmp_path, method):
    module = Classifier(method, dtype=torch.float32)
    trainer(tmp_path, NaturalGradientCallback(posterior=None), precision="bf16-mixed").fit(
        module, loader(torch.float32)
    )
    reference = plain_loop(method, dtype=torch.float32)
    assert all(p.dtype == torch.float32 for p in module.network.parameters())
    way = (flat(reference) - flat(network(torch.float32))).norm()
    error = float((flat(module.network) - flat(reference)).norm() / way)
    assert 1e-5 < error < 0.01, error  # bfloat16 rounds by 0.4 %, float32 by 6e-8


def test_validation_between_accumulated_batches_sees_the_mean(tmp_path):
    module = Classifier()
    options = {"accumulate_grad_batches": 2, "val_check_interval": 1, "num_sanity_val_steps": 0, "limit_val_batches": 1}
    means = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            means.append(flat(pl_module.network))

    callbacks = [NaturalGradientCallback(posterior=None), Watch()]
    trainer(tmp_path, *callbacks, max_epochs=1, **options).fit(module, loader(), loader())
    assert len(module.validated_at) == 4
    assert torch.equal(module.validated_at[1], module.validated_at[2])  # between two steps
    assert not torch.equal(module.validated_at[0], module.validated_at[1])
    assert all(torch.equal(a, b) for a, b in zip(module.validated_at, means, strict=True))


def test_an_exception_puts_the_mean_back(tmp_path):
    module = Classifier()

    def broken(batch, batch_idx):
        if batch_idx == 2:
            raise RuntimeError("broken batch")
        return Classifier.training_step(module, batch, batch_idx)

    module.training_step = broken
    fit = trainer(tmp_path, NaturalGradientCallback())
    with pytest.raises(RuntimeError, match="broken batch"):
        fit.fit(module, loader())
    expected = network()
    opt = vogn.VOGN(expected, **module.options)
    for x, y in list(loader())[:2]:
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(expected(x), y).backward()
        opt.step()
    torch.testing.assert_close(flat(module.network), flat(expected), rtol=1e-12, atol=1e-12)


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path):
    def fit(folder, epochs, checkpoint=None):
        module = Classifier("kfac")
        saved = ModelCheckpoint(folder, filename="last")
        fitted = trainer(folder, NaturalGradientCallback(), saved, max_epochs=epochs, enable_checkpointing=True)
        fitted.fit(module, loader(), ckpt_path=checkpoint)
        return module, saved.best_model_path

    whole, _ = fit(tmp_path / "whole", 4)
    _, checkpoint = fit(tmp_path / "parts", 2)
    resumed, _ = fit(tmp_path / "resumed", 4, checkpoint)
    assert torch.equal(flat(resumed.network), flat(whole.network))


def test_the_posterior_is_written_beside_the_checkpoint(tmp_path):
    module, callback = Classifier("kfac"), NaturalGradientCallback()
    trainer(tmp_path, callback, ModelCheckpoint(tmp_path / "kept"), enable_checkpointing=True).fit(module, loader())
    assert callback.posterior_path == tmp_path / "kept" / "posterior.safetensors"
    posterior = vogn.GaussianPosterior.load(callback.posterior_path)
    assert torch.equal(posterior.mean()["0.weight"], module.network[0].weight)
    x, _ = next(iter(loader()))
    assert vogn.predict(module.network, posterior, x, samples=2).mean.shape == (BATCH, 3)
    elsewhere = NaturalGradientCallback(posterior=tmp_path / "new" / "q.safetensors")
    trainer(tmp_path, elsewhere, max_epochs=1).fit(Classifier(), loader())
    assert (tmp_path / "new" / "q.safetensors").is_file()


def test_diagnostics_reach_the_loggers(tmp_path):
    loggers = [CSVLogger(tmp_path, name="csv"), TensorBoardLogger(tmp_path, name="board")]
    trainer(tmp_path, NaturalGradientCallback(log_every=2), logger=loggers).fit(Classifier(), loader())
    with open(next((tmp_path / "csv").rglob("metrics.csv")), newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("vogn/posterior_std")]
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8]
    assert all(float(row["vogn/posterior_std"]) > 0 for row in rows)


class Manual(Classifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        opt = self.optimizers()
        opt.zero_grad()
        with opt.optimizer.sampled_params():
            self.manual_backward(Categorical()(self.network(x), y))
        opt.step()


def test_manual_optimisation_takes_the_steps_of_the_plain_loop(tmp_path):
    module = Manual()
    trainer(tmp_path, NaturalGradientCallback()).fit(module, loader())
    torch.testing.assert_close(flat(module.network), flat(plain_loop("vogn")), rtol=1e-12, atol=1e-12)


def test_another_optimizer_is_refused(tmp_path):
    module = Classifier()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), 0.1)
    with pytest.raises(TypeError, match="SGD is none of vogn's optimizers"):
        trainer(tmp_path, NaturalGradientCallback()).fit(module, loader())
