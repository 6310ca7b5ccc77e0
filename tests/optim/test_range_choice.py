"""The rule by which a range test chooses, on losses that are made up."""

import numpy as np
import pytest

from vogn.errors import RangeTestError
from vogn.optim.range_choice import STRIDE, better, choose, climb, smoothed


def curve(steps=100, low=0.2):
    """Flat, a fall between 1e-3 and 1e-2, flat, a rise from 1e-1 on."""
    rates = np.geomspace(1e-4, 1.0, steps)
    logs = np.log10(rates)
    losses = np.interp(logs, [-4, -3, -2, -1, 0], [2.0, 2.0, low, low, 3.0])
    return rates.tolist(), losses


def test_the_choice_is_a_third_of_the_way_up_the_basin():
    """The fall of 1.8 is done by 90 % from 10^-2.1 to 10^-0.94; smoothing widens both ends by less than a step."""
    rates, losses = curve()
    low, high = 10 ** (-2 - 0.1), 10 ** (-1 + 0.1 * 1.8 / 2.8)
    assert choose(rates, losses) == pytest.approx(low * (high / low) ** (1 / 3), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_it_by_less_than_a_factor_of_two(seed):
    rates, losses = curve()
    noisy = losses + 0.15 * np.random.default_rng(seed).normal(size=len(losses))
    assert 0.5 < choose(rates, noisy) / choose(rates, losses) < 2.0


def valley(best, calls=None, noise=0.01):
    """Ends of runs that are lowest at ``best``; the noise of all runs is the same."""

    def ends(rate):
        if calls is not None:
            calls.append(rate)
        shared = np.random.default_rng(0).normal(size=25)
        own = noise * np.random.default_rng(int(1e6 * rate)).normal(size=25)
        return list(np.log10(rate / best) ** 2 + shared + own)

    return ends


@pytest.mark.parametrize("best", [1e-4, 0.01, 0.1, 1.0])
def test_climbing_ends_next_to_the_best_rate(best):
    calls = []
    found, runs, _ = climb(0.03, valley(best, calls), 1e-4, 1.0)
    assert best / STRIDE**0.6 < found < best * STRIDE**0.6
    assert len(calls) == len(set(calls)) == len(runs)  # no run is made twice
    assert [rate for rate, _ in runs] == sorted(calls) and min(runs, key=lambda run: run[1])[0] == found


def test_climbing_stays_where_nothing_is_gained():
    assert climb(0.03, lambda rate: [1.0, 2.0], 1e-4, 1.0)[0] == 0.03


@pytest.mark.parametrize("errors, found", [(1.9, 0.03), (2.1, 0.09)])
def test_climbing_wants_more_than_two_standard_errors(errors, found):
    scatter = np.random.default_rng(0).normal(size=25)
    scatter = (scatter - scatter.mean()) / scatter.std()  # its mean has a standard error of a fifth

    def ends(rate):
        return [1.0] * 25 if rate < 0.05 else list(1.0 - errors / 5 + scatter)

    assert climb(0.03, ends, 0.03, 0.09)[0] == found


def test_climbing_down_wants_a_lower_mean_only():
    """A gain of a tenth of a standard error: enough for a smaller rate, not for a larger one; nor is an equal mean."""
    scatter = np.random.default_rng(0).normal(size=25)
    scatter = (scatter - scatter.mean()) / scatter.std()

    def ends(gains):
        return lambda rate: list(1.0 - gains.get(round(rate, 3), -9.0) + (rate != 0.03) * scatter)

    assert climb(0.03, ends({0.03: 0.0, 0.003: 0.02}), 1e-4, 1.0, 10.0)[0] == pytest.approx(0.003)
    assert climb(0.03, ends({0.03: 0.0, 0.3: 0.02}), 1e-4, 1.0, 10.0)[0] == 0.03
    assert climb(0.03, lambda rate: [1.0, 2.0] if rate == 0.03 else [2.0, 1.0], 1e-4, 1.0, 10.0)[0] == 0.03


def test_without_a_margin_the_lowest_mean_of_both_ways_wins():
    """Upwards there is a small gain, below a larger one behind it: the walk up does not end the search."""

    def search(means, **options):
        found, runs, final = climb(
            1.0, lambda rate: [means.get(round(rate, 3), 5.0)], 1e-3, 1e3, 10.0, **({"errors": 0.0} | options)
        )
        assert final == [means[round(found, 3)]]
        return found, [rate for rate, _ in runs]

    found, tried = search({1.0: 1.0, 10.0: 0.9, 0.1: 0.8, 0.01: 0.7})
    assert found == pytest.approx(0.01) and tried == pytest.approx([0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
    assert search({1.0: 1.0, 10.0: 0.9, 0.1: 0.95})[0] == 10.0
    assert search({1.0: 1.0})[0] == 1.0
    assert search({1.0: 1.0, 10.0: 0.9, 0.1: 0.8}, errors=2.0)[0] == 10.0  # of rates one way is enough


def test_a_bound_is_not_tried_twice():
    """1e-3 times a tenth, three times, is not exactly a thousandth of it."""
    assert 1e-3 * 0.1 * 0.1 * 0.1 != 1e-3 / 1000.0
    tried = [rate for rate, _ in climb(1e-3, lambda rate: [rate], 1e-3 / 1000.0, 1.0, 10.0, errors=0.0)[1]]
    assert tried == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize("good", [1e-2, 1e2])
def test_without_a_margin_both_ways_lead_out_of_a_failure(good):
    found, runs, _ = climb(1.0, lambda rate: [1.0] if rate == pytest.approx(good) else [], 1e-3, 1e3, 10.0, errors=0.0)
    assert found == pytest.approx(good) and dict(runs)[1.0] == np.inf
    with pytest.raises(RangeTestError, match="fail at every"):
        climb(1.0, lambda rate: [], 1e-3, 1e3, 10.0, errors=0.0)


def test_climbing_leaves_rates_at_which_runs_fail():
    found, runs, _ = climb(0.3, lambda rate: [] if rate > 0.05 else [1.0], 1e-4, 1.0)
    assert found == pytest.approx(0.03) and runs[-1][1] == np.inf
    with pytest.raises(RangeTestError, match="fail at every learning rate"):
        climb(0.3, lambda rate: [], 1e-4, 1.0)


def test_smoothing_keeps_straight_lines_and_the_length():
    line = np.linspace(3.0, 1.0, 50)
    np.testing.assert_allclose(smoothed(line), line)
    assert smoothed([2.0]) == [2.0]


@pytest.mark.parametrize("losses", [np.ones(50), np.tile([1.0, 1.2], 25), np.linspace(1.0, 3.0, 50)])
def test_a_loss_that_does_not_fall_is_an_error(losses):
    with pytest.raises(RangeTestError, match="does not fall at any learning rate"):
        choose(np.geomspace(1e-4, 1.0, 50).tolist(), losses.tolist())


@pytest.mark.parametrize("errors", [0.0, 2.0])
def test_failed_runs_are_worse_than_any_other(errors):
    losses = list(np.linspace(0.0, 1.0, 7))
    assert better(losses, [], errors)
    assert not better([], losses, errors) and not better([], [], errors)
