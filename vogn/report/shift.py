"""What happens to predictions when images get worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vogn.data import CORRUPTIONS, SEVERITIES, DataError, corrupt
from vogn.metrics import ClassificationReport, classification_report
from vogn.predict import Predictive

LEVELS = (0, *SEVERITIES)


@dataclass(frozen=True)
class Shift:
    """How images are made worse.

    Args:
        value_range, mean, std: what the inputs are, see :func:`vogn.data.corrupt`.
        corruptions: names of the above's corruptions; all of them by default.
        examples: at most so many images are used, the same ones for everything, chosen at random, >= 1.
        seed: of that choice and of the noise.

    Raises:
        DataError: for an unknown corruption, none, or ``examples < 1``.
    """

    value_range: tuple[float, float] = (0.0, 1.0)
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    corruptions: Sequence[str] = tuple(sorted(CORRUPTIONS))
    examples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.corruptions if name not in CORRUPTIONS]
        if unknown or not self.corruptions:
            known = ", ".join(sorted(CORRUPTIONS))
            raise DataError(f"corruptions are {list(self.corruptions)}; give at least one of {known}")
        if self.examples < 1:
            raise DataError(f"examples={self.examples}; at least one image is needed")

    def worse(self, x: Tensor, corruption: str, severity: int) -> Tensor:
        """Those images at that severity."""
        return corrupt(
            x, corruption, severity, seed=self.seed, value_range=self.value_range, mean=self.mean, std=self.std
        )

    def chosen(self, count: int) -> Tensor:
        """Places of the images that are used."""
        if count <= self.examples:
            return torch.arange(count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.examples].sort().values

    @property
    def predictions(self) -> int:
        """How often every predictor is called."""
        return 1 + len(self.corruptions) * len(SEVERITIES)


@dataclass(frozen=True)
class ShiftFigures:
    """Figures of every predictor under every corruption.

    Args:
        count: number of images.
        reports: corruption to label to the report at severities 0 (as they are) to 5.
    """

    count: int
    reports: dict[str, dict[str, list[ClassificationReport]]]

    def curve(self, corruption: str, label: str, figure: str) -> list[float]:
        """A figure at severities 0 to 5."""
        return [float(getattr(report, figure)) for report in self.reports[corruption][label]]

    def average(self, label: str, figure: str) -> list[float]:
        """A figure at severities 0 to 5, the mean over the corruptions."""
        curves = [self.curve(corruption, label, figure) for corruption in self.reports]
        return [sum(values) / len(values) for values in zip(*curves, strict=True)]

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        plain = {
            corruption: {label: [asdict(report) for report in reports] for label, reports in by_label.items()}
            for corruption, by_label in self.reports.items()
        }
        return {"count": self.count, "severities": list(LEVELS), "corruptions": plain}


def measure_shift(
    predictors: Mapping[str, Callable[[Tensor], Predictive]],
    x: Tensor,
    targets: Tensor,
    shift: Shift,
    step: Callable[[str], None],
) -> ShiftFigures:
    """Run every predictor on images of every severity.

    Args:
        predictors: label to a function of images.
        x, targets: images ``(N, C, H, W)`` and labels.
        shift: how they are made worse.
        step: is told what is next, before every prediction.

    Raises:
        DataError: see :func:`vogn.data.corrupt`.
    """
    index = shift.chosen(len(x)).to(x.device)
    x, y = x[index], targets[index.to(targets.device)]

    def reports(images: Tensor, about: str) -> dict[str, ClassificationReport]:
        found = {}
        for label, predictor in predictors.items():
            step(f"{label}, {about}")
            mean = predictor(images).mean
            found[label] = classification_report(mean, y.to(mean.device))
        return found

    worst = {name: shift.worse(x, name, SEVERITIES[-1]) for name in shift.corruptions}  # complain before predicting
    clean = reports(x, "as they are")
    table: dict[str, dict[str, list[ClassificationReport]]] = {}
    for name in shift.corruptions:
        table[name] = {label: [report] for label, report in clean.items()}
        for severity in SEVERITIES:
            images = worst[name] if severity == SEVERITIES[-1] else shift.worse(x, name, severity)
            for label, report in reports(images, f"{name} {severity}").items():
                table[name][label].append(report)
    return ShiftFigures(len(y), table)
