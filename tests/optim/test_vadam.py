"""VAdam against torch.optim.Adam and against Algorithm 1 of Khan et al. (2018)."""

import pytest
import torch
import torch.nn.functional as F

from vogn import VAdam
from vogn.likelihoods import Categorical


def test_without_noise_and_prior_it_is_adam(tools):
    ours, theirs = tools.network(), tools.network()
    opt = VAdam(ours, lr=1e-2, weight_decay=0.0, damping=1e-3, variational=False)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-3)
    for step in range(20):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            F.cross_entropy(ours(x), y).backward()
        opt.step()
        adam.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        adam.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_it_needs_no_context_and_no_model(tools):
    """The statistic is the gradient itself: a plain loop over bare parameters works too."""
    ours, theirs = tools.network(), tools.network()
    opt = VAdam(ours.parameters(), lr=1e-2, weight_decay=0.0, damping=1e-3, variational=False)
    adam = torch.optim.Adam(theirs.parameters(), lr=1e-2, eps=1e-3)
    for step in range(5):
        x, y = tools.batch(seed=step)
        for model, optimizer in ((ours, opt), (theirs, adam)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_with_prior_it_is_algorithm_1_and_samples_with_the_uncorrected_precision(tools, contexts, initial):
    """m <- b1 m + (1-b1)(g + delta/N mu); mu <- mu - a m_hat / (sqrt(s_hat) + delta/N); var = 1/(N s + delta).

    With s_0 > 0 the second bias correction is left out: it would inflate s_hat by 1/(1-b2^t).
    """
    n, delta, lr, b1, b2 = 50.0, 2.0, 1e-2, 0.8, 0.9
    model = tools.network()
    opt = VAdam(
        model,
        lr=lr,
        ess=n,
        weight_decay=delta / n,
        damping=0.0,
        momentum=b1,
        curvature_decay=b2,
        initial_curvature=initial,
        mc_samples=contexts,
        seed=1,
    )
    mu = tools.weights(model)
    m = {name: torch.zeros_like(p) for name, p in mu.items()}
    s = {name: torch.full_like(p, initial) for name, p in mu.items()}
    spread = {}
    for t in range(1, 21):
        x, y = tools.batch(seed=t)
        opt.zero_grad()
        total = {name: torch.zeros_like(p) for name, p in mu.items()}
        for _ in range(contexts):
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
                other = tools.twin(model)
                for name, g in zip(
                    mu, torch.autograd.grad(F.cross_entropy(other(x), y), other.parameters()), strict=True
                ):
                    total[name] += g / contexts
                for name, theta in model.named_parameters():
                    spread.setdefault(name, []).append(
                        ((theta.detach() - mu[name]) * (n * s[name] + delta).sqrt()).flatten()
                    )
        opt.step()
        for name in mu:
            m[name] = b1 * m[name] + (1 - b1) * (total[name] + delta / n * mu[name])
            s[name] = b2 * s[name] + (1 - b2) * total[name] ** 2
            s_hat = s[name] / (1 - b2**t) if initial == 0 else s[name]
            mu[name] = mu[name] - lr * m[name] / (1 - b1**t) / (s_hat.sqrt() + delta / n)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.detach(), mu[name], rtol=1e-10, atol=1e-12)
    posterior = opt.posterior()
    for name, variance in posterior.variance().items():
        torch.testing.assert_close(variance, 1 / (n * s[name] + delta), rtol=1e-11, atol=0)
    skipped = contexts if initial == 0 else 0  # the first step has no evidence and is deterministic
    whitened = torch.cat([torch.cat(parts[skipped:]) for parts in spread.values()])
    # z-test: the mean of squares of n standard normals has standard error sqrt(2 / n)
    assert abs(float(whitened.square().mean()) - 1) < 4 * (2 / len(whitened)) ** 0.5
    assert all(bool((parts[0] == 0).all()) == (initial == 0) for parts in spread.values())


def test_the_sampled_standard_deviation_is_exact(tools):
    """Draws are linear in the noise: two optimizers with the same seed and precisions N s + delta of ratio 4."""
    draws = []
    for s in (0.5 - 0.02, 2.0 - 0.02):
        model = tools.network()
        opt = VAdam(model, ess=50.0, weight_decay=0.02, initial_curvature=s, seed=9)
        before = tools.weights(model)
        with opt.sampled_params():
            draws.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for name in draws[0]:
        torch.testing.assert_close(draws[0][name], 2 * draws[1][name], rtol=1e-12, atol=1e-15)
