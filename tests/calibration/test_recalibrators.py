"""Recalibrators move: predictions with a known error lose it; and against scikit-learn and other minimisers."""

import json
import warnings

import pytest
import torch
from scipy.optimize import minimize, minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from vogn import metrics
from vogn.calibration import (
    RECALIBRATORS,
    HistogramBinning,
    IsotonicRecalibration,
    PlattScaling,
    TemperatureScaling,
    VectorScaling,
    from_dict,
    load,
    save,
)
from vogn.errors import RecalibrationError, RecalibrationWarning

CASES = [(kind, form) for kind in RECALIBRATORS.values() for form in ("classes", "label 1")]


def binary(z, y):
    """Probabilities of label 1, of the first class against the rest."""
    return z.softmax(-1)[:, 0], (y == 0).long()


@pytest.mark.parametrize("factor", [3.0, 0.3])
@pytest.mark.parametrize("inputs", ["logits", "probabilities", "log-probabilities"])
def test_the_temperature_is_recovered(calibrated, factor, inputs):
    z, y = calibrated
    wrong = factor * z
    given = {"logits": wrong + 7, "probabilities": wrong.softmax(-1), "log-probabilities": wrong.log_softmax(-1)}[
        inputs
    ]
    recalibrate = TemperatureScaling(inputs="probabilities" if inputs == "probabilities" else "logits")
    found = recalibrate.fit(given, y).temperature
    # at T = factor the NLL of 4000 labels has its expected minimum; the deviation of the estimate is 2 % of it
    assert found == pytest.approx(factor, rel=0.08)
    torch.testing.assert_close(recalibrate(given), (wrong / found).softmax(-1))
    assert float(metrics.nll(recalibrate(given), y)) < float(metrics.nll(wrong.softmax(-1), y)) - 0.05


def test_the_temperature_equals_another_minimiser(calibrated):
    z, y = calibrated
    wrong = 3 * z
    best = minimize_scalar(
        lambda t: float(torch.nn.functional.cross_entropy(wrong / t, y)), bounds=(1, 9), options={"xatol": 1e-9}
    )
    assert TemperatureScaling(inputs="logits").fit(wrong, y).temperature == pytest.approx(best.x, rel=1e-5)
    scaled = TemperatureScaling(inputs="logits").fit(1e6 * wrong, y).temperature  # whatever the unit
    assert scaled == pytest.approx(1e6 * best.x, rel=1e-5)


def test_the_temperature_equals_sklearn(calibrated):
    try:
        from sklearn.calibration import _TemperatureScaling  # private, from 1.8 on
    except ImportError:
        pytest.skip("this scikit-learn has no temperature scaling")
    z, y = calibrated
    p = (3 * z).softmax(-1).numpy()
    other = _TemperatureScaling().fit(p, y.numpy())
    found = TemperatureScaling().fit(torch.from_numpy(p), y)
    assert found.temperature == pytest.approx(1 / other.beta_, rel=1e-4)


def test_calibrated_predictions_stay(calibrated):
    z, y = calibrated
    assert TemperatureScaling(inputs="logits").fit(z, y).temperature == pytest.approx(1.0, abs=0.06)
    vector = VectorScaling(inputs="logits").fit(z, y)
    torch.testing.assert_close(vector.scale, torch.ones(4, dtype=torch.float64), atol=0.15, rtol=0)
    torch.testing.assert_close(vector.offset, torch.zeros(4, dtype=torch.float64), atol=0.15, rtol=0)


def test_vector_scaling_recovers_scales_and_offsets(drawn):
    z, y = drawn(20_000, 3, seed=1, scale=1.5)
    scale, offset = torch.tensor([0.4, 1.0, 2.5]).double(), torch.tensor([1.0, 0.0, -1.0]).double()
    found = VectorScaling(inputs="logits").fit((z - offset) / scale, y)
    torch.testing.assert_close(found.scale, scale, rtol=0.08, atol=0)
    torch.testing.assert_close(found.offset, offset, rtol=0, atol=0.08)


def test_vector_scaling_equals_another_minimiser_and_beats_the_temperature(calibrated):
    z, y = calibrated
    wrong = 2 * z + torch.tensor([1.0, 0, 0, -1.0])

    def loss(x):
        x = torch.from_numpy(x)
        return float(torch.nn.functional.cross_entropy(x[:4] * wrong + x[4:], y))

    best = minimize(loss, [0.5] * 4 + [0.0] * 4, method="BFGS", options={"gtol": 1e-7}).fun  # numerical gradients
    vector = VectorScaling(inputs="logits").fit(wrong, y)
    assert float(metrics.nll(vector(wrong), y)) == pytest.approx(best, abs=1e-8)
    temperature = TemperatureScaling(inputs="logits").fit(wrong, y)
    assert best < float(metrics.nll(temperature(wrong), y)) - 0.01


def test_the_penalty_of_vector_scaling_holds_it_back(calibrated):
    z, y = calibrated
    distances = []
    for l2 in (0.0, 0.1, 10.0, 1e6):
        found = VectorScaling(inputs="logits", l2=l2).fit(3 * z, y)
        distances.append(float((found.scale - 1).norm()))
    assert distances == sorted(distances, reverse=True) and distances[0] > 1 and distances[-1] < 1e-5


def test_platt_scaling_equals_logistic_regression_on_smoothed_targets(calibrated):
    p, y = binary(*calibrated)
    wrong = torch.sigmoid(3 * torch.logit(p) + 1)
    found = PlattScaling().fit(wrong, y)
    odds, n = torch.logit(wrong)[:, None].numpy(), len(y)
    ones = int(y.sum())
    high, low = (ones + 1) / (ones + 2), 1 / (n - ones + 2)
    # every example twice, once with each label, weighted by how far it belongs there
    share = torch.where(y == 1, high, low).numpy()
    other = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000)
    other.fit([*odds, *odds], [1] * n + [0] * n, sample_weight=[*share, *(1 - share)])
    assert float(found.slope) == pytest.approx(float(other.coef_[0, 0]), rel=1e-4)
    assert float(found.offset) == pytest.approx(float(other.intercept_[0]), rel=1e-4)
    assert float(found.slope) == pytest.approx(1 / 3, rel=0.1)  # it has moved
    assert float(found.offset) == pytest.approx(-1 / 3, abs=0.1)


def test_platt_scaling_of_classes_is_one_against_the_rest(calibrated):
    z, y = calibrated
    p = (3 * z).softmax(-1)
    found = PlattScaling().fit(p, y)
    columns = torch.stack([PlattScaling().fit(p[:, c], (y == c).long())(p[:, c]) for c in range(4)], -1)
    torch.testing.assert_close(found(p), columns / columns.sum(-1, keepdim=True), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(PlattScaling(inputs="logits").fit(3 * z + 5, y)(3 * z + 5), found(p))


def test_platt_scaling_stays_finite_where_everything_is_sure():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    found = PlattScaling().fit(p, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found(p)[:, 0], torch.tensor([0.75, 0.75, 0.25, 0.25]))  # (2 + 1) / (2 + 2)


def test_isotonic_equals_sklearn(calibrated):
    z, y = calibrated
    p = (3 * z).softmax(-1)
    fit, new = p[:2000], p[2000:]
    columns = []
    for c in range(4):
        other = IsotonicRegression(out_of_bounds="clip").fit(fit[:, c].numpy(), (y[:2000] == c).double().numpy())
        columns.append(torch.from_numpy(other.predict(new[:, c].numpy())))
    expected = torch.stack(columns, -1)
    found = IsotonicRecalibration().fit(fit, y[:2000])
    torch.testing.assert_close(found(new), expected / expected.sum(-1, keepdim=True))
    one = IsotonicRecalibration().fit(fit[:, 1], (y[:2000] == 1).long())
    torch.testing.assert_close(one(new[:, 1]), columns[1])


def test_histogram_binning_by_a_loop_and_without_error_in_its_bins(calibrated):
    p, y = binary(*calibrated)
    found = HistogramBinning(bins=10).fit(p, y)
    order = p.argsort()
    expected = torch.empty_like(p)
    for part in order.chunk(10):
        expected[part] = y[part].double().mean()
    assert torch.equal(found(p), expected)
    for value in found(p).unique():
        members = found(p) == value
        assert float(y[members].double().mean()) == pytest.approx(float(value), abs=1e-15)
    smooth = HistogramBinning(bins=10, smoothing=1).fit(p, y)(p[order[0]])
    first = y[order[:400]]
    assert float(smooth) == pytest.approx((float(first.sum()) + 1) / 402)


def test_histogram_binning_keeps_equal_probabilities_together():
    p, y = torch.tensor([0.5] * 6 + [0.9] * 2), torch.tensor([1, 1, 1, 0, 0, 0, 1, 1])
    found = HistogramBinning(bins=4).fit(p, y)
    assert found(torch.tensor([0.1, 0.5, 0.7, 1.0])).tolist() == [0.5, 0.5, 1.0, 1.0]
    assert HistogramBinning().fit(torch.full((5,), 0.3), torch.tensor([0, 1, 0, 1, 1]))(torch.tensor([0.9])) == 0.6


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_every_recalibrator_mends_predictions_that_are_too_sure(calibrated, kind, form):
    z, y = calibrated
    p = (3 * z).softmax(-1)
    if form == "label 1":
        p, y = p[:, 0], (y == 0).long()
    found = kind().fit(p[:2000], y[:2000])
    new, labels = p[2000:], y[2000:]
    assert found(new).shape == new.shape
    before, after = metrics.ece(new, labels), metrics.ece(found(new), labels)
    assert float(before) > 0.1 and float(after) < 0.4 * float(before)
    assert float(metrics.brier(found(new), labels)) < float(metrics.brier(new, labels))


@pytest.mark.parametrize(("kind", "form"), CASES)
def test_files_and_plain_values_keep_every_bit(calibrated, kind, form, tmp_path):
    z, y = calibrated
    p = (3 * z).softmax(-1)
    if form == "label 1":
        p, y = p[:, 0], (y == 0).long()
    found = kind().fit(p, y)
    copy = from_dict(json.loads(json.dumps(found.to_dict())))
    assert type(copy) is kind and torch.equal(copy(p), found(p))
    save(found, tmp_path / "map.json")
    assert torch.equal(load(tmp_path / "map.json")(p), found(p))
    assert repr(load(tmp_path / "map.json")) == repr(found)


@pytest.mark.parametrize("kind", RECALIBRATORS.values())
def test_sequences_and_precisions(calibrated, kind):
    z, y = calibrated
    p = (3 * z).softmax(-1)
    whole = kind().fit(p, y)
    rows = kind().fit(p.view(40, 100, 4), y.view(40, 100))
    assert torch.equal(rows(p.view(40, 100, 4)), whole(p).view(40, 100, 4))
    single = whole(p.float())
    assert single.dtype == torch.float32 and whole(p).dtype == torch.float64
    assert whole(p.half()).dtype == torch.float32
    torch.testing.assert_close(single.sum(-1), torch.ones(4000))
    logits = kind(inputs="logits").fit(p.log(), y)
    torch.testing.assert_close(logits(p.log()), whole(p), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [TemperatureScaling, VectorScaling, PlattScaling])
def test_probabilities_of_zero_and_one_are_safe(kind):
    p = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.6, 0.4], [0.0, 1.0], [0.3, 0.7]])
    y = torch.tensor([0, 1, 1, 0, 0, 1])
    for found, given in ((kind(), p), (kind(inputs="logits"), p.log())):
        calibrated = found.fit(given, y)(given)
        assert torch.isfinite(calibrated).all()
        assert float(metrics.nll(calibrated, y)) < 1.0 < float(metrics.nll(p, y))


def test_a_temperature_of_zero_or_beyond_infinity_is_an_error():
    right = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    with pytest.raises(RecalibrationError, match="best temperature is 0"):
        TemperatureScaling().fit(right, torch.tensor([0, 1]))
    with pytest.raises(RecalibrationError, match="no better than uniform"):
        TemperatureScaling().fit(right, torch.tensor([1, 0]))
    with pytest.raises(RecalibrationError, match="best temperature is 0"):  # uniform predictions say nothing at all
        TemperatureScaling().fit(torch.full((3, 2), 0.5), torch.tensor([0, 1, 1]))


def test_vector_scaling_without_an_optimum_is_an_error():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    with pytest.raises(RecalibrationError, match="class 2 has no example among 3"):
        VectorScaling().fit(p, torch.tensor([0, 1, 1]))
    sure = torch.eye(3, dtype=torch.float64).repeat(5, 1) * 0.7 + 0.1
    with pytest.raises(RecalibrationError, match="predicted without doubt|did not converge"):
        VectorScaling().fit(sure, torch.arange(3).repeat(5))
    assert torch.isfinite(VectorScaling(l2=0.01).fit(sure, torch.arange(3).repeat(5))(sure)).all()
    assert torch.isfinite(VectorScaling(l2=0.01).fit(p, torch.tensor([0, 1, 1]))(p)).all()


def test_a_minimiser_that_stops_early_is_an_error(calibrated, monkeypatch):
    import scipy.optimize

    z, y = calibrated
    real = scipy.optimize.minimize

    def stops(*arguments, options, **others):
        return real(*arguments, options=options | {"maxiter": 1}, **others)

    monkeypatch.setattr(scipy.optimize, "minimize", stops)
    with pytest.raises(RecalibrationError, match="vector scaling did not converge: slope"):
        VectorScaling(inputs="logits").fit(3 * z, y)
    with pytest.raises(RecalibrationError, match="Platt scaling did not converge"):
        PlattScaling(inputs="logits").fit(3 * z, y)


@pytest.mark.parametrize("kind", [IsotonicRecalibration, HistogramBinning])
def test_a_class_without_examples_is_warned_of(kind):
    p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    with pytest.warns(RecalibrationWarning, match="class 2 has no example among 3"):
        found = kind().fit(p, torch.tensor([0, 1, 1]))
    assert float(found(p)[:, 2].abs().max()) == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kind().fit(p, torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("kind", RECALIBRATORS.values())
def test_illegal_input_raises(kind, calibrated, tmp_path):
    z, y = calibrated
    p = z.softmax(-1)
    fitted, logits = kind().fit(p, y), kind(inputs="logits").fit(z, y)
    for call, message in [
        (lambda: kind(inputs="scores"), "inputs='scores'"),
        (lambda: kind().fit(z, y), "not logits"),
        (lambda: kind().fit(p, y[:5]), r"targets have shape \(5,\) but probabilities"),
        (lambda: kind().fit(p, y + 1), "targets range from 1 to 4; 0 to 3"),
        (lambda: kind().fit(p[:0], y[:0]), "nothing to measure"),
        (lambda: fitted(p[:, :2]), r"probabilities have shape \(4000, 2\); \(N, ..., 4\) was fitted"),
        (lambda: fitted(p * 0.5), "miss a sum of 1"),
        (lambda: logits(z / 0), "NaN or plus infinity"),
        (lambda: logits(z[:0]), "nothing to work on"),
        (lambda: logits(z.long()), "logits have dtype torch.int64"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(RecalibrationError, match=f"{kind.__name__} has not been fitted"):
        kind()(p)
    with pytest.raises(RecalibrationError, match="not been fitted"):
        save(kind(), tmp_path / "map.json")


def test_illegal_options_and_files_raise(tmp_path):
    for call, message in [
        (lambda: VectorScaling(l2=-1), "l2=-1"),
        (lambda: HistogramBinning(bins=0), "bins=0"),
        (lambda: HistogramBinning(smoothing=-1), "smoothing=-1"),
        (lambda: from_dict({"kind": "magic"}), "kind='magic'"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    (tmp_path / "text").write_text("not json")
    (tmp_path / "list").write_text("[]")
    for name in ("text", "list"):
        with pytest.raises(ValueError, match=f"{name} .*recalibration"):
            load(tmp_path / name)
