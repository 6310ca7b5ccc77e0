"""IVON against a recursion written from Algorithm 1 of Shen et al. (2024), given the library's own weight samples."""

import math

import pytest
import torch
import torch.nn.functional as F

from vogn import EVON, IVON
from vogn.linalg.noise import normal as draw

ESS, DECAY, WEIGHT_DECAY, H0 = 200.0, 0.8, 3e-2, 0.5


def gradients_at(model, x, y):
    loss = F.cross_entropy(model(x), y)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


class ByHand:
    """One entry per parameter tensor; every line is a line of the paper."""

    def __init__(self, model, lr, beta1, clip, rescale):
        self.mu = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.h = {name: torch.full_like(p, H0) for name, p in self.mu.items()}
        self.m = {name: torch.zeros_like(p) for name, p in self.mu.items()}
        self.alpha = lr * (H0 + WEIGHT_DECAY) if rescale else lr
        self.beta1, self.clip, self.t, self.clipped = beta1, clip, 0, False

    def step(self, samples):
        """``samples``: list of (sampled weights, gradient of the mean loss there)."""
        self.t += 1
        for name in self.mu:
            mu, h = self.mu[name], self.h[name]
            g = sum(gradient[name] for _, gradient in samples) / len(samples)
            products = [(theta[name] - mu) * gradient[name] for theta, gradient in samples]
            h_hat = sum(products) / len(samples) * ESS * (h + WEIGHT_DECAY)
            self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
            correction = 0.5 * (1 - DECAY) ** 2 * (h - h_hat) ** 2 / (h + WEIGHT_DECAY)
            self.h[name] = DECAY * h + (1 - DECAY) * h_hat + correction
            debiased = self.m[name] / (1 - self.beta1**self.t)
            update = (debiased + WEIGHT_DECAY * mu) / (self.h[name] + WEIGHT_DECAY)
            self.clipped |= bool((update.abs() > self.clip).any())
            self.mu[name] = mu - self.alpha * update.clamp(-self.clip, self.clip)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("clip", [math.inf, 0.05])
@pytest.mark.parametrize("contexts", [1, 2])
def test_ivon_is_the_recursion_of_the_paper(tools, contexts, clip, rescale):
    model = tools.network()
    opt = IVON(
        model,
        lr=0.1,
        ess=ESS,
        weight_decay=WEIGHT_DECAY,
        momentum=0.9,
        curvature_decay=DECAY,
        initial_curvature=H0,
        clip_radius=clip,
        rescale_lr=rescale,
        mc_samples=contexts,
        seed=11,
    )
    hand = ByHand(model, 0.1, 0.9, clip, rescale)
    for step in range(20):
        x, y = tools.batch(seed=step)
        samples = []
        opt.zero_grad()
        for _ in range(contexts):
            with opt.sampled_params():
                samples.append((tools.weights(model), gradients_at(model, x, y)))
                F.cross_entropy(model(x), y).backward()
        opt.step()
        hand.step(samples)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), hand.mu[name], rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(tools.curvature(opt)[name]["c"].reshape(parameter.shape), hand.h[name])
    assert hand.clipped == math.isfinite(clip), "the radius must have been reached, or the test shows nothing about it"


def test_the_sample_is_mu_plus_sigma_eps(tools):
    """sigma = 1 / sqrt(ess (h + weight_decay)); eps is a function of (seed, step, sample, name)."""
    model = tools.network()
    opt = IVON(model, lr=0.1, ess=ESS, weight_decay=WEIGHT_DECAY, initial_curvature=H0, mc_samples=2, seed=3)
    for step in range(3):
        mean, h = tools.weights(model), tools.curvature(opt)
        for sample in range(2):
            with opt.sampled_params():
                for name, theta in model.named_parameters():
                    shape = theta.shape if theta.ndim == 2 else (*theta.shape, 1, 1)
                    where = {"seed": 3, "stream": "weights", "step": step, "sample": sample, "name": name}
                    eps = draw(shape, dtype=torch.float64, **where).reshape(theta.shape)
                    c = h[name]["c"].reshape(theta.shape) if h else H0
                    sigma = (ESS * (c + WEIGHT_DECAY)) ** -0.5
                    torch.testing.assert_close(theta.detach(), mean[name] + sigma * eps, rtol=0, atol=1e-14)
                x, y = tools.batch(seed=step)
                F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()


def test_the_hessian_stays_above_half_of_its_old_value_for_any_evidence(tools):
    """h' + weight_decay >= (h + weight_decay) / 2, whatever the gradient."""
    model = tools.network()
    opt = IVON(model, lr=0.0, ess=ESS, weight_decay=WEIGHT_DECAY, curvature_decay=0.5, initial_curvature=H0)
    old = H0
    for step in range(5):
        opt.zero_grad()
        with opt.sampled_params():
            sum(((-1) ** k * 1e4 * p).sum() for k, p in enumerate(model.parameters())).backward()
        opt.step()
        new = torch.cat([state["c"].flatten() for state in tools.curvature(opt).values()])
        assert bool((new + WEIGHT_DECAY >= 0.5 * (old + WEIGHT_DECAY) * (1 - 1e-12)).all()), step
        old = new


def test_evon_is_ivon_in_a_rotated_basis(tools):
    """One matrix parameter in coordinates QS^T W QA, the basis refreshed from the gradient's contractions."""
    model = tools.fill(torch.nn.Linear(3, 2, bias=False).double())
    basis_decay, refresh = 0.5, 3
    opt = EVON(
        model,
        lr=0.1,
        ess=ESS,
        weight_decay=WEIGHT_DECAY,
        curvature_decay=DECAY,
        basis_decay=basis_decay,
        initial_curvature=H0,
        refresh_every=refresh,
        seed=2,
    )
    mu = model.weight.detach().clone()
    left, right = 3 * H0 * torch.eye(2).double(), 2 * H0 * torch.eye(3).double()
    c, m = H0 * torch.eye(6).double(), torch.zeros_like(mu)  # C as a dense matrix over the row-major weight
    qs, qa = torch.eye(2).double(), torch.eye(3).double()
    for step in range(8):
        x, y = tools.normal(8, 3, seed=step), tools.normal(8, 2, seed=step + 50)
        opt.zero_grad()
        with opt.sampled_params():
            displacement = model.weight.detach() - mu
            loss = 0.5 * (model(x) - y).square().sum(1).mean()
            loss.backward()
        g = model.weight.grad.clone()
        opt.step()
        rotation = torch.kron(qs, qa)
        shifted = c + WEIGHT_DECAY * torch.eye(6).double()
        probe = rotation.T @ (ESS * shifted @ displacement.flatten())
        h_hat = probe * (rotation.T @ g.flatten())
        s = (rotation.T @ c @ rotation).diagonal()
        s = DECAY * s + (1 - DECAY) * h_hat + 0.5 * (1 - DECAY) ** 2 * (s - h_hat) ** 2 / (s + WEIGHT_DECAY)
        left = basis_decay * left + (1 - basis_decay) * g @ g.T
        right = basis_decay * right + (1 - basis_decay) * g.T @ g
        c = rotation @ s.diag() @ rotation.T
        if step == 0 or step % refresh == 0:
            qs, qa = torch.linalg.eigh(left)[1], torch.linalg.eigh(right)[1]
            rotation = torch.kron(qs, qa)
            c = rotation @ (rotation.T @ c @ rotation).diagonal().diag() @ rotation.T
        m = 0.9 * m + 0.1 * g
        direction = m / (1 - 0.9 ** (step + 1)) + WEIGHT_DECAY * mu
        solved = torch.linalg.solve(c + WEIGHT_DECAY * torch.eye(6).double(), direction.flatten())
        mu = mu - 0.1 * (H0 + WEIGHT_DECAY) * solved.reshape(2, 3)
        torch.testing.assert_close(model.weight.detach(), mu, rtol=1e-9, atol=1e-10)
