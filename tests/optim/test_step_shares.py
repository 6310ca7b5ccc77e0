"""opt.diagnostics() counts what became of the steps: refused, tolerated, clipped."""

import math
import warnings

import pytest
import torch
from torch import nn

from vogn import KFAC, SLANG, VOGN, NaturalGradient, VAdam
from vogn.errors import NonFiniteStatisticsError
from vogn.likelihoods import Categorical
from vogn.optim.steps import ClipElements, ClipKL, Prior, Solve
from vogn.structures import Diagonal, Kronecker


def clipping(model, structure, steps, lr):
    return NaturalGradient(
        model,
        structure,
        "ggn",
        lr=lr,
        ess=50.0,
        weight_decay=0.01,
        damping=0.02,
        curvature_decay=0.8,
        variational=False,
        steps=steps,
    )


def test_shares_of_refused_and_tolerated_steps(tools):
    model = tools.network()
    opt = VOGN(model, ess=100.0)
    tools.train(opt, model, 3)
    x, y = tools.batch(seed=3)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x * math.nan), y).backward()
    with pytest.raises(NonFiniteStatisticsError):
        opt.step()
    opt.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    numbers = opt.diagnostics()
    assert numbers["steps"] == 4.0 and numbers["observations"] == 3.0
    assert numbers["refused_share"] == pytest.approx(1 / 5)
    assert numbers["tolerated_share"] == pytest.approx(1 / 4)


def test_the_share_of_kl_clipped_steps_and_their_mean_factor(tools):
    """From the clip's own formula, computed beside it."""
    model = tools.network()
    kappa = 1e-4
    opt = clipping(model, Kronecker(), (Prior(), Solve(), ClipKL(kappa)), lr=0.1)
    factors = []
    for step in range(4):
        if step == 3:
            opt.param_groups[0]["lr"] = 1e-9  # not clipped
        x, y = tools.batch(seed=step)
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        opt.step()
        # what was taken is nu lr u, and <u, g> lr^2 nu^2 = kappa where it was clipped
        taken = before - torch.cat([p.detach().flatten() for p in model.parameters()])
        size = float(taken @ gradient) * opt.param_groups[0]["lr"]  # nu lr^2 <u, g>
        factors.append(min(1.0, kappa / size))  # nu = kappa / (nu lr^2 <u, g>) where it was clipped
    numbers = opt.diagnostics()
    assert max(factors[:3]) < 1.0 and factors[3] == 1.0
    assert numbers["kl_clipped_share"] == pytest.approx(3 / 4)
    assert numbers["kl_clip_factor"] == pytest.approx(sum(factors) / 4, rel=1e-6)


def test_the_share_of_clipped_elements(tools):
    model = tools.network()
    radius = 0.05
    opt = clipping(model, Diagonal(), (Solve(), ClipElements(radius)), lr=1.0)
    before = tools.weights(model)
    tools.train(opt, model, 1)
    taken = torch.cat([(before[name] - weight).flatten().abs() for name, weight in tools.weights(model).items()])
    share = float((taken >= radius * (1 - 1e-12)).double().mean())
    assert 0.0 < share < 1.0
    assert opt.diagnostics()["elements_clipped_share"] == pytest.approx(share)


def test_methods_without_a_clip_do_not_report_one(tools):
    model = tools.network()
    for opt in (VAdam(model, ess=10.0), SLANG(model, ess=10.0), KFAC(model, ess=10.0, kl_clip=None)):
        tools.train(opt, model, 1)
        assert not [key for key in opt.diagnostics() if "clip" in key]
