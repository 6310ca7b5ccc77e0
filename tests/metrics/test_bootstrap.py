"""Bootstrap intervals against a plain loop, scipy, and the coverage that they promise."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap

from vogn import metrics
from vogn.metrics import bootstrap_interval


def test_replicates_by_a_loop(predictions):
    p, y = predictions
    found = bootstrap_interval(metrics.ece, p, y, replicates=20, level=0.8, seed=5, method="percentile")
    source = torch.Generator().manual_seed(5)
    expected = []
    for _ in range(20):
        drawn = torch.randint(200, (200,), generator=source).tolist()
        expected.append(float(metrics.ece(torch.stack([p[n] for n in drawn]), torch.stack([y[n] for n in drawn]))))
    assert found.replicates.tolist() == pytest.approx(expected, rel=1e-12)
    assert float(found.estimate) == float(metrics.ece(p, y))
    assert float(found.low) == pytest.approx(np.quantile(expected, 0.1))
    assert float(found.high) == pytest.approx(np.quantile(expected, 0.9))
    assert float(found.standard_error) == pytest.approx(np.std(expected, ddof=1))
    mirrored = bootstrap_interval(metrics.ece, p, y, replicates=20, level=0.8, seed=5)
    assert float(mirrored.low) == pytest.approx(2 * float(found.estimate) - float(found.high))
    assert float(mirrored.high) == pytest.approx(2 * float(found.estimate) - float(found.low))


@pytest.mark.parametrize("method", ["percentile", "basic"])
def test_intervals_equal_scipy(method):
    values = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp()
    found = bootstrap_interval(torch.mean, values, replicates=4000, level=0.9, method=method)
    options = {"n_resamples": 4000, "confidence_level": 0.9, "method": method}
    expected = bootstrap((values.numpy(),), np.mean, **options).confidence_interval
    # an end is the 5 % quantile of 4000 draws of deviation s: standard error about 0.033 s
    tolerance = 6 * 0.033 * float(found.standard_error)
    assert float(found.low) == pytest.approx(expected.low, abs=tolerance)
    assert float(found.high) == pytest.approx(expected.high, abs=tolerance)


def test_intervals_hold_the_truth_as_often_as_they_say():
    source = torch.Generator().manual_seed(1)
    hits = 0
    for trial in range(300):
        values = torch.randn(80, generator=source)
        found = bootstrap_interval(torch.mean, values, replicates=200, level=0.9, seed=trial)
        hits += bool(found.low <= 0 <= found.high)
    assert abs(hits / 300 - 0.9) < 4 * math.sqrt(0.9 * 0.1 / 300)


def test_mirrored_intervals_hold_calibration_errors_and_percentiles_do_not():
    source = torch.Generator().manual_seed(2)

    def make(count):
        z = 1.5 * torch.randn(count, 4, generator=source, dtype=torch.float64)
        return (2 * z).softmax(-1), torch.multinomial(z.softmax(-1), 1, generator=source).squeeze(-1)

    truth = float(metrics.classwise_ece(*make(500_000)))
    hits = {"basic": 0, "percentile": 0}
    for trial in range(50):
        p, y = make(500)
        for method in hits:
            found = bootstrap_interval(metrics.classwise_ece, p, y, replicates=100, method=method, seed=trial)
            hits[method] += bool(found.low <= truth <= found.high)
    assert hits["basic"] >= 36 and hits["percentile"] <= 20  # of 50, at 95 %; 40 and 11 with this seed


def test_paired_differences_are_narrower(predictions):
    p, y = predictions
    q = p.pow(0.9) / p.pow(0.9).sum(-1, keepdim=True)
    both = [bootstrap_interval(metrics.nll, r, y, replicates=100) for r in (p, q)]
    paired = bootstrap_interval(lambda a, b, t: metrics.nll(a, t) - metrics.nll(b, t), p, q, y, replicates=100)
    torch.testing.assert_close(paired.replicates, both[0].replicates - both[1].replicates)  # the same draws
    assert float(paired.low) > 0  # p is too sure, q a little less


def test_several_figures_at_once(predictions):
    p, y = predictions
    found = bootstrap_interval(lambda a, b: torch.stack([metrics.nll(a, b), metrics.ece(a, b)]), p, y, replicates=30)
    assert found.low.shape == found.high.shape == found.estimate.shape == (2,)
    single = bootstrap_interval(metrics.ece, p, y, replicates=30)
    torch.testing.assert_close(found.replicates[:, 1], single.replicates)


def test_illegal_input_raises():
    x = torch.ones(4)
    for arguments, options, message in [
        ((), {}, "nothing to resample"),
        ((x, x[:2]), {}, r"hold \[2, 4\] examples"),
        ((x[:0],), {}, r"hold \[0\] examples"),
        ((x,), {"level": 1.5}, "level=1.5"),
        ((x,), {"replicates": 1}, "replicates=1"),
        ((x,), {"method": "bca"}, "method='bca'"),
    ]:
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(torch.mean, *arguments, **options)
