"""Every figure about class probabilities, in one call or batch by batch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vogn.metrics.binning import BinSums, check_bins, class_sums, top_label_sums
from vogn.metrics.bootstrap import bootstrap_interval
from vogn.metrics.brier_decomposition import BrierDecomposition
from vogn.metrics.calibration_error import adaptive_ece
from vogn.metrics.classification import accuracy, brier, nll
from vogn.metrics.inputs import check_level, class_rows
from vogn.metrics.reliability import Reliability
from vogn.metrics.report_format import check_replicates, device_free, figures_as_text, plain_intervals
from vogn.metrics.selective import aurc

_NAMES = ("count", "forecast", "outcome", "squared", "product")


@dataclass(frozen=True)
class ClassificationReport:
    """Figures about class probabilities; each is explained at the function of its name in :mod:`vogn.metrics`.

    Args:
        count: number of predictions.
        classes: number of classes.
        bins: of the calibration errors and of the Brier decomposition.
        accuracy, confidence: share of correct predictions; mean probability of the predicted class.
        nll: in nats.
        brier, brier_reliability, brier_resolution, brier_uncertainty, brier_within_bin: the score and its parts.
        ece, classwise_ece, debiased_ece: calibration errors in equal-width bins.
        adaptive_ece: in equal-mass bins; ``None`` if the predictions came batch by batch.
        aurc: ``None`` likewise.
        intervals: name to ``[low, high]``; empty unless they were asked for.
    """

    count: int
    classes: int
    bins: int
    accuracy: float
    confidence: float
    nll: float
    brier: float
    brier_reliability: float
    brier_resolution: float
    brier_uncertainty: float
    brier_within_bin: float
    ece: float
    classwise_ece: float
    debiased_ece: float
    adaptive_ece: float | None = None
    aurc: float | None = None
    intervals: dict[str, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The figures that there are, by name, without counts and intervals."""
        hidden = ("count", "classes", "bins", "intervals")
        return {name: value for name, value in asdict(self).items() if name not in hidden and value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        title = f"{self.count} predictions of {self.classes} classes, {self.bins} bins"
        return figures_as_text(title, self.figures(), self.intervals)


class ClassificationMeter:
    """The figures batch by batch, in memory for ``classes x bins`` sums; equal to those of all batches at once.

    Sums are kept in float64 on the CPU. Equal-mass bins and the risk-coverage curve need all predictions in order, so
    ``adaptive_ece`` and ``aurc`` are left out.

    Args:
        bins: number of equal-width bins, >= 1.

    Raises:
        ValueError: if ``bins < 1``.

    Example:
        >>> import torch
        >>> from vogn.metrics import ClassificationMeter
        >>> meter = ClassificationMeter()
        >>> for batch in range(3):
        ...     meter.update(torch.full((4, 2), 0.5), torch.tensor([0, 1, 0, 1]))
        >>> report = meter.report()
        >>> report.count, report.brier, report.ece
        (12, 0.5, 0.0)
    """

    def __init__(self, bins: int = 15) -> None:
        check_bins(bins)
        self.bins = bins
        self._totals = torch.zeros(4, dtype=torch.float64)  # count, correct, nll, brier
        self._top: BinSums | None = None
        self._classes: BinSums | None = None
        self._halved = False

    def update(self, probabilities: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            probabilities, targets: see :func:`vogn.metrics.accuracy`; always of one number of classes and one form.

        Raises:
            ValueError: see :func:`vogn.metrics.accuracy`; for another number of classes or form than before.
        """
        p, y = class_rows(probabilities, targets)
        halved = probabilities.shape == targets.shape
        scores = (metric(probabilities, targets) for metric in (accuracy, nll, brier))
        totals = torch.stack([torch.ones((), dtype=torch.float64), *map(device_free, scores)]) * len(y)
        top = BinSums(*map(device_free, top_label_sums(p, y, self.bins).tensors()))
        classes = BinSums(*map(device_free, class_sums(p, y, self.bins).tensors()))
        self._add(totals, top, classes, halved)

    def merge(self, other: ClassificationMeter) -> None:
        """Add what another meter has seen, for example on another process.

        Raises:
            ValueError: for another number of bins or classes, or another form of the probabilities.
        """
        if other.bins != self.bins:
            raise ValueError(f"a meter of {other.bins} bins cannot be added to one of {self.bins}")
        if other._top is not None and other._classes is not None:
            self._add(other._totals, other._top, other._classes, other._halved)

    def _add(self, totals: Tensor, top: BinSums, classes: BinSums, halved: bool) -> None:
        if self._top is None or self._classes is None:
            self._totals, self._top, self._classes, self._halved = totals.clone(), top, classes, halved
            return
        if classes.count.shape != self._classes.count.shape or halved != self._halved:
            raise ValueError(
                f"these predictions have {len(classes.count)} classes{', as 0/1 labels' if halved else ''}, but those "
                f"before {len(self._classes.count)}{', as 0/1 labels' if self._halved else ''}; use one meter for each"
            )
        self._totals, self._top, self._classes = self._totals + totals, self._top + top, self._classes + classes

    def _sums(self) -> tuple[BinSums, BinSums]:
        if self._top is None or self._classes is None:
            raise ValueError("the meter has seen no predictions; call update first")
        return self._top, self._classes

    def report(self) -> ClassificationReport:
        """Figures of everything so far.

        Raises:
            ValueError: if there was no update.
        """
        top, classes = self._sums()
        count, *scores = self._totals.tolist()
        correct, surprise, brier_sum = (value / count for value in scores)
        parts = BrierDecomposition.of_sums(classes, halved=self._halved, dtype=torch.float64)
        return ClassificationReport(
            count=round(count),
            classes=len(classes.count),
            bins=self.bins,
            accuracy=correct,
            confidence=float(top.forecast.sum()) / count,
            nll=surprise,
            brier=brier_sum,
            brier_reliability=float(parts.reliability),
            brier_resolution=float(parts.resolution),
            brier_uncertainty=float(parts.uncertainty),
            brier_within_bin=float(parts.within_bin),
            ece=float(top.absolute_gap()),
            classwise_ece=float(classes.absolute_gap().mean()),
            debiased_ece=float(top.squared_gap(debiased=True).clamp_min(0).sqrt()),
        )

    def reliability(self) -> Reliability:
        """Points of a reliability diagram of everything so far, float64, on the CPU.

        Raises:
            ValueError: if there was no update.
        """
        top, _ = self._sums()
        edges = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        return Reliability(edges, top.forecast / top.count, top.outcome / top.count, top.count.long())

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint or another process; empty before the first update."""
        if self._top is None or self._classes is None:
            return {}
        state = {"totals": self._totals, "halved": torch.tensor(self._halved)}
        for part, sums in (("top", self._top), ("classes", self._classes)):
            state |= {f"{part}.{name}": value for name, value in zip(_NAMES, sums.tensors(), strict=True)}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace everything by the sums of :meth:`state_dict`.

        Raises:
            ValueError: if they have another number of bins.
        """
        if not state:
            self._totals, self._top, self._classes, self._halved = torch.zeros_like(self._totals), None, None, False
            return
        top, classes = (BinSums(*(state[f"{part}.{name}"].clone() for name in _NAMES)) for part in ("top", "classes"))
        if top.count.shape[-1] != self.bins:
            raise ValueError(f"these sums have {top.count.shape[-1]} bins, this meter has {self.bins}")
        self._totals, self._top, self._classes = state["totals"].clone(), top, classes
        self._halved = bool(state["halved"])


def classification_report(
    probabilities: Tensor,
    targets: Tensor,
    *,
    bins: int = 15,
    uncertainty: Tensor | None = None,
    bootstrap: int = 0,
    level: float = 0.95,
    seed: int = 0,
) -> ClassificationReport:
    """Every figure about class probabilities.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        bins: of all calibration errors, >= 1.
        uncertainty: what ``aurc`` ranks by; see :func:`vogn.metrics.risk_coverage`.
        bootstrap: number of replicates for an interval of every figure (the basic one of
            :func:`vogn.metrics.bootstrap_interval`); 0 for none.
        level: of the intervals.
        seed: of the intervals.

    Raises:
        ValueError: see :func:`vogn.metrics.risk_coverage` and :func:`vogn.metrics.bootstrap_interval`.

    Example:
        >>> import torch
        >>> from vogn.metrics import classification_report
        >>> report = classification_report(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
        >>> report.accuracy, round(report.brier, 3)
        (0.5, 0.37)
    """
    check_replicates(bootstrap)
    check_level(level)
    report = _report(probabilities, targets, uncertainty, bins)
    if not bootstrap:
        return report
    names = list(report.figures())
    scores = () if uncertainty is None else (uncertainty.reshape(targets.shape),)

    def values(p: Tensor, y: Tensor, *u: Tensor) -> Tensor:
        figures = _report(p, y, u[0] if u else None, bins).figures()
        return torch.tensor([figures[name] for name in names], dtype=torch.float64)

    found = bootstrap_interval(values, probabilities, targets, *scores, level=level, replicates=bootstrap, seed=seed)
    return ClassificationReport(**{**asdict(report), "intervals": plain_intervals(names, found)})


def _report(probabilities: Tensor, targets: Tensor, uncertainty: Tensor | None, bins: int) -> ClassificationReport:
    meter = ClassificationMeter(bins)
    meter.update(probabilities, targets)
    in_order = {
        "adaptive_ece": float(adaptive_ece(probabilities, targets, bins)),
        "aurc": float(aurc(probabilities, targets, uncertainty)),
    }
    return ClassificationReport(**{**asdict(meter.report()), **in_order})
