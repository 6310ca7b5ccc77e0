"""Out-of-distribution figures by hand, by pairs, and against scikit-learn's curves."""

import pytest
import torch
from sklearn.metrics import roc_curve

from vogn import metrics


@pytest.fixture
def scores():
    """Scores with ties."""
    source = torch.Generator().manual_seed(0)
    return (torch.randn(80, generator=source) * 5).round(), (torch.randn(50, generator=source) * 5 + 4).round()


def test_auroc_by_all_pairs(scores):
    inside, outside = scores
    pairs = [1.0 if b > a else 0.5 if b == a else 0.0 for a in inside.tolist() for b in outside.tolist()]
    assert float(metrics.auroc(inside, outside)) == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)


def test_eight_inputs_by_hand():
    inside, outside = -torch.tensor([0.9, 0.8, 0.7, 0.6]), -torch.tensor([0.65, 0.5, 0.4, 0.3])
    assert float(metrics.auroc(inside, outside)) == 0.9375
    assert float(metrics.fpr_at_recall(inside, outside)) == 0.25  # accepting 0.6 accepts 0.65
    assert float(metrics.fpr_at_recall(inside, outside, 0.75)) == 0.0
    # by falling score: out, out, out, in, out: precisions 1, 1, 1, 4/5 at the four that are found
    assert float(metrics.aupr(inside, outside)) == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)
    # inside by rising score: in, in, in, out, in: 1, 1, 1, 4/5 too
    assert float(metrics.aupr(inside, outside, positive="inside")) == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)


def test_aupr_of_constant_scores_is_the_share_of_positives():
    inside, outside = torch.zeros(30), torch.zeros(10)
    assert float(metrics.aupr(inside, outside)) == pytest.approx(0.25)
    assert float(metrics.aupr(inside, outside, positive="inside")) == pytest.approx(0.75)
    assert float(metrics.fpr_at_recall(inside, outside)) == 1.0


@pytest.mark.parametrize("recall", [0.5, 0.8, 0.95])
def test_fpr_at_recall_is_on_the_curve_of_sklearn(scores, recall):
    inside, outside = scores
    accepted = torch.cat([torch.ones(80), torch.zeros(50)])
    false, true, _ = roc_curve(accepted, -torch.cat([inside, outside]), drop_intermediate=False)
    expected = false[true >= recall - 1e-12][0]
    assert float(metrics.fpr_at_recall(inside, outside, recall)) == pytest.approx(expected, rel=1e-12)


def test_a_recall_that_rounding_puts_above_a_whole_number():
    inside = torch.arange(20.0)
    assert 0.95 * 20 >= 19  # 19 of 20 are enough, so 18.5 is accepted and 19 is not
    assert float(metrics.fpr_at_recall(inside, torch.tensor([18.0, 18.5]))) == 0.5


def test_the_report_holds_the_figures(scores):
    inside, outside = scores
    report = metrics.ood_report({"a": inside, "b": -inside}, {"a": outside, "b": -outside})
    assert (report.inside, report.outside) == (80, 50)
    assert report.scores["a"].auroc == pytest.approx(1 - report.scores["b"].auroc)
    assert report.to_dict()["scores"]["a"] == {
        "auroc": float(metrics.auroc(inside, outside)),
        "aupr_outside": float(metrics.aupr(inside, outside)),
        "aupr_inside": float(metrics.aupr(inside, outside, positive="inside")),
        "fpr95": float(metrics.fpr_at_recall(inside, outside)),
    }
    assert "AUROC" in str(report) and f"{report.scores['a'].fpr95:.3f}" in str(report)


def test_illegal_input_raises(scores):
    inside, outside = scores
    for call, message in [
        (lambda: metrics.auroc(inside[:0], outside), r"inside has shape \(0,\)"),
        (lambda: metrics.aupr(inside, outside / 0), "outside holds NaN or infinite"),
        (lambda: metrics.aupr(inside, outside, positive="both"), "positive='both'"),
        (lambda: metrics.fpr_at_recall(inside, outside, 1.0), "recall=1.0"),
        (lambda: metrics.ood_report({}, {}), "at least one"),
        (lambda: metrics.ood_report({"a": inside}, {"b": outside}), r"\['a'\] inside but \['b'\]"),
        (lambda: metrics.ood_report({"a": inside, "b": outside}, {"a": inside, "b": inside}), "differ in number"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
