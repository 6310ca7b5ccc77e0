"""The curvature of part of a batch is that of its first examples; the gradient is that of all."""

import pytest
import torch
from torch import nn

import vogn
from tiny_models import fill, normal
from vogn.likelihoods import Categorical

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def network(images):
    layers = (
        [nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 3)]
        if images
        else [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)]
    )
    return fill(nn.Sequential(*layers).double())


def step(method, x, y, images, **options):
    model = network(images)
    opt = vogn.METHODS[method].build(model, lr=0.1, ess=10.0, variational=False, kl_clip=None, momentum=0.0, **options)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    opt.step()
    return opt.posterior().precision_matrices(), gradients


@pytest.mark.parametrize("images", [False, True], ids=["table", "images"])
@pytest.mark.parametrize("fisher", ["ggn", "empirical"])
@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_the_curvature_of_part_of_a_batch_is_that_of_its_first_examples(method, fisher, images):
    x = normal(6, 1, 4, 4, seed=1) if images else normal(6, 4, seed=1)
    part, gradients = step(method, x, LABELS, images, fisher=fisher, curvature_examples=2)
    first, _ = step(method, x[:2], LABELS[:2], images, fisher=fisher)
    whole, expected = step(method, x, LABELS, images, fisher=fisher)
    for name, precision in first.items():
        torch.testing.assert_close(part[name], precision, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(part[name], whole[name], rtol=1e-3)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_more_examples_than_a_batch_has_are_all_of_them():
    x = normal(6, 4, seed=1)
    part, _ = step("kfac", x, LABELS, False, fisher="ggn", curvature_examples=100)
    whole, _ = step("kfac", x, LABELS, False, fisher="ggn")
    assert all(torch.equal(part[name], whole[name]) for name in whole)
