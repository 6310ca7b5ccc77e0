"""Risk and coverage by sorting in Python, and equal confidences by all their orders."""

import itertools

import pytest
import torch

from vogn import metrics


def risks(wrong):
    """Error rate of the first ``k``, for every ``k``."""
    return [sum(wrong[:k]) / k for k in range(1, len(wrong) + 1)]


def test_risk_coverage_by_sorting(predictions):
    p, y = predictions
    confidence, predicted = p.max(-1)
    rows = sorted(zip(confidence.tolist(), (predicted != y).tolist(), strict=True), reverse=True)
    expected = risks([wrong for _, wrong in rows])
    found = metrics.risk_coverage(p, y)
    assert found.risk.tolist() == pytest.approx(expected, rel=1e-12)
    assert found.coverage.tolist() == pytest.approx([k / 200 for k in range(1, 201)])
    assert (-found.uncertainty).tolist() == [value for value, _ in rows]
    assert float(metrics.aurc(p, y)) == pytest.approx(sum(expected) / 200, rel=1e-12)


def test_equal_confidences_count_as_the_mean_over_their_orders():
    p = torch.tensor([0.9, 0.8, 0.8, 0.8, 0.6], dtype=torch.float64)
    wrong = [0, 1, 0, 1, 1]
    p, y = torch.stack([p, 1 - p], -1), torch.tensor(wrong)
    orders = [risks([wrong[0], *(wrong[k] for k in order), wrong[4]]) for order in itertools.permutations([1, 2, 3])]
    expected = [sum(values) / 6 for values in zip(*orders, strict=True)]
    assert metrics.risk_coverage(p, y).risk.tolist() == pytest.approx(expected, rel=1e-12)
    shuffled = torch.tensor([4, 2, 3, 0, 1])
    torch.testing.assert_close(metrics.aurc(p[shuffled], y[shuffled]), metrics.aurc(p, y))


def test_limits(predictions):
    p, y = predictions
    wrong = p.argmax(-1) != y
    rate = float(wrong.double().mean())
    best, worst = metrics.aurc(p, y, wrong.double()), metrics.aurc(p, y, 1 - wrong.double())
    assert float(best) < float(metrics.aurc(p, y)) < float(worst)
    assert float(metrics.aurc(p, y, torch.zeros(200))) == pytest.approx(rate)  # an uncertainty that says nothing
    assert float(metrics.aurc(p, p.argmax(-1))) == 0.0


def test_illegal_uncertainty_raises(predictions):
    p, y = predictions
    with pytest.raises(ValueError, match=r"uncertainty has shape \(3,\)"):
        metrics.risk_coverage(p, y, torch.zeros(3))
    with pytest.raises(ValueError, match="uncertainty holds NaN"):
        metrics.aurc(p, y, torch.full((200,), float("nan")))
