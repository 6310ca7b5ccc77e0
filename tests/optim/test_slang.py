"""SLANG across the layers of a model against the full recursion over all its parameters."""

import math

import pytest
import torch
from torch import nn

from vogn import SLANG
from vogn.capture import oracle
from vogn.likelihoods import Categorical

ESS, DT, B2 = 60.0, 3e-2, 0.8


def summed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def slang(model, rank, **options):
    defaults = {"lr": 0.05, "ess": ESS, "weight_decay": DT, "curvature_decay": B2, "initial_curvature": 0.5}
    return SLANG(model, rank=rank, **(defaults | options))


def flatten(model, named):
    """Block vector of the model: layer after layer, row-major [W, bias]."""
    parts = []
    for layer in ("0", "2"):
        parts.append(torch.cat([named[f"{layer}.weight"], named[f"{layer}.bias"].unsqueeze(-1)], -1).flatten(-2))
    return torch.cat(parts, -1)


class FullRecursion:
    """Lambda <- (1-rho) Lambda + rho (N/B sum g g^T + delta I);  mu <- mu - a Lambda^-1 (N m_hat + delta mu)."""

    def __init__(self, model, dimensions, power=None):
        eye = torch.eye(dimensions).double()
        self.delta = ESS * DT
        self.precision, self.eye = ESS * 0.5 * eye + self.delta * eye, eye
        self.mean = flatten(model, {n: p.detach() for n, p in model.named_parameters()})
        self.m, self.t, self.power = torch.zeros_like(self.mean), 0, power

    def step(self, rows, *, lr, beta1, damping):
        self.t += 1
        decay = 1.0 if self.power is None else 1 + self.t**self.power
        rho = (1 - B2) / decay
        self.precision = (1 - rho) * self.precision + rho * (ESS * rows.T @ rows / len(rows) + self.delta * self.eye)
        self.m = beta1 * self.m + (1 - beta1) * rows.mean(0)
        direction = ESS * self.m / (1 - beta1**self.t) + self.delta * self.mean
        self.mean = self.mean - lr / decay * torch.linalg.solve(self.precision + ESS * damping * self.eye, direction)


@pytest.mark.parametrize("power", [None, 0.51])
@pytest.mark.parametrize("variational", [False, True])
def test_with_full_rank_it_is_the_full_recursion_across_layers(tools, variational, power):
    model = tools.network()
    d = sum(p.numel() for p in model.parameters())
    opt = slang(model, d, variational=variational, seed=3, anneal_power=power, damping=1e-2)
    full = FullRecursion(model, d, power)
    for step in range(12):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            named = dict(model.named_parameters())
            displaced = flatten(model, {n: p.detach() for n, p in named.items()}) - full.mean
            assert bool((displaced.abs() < 1e-9).all()) != variational  # the initial curvature is evidence
            rows = flatten(model, oracle.per_example_gradients(tools.twin(model), x, y, summed))
            Categorical()(model(x), y).backward()
        opt.step()
        full.step(rows, lr=0.05, beta1=0.9, damping=1e-2)
        (precision,) = opt.posterior().precision_matrices().values()
        torch.testing.assert_close(precision, full.precision, rtol=1e-10, atol=1e-10)
        mean = flatten(model, {n: p.detach() for n, p in model.named_parameters()})
        torch.testing.assert_close(mean, full.mean, rtol=1e-9, atol=1e-11)
    coupling = precision[: 4 * 4, 4 * 4 :]
    assert float(coupling.abs().max()) > 1e-3, "the layers must be coupled"


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_its_diagonal_is_exact_at_any_rank(tools, rank):
    model = tools.network()
    d = sum(p.numel() for p in model.parameters())
    opt, full = slang(model, rank, variational=False, lr=0.0), FullRecursion(model, d)
    for step in range(8):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        full.step(flatten(model, oracle.per_example_gradients(model, x, y, summed)), lr=0.0, beta1=0.9, damping=0.0)
        (precision,) = opt.posterior().precision_matrices().values()
        torch.testing.assert_close(precision.diagonal(), full.precision.diagonal(), rtol=1e-11, atol=0)
    assert not torch.allclose(precision, full.precision, rtol=1e-3), "a low rank must lose something off the diagonal"


def test_the_diagonal_part_keeps_the_decayed_start(tools):
    """d >= (1-rho)^t d_0 > 0."""
    model = tools.network()
    opt = slang(model, 3, variational=False, lr=0.0)
    for t in range(1, 6):
        tools.train(opt, model, 1, start=t)
        (state,) = tools.curvature(opt).values()
        assert float(state["d"].min()) >= 0.5 * B2**t * (1 - 1e-12)


def test_its_sample_covers_the_model_jointly(tools):
    """Linear in the noise, so the covariance of a draw is exact: S S^T = Lambda^-1 with S read off unit vectors."""
    from vogn.linalg.noise import normal as draw

    model = tools.network()
    d = sum(p.numel() for p in model.parameters())
    opt = slang(model, 4, seed=2)
    tools.train(opt, model, 3)
    posterior, mean = opt.posterior(), flatten(model, tools.weights(model))
    (block,) = posterior.blocks
    root = torch.stack([block.root(e.reshape(d, 1)).flatten() for e in torch.eye(d).double()], 1)
    torch.testing.assert_close(root @ root.T, posterior.to_dense(), rtol=1e-9, atol=1e-12)
    with opt.sampled_params():
        where = {"seed": 2, "stream": "weights", "step": 3, "sample": 0, "name": block.name}
        eps = draw((d, 1), dtype=torch.float64, **where).flatten()
        theta = flatten(model, {n: p.detach() for n, p in model.named_parameters()})
        torch.testing.assert_close(theta, mean + root @ eps, rtol=1e-10, atol=1e-13)
    assert math.isfinite(float(posterior.entropy()))
