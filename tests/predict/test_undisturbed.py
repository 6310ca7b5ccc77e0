"""Prediction leaves the model and the process exactly as it found them, also when the model raises."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from vogn.likelihoods import Gaussian
from vogn.predict import METHODS, predict


class Rude(nn.Module):
    """Draws random numbers and writes into its buffers, in evaluation mode too; may raise from the second call on."""

    def __init__(self, fail: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
        self.register_buffer("count", torch.zeros(()))
        self.fail = fail
        self.modes: list[tuple[bool, bool, bool]] = []

    def forward(self, x):
        self.modes.append((self.training, self.inner[1].training, torch.is_grad_enabled()))
        self.count += 1
        self.count = self.count + 1
        if self.fail and len(self.modes) >= 2:
            raise RuntimeError("boom")
        return self.inner(x) + 1e-3 * torch.randn(len(x), 2, dtype=x.dtype)


def fingerprint(model):
    flags = [module.training for module in model.modules()]
    tensors = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    return flags, tensors, torch.get_rng_state(), torch.is_grad_enabled()


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("method, link", [*((method, "mc") for method in METHODS), ("linearized", "exact")])
@pytest.mark.parametrize("grad", [True, False])
def test_flags_buffers_parameters_random_state_and_gradient_mode_are_kept(ensemble, x, fail, method, link, grad):
    torch.manual_seed(0)
    model = Rude(fail).double()
    model.train()
    model.inner[1].eval()  # a frozen norm inside a training model
    posterior = ensemble([{name: p.detach() + 1 for name, p in model.named_parameters()}])
    with torch.set_grad_enabled(grad):
        flags, tensors, state, enabled = fingerprint(model)
        options = {"method": method, "link": link, "likelihood": Gaussian(), "samples": 2}
        if fail:
            with pytest.raises(RuntimeError, match="boom"):
                predict(model, posterior, DataLoader(x, batch_size=4), **options)
        else:
            predict(model, posterior, DataLoader(x, batch_size=4), **options)
        after = fingerprint(model)
    assert after[0] == flags and after[2].equal(state) and after[3] == enabled
    for name, (tensor, value) in tensors.items():
        assert after[1][name][0] is tensor, name
        assert tensor.equal(value), name
    assert {mode[:2] for mode in model.modes} == {(False, False)}
    assert link == "exact" or not any(mode[2] for mode in model.modes)  # Jacobians need gradients


def test_the_prediction_is_a_function_of_the_seed(ensemble, x):
    """Also for a model that draws random numbers in evaluation mode."""
    model = Rude(False).double()
    posterior = ensemble([{}])
    first, second, other = (
        predict(model, posterior, x, samples=2, seed=seed, likelihood=Gaussian()).mean for seed in (0, 0, 1)
    )
    assert first.equal(second) and not first.equal(other)


def test_batchnorm_uses_the_running_statistics_of_the_model(ensemble, x):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double().train()
    for part in x.split(4):
        model(part)
    posterior = ensemble([{"0.weight": torch.ones(2, 3).double()}])
    prediction = predict(model, posterior, x, samples=1, likelihood=Gaussian(), batch_size=2)
    inner = x @ torch.ones(3, 2).double() + model[0].bias
    norm = model[1]
    expected = (inner - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    assert_close(prediction.mean, expected.detach())


def test_outputs_can_be_used_in_later_gradients(ensemble, members, linear, x):
    """They are ordinary tensors without a graph, not inference tensors."""
    prediction = predict(linear, ensemble(members), x, samples=2, likelihood=Gaussian())
    assert not prediction.mean.requires_grad
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    (scale * prediction.mean).sum().backward()
    assert_close(scale.grad, prediction.mean.sum())
