"""Measurements are those of the metrics, called by hand on the same predictions."""

import json

import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from vogn import metrics, ood_scores, report
from vogn.data import DataError, corrupt


def test_figures_are_those_of_the_metrics(classifier, measured):
    predictors, x, y = classifier
    assert [row.label for row in measured.rows] == list(predictors)
    for row, predict in zip(measured.rows, predictors.values(), strict=True):
        p = predict(x).mean
        expected = metrics.classification_report(p, y).to_dict()
        assert row.report.to_dict() == expected | {"intervals": row.report.intervals}
        assert row.report.nll == pytest.approx(log_loss(y, p.double() / p.double().sum(1, keepdim=True)), rel=1e-5)


def test_intervals_are_bootstrap_intervals_where_resampling_is_right(classifier, measured):
    predictors, x, y = classifier
    assert set(measured.rows[0].report.intervals) == {"accuracy", "nll", "brier", "debiased_ece", "aurc"}
    p = predictors["8 samples"](x).mean
    for name, ends in measured.rows[0].report.intervals.items():
        alone = metrics.bootstrap_interval(getattr(metrics, name), p, y, replicates=50)
        assert ends == pytest.approx([float(alone.low), float(alone.high)], abs=1e-6)


def test_differences_are_paired(classifier, measured):
    predictors, x, y = classifier
    first, second = (predict(x).nll(y).double() for predict in predictors.values())
    ((label, (value, low, high)),) = measured.differences.items()
    assert label == list(predictors)[1] and measured.reference == "8 samples"
    assert value == pytest.approx(float((second - first).mean()), abs=1e-9)
    assert low < value < high


def test_other_inputs_are_told_apart_as_by_hand(classifier, measured):
    predictors, x, _ = classifier
    (outside,) = measured.outside
    strange = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2
    for label, predict in predictors.items():
        a, b = ood_scores(predict(x)), ood_scores(predict(strange))
        for score, found in outside.reports[label].scores.items():
            truth = [0] * len(x) + [1] * 40
            assert found.auroc == pytest.approx(roc_auc_score(truth, torch.cat([a[score], b[score]])))
    mean, samples = (set(outside.reports[label].scores) for label in reversed(list(predictors)))
    assert samples - mean == {"mutual_information", "variance"}  # those of a single network do not vary


def test_corrupted_figures_are_those_of_corrupted_images(classifier, measured):
    predictors, x, y = classifier
    chosen = torch.randperm(120, generator=torch.Generator().manual_seed(0))[:60].sort().values
    shift = measured.shift
    assert shift.count == 60 and set(shift.reports) == {"contrast", "gaussian_noise"}
    for severity in (0, 3, 5):
        p = predictors["8 samples"](corrupt(x[chosen], "gaussian_noise", severity)).mean
        expected = float(metrics.accuracy(p, y[chosen]))
        assert shift.curve("gaussian_noise", "8 samples", "accuracy")[severity] == pytest.approx(expected)
    both = [shift.curve(name, "8 samples", "ece")[4] for name in shift.reports]
    assert shift.average("8 samples", "ece")[4] == pytest.approx(sum(both) / 2)


def test_real_targets_get_regression_figures(regression):
    predictors, x, y = regression
    found = report.measure(predictors, x, y, bootstrap=5, level=0.8, outside={"far": x + 5})
    for row, predict in zip(found.rows, predictors.values(), strict=True):
        p = predict(x)
        mixture = {} if p.samples is None else {"components": p.samples, "noise_variance": p.aleatoric}
        expected = metrics.regression_report(p.mean, p.variance, y, level=0.8, **mixture)
        assert row.report.figures() == pytest.approx(expected.figures())
        assert "rmse" in row.report.intervals and "quantile_calibration_error" not in row.report.intervals
    assert found.real and found.outside[0].reports["linearised"].scores["variance"].auroc > 0.9
    json.dumps(found.to_dict())


def test_progress_counts_every_prediction_and_bootstrap(classifier):
    predictors, x, y = classifier
    seen = []
    shift = report.Shift(corruptions=("blur",))
    report.measure(
        predictors, x, y, outside={"zeros": x * 0}, shift=shift, bootstrap=2, progress=lambda *step: seen.append(step)
    )
    assert [done for done, _, _ in seen] == list(range(len(seen)))
    assert {total for _, total, _ in seen} == {len(seen)} == {2 * (1 + 1 + 1 + 1 + 5)}


def test_json_holds_everything(measured):
    plain = json.loads(json.dumps(measured.to_dict()))
    assert plain["rows"]["8 samples"]["intervals"]["nll"] and plain["shift"]["severities"] == [0, 1, 2, 3, 4, 5]
    assert plain["outside"]["noise <b>&"]["8 samples"]["scores"]["entropy"]["auroc"] > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"predictors": {}}, "no predictors"),
        ({"reference": "x"}, "reference='x'"),
        ({"targets": torch.zeros(7, dtype=torch.long)}, r"\(7,\)"),
        ({"targets": torch.full((120,), 3)}, "targets range from 3"),
        ({"bootstrap": 1}, "replicates=1"),
        ({"outside": {"none": torch.zeros(0, 1, 8, 8)}}, "no examples|nothing to"),
    ],
)
def test_bad_input(classifier, changes, words):
    predictors, x, y = classifier
    arguments = {"predictors": predictors, "x": x, "targets": y, "bootstrap": 0} | changes
    with pytest.raises(ValueError, match=words):
        report.measure(arguments.pop("predictors"), arguments.pop("x"), arguments.pop("targets"), **arguments)


def test_shifts_that_cannot_be(classifier, regression):
    with pytest.raises(ValueError, match="real targets"):
        report.measure(*regression, shift=report.Shift())
    with pytest.raises(ValueError, match="some predictors are of real targets"):
        report.measure({"a": classifier[0]["8 samples"], "b": lambda x: regression[0]["samples"](x[:, 0, 0, :1])},
                       *classifier[1:])  # fmt: skip
    with pytest.raises(DataError, match="fog"):
        report.Shift(corruptions=("fog",))
    with pytest.raises(DataError, match="outside value_range"):
        report.measure(*classifier, shift=report.Shift(value_range=(0, 0.5)), bootstrap=0)
    with pytest.raises(DataError, match="examples=0"):
        report.Shift(examples=0)
