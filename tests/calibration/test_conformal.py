"""Conformal sets and intervals: thresholds by sorting, and coverage for few examples, by simulation."""

import json
import math
import warnings

import pytest
import torch
from scipy.stats import beta, binom

from vogn.calibration import (
    ConformalGaussian,
    ConformalQuantiles,
    ConformalSets,
    conformal_quantile,
    from_dict,
    set_coverage,
    set_size,
)
from vogn.errors import RecalibrationError, RecalibrationWarning

TRIALS = 1000


def within(rate, level, count, trials=TRIALS):
    """Whether the share of targets held, one new target per trial, may be that of a valid and exact method."""
    exact = math.ceil((count + 1) * level - 1e-9) / (count + 1)
    return abs(rate - exact) < 4 * math.sqrt(exact * (1 - exact) / trials)


@pytest.mark.parametrize(("count", "level"), [(9, 0.9), (10, 0.9), (99, 0.9), (20, 0.5), (19, 0.95), (4, 0.8)])
def test_the_quantile_by_sorting(count, level):
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    rank = next(k for k in range(1, count + 1) if k >= (count + 1) * level - 1e-9)
    assert float(conformal_quantile(scores, level)) == sorted(scores.tolist())[rank - 1]


def test_too_few_examples_are_warned_of():
    with pytest.warns(RecalibrationWarning, match="8 examples are too few for level=0.9.*at least 9"):
        assert float(conformal_quantile(torch.zeros(8), 0.9)) == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert float(conformal_quantile(torch.zeros(9), 0.9)) == 0.0


def draw(count, source):
    """Probabilities of a wrong model, with labels of another distribution."""
    z = torch.randn(count, 5, generator=source, dtype=torch.float64)
    labels = torch.multinomial((0.5 * z).softmax(-1), 1, generator=source).squeeze(-1)
    return (3 * z).softmax(-1), labels


@pytest.mark.parametrize(("score", "count"), [("lac", 19), ("lac", 30), ("aps", 19), ("aps", 30)])
def test_sets_hold_as_often_as_they_promise_for_few_examples(score, count):
    source = torch.Generator().manual_seed(count)
    held = 0
    for trial in range(TRIALS):
        p, y = draw(count + 1, source)
        sets = ConformalSets(0.8, score=score, allow_empty=True, seed=trial).fit(p[:-1], y[:-1])
        held += bool(sets(p[-1:])[0, y[-1]])
    assert within(held / TRIALS, 0.8, count)


def test_conservative_sets_hold_more():
    source = torch.Generator().manual_seed(0)
    p, y = draw(4000, source)
    exact = ConformalSets(0.8, allow_empty=True).fit(p[:2000], y[:2000])
    wide = ConformalSets(0.8, randomised=False, allow_empty=True).fit(p[:2000], y[:2000])
    new, labels = p[2000:], y[2000:]
    # coverage given the 2000 held-out examples is Beta distributed; the new ones add binomial noise
    low, high = beta(1601, 400).ppf([1e-4, 1 - 1e-4])
    rate = float(set_coverage(exact(new), labels))
    assert binom(2000, low).ppf(1e-3) / 2000 <= rate <= binom(2000, high).ppf(1 - 1e-3) / 2000
    assert float(set_coverage(wide(new), labels)) > 0.8 - 0.03
    assert float(set_size(wide(new))) > float(set_size(exact(new)))


@pytest.mark.parametrize("score", ["lac", "aps"])
def test_sets_are_empty_only_where_that_is_allowed(score, drawn):
    z, y = drawn(2000, 5, seed=0, scale=6.0)  # most labels are sure, so that 0.8 of them leaves some inputs without
    p = z.softmax(-1)
    empty = ConformalSets(0.8, score=score, allow_empty=True).fit(p, y)(p)
    filled = ConformalSets(0.8, score=score).fit(p, y)(p)
    assert bool((empty.sum(-1) == 0).any())
    predicted = torch.nn.functional.one_hot(p.argmax(-1), 5).bool()
    assert torch.equal(filled, empty | predicted)


def test_threshold_sets_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.4, 0.35, 0.25], [0.9, 0.1, 0.0]])
    sets = ConformalSets(0.7, score="lac").fit(p, torch.tensor([0, 1, 0, 0]))
    # scores 0.3, 0.6, 0.6, 0.1; rank ceil(5 x 0.7) = 4 of 4
    assert sets.threshold == pytest.approx(0.6)
    assert sets(torch.tensor([[0.45, 0.45, 0.1], [0.34, 0.33, 0.33]])).tolist() == [
        [True, True, False],
        [True, False, False],
    ]


def test_adaptive_sets_by_hand():
    p = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1]], dtype=torch.float64)
    sets = ConformalSets(0.75, score="aps", randomised=False).fit(p, torch.tensor([1, 0, 0]))
    assert sets.threshold == pytest.approx(0.9)  # scores 0.9, 0.5, 0.8; rank ceil(4 x 0.75) = 3
    new = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.05, 0.45], [0.95, 0.03, 0.02]], dtype=torch.float64)
    assert sets(new).tolist() == [[False, True, True], [True, False, False], [True, False, False]]


def test_randomised_sets_are_between_those_without_and_with_the_last_class():
    p, _ = draw(500, torch.Generator().manual_seed(0))
    sets = ConformalSets(0.8, allow_empty=True, seed=4).fit(*draw(500, torch.Generator().manual_seed(1)))
    ordered, order = p.sort(dim=-1, descending=True)
    found = sets(p).gather(-1, order)
    before = ordered.cumsum(-1) - ordered
    assert bool((found >= (ordered.cumsum(-1) <= sets.threshold)).all())
    assert bool((found <= (before <= sets.threshold)).all())
    assert bool((found.long().diff(dim=-1) <= 0).all())  # no gaps
    assert torch.equal(sets(p), sets(p)) and torch.equal(sets(p[:100]), sets(p)[:100])
    other = ConformalSets(0.8, allow_empty=True, seed=5).fit(*draw(500, torch.Generator().manual_seed(1)))
    assert not torch.equal(other(p), sets(p))


def test_with_too_few_examples_sets_hold_everything():
    p, y = draw(3, torch.Generator().manual_seed(0))
    with pytest.warns(RecalibrationWarning, match="at least 9"):
        sets = ConformalSets(0.9).fit(p, y)
    assert bool(sets(p).all())
    copy = from_dict(json.loads(json.dumps(sets.to_dict(), allow_nan=False)))
    assert copy.threshold == math.inf and bool(copy(p).all())


def heteroscedastic(count, source):
    """Targets whose spread depends on ``x``, and a model that has it wrong by a factor; ``(count, 2)`` outputs."""
    x = torch.rand(count, 2, generator=source, dtype=torch.float64) + 0.2
    y = x * torch.randn(count, 2, generator=source, dtype=torch.float64) * torch.tensor([1.0, 5.0])
    return torch.zeros_like(x), (0.3 * x).square(), y


@pytest.mark.parametrize("count", [19, 24])
def test_intervals_hold_as_often_as_they_promise_for_few_examples(count):
    source = torch.Generator().manual_seed(count)
    held = torch.zeros(2, 2)
    for _ in range(TRIALS):
        mean, variance, y = heteroscedastic(count + 1, source)
        low, high = mean - variance.sqrt(), mean + variance.sqrt()
        gaussian = ConformalGaussian(0.8).fit(mean[:-1], variance[:-1], y[:-1])(mean[-1:], variance[-1:])
        quantiles = ConformalQuantiles(0.8).fit(low[:-1], high[:-1], y[:-1])(low[-1:], high[-1:])
        for row, (a, b) in enumerate((gaussian, quantiles)):
            held[row] += ((a[0] <= y[-1]) & (y[-1] <= b[0])).float()
    assert all(within(float(rate), 0.8, count) for rate in held.flatten() / TRIALS)  # each output by itself


def test_intervals_that_are_too_wide_shrink():
    source = torch.Generator().manual_seed(2)
    y = torch.randn(2000, generator=source)
    zero = torch.zeros(2000)
    gaussian = ConformalGaussian(0.9).fit(zero, zero + 100, y)
    assert float(gaussian.threshold) == pytest.approx(0.16449, rel=0.06)
    quantiles = ConformalQuantiles(0.9).fit(zero - 10, zero + 10, y)
    assert float(quantiles.threshold) == pytest.approx(1.6449 - 10, abs=0.1)
    low, high = quantiles(torch.tensor([-10.0, -1.0]), torch.tensor([10.0, 2.0]))
    assert float(low[0]) == pytest.approx(-1.6449, abs=0.1)
    assert float(low[1]) == float(high[1]) == 0.5  # ends that would cross meet
    assert low.dtype == torch.float32


def test_thresholds_by_sorting():
    source = torch.Generator().manual_seed(3)
    mean, variance, y = heteroscedastic(30, source)
    found = ConformalGaussian(0.9).fit(mean, variance, y)
    for k in range(2):
        scores = sorted(abs(float(y[n, k])) / math.sqrt(float(variance[n, k])) for n in range(30))
        assert float(found.threshold[k]) == pytest.approx(scores[27])  # ceil(31 x 0.9) = 28
    for made in (found, ConformalQuantiles(0.9).fit(mean - 1, mean + 1, y)):
        copy = from_dict(json.loads(json.dumps(made.to_dict())))
        arguments = (mean, variance) if made is found else (mean - 1, mean + 1)
        assert all(torch.equal(a, b) for a, b in zip(copy(*arguments), made(*arguments), strict=True))


def test_variance_scaling_recovers_the_scale():
    from vogn import metrics
    from vogn.calibration import VarianceScaling

    source = torch.Generator().manual_seed(5)
    y = torch.randn(5000, 2, generator=source, dtype=torch.float64)
    zero = torch.zeros_like(y)
    for scale in (3.0, 0.3):
        variance = zero + 1 / scale**2
        found = VarianceScaling().fit(zero, variance, y)
        assert found.factor**0.5 == pytest.approx(scale, rel=0.03)  # standard error 0.5 %
        assert float((y.square() / found(variance)).mean()) == pytest.approx(1.0)
        best = float(metrics.gaussian_nll(zero, found(variance), y))
        for other in (0.99, 1.01):
            assert best < float(metrics.gaussian_nll(zero, other * found(variance), y))
        assert torch.equal(from_dict(found.to_dict())(variance), found(variance))
    with pytest.raises(RecalibrationError, match="best variance is 0"):
        VarianceScaling().fit(y, zero + 1, y)
    with pytest.raises(ValueError, match="smallest variance is 0"):
        VarianceScaling().fit(y, zero, y)


def test_illegal_input_raises():
    p, y = draw(50, torch.Generator().manual_seed(0))
    sets, x = ConformalSets(0.8).fit(p, y), torch.ones(20)
    intervals = ConformalGaussian(0.8).fit(x, x, x)
    for call, message in [
        (lambda: ConformalSets(1.0), "level=1.0"),
        (lambda: ConformalSets(score="raps"), "score='raps'"),
        (lambda: sets.fit(p.log(), y), "not logits"),
        (lambda: sets.fit(p[:, 0], (y == 0).long()), "a probability for every class"),
        (lambda: sets(p[:, :3]), r"\(N, ..., 5\) was fitted"),
        (lambda: sets(0.5 * p), "miss a sum of 1"),
        (lambda: set_coverage(p, y), "booleans"),
        (lambda: set_size(p), "booleans"),
        (lambda: set_coverage(sets(p), y[:3]), "labels"),
        (lambda: set_coverage(sets(p), y + 5), "5 classes"),
        (lambda: ConformalGaussian(0.0), "level=0.0"),
        (lambda: ConformalGaussian().fit(x, 0 * x, x), "smallest variance is 0"),
        (lambda: ConformalQuantiles().fit(x, x, x / 0), "NaN or infinite"),
        (lambda: intervals(torch.ones(3, 2), torch.ones(3, 2)), r"an example has shape \(2,\); \(\) was fitted"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    for made, arguments in ((ConformalSets(), (p,)), (ConformalGaussian(), (x, x)), (ConformalQuantiles(), (x, x))):
        with pytest.raises(RecalibrationError, match=f"{type(made).__name__} has not been fitted"):
            made(*arguments)
