"""Sets of classes that hold the true one as often as they promise."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from vogn.calibration.conformal_quantile import conformal_quantile
from vogn.calibration.fitted import Fitted
from vogn.metrics.inputs import check_level, check_normalised, class_rows, probability_values


@final
class ConformalSets(Fitted):
    """Split conformal prediction sets: they hold the label with probability ``level``, whatever the model.

    It holds on average over held-out and new examples that are exchangeable, for any number of them; not for each kind
    of input, and not where the data have changed.

    Args:
        level: probability of holding the label, in (0, 1).
        score: ``"lac"``: all classes whose probability is above one threshold; the smallest sets on average, but they
            miss more where inputs are hard. ``"aps"``: classes by falling probability up to a threshold on their sum;
            larger sets, which follow the difficulty.
        randomised: ``"aps"`` only: whether the last class enters by chance, which makes the coverage exact. Without,
            sets are larger and cover more.
        allow_empty: whether a set may be empty. Otherwise it holds the predicted class at least, and covers more.
        seed: of the randomised sets: they are a function of it and of the place of an example in its call.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch
        >>> from vogn.calibration import ConformalSets
        >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.4, 0.35, 0.25], [0.9, 0.1, 0.0]])
        >>> sets = ConformalSets(level=0.7, score="lac").fit(p, torch.tensor([0, 1, 0, 0]))
        >>> sets(torch.tensor([[0.45, 0.45, 0.1]]))
        tensor([[ True,  True, False]])

    Source: Sadinle, Lei, Wasserman 2019, "Least ambiguous set-valued classifiers with bounded error levels" (lac);
    Romano, Sesia, Candès 2020, "Classification with valid and adaptive coverage" (aps).
    """

    kind: ClassVar[str] = "conformal_sets"
    OPTIONS: ClassVar[tuple[str, ...]] = ("level", "score", "randomised", "allow_empty", "seed")

    def __init__(
        self,
        level: float = 0.9,
        *,
        score: Literal["lac", "aps"] = "aps",
        randomised: bool = True,
        allow_empty: bool = False,
        seed: int = 0,
    ) -> None:
        check_level(level)
        if score not in ("lac", "aps"):
            raise ValueError(f"score={score!r}; allowed are 'lac' and 'aps'")
        self.level, self.score, self.randomised = level, score, randomised
        self.allow_empty, self.seed = allow_empty, seed

    @property
    def threshold(self) -> float:
        """Largest score of a class in a set: ``1 - p`` for ``"lac"``, a sum of probabilities for ``"aps"``."""
        return float(self.numbers["threshold"])

    def fit(self, probabilities: Tensor, targets: Tensor) -> ConformalSets:
        """Find the threshold on predictions of examples that the model was not trained on.

        Args:
            probabilities: ``(N, ..., C)``; the rows must be exchangeable with those to come.
            targets: labels ``(N, ...)``.

        Returns:
            Itself.

        Raises:
            ValueError: see :func:`vogn.metrics.accuracy`.

        Warns:
            RecalibrationWarning: for so few examples that every set must hold all classes.
        """
        if probabilities.shape == targets.shape:
            raise ValueError("sets need a probability for every class: give torch.stack([1 - p, p], -1)")
        p, y = class_rows(probabilities, targets)
        scores = self._scores(p, stream=0).gather(-1, y.unsqueeze(-1)).squeeze(-1)
        classes = torch.tensor(float(p.shape[-1]), dtype=torch.float64)
        self._numbers = {"threshold": conformal_quantile(scores, self.level).cpu(), "classes": classes}
        return self

    def __call__(self, probabilities: Tensor) -> Tensor:
        """Which classes are in the set of each example.

        Args:
            probabilities: ``(N, ..., C)``.

        Returns:
            Booleans of the same shape.

        Raises:
            ValueError: for another number of classes, values that are no probabilities, or an empty batch.
            RecalibrationError: before :meth:`fit`.
        """
        classes = int(self.numbers["classes"])
        if probabilities.ndim < 2 or probabilities.shape[-1] != classes:
            raise ValueError(f"probabilities have shape {tuple(probabilities.shape)}; (N, ..., {classes}) was fitted")
        p = probability_values(probabilities).reshape(-1, classes)
        check_normalised(p, probabilities.dtype)
        sets = self._scores(p, stream=1) <= self.threshold
        if not self.allow_empty:
            sets = sets.scatter(-1, p.argmax(-1, keepdim=True), True)
        return sets.reshape(probabilities.shape)

    def _scores(self, p: Tensor, *, stream: int) -> Tensor:
        """How little each class of ``(M, C)`` conforms, in float64."""
        p = p.double()
        if self.score == "lac":
            return 1 - p
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        share = torch.ones(len(p), 1, dtype=p.dtype, device=p.device)
        if self.randomised:
            generator = torch.Generator().manual_seed(2 * self.seed + stream)
            share = torch.rand(len(p), 1, generator=generator, dtype=p.dtype).to(p.device)
        scores = ordered.cumsum(-1) - ordered + share * ordered
        return torch.empty_like(scores).scatter_(-1, order, scores)


def set_coverage(sets: Tensor, targets: Tensor) -> Tensor:
    """Share of sets that hold the label, in [0, 1].

    Args:
        sets: booleans ``(N, ..., C)``.
        targets: labels ``(N, ...)``.

    Raises:
        ValueError: for wrong shapes or labels, or an empty batch.
    """
    if sets.dtype != torch.bool or sets.numel() == 0 or sets.shape[:-1] != targets.shape:
        raise ValueError(
            f"sets are {sets.dtype} {tuple(sets.shape)} and targets {tuple(targets.shape)}; booleans (N, ..., C) and "
            "labels (N, ...) are needed"
        )
    if bool(((targets < 0) | (targets >= sets.shape[-1])).any()):
        raise ValueError(f"targets range from {int(targets.min())} to {int(targets.max())}; {sets.shape[-1]} classes")
    return sets.gather(-1, targets.long().unsqueeze(-1)).float().mean()


def set_size(sets: Tensor) -> Tensor:
    """Mean number of classes in a set.

    Args:
        sets: booleans ``(N, ..., C)``.

    Raises:
        ValueError: for something else, or an empty batch.
    """
    if sets.dtype != torch.bool or sets.numel() == 0:
        raise ValueError(f"sets are {sets.dtype} {tuple(sets.shape)}; booleans (N, ..., C) are needed")
    return sets.sum(-1).float().mean()
