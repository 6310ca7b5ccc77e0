"""Every predictor on the same examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.metrics import (
    ClassificationReport,
    OODReport,
    RegressionReport,
    accuracy,
    aurc,
    bootstrap_interval,
    brier,
    classification_report,
    debiased_ece,
    nll,
    ood_report,
    regression_report,
)
from vogn.predict import Predictive, ood_scores
from vogn.report.shift import Shift, ShiftFigures, measure_shift

Predictor = Callable[[Tensor], Predictive]
"""From inputs to predictions."""

_RESAMPLED = {"accuracy": accuracy, "nll": nll, "brier": brier, "debiased_ece": debiased_ece, "aurc": aurc}
_NOT_RESAMPLED = ("quantile_calibration_error",)
_CONSTANT = 1e-6
"""Scores that vary by no more than this tell nothing apart: the mutual information of a single network. Of real
targets: relative to the variance of an observation."""
_REAL_SCORES = ("variance",)
"""The scores of real targets: with one noise for all, the others order inputs as the variance over the weights does."""


@dataclass(frozen=True)
class Measured:
    """One predictor on the examples.

    Args:
        label: its name.
        predictive: its predictions.
        report: their figures, with bootstrap intervals of those for which resampling examples is right: not of the
            plain calibration errors, which it makes larger.
    """

    label: str
    predictive: Predictive
    report: ClassificationReport | RegressionReport


@dataclass(frozen=True)
class Outside:
    """Inputs of another kind.

    Args:
        name: what they are.
        count: how many.
        reports: label of a predictor to how well its scores find them; scores that do not vary are left out. For real
            targets there is one, the variance over the weights.
        scores: label to score to its values for the examples and for these inputs, ``(N,)`` and ``(M,)``.
    """

    name: str
    count: int
    reports: dict[str, OODReport]
    scores: dict[str, dict[str, tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Measurements:
    """What :func:`measure` found.

    Args:
        count: number of examples.
        real: whether targets are real numbers; else labels.
        targets: of the examples.
        rows: one for each predictor, in the order that they were given.
        reference: label of the one that the others are compared with.
        differences: label to its mean NLL minus that of the reference on the same examples, and the ends of the
            interval at 95 %; empty without ``bootstrap``.
        outside: inputs of other kinds, one entry for each.
        shift: figures under corruptions, or ``None``.
        x: the inputs.
    """

    count: int
    real: bool
    targets: Tensor
    rows: tuple[Measured, ...]
    reference: str
    differences: dict[str, tuple[float, float, float]]
    outside: tuple[Outside, ...]
    shift: ShiftFigures | None
    x: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "count": self.count,
            "rows": {row.label: row.report.to_dict() for row in self.rows},
            "reference": self.reference,
            "nll_minus_reference": {label: list(values) for label, values in self.differences.items()},
            "outside": {
                each.name: {label: report.to_dict() for label, report in each.reports.items()} for each in self.outside
            },
            "shift": None if self.shift is None else self.shift.to_dict(),
        }


def measure(
    predictors: Mapping[str, Predictor],
    x: Tensor,
    targets: Tensor,
    *,
    outside: Mapping[str, Tensor] | None = None,
    shift: Shift | None = None,
    bootstrap: int = 1000,
    level: float = 0.9,
    reference: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Measurements:
    """Measure predictors side by side.

    Args:
        predictors: label to a function from inputs to a :class:`vogn.Predictive`, all for the same kind of targets.
        x: inputs, ``(N, ...)``.
        targets: their labels or real targets, in the form that the likelihood expects.
        outside: name to inputs of another kind, ``(M, ...)``: how well do scores tell them from ``x``?
        shift: how to make the images ``x`` worse; ``None`` for not at all. Labels only.
        bootstrap: replicates of the intervals, see :func:`vogn.metrics.bootstrap_interval`; 0 for none.
        level: probability of predicted intervals of real targets, in (0, 1).
        reference: label with which the others are compared; ``None`` for the first.
        seed: of the bootstrap.
        progress: called before every prediction and every bootstrap with the number of steps done, of all steps, and
            what is next.

    Raises:
        ValueError: for no predictors, an unknown reference, real and class targets mixed, a shift of real targets, or
            what the metrics refuse (numbers of examples that differ, labels out of range, NaN).
        DataError: see :func:`vogn.data.corrupt`.

    Example:
        >>> import torch, vogn
        >>> from vogn import report
        >>> net = torch.nn.Linear(2, 3)
        >>> point = vogn.Point(net, likelihood=vogn.likelihoods.Categorical())
        >>> x, y = torch.randn(30, 2), torch.arange(30) % 3
        >>> found = report.measure({"a line": lambda x: vogn.predict(net, point, x)}, x, y, bootstrap=0)
        >>> found.rows[0].report.count
        30
    """
    if not predictors:
        raise ValueError("there are no predictors to measure; give at least one, by label")
    reference = next(iter(predictors)) if reference is None else reference
    if reference not in predictors:
        raise ValueError(f"reference={reference!r} is none of the predictors {list(predictors)}")
    others = outside or {}
    each = 1 + bool(bootstrap) + len(others) + (0 if shift is None else shift.predictions)
    step = _counting(len(predictors) * each, progress)
    found = {}
    for label, predictor in predictors.items():
        step(label)
        found[label] = predictor(x)
    kinds = {predictive.likelihood.confidence(predictive.mean) is None for predictive in found.values()}
    if len(kinds) > 1:
        raise ValueError("some predictors are of real targets and some of labels; measure each kind by itself")
    real = kinds.pop()
    if real and shift is not None:
        raise ValueError("a shift is measured for predictions of labels; leave shift= out for real targets")
    rows = []
    for label, predictive in found.items():
        if bootstrap:
            step(f"{label}, intervals")
        y = targets.to(predictive.mean.device)
        measured = _real(predictive, y, bootstrap, level, seed) if real else _labels(predictive, y, bootstrap, seed)
        rows.append(Measured(label, predictive, measured))
    return Measurements(
        count=len(targets),
        real=real,
        targets=targets,
        rows=tuple(rows),
        reference=reference,
        differences=_differences(found, targets, reference, bootstrap, seed),
        outside=tuple(_outside(name, strange, predictors, found, step, real) for name, strange in others.items()),
        shift=None if shift is None else measure_shift(predictors, x, targets, shift, step),
        x=x,
    )


def _counting(total: int, progress: Callable[[int, int, str], None] | None) -> Callable[[str], None]:
    done = 0

    def step(about: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, about)
        done += 1

    return step


def _labels(predictive: Predictive, targets: Tensor, bootstrap: int, seed: int) -> ClassificationReport:
    report = classification_report(predictive.mean, targets)
    if not bootstrap:
        return report

    def values(p: Tensor, y: Tensor) -> Tensor:
        return torch.stack([metric(p, y).double() for metric in _RESAMPLED.values()])

    found = bootstrap_interval(values, predictive.mean, targets, replicates=bootstrap, seed=seed)
    ends = zip(_RESAMPLED, found.low.tolist(), found.high.tolist(), strict=True)
    return ClassificationReport(**{**report.to_dict(), "intervals": {name: [low, high] for name, low, high in ends}})


def _real(predictive: Predictive, targets: Tensor, bootstrap: int, level: float, seed: int) -> RegressionReport:
    report = regression_report(
        predictive.mean,
        predictive.variance,
        targets,
        components=predictive.samples,
        noise_variance=None if predictive.samples is None else predictive.aleatoric,
        level=level,
        bootstrap=bootstrap,
        seed=seed,
    )
    kept = {name: ends for name, ends in report.intervals.items() if name not in _NOT_RESAMPLED}
    return RegressionReport(**{**report.to_dict(), "intervals": kept})


def _differences(
    found: Mapping[str, Predictive], targets: Tensor, reference: str, bootstrap: int, seed: int
) -> dict[str, tuple[float, float, float]]:
    """Paired differences of the mean NLL from that of the reference."""
    if not bootstrap:
        return {}

    def losses(label: str) -> Tensor:
        return found[label].nll(targets).double().cpu().reshape(len(targets), -1).mean(1)

    base, result = losses(reference), {}
    for label in found:
        if label != reference:
            mean = bootstrap_interval(torch.mean, losses(label) - base, replicates=bootstrap, seed=seed)
            result[label] = (float(mean.estimate), float(mean.low), float(mean.high))
    return result


def _outside(
    name: str,
    strange: Tensor,
    predictors: Mapping[str, Predictor],
    found: Mapping[str, Predictive],
    step: Callable[[str], None],
    real: bool,
) -> Outside:
    reports, scores = {}, {}
    for label, predictor in predictors.items():
        step(f"{label}, {name}")
        inside, outside = ood_scores(found[label]), ood_scores(predictor(strange))
        wanted, unit = (_REAL_SCORES, float(found[label].total.mean())) if real else (tuple(inside), 1.0)
        pairs = {key: (inside[key].cpu(), outside[key].cpu()) for key in wanted if key in outside}
        pairs = {key: pair for key, pair in pairs.items() if _varies(*pair, unit)}
        if pairs:
            scores[label] = pairs
            reports[label] = ood_report(
                {key: pair[0] for key, pair in pairs.items()}, {key: pair[1] for key, pair in pairs.items()}
            )
    return Outside(name, len(strange), reports, scores)


def _varies(inside: Tensor, outside: Tensor, unit: float) -> bool:
    every = torch.cat([inside.reshape(-1), outside.reshape(-1)])
    return not float(every.max() - every.min()) <= _CONSTANT * unit
