"""The Trainer of transformers does what the plain loop does."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import vogn
from plain_loop import METHODS, OPTIONS
from tiny_models import flat
from vogn.interop.transformers import LikelihoodLoss, NaturalGradientCallback, logits_only
from vogn.likelihoods import Categorical

BATCH, BATCHES = 3, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*pin_memory.*"),
    pytest.mark.filterwarnings("ignore:no layer rule for.*:UserWarning"),
    pytest.mark.filterwarnings("error:.*part of its gradient does not come through.*"),
]


def rows_of(zoo):
    """A data set: one dictionary per example, padded labels ignored."""
    inputs, labels = zoo.batch(n=BATCH * BATCHES, dtype=torch.float32)
    if zoo.task == "tokens":
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    columns = inputs | {"labels": labels}
    return [{name: column[n] for name, column in columns.items()} for n in range(BATCH * BATCHES)]


def arguments(folder, **options):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "use_cpu": True,
        "max_grad_norm": 0.0, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        "train_sampling_strategy": "sequential", "lr_scheduler_type": "constant",
    }  # fmt: skip
    return transformers.TrainingArguments(**(defaults | options))


def trained(zoo, folder, method="vogn", *, callback=None, resume=None, build=None, **options):
    model = zoo.model(dtype=torch.float32)
    opt = METHODS[method](model, **OPTIONS, **(build or {}))
    trainer = transformers.Trainer(
        model,
        arguments(folder, **options),
        train_dataset=rows_of(zoo),
        optimizers=(opt, None),
        callbacks=[callback or NaturalGradientCallback(posterior=None)],
        compute_loss_func=LikelihoodLoss(shift=zoo.task == "tokens"),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, opt


def plain_loop(zoo, method="vogn", *, accumulate=1, clip=None, epochs=2, steps=None):
    model = zoo.model(dtype=torch.float32)
    opt = METHODS[method](model, **OPTIONS)
    rows = rows_of(zoo)
    batches = [
        {name: torch.stack([row[name] for row in rows[k : k + BATCH]]) for name in rows[0]}
        for k in range(0, len(rows), BATCH)
    ]
    shift = zoo.task == "tokens"
    for _ in range(epochs):
        for start in range(0, BATCHES, accumulate)[:steps]:
            group = batches[start : start + accumulate]
            total = sum(int((b["labels"][:, 1:] if shift else b["labels"]).ne(-100).sum()) for b in group)
            opt.zero_grad()
            with opt.sampled_params():
                for batch in group:
                    outputs = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
                    labels = batch["labels"]
                    if shift:
                        outputs, labels = outputs[:, :-1], labels[:, 1:]
                    mask = labels != -100
                    loss = Categorical()(outputs, labels, mask=mask, weight=int(mask.sum()) / total)
                    loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
    return model


def assert_same(model, other):
    # float32 with weights near 1: rounding of a few 1e-7, more where a step divides by a small curvature
    torch.testing.assert_close(flat(model), flat(other), rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "vit"])
def test_train_takes_the_steps_of_the_plain_loop(zoo, method, accumulate, tmp_path):
    trainer, _ = trained(zoo, tmp_path, method, gradient_accumulation_steps=accumulate)
    assert_same(trainer.model, plain_loop(zoo, method, accumulate=accumulate))


@pytest.mark.parametrize("family", ["llama"])
def test_the_gradient_is_clipped_at_the_mean(zoo, tmp_path):
    callback = NaturalGradientCallback(max_grad_norm=0.05, posterior=None)
    trainer, _ = trained(zoo, tmp_path, callback=callback)
    expected = plain_loop(zoo, clip=0.05)
    assert_same(trainer.model, expected)
    assert not torch.allclose(flat(expected), flat(plain_loop(zoo)), atol=1e-3)


@pytest.mark.parametrize("family", ["llama"])
def test_what_a_trainer_cannot_do_is_refused(zoo, tmp_path):
    with pytest.raises(ValueError, match=r"max_grad_norm=1.0\) clips while .* NaturalGradientCallback\(max_grad_norm="):
        trained(zoo, tmp_path, max_grad_norm=1.0)
    with pytest.raises(ValueError, match="mc_samples=2 cannot be"):
        trained(zoo, tmp_path, build={"mc_samples": 2})


@pytest.mark.parametrize("family", ["llama"])
def test_a_run_that_stops_between_two_batches_of_a_step_ends_at_the_mean(zoo, tmp_path):
    class Stop(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 1

    model = zoo.model(dtype=torch.float32)
    opt = vogn.VOGN(model, **OPTIONS)
    trainer = transformers.Trainer(
        model, arguments(tmp_path, gradient_accumulation_steps=2), train_dataset=rows_of(zoo), optimizers=(opt, None),
        compute_loss_func=LikelihoodLoss(shift=True), callbacks=[NaturalGradientCallback(posterior=None), Stop()],
    )  # fmt: skip
    trainer.train()
    assert opt.param_groups[0]["steps_done"] == 1
    assert_same(model, plain_loop(zoo, accumulate=2, epochs=1, steps=1))


@pytest.mark.parametrize("family", ["llama", "vit"])
def test_the_likelihood_loss_is_the_loss_inside_the_model(zoo):
    model = zoo.model(dtype=torch.float32)
    inputs, labels = zoo.batch(dtype=torch.float32)
    if zoo.task == "tokens":
        labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    outputs = model(**inputs, labels=labels)
    loss = LikelihoodLoss(shift=zoo.task == "tokens")
    torch.testing.assert_close(loss(outputs, labels), outputs.loss)
    parts = [model(**{k: v[rows] for k, v in inputs.items()}) for rows in (slice(0, 2), slice(2, 5))]
    count = int((labels[:, 1:] if zoo.task == "tokens" else labels).ne(-100).sum())
    total = loss(parts[0], labels[:2], count) + loss(parts[1], labels[2:], count)
    torch.testing.assert_close(total, outputs.loss)


@pytest.mark.parametrize("method", ["vogn", "kfac"])
@pytest.mark.parametrize("family", ["llama"])
def test_a_resumed_run_equals_an_uninterrupted_one(zoo, method, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "linear"}
    whole, _ = trained(zoo, tmp_path, method, callback=NaturalGradientCallback(), **options)
    assert whole.state.global_step == 8
    again, opt = trained(zoo, tmp_path, method, resume=str(tmp_path / "checkpoint-3"), **options)
    assert torch.equal(flat(again.model), flat(whole.model))
    assert opt.param_groups[0]["steps_done"] == 8


@pytest.mark.parametrize("family", ["llama"])
def test_posteriors_stand_beside_the_checkpoints(zoo, tmp_path):
    callback = NaturalGradientCallback()
    trainer, opt = trained(zoo, tmp_path, "kfac", callback=callback, save_strategy="epoch")
    posterior = vogn.GaussianPosterior.load(tmp_path / "posterior.safetensors")
    middle = vogn.GaussianPosterior.load(tmp_path / "checkpoint-4" / "posterior.safetensors")
    for name, mean in posterior.mean().items():
        assert torch.equal(mean, trainer.model.get_parameter(name))
        assert not torch.equal(mean, middle.mean()[name])
    inputs, _ = zoo.batch()
    with logits_only(trainer.model):
        found = vogn.predict(trainer.model, posterior, inputs, samples=2)
    assert found.mean.shape == (5, 6, 13)
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(5, 6))


@pytest.mark.parametrize("family", ["vit"])
def test_evaluation_and_the_log(zoo, tmp_path):
    model = zoo.model(dtype=torch.float32)
    opt = vogn.VOGN(model, **OPTIONS)
    seen = []

    class Later(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    trainer = transformers.Trainer(
        model, arguments(tmp_path, eval_strategy="epoch", bf16=True), train_dataset=rows_of(zoo),
        eval_dataset=rows_of(zoo), optimizers=(opt, None), compute_loss_func=LikelihoodLoss(),
        callbacks=[NaturalGradientCallback(posterior=None), Later()],
    )  # fmt: skip
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(steps) == 8 and all(entry["vogn/posterior_std"] > 0 for entry in steps)
    assert [entry["vogn/steps"] for entry in seen if "loss" in entry] == list(range(1, 9))
    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1.0, 2.0]
    assert bool(flat(model).isfinite().all())


@pytest.mark.parametrize("family", ["vit"])
def test_the_loss_inside_the_model_is_enough_for_the_empirical_fisher(zoo, tmp_path):
    model = zoo.model(dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embeddings" not in name)  # bare parameters need a likelihood
    opt = vogn.VOGN(model, **OPTIONS)
    trainer = transformers.Trainer(
        model, arguments(tmp_path), train_dataset=rows_of(zoo), optimizers=(opt, None),
        callbacks=[NaturalGradientCallback(posterior=None)],
    )  # fmt: skip
    trainer.train()
    assert opt.diagnostics()["observations"] == 8
