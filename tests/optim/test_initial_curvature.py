"""``initial_curvature="auto"``: the first batch where it can be measured, else a start whose noise is a tenth."""

import pytest
import torch
from torch import nn

import vogn
from tiny_models import fill, train

PRICE = {"ivon": {}, "evon": {}, "von": {"hessian": "price"}}


def network():
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(), vectors=7.0)


@pytest.mark.parametrize("method", sorted(set(vogn.METHODS) - {"ivon", "evon"}))
def test_elsewhere_it_is_the_first_batch(method):
    found = vogn.METHODS[method].build(network(), ess=10, initial_curvature="auto")
    assert {group["initial_curvature"] for group in found.param_groups} == {"first_batch"}


@pytest.mark.parametrize(("method", "options"), PRICE.items())
def test_the_first_noise_is_a_tenth_of_the_weights(method, options):
    model = network()
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.ndim == 2])
    opt = vogn.METHODS[method].build(model, ess=50, weight_decay=0.0, initial_curvature="auto", **options)
    for group in opt.param_groups:
        std = (group["ess"] * group["initial_curvature"]) ** -0.5
        assert std == pytest.approx(0.1 * float(weights.square().mean().sqrt()))
    train(opt, model, 3)


def test_each_group_has_its_own_start():
    model = network()
    with torch.no_grad():
        model[2].weight.mul_(10.0)
    opt = vogn.IVON(model, ess=50, initial_curvature="auto", groups=[{"params": list(model[2].parameters())}])
    first, second = (group["initial_curvature"] for group in opt.param_groups)
    assert first > 10 * second
    fresh = nn.Parameter(torch.full((2, 2), 0.5, dtype=torch.float64))
    opt.add_param_group({"params": fresh, "ess": 50})
    assert opt.param_groups[2]["initial_curvature"] == pytest.approx(1 / (50 * 0.05**2))


def test_what_it_cannot_be_computed_from_is_named():
    with pytest.raises(ValueError, match=r"initial_curvature='auto' of the Price statistic follows from ess"):
        vogn.IVON(network(), initial_curvature="auto", variational=False)
    model = nn.Linear(3, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with pytest.raises(ValueError, match="compares its noise with the weights, which are all zero"):
        vogn.IVON(model, ess=10, initial_curvature="auto")


@pytest.mark.parametrize("method", ["ivon", "evon"])
def test_a_default_group_may_be_empty(method):
    model = network()
    groups = [{"params": list(layer.parameters())} for layer in model if list(layer.parameters())]
    opt = vogn.METHODS[method].build(model, ess=50, initial_curvature="auto", groups=groups)
    assert not opt.param_groups[0]["params"]
    for group in opt.param_groups[1:]:
        rms = torch.cat([p.detach().flatten() for p in group["params"] if p.ndim > 1]).square().mean().sqrt()
        assert (50 * group["initial_curvature"]) ** -0.5 == pytest.approx(0.1 * float(rms))
    train(opt, model, 2)
