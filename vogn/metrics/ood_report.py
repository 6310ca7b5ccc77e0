"""How well every score tells other inputs from those of the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from vogn.metrics.ood import aupr, auroc, fpr_at_recall


@dataclass(frozen=True)
class OODFigures:
    """Figures of one score; each is explained at the function of :mod:`vogn.metrics`.

    Args:
        auroc: 0.5 is guessing.
        aupr_outside, aupr_inside: average precision in finding inputs from outside, from inside.
        fpr95: share of inputs from outside accepted where 95 % of those from inside are.
    """

    auroc: float
    aupr_outside: float
    aupr_inside: float
    fpr95: float


@dataclass(frozen=True)
class OODReport:
    """Figures of every score.

    Args:
        inside, outside: number of inputs of each kind.
        scores: name of the score to its figures.
    """

    inside: int
    outside: int
    scores: dict[str, OODFigures]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(map(len, self.scores))
        lines = [f"{self.inside} inputs from inside, {self.outside} from outside"]
        lines += [f"  {'':{width}s}  AUROC  AUPR out  AUPR in  FPR95"]
        lines += [
            f"  {name:{width}s}  {f.auroc:5.3f}  {f.aupr_outside:8.3f}  {f.aupr_inside:7.3f}  {f.fpr95:5.3f}"
            for name, f in self.scores.items()
        ]
        return "\n".join(lines)


def ood_report(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor]) -> OODReport:
    """AUROC, AUPR and FPR95 of every score.

    Args:
        inside: name to scores of inputs like the training data, larger means farther (``vogn.ood_scores``).
        outside: the same names, for inputs of another kind.

    Raises:
        ValueError: for no scores, different names, different numbers of inputs, or scores that are not finite.

    Example:
        >>> import torch
        >>> from vogn.metrics import ood_report
        >>> inside, outside = -torch.tensor([0.9, 0.8, 0.7, 0.6]), -torch.tensor([0.65, 0.5, 0.4, 0.3])
        >>> ood_report({"max_probability": inside}, {"max_probability": outside}).scores["max_probability"].auroc
        0.9375
    """
    if not inside or inside.keys() != outside.keys():
        raise ValueError(
            f"scores are {sorted(inside)} inside but {sorted(outside)} outside; at least one, and the same, are needed"
        )
    sizes = [{values.numel() for values in scores.values()} for scores in (inside, outside)]
    if any(len(size) > 1 for size in sizes):
        raise ValueError(f"scores of one kind of inputs differ in number: {[sorted(size) for size in sizes]}")
    figures = {}
    for name, a in inside.items():
        b = outside[name]
        found = (auroc(a, b), aupr(a, b), aupr(a, b, positive="inside"), fpr_at_recall(a, b))
        figures[name] = OODFigures(*map(float, found))
    return OODReport(sizes[0].pop(), sizes[1].pop(), figures)
