"""Draws of diagonal blocks in single precision: one pass in C, the same draws as from noise and root."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import vogn
from vogn.kernels import native
from vogn.likelihoods import Categorical
from vogn.posterior.noise import NOISES

needs_compiler = pytest.mark.skipif(not native.available(), reason=native.why_not() or "switched off")


def posterior_of(dtype: torch.dtype = torch.float32) -> vogn.posterior.GaussianPosterior:
    """Blocks in columns, one of a single parameter, one of norms, which are not in columns, and a point mass."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(48, 5, bias=False), nn.LayerNorm(5)]
    model = nn.Sequential(*layers, nn.Linear(5, 4)).to(dtype)
    point = [{"params": list(model[4].parameters()), "sampled": False}]
    opt = vogn.VOGN(model, groups=point, lr=0.01, ess=50.0, weight_decay=0.5)
    for _ in range(2):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(torch.randn(6, 1, 6, 6, dtype=dtype)), torch.arange(6) % 4).backward()
        opt.step()
    return opt.posterior()


def by_root(posterior, n, seed, start):
    blocks = posterior.sampled_blocks
    means = posterior.mean()
    like = [means[block.layout.names[0]] for block in blocks]
    return posterior._from_noise(NOISES["independent"](blocks, like, n, seed, start), n)


@needs_compiler
@pytest.mark.parametrize(("n", "start"), [(1, 0), (3, 0), (2, 5)])
def test_draws_in_one_pass_are_those_of_noise_and_root(n, start, monkeypatch):
    posterior, taken, one_pass = posterior_of(), [], native.sample
    monkeypatch.setattr(native, "sample", lambda *args, **named: taken.append(1) or one_pass(*args, **named))
    found, expected = posterior.sample(n, seed=3, start=start), by_root(posterior, n, 3, start)
    assert len(taken) >= 3  # convolution and both linear layers
    assert list(found) == list(expected) == list(posterior.names)
    for name, draws in expected.items():
        assert_close(found[name], draws, rtol=2e-6, atol=1e-6)
    assert_close(posterior.mean()["4.weight"].expand(n, -1), found["4.weight"], rtol=0.0, atol=0.0)


@needs_compiler
def test_draws_do_not_depend_on_threads_and_leave_the_mean(monkeypatch):
    posterior = posterior_of()
    before, whole = posterior.mean(), posterior.sample(2, seed=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(native, "PART", 10)
    for name, draws in posterior.sample(2, seed=1).items():
        assert torch.equal(draws, whole[name]) and torch.equal(before[name], posterior.mean()[name])


@pytest.mark.parametrize("how", ["double precision", "other noise", "switched off"])
def test_other_draws_go_through_noise_and_root(how, monkeypatch):
    monkeypatch.setattr(native, "sample", lambda *args, **named: pytest.fail("taken"))
    if how == "switched off":
        monkeypatch.setenv("VOGN_KERNELS", "reference")
    posterior = posterior_of(torch.float64 if how == "double precision" else torch.float32)
    draws = posterior.sample(2, noise="antithetic" if how == "other noise" else "independent")
    assert draws["0.weight"].shape == (2, 3, 1, 3, 3)
