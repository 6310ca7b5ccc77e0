"""A loss that is multiplied by a gradient scaler, or by the size of the batch, does not pass in silence."""

import warnings

import pytest
import torch
from torch import nn

import vogn
from tiny_models import OPTIONS, batch, fill
from vogn.likelihoods import Categorical, Gaussian


def run(scale, *, steps=2, likelihood=None, options=None, scaler=None, weight=1.0, method="vogn", logged=False):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    opt = vogn.METHODS[method].build(model, **(OPTIONS | (options or {})))
    opt.grad_scaler = scaler
    likelihood = likelihood or Categorical()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            x, y = batch(40, step, torch.float32)
            y = y if isinstance(likelihood, Categorical) else x
            opt.zero_grad()
            with opt.sampled_params():
                if logged:
                    likelihood(model(x), y)
                (scale * likelihood(model(x), y, weight=weight)).backward()
            opt.step()
    return [str(found.message) for found in caught if "times that of the mean loss" in str(found.message)]


@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian()], ids=str)
def test_a_forgotten_scaler_is_noticed_once_with_its_factor(likelihood):
    (message,) = run(1024.0, likelihood=likelihood)
    assert "is 1024 times" in message and "opt.grad_scaler = scaler" in message


def test_a_sum_over_the_batch_is_noticed_unless_it_was_told():
    (message,) = run(40.0)
    assert "is 40 times" in message and "loss_reduction='sum'" in message
    assert not run(40.0, options={"loss_reduction": "sum"})


@pytest.mark.parametrize("scale", [1.0, 0.25, 10.0])
def test_weights_of_tasks_and_accumulated_batches_are_fine(scale):
    assert not run(scale)
    assert not run(1.0, weight=100.0)


def test_with_a_scaler_there_is_nothing_to_notice():
    class Scaler:
        def get_scale(self):
            return 1024.0

    assert not run(1024.0, scaler=Scaler())


@pytest.mark.parametrize("method", ["kfac", "vogn"])
def test_passes_of_our_own_and_losses_without_a_backward_are_not_looked_at(method):
    """K-FAC draws labels and goes back through the outputs itself, with the sum of 40 gradients."""
    assert not run(1.0, method=method, logged=True)
    (message,) = run(1024.0, method=method, logged=True)
    assert "is 1024 times" in message
