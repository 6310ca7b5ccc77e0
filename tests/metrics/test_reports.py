"""Reports hold what the functions give, and batches add up to the whole."""

import json

import pytest
import torch

from vogn import metrics
from vogn.metrics import ClassificationMeter, RegressionMeter, classification_report, regression_report


def figures_of(p, y, bins=15):
    parts = metrics.brier_decomposition(p, y, bins)
    return {
        "accuracy": metrics.accuracy(p, y),
        "confidence": torch.where(p > 0.5, p, 1 - p).mean() if p.shape == y.shape else p.amax(-1).mean(),
        "nll": metrics.nll(p, y),
        "brier": metrics.brier(p, y),
        "brier_reliability": parts.reliability,
        "brier_resolution": parts.resolution,
        "brier_uncertainty": parts.uncertainty,
        "brier_within_bin": parts.within_bin,
        "ece": metrics.ece(p, y, bins),
        "classwise_ece": metrics.classwise_ece(p, y, bins),
        "debiased_ece": metrics.debiased_ece(p, y, bins),
        "adaptive_ece": metrics.adaptive_ece(p, y, bins),
        "aurc": metrics.aurc(p, y),
    }


def forms(predictions):
    p, y = predictions
    return {"classes": (p, y), "0/1": (p[:, 1], (y == 1).long()), "sequences": (p.view(20, 10, 4), y.view(20, 10))}


@pytest.mark.parametrize("form", ["classes", "0/1", "sequences"])
def test_the_report_holds_every_figure(predictions, form):
    p, y = forms(predictions)[form]
    report = classification_report(p, y)
    expected = {name: float(value) for name, value in figures_of(p, y).items()}
    assert report.figures() == pytest.approx(expected, rel=1e-12)
    assert report.count == y.numel() and report.classes == (2 if form == "0/1" else 4)
    assert json.loads(json.dumps(report.to_dict()))["ece"] == report.ece
    assert f"aurc               {report.aurc:.4g}" in str(report) and "aurc" in report.figures()


@pytest.mark.parametrize("form", ["classes", "0/1", "sequences"])
@pytest.mark.parametrize("bins", [4, 15])
def test_batches_equal_the_whole(predictions, form, bins):
    p, y = forms(predictions)[form]
    meter = ClassificationMeter(bins)
    for a, b in zip(p.split(7), y.split(7), strict=True):
        meter.update(a, b)
    expected = figures_of(p, y, bins)
    found = meter.report().figures()
    assert found.keys() == expected.keys() - {"aurc", "adaptive_ece"}  # these need all predictions in order
    assert found == pytest.approx({name: float(expected[name]) for name in found}, rel=1e-11, abs=1e-15)
    assert "aurc" not in str(meter.report())
    points, whole = meter.reliability(), metrics.reliability(p, y, bins)
    torch.testing.assert_close(points.accuracy, whole.accuracy, equal_nan=True)
    torch.testing.assert_close(points.confidence, whole.confidence, equal_nan=True)
    assert torch.equal(points.count, whole.count)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_as_it_is(dtype):
    p = (3 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))).softmax(-1).to(dtype)
    y = torch.arange(50) % 10
    report = classification_report(p, y)
    expected = {
        name: float(value) for name, value in figures_of(p.float() / p.float().sum(-1, keepdim=True), y).items()
    }
    assert float((p.float().sum(-1) - 1).abs().max()) > 1e-4
    assert report.nll == pytest.approx(expected["nll"], abs=0.01)
    assert report.accuracy == expected["accuracy"] and report.brier == pytest.approx(expected["brier"], abs=0.01)


def test_memory_is_that_of_the_bins(predictions):
    p, y = predictions
    meter = ClassificationMeter(bins=10)
    for _ in range(3):
        meter.update(p, y)
    assert sum(value.numel() for value in meter.state_dict().values()) == 5 * (10 + 4 * 10) + 4 + 1
    other = RegressionMeter(levels=19)
    other.update(p, p + 1, p)
    assert sum(value.numel() for value in other.state_dict().values()) == 9 + 20


def test_meters_of_two_processes_are_merged(predictions):
    p, y = predictions
    whole, left, right = ClassificationMeter(), ClassificationMeter(), ClassificationMeter()
    whole.update(p, y)
    left.update(p[:50], y[:50])
    right.update(p[50:], y[50:])
    copied = ClassificationMeter()
    copied.load_state_dict(right.state_dict())
    left.merge(copied)
    left.merge(ClassificationMeter())  # one that has seen nothing
    assert left.report().figures() == pytest.approx(whole.report().figures(), rel=1e-12, abs=1e-15)
    copied.load_state_dict({})
    with pytest.raises(ValueError, match="seen no predictions"):
        copied.report()


def test_loading_does_not_share_memory(predictions):
    p, y = predictions
    meter, copy = ClassificationMeter(), ClassificationMeter()
    meter.update(p, y)
    copy.load_state_dict(meter.state_dict())
    before = meter.report()
    copy.update(p, y)
    assert meter.report() == before and copy.report().count == 400


def test_regression_report_holds_every_figure(regression):
    mean, variance, y = regression
    report = regression_report(mean, variance, y, level=0.8)
    half = variance.sqrt() * 1.2815515655446004
    low, high = mean - half, mean + half
    expected = {
        "rmse": metrics.rmse(mean, y),
        "nll": metrics.gaussian_nll(mean, variance, y),
        "crps": metrics.gaussian_crps(mean, variance, y),
        "coverage": metrics.interval_coverage(low, high, y),
        "width": metrics.interval_width(low, high),
        "interval_score": metrics.interval_score(low, high, y, 0.8),
        "quantile_calibration_error": metrics.quantile_calibration_error(metrics.gaussian_pit(mean, variance, y)),
        "sharpness": metrics.sharpness(variance),
    }
    assert report.figures() == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-9)
    assert report.count == 300 and json.loads(json.dumps(report.to_dict()))["crps"] == report.crps


def test_a_predictive_with_samples_is_measured_as_a_mixture(mixture):
    import vogn

    components, noise, y = mixture
    likelihood = vogn.likelihoods.Gaussian(noise=float(noise) ** 0.5)
    mean, variance, samples = likelihood.predictive(components)
    report = regression_report(mean, variance, y, components=samples, noise_variance=noise, level=0.8)
    low, high = likelihood.interval(0.8, mean, variance, samples)
    assert report.nll == pytest.approx(float(likelihood.nll(mean, y, variance=variance, samples=samples).mean()))
    assert report.crps == pytest.approx(float(metrics.gaussian_mixture_crps(samples, noise, y)))
    assert report.coverage == pytest.approx(float(metrics.interval_coverage(low, high, y)))
    assert report.width == pytest.approx(float(metrics.interval_width(low, high)))
    assert report.nll != pytest.approx(regression_report(mean, variance, y).nll, rel=1e-3)


@pytest.mark.parametrize("as_mixture", [False, True])
def test_regression_batches_equal_the_whole(mixture, as_mixture):
    components, noise, y = mixture
    mean, variance = components.mean(0), components.var(0, correction=0) + noise
    whole, batches, rest = RegressionMeter(), RegressionMeter(), RegressionMeter()

    def add(meter, part):
        extra = {"components": components[:, part], "noise_variance": noise} if as_mixture else {}
        meter.update(mean[part], variance[part], y[part], **extra)

    add(whole, slice(None))
    for start in range(0, 30, 10):
        add(batches, slice(start, start + 10))
    add(rest, slice(30, 40))
    copied = RegressionMeter()
    copied.load_state_dict(rest.state_dict())
    batches.merge(copied)
    assert batches.report().figures() == pytest.approx(whole.report().figures(), rel=1e-11)


def test_intervals_are_those_of_the_bootstrap(predictions, mixture):
    p, y = predictions
    uncertainty = -p.amax(-1)
    report = classification_report(p, y, uncertainty=uncertainty, bootstrap=40, level=0.8, seed=3)
    for name in ("nll", "ece", "aurc"):
        single = metrics.bootstrap_interval(getattr(metrics, name), p, y, replicates=40, level=0.8, seed=3)
        assert report.intervals[name] == pytest.approx([float(single.low), float(single.high)])
    assert report.intervals.keys() == report.figures().keys()
    assert f"[{report.intervals['ece'][0]:.4g}, {report.intervals['ece'][1]:.4g}]" in str(report)
    components, noise, z = mixture
    mean, variance = components.mean(0), components.var(0, correction=0) + noise
    found = regression_report(mean, variance, z, components=components, noise_variance=noise, bootstrap=20)
    single = metrics.bootstrap_interval(
        lambda c, t: metrics.gaussian_mixture_crps(c.movedim(1, 0), noise, t),
        components.movedim(0, 1),
        z,
        replicates=20,
    )
    assert found.intervals["crps"] == pytest.approx([float(single.low), float(single.high)])
    plain = regression_report(mean, variance, z, bootstrap=20)
    single = metrics.bootstrap_interval(metrics.gaussian_crps, mean, variance, z, replicates=20)
    assert plain.intervals["crps"] == pytest.approx([float(single.low), float(single.high)])


@pytest.mark.parametrize("shape", [(40,), (40, 3), (20, 2, 3)])
@pytest.mark.parametrize("mixture", [False, True])
def test_intervals_are_those_of_measuring_every_replicate_anew(shape, mixture):
    source = torch.Generator().manual_seed(0)
    y = torch.randn(shape, generator=source, dtype=torch.float64)
    components = 0.5 * torch.randn(5, *shape, generator=source, dtype=torch.float64)
    noise = 0.5 + torch.rand(shape, generator=source, dtype=torch.float64)
    mean, variance = components.mean(0), components.var(0, correction=0) + noise
    options = {"components": components, "noise_variance": noise} if mixture else {}
    found = regression_report(mean, variance, y, level=0.8, levels=19, bootstrap=20, seed=4, **options)

    def anew(f, v, t, *rest):
        more = {"components": rest[0].movedim(1, 0), "noise_variance": rest[1]} if rest else {}
        report = regression_report(f, v, t, level=0.8, levels=19, **more)
        return torch.tensor(list(report.figures().values()), dtype=torch.float64)

    extra = (components.movedim(0, 1), noise) if mixture else ()
    single = metrics.bootstrap_interval(anew, mean, variance, y, *extra, replicates=20, seed=4)
    for number, name in enumerate(found.figures()):
        assert found.intervals[name] == pytest.approx([float(single.low[number]), float(single.high[number])], abs=1e-9)


def test_illegal_input_raises(predictions):
    p, y = predictions
    meter = ClassificationMeter()
    meter.update(p, y)
    other = ClassificationMeter(5)
    x = torch.ones(4)
    for call, message in [
        (lambda: ClassificationMeter(0), "bins=0"),
        (lambda: ClassificationMeter().report(), "call update first"),
        (lambda: meter.update(p[:, :2].softmax(-1), y.clamp_max(1)), "have 2 classes, but those before 4"),
        (lambda: meter.merge(other), "a meter of 5 bins cannot be added to one of 15"),
        (lambda: other.load_state_dict(meter.state_dict()), "these sums have 15 bins"),
        (lambda: classification_report(p, y, bootstrap=1), "bootstrap=1"),
        (lambda: classification_report(p, y, level=0.0), "level=0.0"),
        (lambda: RegressionMeter(level=1.0), "level=1.0"),
        (lambda: RegressionMeter(levels=0), "levels=0"),
        (lambda: RegressionMeter().report(), "call update first"),
        (lambda: RegressionMeter().merge(RegressionMeter(level=0.5)), "level=0.5"),
        (lambda: RegressionMeter(levels=9).load_state_dict(RegressionMeter().state_dict()), "levels=99"),
        (lambda: regression_report(x, x, x, components=x[None]), "belong together"),
        (lambda: regression_report(x, x, x, bootstrap=-1), "bootstrap=-1"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
