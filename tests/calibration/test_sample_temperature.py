"""A temperature inside the average over weight samples is recovered, and equals another minimiser."""

import json
import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from vogn import metrics
from vogn.calibration import SampleTemperatureScaling, TemperatureScaling, from_dict
from vogn.errors import RecalibrationError


@pytest.fixture
def samples():
    """Logits of 6 weight samples ``(6, 4000, 3)`` and labels from the average of their probabilities."""
    source = torch.Generator().manual_seed(0)
    z = 1.5 * torch.randn(4000, 3, generator=source, dtype=torch.float64)
    z = z + torch.randn(6, 4000, 3, generator=source, dtype=torch.float64)
    return z, torch.multinomial(z.softmax(-1).mean(0), 1, generator=source).squeeze(-1)


@pytest.mark.parametrize("factor", [3.0, 0.3])
@pytest.mark.parametrize("form", ["logits", "probabilities", "label 1"])
def test_the_temperature_is_recovered(samples, factor, form):
    z, y = samples
    if form == "label 1":
        z = torch.stack([torch.zeros_like(z[..., 0]), z[..., 0]], -1)
        y = (torch.rand(4000, generator=torch.Generator().manual_seed(1)) < z.softmax(-1)[..., 1].mean(0)).long()
    wrong = factor * z
    given = {"logits": wrong + 5, "probabilities": wrong.softmax(-1), "label 1": wrong.softmax(-1)[..., 1]}[form]
    found = SampleTemperatureScaling(inputs="logits" if form == "logits" else "probabilities").fit(given, y)
    assert found.temperature == pytest.approx(factor, rel=0.1)
    expected = (wrong / found.temperature).softmax(-1).mean(0)
    torch.testing.assert_close(found(given), expected[:, 1] if form == "label 1" else expected, rtol=1e-6, atol=1e-8)


def test_the_temperature_equals_another_minimiser_and_is_not_the_one_of_the_average(samples):
    z, y = samples

    def loss(t):
        return float(-(3 * z / t).softmax(-1).mean(0).log()[torch.arange(4000), y].mean())

    best = minimize_scalar(loss, bracket=(1.0, 3.0, 9.0), tol=1e-10)
    found = SampleTemperatureScaling(inputs="logits").fit(3 * z, y)
    assert found.temperature == pytest.approx(best.x, rel=1e-4)
    assert float(metrics.nll(found(3 * z), y)) == pytest.approx(best.fun, rel=1e-10)
    outside = TemperatureScaling().fit((3 * z).softmax(-1).mean(0), y)
    assert abs(outside.temperature - found.temperature) > 0.3
    assert best.fun < float(metrics.nll(outside((3 * z).softmax(-1).mean(0)), y))  # the labels come from samples
    one = SampleTemperatureScaling(inputs="logits").fit(3 * z[:1], y)
    same = TemperatureScaling(inputs="logits").fit(3 * z[0], y)
    assert one.temperature == pytest.approx(same.temperature, rel=1e-4)


def test_shapes_files_and_errors(samples):
    z, y = samples
    found = SampleTemperatureScaling(inputs="logits").fit(z.view(6, 40, 100, 3), y.view(40, 100))
    assert torch.equal(found(z).view(40, 100, 3), found(z.view(6, 40, 100, 3)))
    assert torch.equal(from_dict(json.loads(json.dumps(found.to_dict())))(z), found(z))
    assert found(z.float()).dtype == torch.float32
    p = z.softmax(-1)
    right = p.mean(0).argmax(-1)
    sure = (50 * torch.nn.functional.one_hot(right, 3).double()).expand(6, -1, -1)
    with pytest.raises(RecalibrationError, match="sharper is always better"):
        SampleTemperatureScaling(inputs="logits").fit(sure, right)
    with pytest.raises(RecalibrationError, match="uniform predictions are better"):
        SampleTemperatureScaling(inputs="logits").fit(sure, (right + 1) % 3)
    with pytest.raises(RecalibrationError, match="all uniform"):
        SampleTemperatureScaling(inputs="logits").fit(0 * z, y)
    with pytest.raises(RecalibrationError, match="has not been fitted"):
        SampleTemperatureScaling()(p)
    for call, message in [
        (lambda: SampleTemperatureScaling(inputs="scores"), "inputs='scores'"),
        (lambda: SampleTemperatureScaling().fit(z, y), "not logits"),
        (lambda: SampleTemperatureScaling().fit(p, y[:5]), "targets have shape"),
        (lambda: SampleTemperatureScaling().fit(p, y + 3), "targets range from 3 to 5"),
        (lambda: found(z[..., :2]), r"\(S, N, ..., 3\) was fitted"),
        (lambda: found(z * math.nan), "NaN or plus infinity"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
