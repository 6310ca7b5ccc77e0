"""VOGN against an online Gauss-Newton method written as a loop over examples."""

import math

import pytest
import torch
import torch.nn.functional as F

from vogn import VOGN
from vogn.likelihoods import Categorical
from vogn.optim.steps import Momentum, Solve


def per_example_loop(model, x, y):
    """Mean gradient and mean squared gradient, one example at a time."""
    parameters = dict(model.named_parameters())
    g = {name: torch.zeros_like(p) for name, p in parameters.items()}
    h = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            g[name] += gradient / len(x)
            h[name] += gradient**2 / len(x)
    return g, h


class ByHand:
    """m <- b1 m + (1-b1) g;  s <- b2 s + (1-b2) h;  mu <- mu - a clip((m/(1-b1^t) + dt mu) / (s + dt + gamma))."""

    def __init__(self, model, *, lr, b1, b2, dt, gamma, radius=math.inf):
        self.lr, self.b1, self.b2, self.dt, self.gamma, self.radius = lr, b1, b2, dt, gamma, radius
        self.clipped = []
        self.mu = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.m = {name: torch.zeros_like(p) for name, p in self.mu.items()}
        self.s, self.t = None, 0

    def step(self, g, h):
        self.t += 1
        for name in self.mu:
            self.m[name] = self.b1 * self.m[name] + (1 - self.b1) * g[name]
        # the first observation counts fully: s_0 is the statistic of the first mini-batch
        self.s = h if self.s is None else {k: self.b2 * s + (1 - self.b2) * h[k] for k, s in self.s.items()}
        for name, mu in self.mu.items():
            direction = self.m[name] / (1 - self.b1**self.t) + self.dt * mu
            newton = direction / (self.s[name] + self.dt + self.gamma)
            self.clipped.append((newton.abs() > self.radius).double().mean())
            self.mu[name] = mu - self.lr * newton.clamp(-self.radius, self.radius)


SETTINGS = {"lr": 0.05, "b1": 0.9, "b2": 0.8, "dt": 2e-2, "gamma": 1e-2}


def vogn(model, **options):
    return VOGN(
        model,
        lr=SETTINGS["lr"],
        ess=100.0,
        weight_decay=SETTINGS["dt"],
        damping=SETTINGS["gamma"],
        momentum=SETTINGS["b1"],
        curvature_decay=SETTINGS["b2"],
        **options,
    )


@pytest.mark.parametrize("loss", [Categorical(), F.cross_entropy], ids=["likelihood", "plain loss"])
def test_without_noise_it_is_the_online_gauss_newton_method(tools, loss):
    model = tools.network()
    opt, hand = vogn(model, variational=False), ByHand(model, **SETTINGS)
    for step in range(20):
        x, y = tools.batch(seed=step)
        hand.step(*per_example_loop(model, x, y))
        opt.zero_grad()
        with opt.sampled_params():
            loss(model(x), y).backward()
        opt.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), hand.mu[name], rtol=1e-10, atol=1e-12)


def test_elements_of_the_step_are_clipped(tools):
    model = tools.network()
    opt, hand = vogn(model, variational=False, clip_radius=0.05), ByHand(model, **SETTINGS, radius=0.05)
    for step in range(20):
        x, y = tools.batch(seed=step)
        hand.step(*per_example_loop(model, x, y))
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), hand.mu[name], rtol=1e-10, atol=1e-12)
    assert 0.1 < torch.stack(hand.clipped).mean() < 0.9


@pytest.mark.parametrize("contexts", [1, 3])
def test_with_noise_it_is_the_same_recursion_at_the_sampled_weights(tools, contexts):
    model = tools.network()
    opt, hand = vogn(model, mc_samples=contexts, seed=5), ByHand(model, **SETTINGS)
    for step in range(20):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        pairs = []
        for _ in range(contexts):
            with opt.sampled_params():
                displaced = torch.cat([(p.detach() - hand.mu[n]).flatten() for n, p in model.named_parameters()])
                assert bool((displaced.abs() < 1e-9).all()) == (step == 0)  # nothing to sample from before evidence
                pairs.append(per_example_loop(tools.twin(model), x, y))
                Categorical()(model(x), y).backward()
        opt.step()
        g, h = ({k: sum(pair[i][k] for pair in pairs) / contexts for k in hand.mu} for i in (0, 1))
        hand.step(g, h)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), hand.mu[name], rtol=1e-10, atol=1e-12)
    # 1 / sigma^2 = N (s + dt): the damping is no part of the posterior
    for name, variance in opt.posterior().variance().items():
        torch.testing.assert_close(variance, 1 / (100.0 * (hand.s[name] + SETTINGS["dt"])), rtol=1e-10, atol=0)


def test_the_sample_has_the_posterior_covariance(tools):
    """Linear in the noise: whitened displacements of two optimizers with one seed agree whatever their curvature."""
    from vogn.linalg.noise import normal as draw

    model = tools.network()
    opt = vogn(model, seed=8)
    tools.train(opt, model, 2)
    mean, variance = tools.weights(model), opt.posterior().variance()
    with opt.sampled_params():
        where = {"seed": 8, "stream": "weights", "step": 2, "sample": 0, "name": "0.weight"}
        eps = draw((4, 4), dtype=torch.float64, **where)  # weight and bias of the layer: one block (4, 3 + 1)
        weight, bias = (model[0].weight.detach() - mean["0.weight"]), (model[0].bias.detach() - mean["0.bias"])
        torch.testing.assert_close(weight, eps[:, :3] * variance["0.weight"].sqrt(), rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(bias, eps[:, 3] * variance["0.bias"].sqrt(), rtol=1e-11, atol=1e-14)


def test_a_chain_of_ones_own_takes_the_place_of_the_clipped_one(tools):
    chain = (Momentum(), Solve())
    assert vogn(tools.network(), steps=chain).chain == chain
    with pytest.raises(ValueError, match=r"clip_radius=0\.1 is a step of the chain that steps= replaces"):
        vogn(tools.network(), steps=chain, clip_radius=0.1)
