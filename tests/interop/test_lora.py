"""Low-rank adapters (peft): a posterior over the adapters only, on a frozen base."""

from __future__ import annotations

import copy

import peft
import pytest
import torch

import vogn
from plain_loop import METHODS
from vogn.interop.transformers import logits_only

OPTIONS = {"lr": 0.05, "ess": 200.0, "weight_decay": 0.1, "damping": 0.01}


def adapted(zoo, seed=0):
    """A base model, the same for every seed, with adapters that the seed decides."""
    base = zoo.model(attn_implementation="eager")
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    return peft.get_peft_model(base, config).double()


def trained(zoo, method, **options):
    model = adapted(zoo)
    opt = method(model, **(OPTIONS | options))
    for step in range(5):
        inputs, labels = zoo.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            zoo.loss(model, inputs, labels).backward()
        opt.step()
    return model, opt


@pytest.fixture
def bert(zoo_of):
    return zoo_of("bert")


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", METHODS.values())
def test_the_posterior_is_over_the_adapters_only(bert, method, variational):
    before = {name: p.detach().clone() for name, p in adapted(bert).named_parameters()}
    # eager attention, because deterministic IVON differentiates twice
    model, opt = trained(bert, method, variational=variational)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name or "classifier" in name for name in trainable)
    rows = opt.coverage()
    assert {row["parameter"] for row in rows if row["block"]} == trainable
    assert all(row["per_example"] != "own pass" for row in rows)
    assert set(opt.posterior().names) == trainable
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != (name in trainable), name


def test_a_saved_posterior_predicts_in_a_fresh_model(bert, tmp_path):
    model, opt = trained(bert, vogn.KFAC)
    posterior = opt.posterior()
    posterior.save(tmp_path / "adapters.safetensors")
    inputs, _ = bert.batch(seed=9)
    with logits_only(model):
        expected = vogn.predict(model, posterior, inputs, samples=3)
    fresh = adapted(bert, seed=1)
    with logits_only(fresh):
        loaded = vogn.GaussianPosterior.load(tmp_path / "adapters.safetensors")
        found = vogn.predict(fresh, loaded, inputs, samples=3)
    assert torch.equal(found.mean, expected.mean)
    assert float(found.variance.max()) > 0


def test_a_weight_sample_may_be_merged_into_the_base(bert):
    model, opt = trained(bert, vogn.VOGN)
    inputs, _ = bert.batch(seed=9)
    draw = {name: draws[0] for name, draws in opt.posterior().sample(1).items()}
    with torch.no_grad():
        expected = torch.func.functional_call(model, draw, (), inputs).logits
        copied = copy.deepcopy(model)
        copied.load_state_dict(draw, strict=False)
        merged = copied.merge_and_unload()
        found = merged(**inputs).logits
        mean = model(**inputs).logits
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, mean)


def test_the_ordinary_output_is_back_after_logits_only(bert):
    model, (inputs, _) = bert.model(), bert.batch()
    with logits_only(model):
        assert isinstance(model(**inputs), torch.Tensor)
    assert model(**inputs).logits.shape == (5, 3)
