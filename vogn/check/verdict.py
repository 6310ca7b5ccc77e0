"""From numbers to words: may this posterior be trusted?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vogn.check.reference import Reference

R_HAT = 1.05
"""Largest R-hat of a prediction at which a sampled reference counts as converged."""
SAMPLES = 50
"""Smallest effective sample size of a prediction."""
DIVERGENT = 0.01
"""Largest share of divergent transitions."""
GOOD = {"mean_error": 0.5, "variance_ratio": 1.6, "correlation": 0.8, "coverage": 0.08}
"""Limits for trust: error of the mean in standard deviations, factor of the variance either way, correlation of
standard deviations, deviation of the 90 % interval's coverage."""
FAIR = {"mean_error": 1.0, "variance_ratio": 4.0, "correlation": 0.5, "coverage": 0.25}
"""Limits for trust with care."""


@dataclass(frozen=True)
class Verdict:
    """A word and its reasons.

    Args:
        word: ``"trust"``, ``"care"``, ``"distrust"``, or ``"unknown"`` if the reference itself has not converged.
        reasons: what is wrong, in words; empty with trust.
    """

    word: Literal["trust", "care", "distrust", "unknown"]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        """The verdict as one sentence."""
        heads = {
            "trust": "Trust it here: means and uncertainties are those of the reference.",
            "care": "Trust it with care",
            "distrust": "Do not trust its uncertainties",
            "unknown": "No verdict, the reference has not converged",
        }
        head = heads[self.word]
        return head if not self.reasons else f"{head}: {'; '.join(self.reasons)}."


def judge(
    reference: Reference,
    *,
    mean_error: float,
    variance_ratio: float,
    correlation: float,
    coverage: Mapping[float, float],
) -> Verdict:
    """The verdict by :data:`GOOD` and :data:`FAIR`; a correlation that is not defined (NaN) is not judged.

    Args:
        reference: with its diagnostics.
        mean_error, variance_ratio, correlation, coverage: see :class:`vogn.check.PosteriorCheck`; the correlation is
            that of standard deviations.
    """
    doubts = _doubts(reference)
    if doubts:
        return Verdict("unknown", doubts)
    factor = max(variance_ratio, 1.0 / variance_ratio) if variance_ratio > 0 else float("inf")
    inside = coverage[0.9]
    narrow = "narrow" if variance_ratio < 1 else "wide"
    findings = {
        "mean_error": (mean_error, f"its mean is off by {mean_error:.2g} standard deviations"),
        "variance_ratio": (factor, f"it is too {narrow}, {variance_ratio:.2g} times the variance"),
        "correlation": (
            -correlation,
            f"its standard deviations hardly say where the reference's are large (correlation {correlation:.2f})",
        ),
        "coverage": (abs(inside - 0.9), f"{100 * inside:.0f} % of its samples are in the 90 % interval"),
    }

    def beyond(limits: Mapping[str, float]) -> tuple[str, ...]:
        bounds = dict(limits) | {"correlation": -limits["correlation"]}
        return tuple(text for name, (amount, text) in findings.items() if amount > bounds[name])

    if not beyond(GOOD):
        return Verdict("trust", ())
    return Verdict("distrust" if beyond(FAIR) else "care", beyond(GOOD))


def _doubts(reference: Reference) -> tuple[str, ...]:
    """Why a sampled reference is none; the remedy is longer chains."""
    if reference.name != "nuts":
        return ()
    assert reference.r_hat is not None and reference.effective_samples is not None
    assert reference.divergences is not None and reference.draws is not None
    found = []
    if not reference.r_hat <= R_HAT:
        found.append(f"R-hat {reference.r_hat:.2f} > {R_HAT}")
    if not reference.effective_samples >= SAMPLES:
        found.append(f"effective sample size {reference.effective_samples:.0f} < {SAMPLES}")
    if reference.divergences > DIVERGENT * reference.draws:
        found.append(f"{reference.divergences} divergences in {reference.draws} draws")
    if found:
        found.append("raise warmup, draws or target_accept of sampler=vogn.check.Sampler(...)")
    return tuple(found)
