"""From numbers to words."""

from __future__ import annotations

import pytest
import torch

from vogn.check.reference import Reference
from vogn.check.verdict import judge

FINE = {"mean_error": 0.1, "variance_ratio": 1.0, "correlation": 0.95, "coverage": {0.9: 0.9}}


def reference(**diagnostics):
    one = torch.ones(2, 1)
    sampled = {"r_hat": 1.0, "effective_samples": 400.0, "divergences": 0, "draws": 1000}
    return Reference("nuts", one, one, {}, **(sampled | diagnostics))


@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        ({}, "trust", None),
        ({"correlation": float("nan")}, "trust", None),
        ({"mean_error": 0.6}, "care", "its mean is off by 0.6 standard deviations"),
        ({"mean_error": 1.1}, "distrust", "its mean is off by 1.1"),
        ({"variance_ratio": 0.5}, "care", "too narrow, 0.5 times the variance"),
        ({"variance_ratio": 5.0}, "distrust", "too wide, 5 times the variance"),
        ({"variance_ratio": 0.0}, "distrust", "too narrow, 0 times"),
        ({"correlation": 0.7}, "care", "correlation 0.70"),
        ({"correlation": 0.3}, "distrust", "correlation 0.30"),
        ({"coverage": {0.9: 0.8}}, "care", "80 % of its samples are in the 90 % interval"),
        ({"coverage": {0.9: 0.6}}, "distrust", "60 % of its samples"),
    ],
)
def test_limits(change, word, reason):
    found = judge(reference(), **(FINE | change))
    assert found.word == word
    assert len(found.reasons) == (reason is not None)
    assert reason is None or reason in str(found)


@pytest.mark.parametrize(
    ("diagnostics", "reason"),
    [
        ({"r_hat": 1.2}, "R-hat 1.20 > 1.05"),
        ({"r_hat": float("nan")}, "R-hat nan"),
        ({"effective_samples": 20.0}, "effective sample size 20 < 50"),
        ({"divergences": 30}, "30 divergences in 1000 draws"),
    ],
)
def test_a_reference_that_has_not_converged_gives_no_verdict(diagnostics, reason):
    found = judge(reference(**diagnostics), **FINE)
    assert found.word == "unknown" and reason in str(found) and "vogn.check.Sampler" in str(found)
