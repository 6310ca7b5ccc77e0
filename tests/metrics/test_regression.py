"""CRPS, intervals and quantiles against numerical integration, loops and other packages."""

import math

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torchmetrics.regression import ContinuousRankedProbabilityScore

from vogn import metrics


def integral(cdf, y, low=-30.0, high=30.0):
    """``integral (F(x) - [x >= y])^2 dx``, the definition of the score."""
    left = quad(lambda x: cdf(x) ** 2, low, y, epsabs=1e-11, limit=200)[0]
    return left + quad(lambda x: (1 - cdf(x)) ** 2, y, high, epsabs=1e-11, limit=200)[0]


def test_gaussian_crps_equals_the_integral(regression):
    mean, variance, y = (tensor[:10] for tensor in regression)
    expected = [
        integral(norm(m, s).cdf, t)
        for m, s, t in zip(*(each.flatten().tolist() for each in (mean, variance.sqrt(), y)), strict=True)
    ]
    assert float(metrics.gaussian_crps(mean, variance, y)) == pytest.approx(sum(expected) / 20, rel=1e-8)


def test_gaussian_crps_by_hand():
    one = torch.ones(1, dtype=torch.float64)
    assert float(metrics.gaussian_crps(0 * one, one, 0 * one)) == pytest.approx(0.2336950, abs=1e-7)
    assert float(metrics.gaussian_crps(0 * one, one, one)) == pytest.approx(0.6024414, abs=1e-7)
    assert float(metrics.gaussian_crps(0 * one, 1e-20 * one, 3 * one)) == pytest.approx(3.0)  # a point: its distance


def test_mixture_crps_equals_the_integral(mixture):
    components, noise, y = mixture
    scale = math.sqrt(float(noise))
    expected = []
    for n in range(4):
        centres = components[:, n, 0].tolist()
        expected.append(integral(lambda x, c=centres: sum(norm.cdf(x, m, scale) for m in c) / 5, float(y[n, 0])))
    found = metrics.gaussian_mixture_crps(components[:, :4, 0], noise, y[:4, 0])
    assert float(found) == pytest.approx(sum(expected) / 4, rel=1e-8)


def test_a_mixture_of_equal_components_is_one_gaussian(regression):
    mean, variance, y = regression
    found = metrics.gaussian_mixture_crps(mean.expand(3, -1, -1), variance, y)
    torch.testing.assert_close(found, metrics.gaussian_crps(mean, variance, y))
    pit = metrics.gaussian_mixture_pit(mean.expand(3, -1, -1), variance, y)
    torch.testing.assert_close(pit, metrics.gaussian_pit(mean, variance, y))


@pytest.mark.parametrize("fair", [False, True])
def test_sample_crps_by_loops(fair):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=source, dtype=torch.float64)
    y = torch.randn(8, generator=source, dtype=torch.float64)
    total = 0.0
    for n in range(8):
        draws = x[:, n].tolist()
        distance = sum(abs(a - float(y[n])) for a in draws) / 6
        pairs = sum(abs(a - b) for a in draws for b in draws)
        total += distance - 0.5 * pairs / (30 if fair else 36)
    assert float(metrics.sample_crps(x, y, fair=fair)) == pytest.approx(total / 8, rel=1e-12)


def test_sample_crps_equals_torchmetrics(mixture):
    components, _, y = mixture
    other = ContinuousRankedProbabilityScore()
    other.update(components[..., 0].T, y[:, 0])
    assert float(metrics.sample_crps(components[..., 0], y[:, 0])) == pytest.approx(float(other.compute()), rel=1e-6)


def test_fair_samples_give_the_score_of_their_distribution():
    source = torch.Generator().manual_seed(4)
    y = torch.zeros(40_000)
    x = torch.randn(4, 40_000, generator=source)
    exact = float(metrics.gaussian_crps(y, y + 1, y))
    assert float(metrics.sample_crps(x, y, fair=True)) == pytest.approx(exact, abs=0.01)  # standard error about 0.002
    assert float(metrics.sample_crps(x, y)) > exact + 0.1


def test_intervals_by_hand():
    low, high, y = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]), torch.tensor([1.5, 2.0])
    assert float(metrics.interval_coverage(low, high, y)) == 0.5
    assert float(metrics.interval_width(low, high)) == 3.0
    assert float(metrics.interval_score(low[:1], high[:1], y[:1], 0.9)) == pytest.approx(12.0)  # 2 + 20 x 0.5
    assert float(metrics.sharpness(torch.tensor([1.0, 7.0]))) == 2.0


def test_what_a_wrong_scale_does_to_coverage_and_quantiles():
    count = 20_000
    y = torch.from_numpy(norm.ppf((torch.arange(count).double() + 0.5) / count))  # a perfect sample of N(0, 1)
    zero = torch.zeros(count, dtype=torch.float64)
    half = norm.ppf(0.95)
    narrow = metrics.interval_coverage(zero - 0.5 * half, zero + 0.5 * half, y)
    assert float(narrow) == pytest.approx(0.589166, abs=2e-4)
    wide = metrics.quantile_calibration(metrics.gaussian_pit(zero, zero + 4, y), levels=9)
    assert float(wide.observed[-1]) == pytest.approx(0.994813, abs=2e-4)
    assert float(metrics.quantile_calibration_error(metrics.gaussian_pit(zero, zero + 1, y))) < 1e-4


def test_quantile_calibration_by_a_loop(regression):
    pit = metrics.gaussian_pit(*regression)
    found = metrics.quantile_calibration(pit, levels=19)
    assert found.count == 300
    for k in range(19):
        level = (k + 1) / 20
        share = sum(float(u) <= level for u in pit.flatten()) / 300
        assert float(found.levels[k]) == pytest.approx(level) and float(found.observed[k]) == pytest.approx(share)
    error = float((found.observed - found.levels).abs().mean())
    assert error > 0.05 and float(metrics.quantile_calibration_error(pit, 19)) == pytest.approx(error)


def test_pit_equals_scipy(regression, mixture):
    mean, variance, y = regression
    expected = torch.from_numpy(norm.cdf(y.numpy(), mean.numpy(), variance.sqrt().numpy()))
    torch.testing.assert_close(metrics.gaussian_pit(mean, variance, y), expected)
    components, noise, z = mixture
    each = torch.from_numpy(norm.cdf(z.numpy(), components.numpy(), math.sqrt(float(noise))))
    torch.testing.assert_close(metrics.gaussian_mixture_pit(components, noise, z), each.mean(0))


def test_regression_metrics_equal_uncertainty_toolbox(regression):
    other = pytest.importorskip("uncertainty_toolbox.metrics", reason="uncertainty-toolbox is not installed")
    mean, variance, y = (tensor[:, 0] for tensor in regression)
    arrays = mean.numpy(), variance.sqrt().numpy(), y.numpy()
    assert float(metrics.gaussian_crps(mean, variance, y)) == pytest.approx(other.crps_gaussian(*arrays))
    assert float(metrics.sharpness(variance)) == pytest.approx(other.sharpness(arrays[1]))
    # its 101 levels include 0 and 1, where observed and level are equal: the same sum, over 101 instead of 99
    theirs = other.mean_absolute_calibration_error(*arrays, num_bins=101, prop_type="quantile") * 101 / 99
    assert float(metrics.quantile_calibration_error(metrics.gaussian_pit(mean, variance, y))) == pytest.approx(theirs)


def test_illegal_input_raises():
    x = torch.ones(3)
    nan = torch.full((3,), float("nan"))
    for call, message in [
        (lambda: metrics.gaussian_crps(x, 0 * x, x), "smallest variance is 0"),
        (lambda: metrics.gaussian_crps(x, x, x[:2]), "they must be equal"),
        (lambda: metrics.gaussian_mixture_crps(x, x, x), "one dimension of samples before"),
        (lambda: metrics.gaussian_mixture_crps(x[None], -x, x), "smallest variance is -1"),
        (lambda: metrics.sample_crps(x[None], x, fair=True), "draw at least two"),
        (lambda: metrics.sample_crps(torch.ones(0, 3), x), "nothing to measure"),
        (lambda: metrics.sample_crps(nan[None], x), "NaN or infinite"),
        (lambda: metrics.interval_coverage(x, x - 1, x), "some lower ends lie above"),
        (lambda: metrics.interval_width(x, x[:1]), "they must be equal"),
        (lambda: metrics.interval_score(x, x, x, 1.0), "level=1.0"),
        (lambda: metrics.sharpness(nan), "NaN or infinite"),
        (lambda: metrics.quantile_calibration(x + 1), "outside .0, 1. or NaN"),
        (lambda: metrics.quantile_calibration(nan), "outside .0, 1. or NaN"),
        (lambda: metrics.quantile_calibration(x[:0]), "nothing to measure"),
        (lambda: metrics.quantile_calibration(x, 0), "levels=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
