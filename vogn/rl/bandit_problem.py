"""Contextual bandits as tables: what every arm would have paid in every round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vogn.rl.randomness import derived_seed

WHEEL_MEANS = (1.2, 1.0, 50.0)
"""Mean rewards of the wheel: the safe arm, the other arms, and the arm that is right outside of the inner disc."""


@dataclass(frozen=True)
class BanditProblem:
    """Rounds of a contextual bandit. An agent sees the context of a round and the reward of the arm that it chose.

    Args:
        name: for reports.
        contexts: ``(T, d)``, finite.
        expected: ``(T, K)``, expected reward of every arm in every round, finite.
        rewards: ``(T, K)``, the rewards that would be paid, finite.

    Raises:
        ValueError: if the shapes do not fit, a table is empty, or a number is not finite.
    """

    name: str
    contexts: NDArray[np.float64]
    expected: NDArray[np.float64]
    rewards: NDArray[np.float64]

    def __post_init__(self) -> None:
        for field in ("contexts", "expected", "rewards"):
            table = np.asarray(getattr(self, field), dtype=float)
            object.__setattr__(self, field, table)
            if table.ndim != 2 or 0 in table.shape:
                raise ValueError(f"{self.name}: {field} must have shape (rounds, columns), got {table.shape}")
            if not np.isfinite(table).all():
                row = int(np.argwhere(~np.isfinite(table).all(axis=1))[0, 0])
                raise ValueError(f"{self.name}: {field} of round {row} are not finite; repair or drop that round")
        if self.expected.shape != self.rewards.shape or len(self.expected) != len(self.contexts):
            raise ValueError(
                f"{self.name}: contexts {self.contexts.shape}, expected {self.expected.shape} and rewards "
                f"{self.rewards.shape} must have the same rounds and arms"
            )

    @property
    def rounds(self) -> int:
        """``T``."""
        return len(self.contexts)

    @property
    def arms(self) -> int:
        """``K``."""
        return int(self.expected.shape[1])

    @property
    def features(self) -> int:
        """``d``."""
        return int(self.contexts.shape[1])

    def regret(self, arm: NDArray[np.int64]) -> NDArray[np.float64]:
        """Expected reward that was missed in the first ``len(arm)`` rounds, ``>= 0``, one number a round."""
        chosen = self.expected[np.arange(len(arm)), arm]
        return np.asarray(self.expected[: len(arm)].max(axis=1) - chosen)


def wheel_bandit(rounds: int = 2000, delta: float = 0.5, *, seed: int = 0) -> BanditProblem:
    """Five arms on the unit disc; exploration is needed because the large reward is rare.

    Contexts are uniform on the disc. Arm 0 pays 1.2 everywhere, the others 1.0; but outside of the radius ``delta`` one
    of arms 1 to 4, that of the quadrant, pays 50. All rewards have normal noise of standard deviation 0.01.

    Args:
        rounds: ``T >= 1``.
        delta: radius of the inner disc, in (0, 1): the share of rounds with a large reward is ``1 - delta^2``.
        seed: of contexts and noise, >= 0.

    Raises:
        ValueError: if a number is out of range.

    Source: Riquelme, Tucker, Snoek (2018), "Deep Bayesian Bandits Showdown", section 5.4.
    """
    _check_rounds(rounds)
    if not 0 < delta < 1:
        raise ValueError(f"delta={delta} must lie strictly between 0 and 1")
    generator = np.random.default_rng(derived_seed(seed, 1))
    angle = generator.uniform(-math.pi, math.pi, rounds)
    contexts = np.sqrt(generator.uniform(size=(rounds, 1))) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    safe, other, large = WHEEL_MEANS
    expected = np.full((rounds, 5), other)
    expected[:, 0] = safe
    outside = np.linalg.norm(contexts, axis=1) > delta
    quadrant = 1 + 2 * (contexts[:, 0] < 0) + (contexts[:, 1] < 0)
    expected[outside, quadrant[outside]] = large
    return BanditProblem(f"wheel-{delta:g}", contexts, expected, expected + generator.normal(0, 0.01, expected.shape))


def classification_bandit(
    x: ArrayLike, y: ArrayLike, rounds: int | None = None, *, seed: int = 0, name: str = "classification"
) -> BanditProblem:
    """A classification problem without labels: the arm is a guess, the reward is 1 if it is right and 0 if not.

    Args:
        x: ``(N, d)``, one row an example; columns are standardised, constant ones become zero.
        y: ``(N,)``, class labels of any kind; the sorted labels are the arms.
        rounds: ``T >= 1``; ``None`` is ``N``. Examples come in random order, and again when all have been shown.
        seed: of the order, >= 0.
        name: for reports.

    Raises:
        ValueError: for other shapes, NaN, or fewer than two classes.

    Source: the usual conversion, for example Riquelme, Tucker, Snoek (2018), section 5.3.
    """
    inputs, labels = np.asarray(x, dtype=float), np.asarray(y)
    if inputs.ndim != 2 or labels.shape != inputs.shape[:1] or not len(labels):
        raise ValueError(f"x must be (N, d) and y (N,) with N >= 1, got {inputs.shape} and {labels.shape}")
    if not np.isfinite(inputs).all():
        raise ValueError("x has values that are not finite; fill or drop them first")
    classes, index = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError("y has one class: there is nothing to choose between")
    count = len(labels) if rounds is None else rounds
    _check_rounds(count)
    spread = inputs.std(axis=0)
    inputs = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    generator = np.random.default_rng(derived_seed(seed, 2))
    passes = -(-count // len(labels))
    order = np.concatenate([generator.permutation(len(labels)) for _ in range(passes)])[:count]
    rewards = np.eye(len(classes))[index[order]]
    return BanditProblem(name, inputs[order], rewards, rewards)


def digits_bandit(rounds: int = 1500, *, seed: int = 0) -> BanditProblem:
    """Handwritten digits (8 x 8 pixels), ten arms; see :func:`classification_bandit`."""
    return _sklearn_bandit("digits", rounds, seed)


def breast_cancer_bandit(rounds: int = 1000, *, seed: int = 0) -> BanditProblem:
    """Thirty measurements of cell nuclei, two arms; see :func:`classification_bandit`."""
    return _sklearn_bandit("breast_cancer", rounds, seed)


def _sklearn_bandit(name: str, rounds: int, seed: int) -> BanditProblem:
    from sklearn import datasets

    load: Any = getattr(datasets, f"load_{name}")
    x, y = load(return_X_y=True)
    return classification_bandit(x, y, rounds, seed=seed, name=name.replace("_", "-"))


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be at least 1")
