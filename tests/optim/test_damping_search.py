"""Held-out examples in range tests, and the search over dampings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from tiny_models import fill, normal
from vogn.errors import RangeTestError
from vogn.likelihoods import Categorical
from vogn.optim.copied_runs import copies, losses_on, run_ends
from vogn.optim.range_choice import STRIDE, better_in_all
from vogn.optim.range_test import CAUTION, RangeTest


def data(n, seed, signal=1.0):
    x = normal(n, 4, seed=seed, dtype=torch.float32)
    return x, (signal * x[:, :3] + 0.1 * normal(n, 3, seed=seed + 1, dtype=torch.float32)).argmax(1)


def loader(n=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(TensorDataset(*data(n, seed)), batch_size=20, shuffle=True, generator=generator)


def network():
    torch.manual_seed(0)  # of dropout
    return fill(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3))).float()


def optimizer(model, **options):
    return vogn.VOGN(model, **({"ess": 1000.0, "weight_decay": 1e-3, "damping": 1e-2} | options))


def test_the_losses_of_held_out_examples_are_those_of_the_mean_in_evaluation_mode():
    model, (x, y) = network(), data(30, 5)
    found = losses_on(copy.deepcopy(model).train(), Categorical(), [(x[:20], y[:20]), (x[20:], y[20:])], x.device)
    model.eval()
    expected = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)

    def mean_loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets)

    by_batch = losses_on(copy.deepcopy(model), mean_loss, [(x[:20], y[:20]), (x[20:], y[20:])], x.device)
    np.testing.assert_allclose(by_batch, [expected[:20].mean().item(), expected[20:].mean().item()], rtol=1e-5)


def test_short_runs_are_compared_on_held_out_examples():
    """Labels of the held-out examples are wrong: what fits the training data best is not chosen."""
    model = network()
    opt = optimizer(model)
    x, y = data(60, 5)
    plain = vogn.learning_rate_range_test(opt, model, Categorical(), loader(), steps=40)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), loader(), steps=40, held_out=[(x, (y + 1) % 3)])
    assert found.rates == plain.rates and found.losses == plain.losses  # the sweep is the same
    assert found.suggestion != plain.suggestion
    assert len(found.final) == 60 and len(plain.final) == 10
    ends = dict(found.runs)
    assert sum(found.final) / 60 == pytest.approx(min(ends.values()), rel=0.05)
    assert min(ends.values()) < max(ends.values())
    assert "final" not in found.to_dict()


@pytest.mark.parametrize("wrong, above", [(0, True), (1, False)])
def test_half_a_step_back_from_a_rate_that_won_short_runs_above_the_choice_of_the_sweep(wrong, above):
    opt = optimizer(model := network(), damping=1.0)
    x, y = data(60, 7)
    options = {"steps": 40, "held_out": [(x, (y + wrong) % 3)]}
    sweep = vogn.learning_rate_range_test(opt, model, Categorical(), loader(), **options, runs=False).suggestion
    found = vogn.learning_rate_range_test(opt, model, Categorical(), loader(), **options)
    (best,) = [rate for rate, loss in found.runs if loss == pytest.approx(sum(found.final) / 60)]
    assert (best > sweep) == above
    assert found.suggestion == pytest.approx(best / CAUTION if above else best)


@pytest.mark.parametrize("wrong", [[], iter(())])
def test_held_out_without_examples_is_refused(wrong):
    model = network()
    with pytest.raises(ValueError, match="held_out has no examples"):
        vogn.learning_rate_range_test(optimizer(model), model, Categorical(), loader(), steps=20, held_out=wrong)


def test_a_search_is_range_tests_at_every_damping():
    """Each test is the one that stands alone; the chosen one ends lowest; nothing of the user's has changed."""
    model = network()
    opt = optimizer(model)
    state, before = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    held_out = [data(60, 7)]
    found = vogn.damping_search(opt, model, Categorical(), loader(), steps=30, held_out=held_out, longer=0)
    assert not found.finals
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert opt.state_dict()["param_groups"] == before["param_groups"] and opt.param_groups[0]["damping"] == 1e-2
    dampings = [damping for damping, _ in found.tests]
    assert 1e-2 in dampings and 0.1 in dampings and len(dampings) >= 2 and dampings == sorted(dampings)
    ends = {}
    for damping, test in found.tests:
        twin, twin_model, likelihood = copies(opt, model, Categorical())
        twin.param_groups[0]["damping"] = damping
        alone = vogn.learning_rate_range_test(twin, twin_model, likelihood, loader(), steps=30, held_out=held_out)
        assert test == alone
        ends[damping] = np.mean(test.final)
    assert found.suggestion == dict(found.tests)[found.damping].suggestion
    assert ends[found.damping] <= ends[1e-2]
    assert found.to_dict()["damping"] == found.damping


def test_longer_runs_decide_between_the_winner_and_the_damping_to_begin_with():
    """Each at its rate, half a step above, a step below; losses are of runs of that length; nothing has changed."""
    model = network()
    opt = optimizer(model, damping=1.0)
    state = copy.deepcopy(model.state_dict())
    options = {"held_out": [data(60, 7)]}
    short = vogn.damping_search(opt, model, Categorical(), loader(), steps=30, longer=0, **options)
    assert short.damping < 1.0
    found = vogn.damping_search(opt, model, Categorical(), loader(), steps=30, longer=2.5, **options)
    assert found.tests == short.tests
    rates = {damping: dict(found.tests)[damping].suggestion for damping in (short.damping, 1.0)}
    assert [(damping, rate) for damping, rate, _ in found.finals] == [
        (damping, pytest.approx(near))
        for damping, rate in rates.items()
        for near in dict.fromkeys((rate, min(rate * CAUTION, 1.0), rate / STRIDE))
    ]
    ends = {}
    for damping, rate, loss in found.finals:
        twin, twin_model, likelihood = copies(opt, model, Categorical())
        twin.param_groups[0]["damping"] = damping
        ends[damping, rate] = run_ends(twin, twin_model, likelihood, loader(), rate, 75, **options)
        assert loss == np.mean(ends[damping, rate])

    def kept(settings):
        """The first, or the lowest of those that are lower by a standard error."""
        lower = [
            setting
            for setting in settings[1:]
            if (gain := np.subtract(ends[settings[0]], ends[setting])).mean() > gain.std() / np.sqrt(len(gain))
        ]
        return min([settings[0], *lower], key=lambda setting: np.mean(ends[setting]))

    by_damping = [kept([setting for setting in ends if setting[0] == damping]) for damping in (1.0, short.damping)]
    assert (found.damping, found.suggestion) == kept(by_damping)
    assert [list(final) for final in found.finals] == found.to_dict()["finals"]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "good, expected",
    [(same, same) for same in ((0.1, 0.2), (0.1, 0.2 * CAUTION), (0.1, 0.2 / STRIDE), (1.0, 0.2))]
    + [(None, (0.1, 0.2))],
)
def test_the_lowest_of_the_longer_runs_wins(monkeypatch, good, expected):
    """Short runs choose a damping of 0.1; the longer ones, at one setting good, may say otherwise, unless all fail."""

    def test(twin, *_, **options):
        loss = abs(np.log10(twin.param_groups[0]["damping"]) + 1.0)
        return RangeTest((1e-4, 1.0), (1.0, 0.5), (1.0, 0.5), 0.2, False, final=(loss, loss))

    def ends(twin, model, likelihood, batches, rate, steps, **options):
        assert steps == 300 and options == {"held_out": held_out}
        if good is None:
            return []
        return [0.1 if (twin.param_groups[0]["damping"], rate) == pytest.approx(good) else 0.2]

    monkeypatch.setattr("vogn.optim.damping_search.learning_rate_range_test", test)
    monkeypatch.setattr("vogn.optim.damping_search.run_ends", ends)
    held_out = [data(10, 7)]
    model = network()
    found = vogn.damping_search(optimizer(model, damping=1.0), model, Categorical(), loader(), held_out=held_out)
    assert (found.damping, found.suggestion) == pytest.approx(expected)
    assert len(found.finals) == 6
    assert (found.to_dict()["finals"][0][2] is None) == (good is None)


@pytest.mark.parametrize("gain, kept", [(0.004, True), (0.02, False)])
@pytest.mark.parametrize("other", ["rate", "damping"])
def test_another_rate_or_damping_must_win_by_a_standard_error(monkeypatch, other, gain, kept):
    """Of 0.01 here."""
    good = (1.0, 0.2 * CAUTION) if other == "rate" else (0.1, 0.2)
    scatter = np.resize([0.1, -0.1], 100)

    def test(twin, *_, **options):
        loss = abs(np.log10(twin.param_groups[0]["damping"]) + 1.0)
        return RangeTest((1e-4, 1.0), (1.0, 0.5), (1.0, 0.5), 0.2, False, final=(loss, loss))

    def ends(twin, model, likelihood, batches, rate, steps, **options):
        damping = twin.param_groups[0]["damping"]
        if rate == pytest.approx(good[1]) and damping == pytest.approx(good[0]):
            return list(0.5 - gain + scatter)
        return [0.5] * 100

    monkeypatch.setattr("vogn.optim.damping_search.learning_rate_range_test", test)
    monkeypatch.setattr("vogn.optim.damping_search.run_ends", ends)
    model = network()
    found = vogn.damping_search(optimizer(model, damping=1.0), model, Categorical(), loader())
    assert (found.damping, found.suggestion) == pytest.approx((1.0, 0.2) if kept else good)


def test_finalists_run_on_further_folds_too(monkeypatch):
    """A rate that wins on one fold and loses as much on the other is not kept; one that wins on both is."""
    batches, held_out, other = [loader(), loader(seed=1)], [data(10, 7)], [data(10, 9)]

    def test(twin, *_, **options):
        assert options == {"held_out": held_out}
        return RangeTest((1e-4, 1.0), (1.0, 0.5), (1.0, 0.5), 0.2, False, final=(0.5, 0.5))

    def ends(twin, model, likelihood, where, rate, steps, **options):
        fold = batches.index(where)
        assert options["held_out"] is (held_out, other)[fold]
        gain = {True: (0.2, -0.2), False: (0.1, 0.12)}[rate > 0.2] if rate != 0.2 else (0.0, 0.0)
        return [0.5 - gain[fold]] * (20 + 20 * fold)

    monkeypatch.setattr("vogn.optim.damping_search.learning_rate_range_test", test)
    monkeypatch.setattr("vogn.optim.damping_search.run_ends", ends)
    opt = optimizer(model := network())
    arguments = opt, model, Categorical(), batches[0]
    found = vogn.damping_search(*arguments, held_out=held_out, further=[(batches[1], other)])
    assert found.suggestion == pytest.approx(0.2 / STRIDE)
    losses = [loss for _, _, loss in found.finals]
    assert losses == pytest.approx([0.5, (20 * 0.3 + 40 * 0.7) / 60, (20 * 0.4 + 40 * 0.38) / 60])
    assert vogn.damping_search(*arguments, held_out=held_out).suggestion == pytest.approx(0.2 * CAUTION)


def test_the_error_of_repeated_runs_is_at_least_that_of_the_repetitions():
    """Within a run all examples gain as much, so that they have no error of their own."""
    ends = [[0.0] * 50, [0.0] * 50]
    others = [[0.3] * 50, [0.1] * 50]  # gains of 0.2 with an error of 0.1
    assert better_in_all(ends, others, 1.9) and not better_in_all(ends, others, 2.1)
    assert better_in_all(ends, [[0.3] * 50, []], 9.0) and not better_in_all([[0.0] * 50, []], others, 0.0)
    assert not better_in_all([[0.0], []], [[0.0], []], 0.0)
    rng = np.random.default_rng(0)
    scattered = [rng.normal(0.1, 1.0, 100) for _ in range(2)]
    scattered[1] += scattered[0].mean() - scattered[1].mean()  # the repetitions agree
    ratio = scattered[0].mean() / (np.concatenate(scattered).std() / np.sqrt(200))
    zeros = [[0.0] * 100] * 2
    assert better_in_all(zeros, [list(gain) for gain in scattered], 0.999 * ratio)
    assert not better_in_all(zeros, [list(gain) for gain in scattered], 1.001 * ratio)


def test_a_search_leaves_a_bad_damping():
    """A thousand times the curvature makes steps so short that any smaller damping is better."""
    model = network()
    opt = optimizer(model, damping=30.0)
    found = vogn.damping_search(opt, model, Categorical(), loader(), steps=40)
    assert found.damping < 30.0


def test_what_cannot_be_searched_is_refused():
    model = network()
    bad = [
        (optimizer(model, damping=0.0), {}, "damping=0.0 must be positive"),
        (optimizer(model), {"runs": False}, "runs= cannot be chosen"),
        (optimizer(model), {"longer": 0.5}, "longer=0.5 must be 0 or at least 1"),
        (
            optimizer(model, groups=[{"params": [model[3].bias], "damping": 0.5}]),
            {},
            "the groups have different dampings",
        ),
    ]
    for opt, options, message in bad:
        with pytest.raises(ValueError, match=message):
            vogn.damping_search(opt, model, Categorical(), loader(), steps=20, **options)
    with pytest.raises(RangeTestError, match="the loss does not fall"):
        vogn.damping_search(optimizer(model), model, lambda o, y: Categorical()(o, y) * 0.0 + 1.0, loader(), steps=20)


def test_a_learned_noise_is_that_of_the_residuals_wherever_losses_are_compared():
    """The copy's noise follows in training, and is the held-out examples' own in the comparison; the user's stays."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    x = normal(80, 2, seed=1, dtype=torch.float32)
    y = x.sum(1, keepdim=True) + 0.05 * normal(80, 1, seed=2, dtype=torch.float32)
    likelihood = vogn.likelihoods.Gaussian("learn", initial=2.0)
    residual = float((model(x) - y).square().mean().sqrt())
    found = losses_on(copy.deepcopy(model), copy.deepcopy(likelihood), [(x[:50], y[:50]), (x[50:], y[50:])], x.device)
    assert np.mean(found) == pytest.approx(np.log(residual) + 0.5 + 0.5 * np.log(2 * np.pi), rel=1e-5)
    opt = vogn.VOGN(model, ess=80.0, weight_decay=1e-3)
    halves = [(x[:40], y[:40])], [(x[40:], y[40:])]
    test = vogn.learning_rate_range_test(opt, model, likelihood, halves[0], steps=60, held_out=halves[1])
    assert float(likelihood.log_noise.exp()) == pytest.approx(2.0)
    assert min(test.losses) < np.log(2.0) + 0.5 * np.log(2 * np.pi)  # below what the first noise allows at best


def test_further_folds_are_pairs():
    model = network()
    opt = optimizer(model)
    with pytest.raises(ValueError, match=r"further\[1\] is no pair of a loader and held-out batches"):
        vogn.damping_search(opt, model, Categorical(), None, further=[(None, None), loader()])
