"""Metrics against scikit-learn, torchmetrics and plain loops."""

import math

import pytest
import torch
from sklearn import metrics as sk
from torch.distributions import Normal
from torchmetrics.functional import calibration_error

from vogn import metrics


def make(classes: int = 4, count: int = 60, seed: int = 0):
    source = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(count, classes, generator=source, dtype=torch.float64)).softmax(-1)
    return p, torch.randint(classes, (count,), generator=source)


def test_accuracy_equals_sklearn():
    p, y = make()
    assert float(metrics.accuracy(p, y)) == pytest.approx(sk.accuracy_score(y, p.argmax(-1)))


def test_nll_equals_sklearn_log_loss():
    p, y = make()
    assert float(metrics.nll(p, y)) == pytest.approx(sk.log_loss(y, p.numpy(), labels=range(4)), rel=1e-12)


def test_brier_by_a_loop_and_binary_brier_equals_sklearn():
    p, y = make(3, 20)
    total = sum((float(p[n, c]) - (1.0 if c == int(y[n]) else 0.0)) ** 2 for n in range(20) for c in range(3))
    assert float(metrics.brier(p, y)) == pytest.approx(total / 20, rel=1e-12)
    q, labels = p[:, 0], (y == 0).double()
    assert float(metrics.brier(q, labels)) == pytest.approx(sk.brier_score_loss(labels, q), rel=1e-12)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_equals_torchmetrics(bins):
    p, y = make(count=200)
    expected = calibration_error(p, y, task="multiclass", num_classes=4, n_bins=bins, norm="l1")
    # torchmetrics adds up to 200 numbers in float32: 200 * 6e-8 relative at worst, about 1e-7 in practice
    assert float(metrics.ece(p, y, bins)) == pytest.approx(float(expected), abs=1e-6)


def test_reliability_and_ece_by_a_loop():
    p, y = make(count=100)
    bins = 7
    points = metrics.reliability(p, y, bins)
    ece = 0.0
    for b in range(bins):
        members = [n for n in range(100) if b / bins < float(p[n].max()) <= (b + 1) / bins]
        assert int(points.count[b]) == len(members)
        if not members:
            assert torch.isnan(points.confidence[b]) and torch.isnan(points.accuracy[b])
            continue
        confidence = sum(float(p[n].max()) for n in members) / len(members)
        correct = sum(int(p[n].argmax()) == int(y[n]) for n in members) / len(members)
        assert float(points.confidence[b]) == pytest.approx(confidence, rel=1e-12)
        assert float(points.accuracy[b]) == pytest.approx(correct, rel=1e-12)
        ece += len(members) / 100 * abs(correct - confidence)
    assert (points.count == 0).any()
    assert float(metrics.ece(p, y, bins)) == pytest.approx(ece, rel=1e-12)


def test_calibration_is_safe_at_zero_and_one():
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    y = torch.tensor([0, 1, 1, 0])
    points = metrics.reliability(p, y, bins=4)
    assert points.count.tolist() == [0, 1, 0, 3]  # 0.5 closes the second bin, 1.0 the last one
    assert float(metrics.ece(p, y, bins=4)) == pytest.approx(0.75 * (1 - 2 / 3) + 0.25 * 0.5)
    assert math.isfinite(float(metrics.nll(p, y)))
    assert float(metrics.brier(p, y)) == pytest.approx((0 + 0 + 2 + 0.5) / 4)


def test_probability_of_label_one_is_the_two_class_form():
    p, y = make(2)
    for name in ("accuracy", "nll", "ece"):
        metric = getattr(metrics, name)
        torch.testing.assert_close(metric(p[:, 1], y), metric(p, y))
        torch.testing.assert_close(metric(p[:, 1:], y[:, None].double()), metric(p, y))


def test_sequences_are_flattened():
    p, y = make()
    for name in ("accuracy", "nll", "brier", "ece"):
        metric = getattr(metrics, name)
        torch.testing.assert_close(metric(p.view(6, 10, 4), y.view(6, 10)), metric(p, y))


def test_regression_metrics_equal_sklearn_and_normal():
    source = torch.Generator().manual_seed(1)
    mean, y = torch.randn(2, 30, 2, generator=source, dtype=torch.float64)
    variance = torch.rand(30, 2, generator=source, dtype=torch.float64) + 0.1
    assert float(metrics.rmse(mean, y)) == pytest.approx(math.sqrt(sk.mean_squared_error(y, mean)), rel=1e-12)
    log_prob = Normal(mean, variance.sqrt()).log_prob(y)
    torch.testing.assert_close(metrics.gaussian_nll(mean, variance, y), -log_prob.sum(-1).mean())
    torch.testing.assert_close(metrics.gaussian_nll(mean[:, 0], variance[:, 0], y[:, 0]), -log_prob[:, 0].mean())


def test_half_precision_probabilities_are_accepted_and_measured_in_float32():
    p, y = make(10)
    for dtype in (torch.float16, torch.bfloat16):
        assert metrics.nll(p.to(dtype), y).dtype == torch.float32


P, Y = torch.full((4, 2), 0.5), torch.zeros(4, dtype=torch.long)
ILLEGAL = [
    (torch.tensor([[2.0, -1.0]] * 4), Y, "probabilities range from -1 to 2; give values in .0, 1., not logits"),
    (torch.full((4, 2), float("nan")), Y, "not logits"),
    (torch.full((4, 2), 0.4), Y, "miss a sum of 1 over the last dimension by up to 0.2"),
    (P, Y + 2, "targets range from 2 to 2; 0 to 1 is allowed"),
    (P, Y.float(), "targets have dtype torch.float32"),
    (P, Y[:3], r"targets have shape \(3,\) but probabilities \(4, 2\)"),
    (P[:, :1], Y, r"targets have shape \(4,\) but probabilities \(4, 1\)"),
    (P[:, 0], Y + 2, "must be 0 or 1"),
    (P[:0], Y[:0], "nothing to measure"),
    (P.long(), Y, "probabilities have dtype torch.int64"),
]


@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "ece", "reliability"])
@pytest.mark.parametrize(("probabilities", "targets", "message"), ILLEGAL)
def test_illegal_classification_input_raises(name, probabilities, targets, message):
    with pytest.raises(ValueError, match=message):
        getattr(metrics, name)(probabilities, targets)


def test_illegal_bins_and_regression_input_raise():
    one = torch.ones(3)
    with pytest.raises(ValueError, match="bins=0"):
        metrics.ece(P, Y, bins=0)
    with pytest.raises(ValueError, match=r"mean has shape \(3,\) but targets \(3, 1\)"):
        metrics.rmse(one, one[:, None])
    with pytest.raises(ValueError, match=r"but variance \(2,\)"):
        metrics.gaussian_nll(one, one[:2], one)
    with pytest.raises(ValueError, match="smallest variance is 0"):
        metrics.gaussian_nll(one, 0 * one, one)
    with pytest.raises(ValueError, match="nothing to measure"):
        metrics.rmse(one[:0], one[:0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        metrics.rmse(one, one / 0)
