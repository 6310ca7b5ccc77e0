"""Randomness is a function of counters: nothing global is read or written, and no stream shifts another."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from vogn import KFAC, METHODS, VOGN
from vogn.capture.statistics import GGN, Hutchinson, MonteCarlo
from vogn.likelihoods import Categorical
from vogn.structures import Diagonal

ALL = sorted(METHODS)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


class Recording(Categorical):  # typed final, but a test may
    """Remembers the labels that were drawn."""

    def __init__(self):
        self.drawn = []

    def sample(self, outputs, generator=None):
        labels = super().sample(outputs, generator)
        self.drawn.append(labels)
        return labels


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", ALL)
def test_a_training_step_leaves_the_global_random_states_alone(tools, method, variational):
    model = tools.network()
    torch.manual_seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    opt = tools.build(method, model, variational=variational)
    tools.train(opt, model, 3)
    opt.posterior().sample(2)
    opt.state_dict()
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1]) and before[2] == random.getstate()


@pytest.mark.parametrize("method", ALL)
def test_a_run_does_not_depend_on_the_global_random_state(tools, method):
    runs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = tools.network()
        tools.train(tools.build(method, model), model, 3)
        runs.append(tools.weights(model))
    assert same(*runs)


@pytest.mark.parametrize("method", ALL)
def test_the_seed_decides_the_draws(tools, method):
    runs = []
    for seed in (0, 0, 1):
        model = tools.network()
        tools.train(tools.build(method, model, seed=seed), model, 3)
        runs.append(tools.weights(model))
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_switching_modes_does_not_shift_the_label_stream(tools):
    """The same uniform numbers behind the labels in both modes, before and after a switch."""
    drawn = []
    for modes in ((False,) * 4, (True, True, False, False), (False, False, True, True)):
        model, likelihood = tools.network(), Recording()
        opt = KFAC(model, lr=0.0, ess=1e20, weight_decay=0.1)
        for step, mode in enumerate(modes):
            opt.param_groups[0]["variational"] = mode
            tools.train(opt, model, 1, start=step, likelihood=likelihood)
        drawn.append(torch.stack(likelihood.drawn))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])
    assert len({tuple(labels.tolist()) for labels in drawn[0]}) > 1


def test_labels_differ_between_steps_samples_and_micro_batches(tools):
    model, likelihood = tools.fill(nn.Linear(3, 3).double()), Recording()
    with torch.no_grad():
        model.weight.zero_()  # the same uniform labels everywhere
        model.bias.zero_()
    opt = KFAC(model, lr=0.0, ess=10.0, weight_decay=0.1, mc_samples=2, variational=False)
    x, y = tools.batch(n=16)
    for _ in range(2):
        opt.zero_grad()
        for _ in range(2):
            with opt.sampled_params():
                for half in (slice(0, 8), slice(8, 16)):
                    (likelihood(model(x[half]), y[half]) / 2).backward()
        opt.step()
    assert len({tuple(labels.tolist()) for labels in likelihood.drawn}) == 8


def test_a_statistic_that_draws_labels_does_not_shift_the_weights(tools):
    """Weights and labels come from separate streams: the first displaced weights are those of a run without labels."""
    inside = []
    for fisher in ("empirical", "mc", "ggn"):
        model = tools.network()
        opt = VOGN(model, lr=0.0, ess=10.0, weight_decay=0.1, initial_curvature=1.0, fisher=fisher, seed=4)
        with opt.sampled_params():
            inside.append(tools.weights(model))
            Categorical()(model(tools.batch()[0]), tools.batch()[1]).backward()
    assert same(inside[0], inside[1]) and same(inside[0], inside[2])


def test_draws_differ_between_steps_samples_and_blocks(tools):
    model = tools.fill(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double())
    opt = VOGN(model, lr=0.0, ess=10.0, weight_decay=0.0, damping=0.0, initial_curvature=1.0, mc_samples=2)
    mean, noise = tools.weights(model), []
    for step in range(2):
        for _ in range(2):
            with opt.sampled_params():
                noise += [p.detach() - mean[n] for n, p in model.named_parameters() if n.endswith("weight")]
                out = model(tools.normal(8, 4, seed=step))
                Categorical()(out, torch.arange(8) % 4).backward()
        opt.step()
        opt.zero_grad()
    assert len({tuple(n.flatten().sign().tolist()) for n in noise}) == len(noise) == 8


@pytest.mark.parametrize("method", ALL)
def test_antithetic_samples_are_mirror_images(tools, method):
    model = tools.network()
    opt = tools.build(method, model, mc_samples=4, antithetic=True)
    tools.train(opt, model, 1, contexts=4)
    mean, inside = tools.weights(model), []
    for _ in range(4):
        with opt.sampled_params():
            inside.append({n: p.detach() - mean[n] for n, p in model.named_parameters()})
    for name in mean:
        for k in (0, 2):
            torch.testing.assert_close(inside[k][name], -inside[k + 1][name], rtol=0, atol=1e-14)
        assert not torch.allclose(inside[0][name].abs(), inside[2][name].abs())


@pytest.mark.parametrize("statistic", [GGN(samples=1), MonteCarlo(), Hutchinson()], ids=lambda s: s.NAME)
def test_random_statistics_repeat_with_their_coordinates(tools, statistic):
    """A fresh optimizer at the same (seed, step, sample) measures the same."""
    from vogn import NaturalGradient

    runs = []
    for seed in (0, 0, 5):
        model = tools.network()
        opt = NaturalGradient(
            model,
            Diagonal(negative="retract"),
            statistic,
            lr=0.0,
            weight_decay=0.1,
            variational=False,
            seed=seed,
            initial_curvature=1.0,
        )
        tools.train(opt, model, 2)
        runs.append(torch.cat([state["c"].flatten() for state in tools.curvature(opt).values()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
