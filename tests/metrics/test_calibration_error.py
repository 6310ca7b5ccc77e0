"""Calibration errors and the Brier decomposition against plain loops, hand-made numbers and other packages."""

import math

import pytest
import torch
from sklearn.calibration import calibration_curve
from torchmetrics.functional import calibration_error

from vogn import metrics

CONFIDENCE = [0.95, 0.85, 0.75, 0.65, 0.55, 0.91, 0.83, 0.71, 0.61, 0.51]
CORRECT = [1, 1, 1, 0, 1, 1, 0, 1, 0, 0]


def ten():
    """Ten predictions of class 0 or 1 with the confidences above."""
    p = torch.tensor(CONFIDENCE, dtype=torch.float64)
    return torch.stack([p, 1 - p], -1), 1 - torch.tensor(CORRECT)


def binned_gap(forecasts, outcomes, groups):
    """``sum_b n_b / N |mean outcome - mean forecast|`` by a loop."""
    total = 0.0
    for members in groups:
        if members:
            gap = sum(outcomes[n] for n in members) / len(members) - sum(forecasts[n] for n in members) / len(members)
            total += len(members) / len(forecasts) * abs(gap)
    return total


def by_width(forecasts, bins):
    found = [[n for n, p in enumerate(forecasts) if b / bins < p <= (b + 1) / bins] for b in range(bins)]
    found[0] += [n for n, p in enumerate(forecasts) if p == 0]
    return found


def by_mass(forecasts, bins):
    order = sorted(range(len(forecasts)), key=lambda n: forecasts[n])
    sizes = [len(order) // bins + (b < len(order) % bins) for b in range(bins)]
    starts = [sum(sizes[:b]) for b in range(bins)]
    return [order[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def test_ten_predictions_by_hand():
    p, y = ten()
    # five bins of width 0.2: 0.51 ... 0.55 in (0.4, 0.6], 0.61 ... 0.75 in (0.6, 0.8], the rest above
    assert float(metrics.ece(p, y, 5)) == pytest.approx(0.132)
    assert float(metrics.ece(p, y, 5)) == pytest.approx(
        float(calibration_error(p, y, task="multiclass", num_classes=2, n_bins=5, norm="l1")), abs=1e-6
    )
    assert float(metrics.adaptive_ece(p, y, 5)) == pytest.approx(0.268)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_classwise_ece_by_a_loop(predictions, bins):
    p, y = predictions
    errors = []
    for c in range(4):
        forecasts, outcomes = p[:, c].tolist(), (y == c).double().tolist()
        errors.append(binned_gap(forecasts, outcomes, by_width(forecasts, bins)))
    assert float(metrics.classwise_ece(p, y, bins)) == pytest.approx(sum(errors) / 4, rel=1e-12)


def test_many_probabilities_are_binned_in_pieces(predictions, monkeypatch):
    from vogn.metrics import binning

    p, y = predictions
    whole = metrics.brier_decomposition(p, y), metrics.classwise_ece(p, y)
    monkeypatch.setattr(binning, "_ELEMENTS", 28)  # seven rows at a time
    pieces = metrics.brier_decomposition(p, y), metrics.classwise_ece(p, y)
    torch.testing.assert_close(pieces[0].within_bin, whole[0].within_bin)
    torch.testing.assert_close(pieces[1], whole[1])


def test_class_frequencies_have_no_classwise_error():
    y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    p = torch.tensor([0.3, 0.2, 0.5], dtype=torch.float64).expand(10, 3)
    assert float(metrics.classwise_ece(p, y)) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_adaptive_ece_by_a_loop(predictions, bins):
    p, y = predictions
    confidence, predicted = p.max(-1)
    forecasts, outcomes = confidence.tolist(), (predicted == y).double().tolist()
    expected = binned_gap(forecasts, outcomes, by_mass(forecasts, bins))
    assert float(metrics.adaptive_ece(p, y, bins)) == pytest.approx(expected, rel=1e-12)
    errors = [
        binned_gap(p[:, c].tolist(), (y == c).double().tolist(), by_mass(p[:, c].tolist(), bins)) for c in range(4)
    ]
    found = metrics.adaptive_ece(p, y, bins, classwise=True)
    assert float(found) == pytest.approx(sum(errors) / 4, rel=1e-12)


def test_equal_mass_bins_are_those_of_sklearn(predictions):
    p, y = predictions
    confidence, predicted = p.max(-1)
    share, mean = calibration_curve(predicted == y, confidence, n_bins=10, strategy="quantile")  # 20 in each
    assert float(metrics.adaptive_ece(p, y, 10)) == pytest.approx(abs(share - mean).mean(), rel=1e-12)


def test_adaptive_ece_ignores_the_order_of_equal_probabilities():
    p = torch.tensor([0.9] * 10 + [0.6] * 10, dtype=torch.float64)
    p, y = torch.stack([p, 1 - p], -1), torch.tensor([0] * 6 + [1] * 4 + [0] * 7 + [1] * 3)
    expected = 0.5 * abs(0.6 - 0.9) + 0.5 * abs(0.7 - 0.6)  # every bin has one probability, whatever their number
    for order in (torch.arange(20), torch.arange(19, -1, -1), torch.randperm(20)):
        for bins in (2, 4, 10, 50):
            assert float(metrics.adaptive_ece(p[order], y[order], bins)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("binning", ["width", "mass"])
def test_debiased_ece_by_a_loop(predictions, binning):
    p, y = predictions
    confidence, predicted = p.max(-1)
    forecasts, outcomes = confidence.tolist(), (predicted == y).double().tolist()
    total = 0.0
    for members in (by_width if binning == "width" else by_mass)(forecasts, 15):
        if len(members) > 1:
            n = len(members)
            rate, mean = sum(outcomes[k] for k in members) / n, sum(forecasts[k] for k in members) / n
            total += n / 200 * ((rate - mean) ** 2 - rate * (1 - rate) / (n - 1))
    found = metrics.debiased_ece(p, y, binning=binning, squared=True)
    assert float(found) == pytest.approx(total, rel=1e-12)
    assert float(metrics.debiased_ece(p, y, binning=binning)) == pytest.approx(math.sqrt(total), rel=1e-12)


def test_debiased_ece_equals_the_package_of_its_authors(predictions):
    utils = pytest.importorskip("calibration.utils", reason="uncertainty-calibration is not installed")
    p, y = predictions
    confidence, predicted = p.max(-1)
    data = [(float(c), float(o)) for c, o in zip(confidence, predicted == y, strict=True)]
    bins = utils.bin(data, utils.get_equal_bins(confidence.numpy(), num_bins=15))
    expected = utils.unbiased_square_ce(bins)  # no two probabilities are equal: those share a bin there
    assert float(metrics.debiased_ece(p, y, 15, binning="mass", squared=True)) == pytest.approx(expected, rel=1e-9)


def test_the_debiased_error_of_calibrated_predictions_is_zero_on_average():
    source = torch.Generator().manual_seed(3)
    repeats = 2000
    debiased, plain = [], []
    for _ in range(repeats):
        p = 0.5 + 0.5 * torch.rand(100, generator=source, dtype=torch.float64)
        y = (torch.rand(100, generator=source, dtype=torch.float64) < p).long()
        debiased.append(float(metrics.debiased_ece(p, y, squared=True)))
        plain.append(float(metrics.ece(p, y)))
    mean = sum(debiased) / repeats
    standard_error = torch.tensor(debiased).std() / math.sqrt(repeats)
    assert abs(mean) < 4 * standard_error < 2e-3
    assert sum(plain) / repeats > 0.05  # what the correction is for


def test_single_predictions_in_their_bins_have_no_debiased_error():
    p, y = ten()
    assert float(metrics.debiased_ece(p, y, 1000, squared=True)) == 0.0
    assert float(metrics.ece(p, y, 1000)) > 0.1


def stephenson(forecasts, outcomes, groups):
    """Reliability, resolution, uncertainty and the two parts inside the bins, by loops."""
    n, base = len(forecasts), sum(outcomes) / len(outcomes)
    rel = res = variance = covariance = 0.0
    for members in groups:
        if members:
            p = sum(forecasts[k] for k in members) / len(members)
            o = sum(outcomes[k] for k in members) / len(members)
            rel += len(members) / n * (p - o) ** 2
            res += len(members) / n * (o - base) ** 2
            variance += sum((forecasts[k] - p) ** 2 for k in members) / n
            covariance += 2 * sum((forecasts[k] - p) * (outcomes[k] - o) for k in members) / n
    return rel, res, base * (1 - base), variance - covariance


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_brier_decomposition_by_loops(predictions, bins):
    p, y = predictions
    parts = metrics.brier_decomposition(p, y, bins)
    columns = [(p[:, c].tolist(), (y == c).double().tolist()) for c in range(4)]
    expected = [stephenson(f, o, by_width(f, bins)) for f, o in columns]
    found = (parts.reliability, parts.resolution, parts.uncertainty, parts.within_bin)
    for value, terms in zip(found, zip(*expected, strict=True), strict=True):
        assert float(value) == pytest.approx(sum(terms), rel=1e-10)
    torch.testing.assert_close(parts.brier, metrics.brier(p, y), rtol=1e-12, atol=0)


def test_groups_of_equal_probabilities_leave_nothing_inside():
    p = torch.tensor([0.2] * 5 + [0.7] * 5, dtype=torch.float64)
    y = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    for form in (p, torch.stack([1 - p, p], -1)):
        parts = metrics.brier_decomposition(form, y, bins=None)
        scale = 1 if form is p else 2  # two classes, each with the same error
        found = [float(part) / scale for part in (parts.reliability, parts.resolution, parts.uncertainty)]
        assert found == pytest.approx([0.005, 0.09, 0.25])
        assert float(parts.within_bin) == pytest.approx(0, abs=1e-15)
        assert float(parts.brier) / scale == pytest.approx(0.165)


def test_clopper_pearson_equals_scipy(predictions):
    from scipy.stats import binomtest

    p, y = predictions
    points = metrics.reliability(p, y, 20)
    low, high = points.interval(0.9)
    assert (points.count == 0).any() and (points.count > 0).any()
    for b in range(20):
        n = int(points.count[b])
        if n == 0:
            assert torch.isnan(low[b]) and torch.isnan(high[b])
            continue
        expected = binomtest(round(float(points.accuracy[b]) * n), n).proportion_ci(0.9, "exact")
        assert (float(low[b]), float(high[b])) == pytest.approx((expected.low, expected.high), rel=1e-9)
    right = metrics.reliability(torch.eye(2), torch.tensor([0, 1])).interval()
    assert float(right[1][-1]) == 1.0 and 0 < float(right[0][-1]) < 1
    wrong = metrics.reliability(torch.eye(2), torch.tensor([1, 0])).interval()
    assert float(wrong[0][-1]) == 0.0 and 0 < float(wrong[1][-1]) < 1


@pytest.mark.parametrize("name", ["classwise_ece", "adaptive_ece", "debiased_ece", "brier_decomposition"])
def test_everything_is_safe_at_zero_and_one(name):
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    found = getattr(metrics, name)(p, torch.tensor([0, 1, 1, 0]))
    values = [found] if isinstance(found, torch.Tensor) else [found.reliability, found.resolution, found.within_bin]
    assert all(torch.isfinite(value) for value in values)


@pytest.mark.parametrize("name", ["classwise_ece", "adaptive_ece", "debiased_ece", "brier_decomposition"])
def test_illegal_input_raises(name):
    metric, p, y = getattr(metrics, name), torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match="bins=0; at least one bin"):
        metric(p, y, 0)
    with pytest.raises(ValueError, match="not logits"):
        metric(p + 2, y)
    with pytest.raises(ValueError, match="nothing to measure"):
        metric(p[:0], y[:0])
    with pytest.raises(ValueError, match="binning='log'"):
        metrics.debiased_ece(p, y, binning="log")
    with pytest.raises(ValueError, match="level=1"):
        metrics.reliability(p, y).interval(1.0)
