"""BatchBALD: a batch of examples whose labels together tell most about the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.active.scores import bald, check_samples, label_entropy

CONFIGURATIONS = 10_000
"""Joint labels of the examples chosen so far that are held at most."""
SLACK = 3.0
"""Standard errors that a sampled gain may be too low by, where it decides who is looked at again."""
_HELD_NUMBERS = 1 << 22
"""Numbers of the predictive distributions given each joint label that are held at a time."""


@dataclass(frozen=True)
class JointSelection:
    """A batch, in the order of choice.

    Args:
        indices: ``(b,)``, int64.
        gains: ``(b,)``, what each label tells in addition to those before, in nats; their sum is the joint mutual
            information of all labels and the weights.
        exact: ``(b,)``, whether the gain is a sum over all joint labels, or else an average over sampled ones.
    """

    indices: Tensor
    gains: Tensor
    exact: Tensor


def batchbald(
    probabilities: Tensor, count: int, *, configurations: int = CONFIGURATIONS, seed: int = 0
) -> JointSelection:
    """The greedy batch for the joint mutual information ``H[y_1 ... y_b] - sum_i E H[y_i]`` of labels and weights.

    Examples that say the same are not chosen twice for it. The greedy batch has at least ``1 - 1/e`` of the information
    of the best one. The gain of an example given the chosen ones is ``sum_j P_j H[y | j] - E H[y]``, ``j`` running over
    the joint labels of the chosen ones with probability ``P_j``: over all of them while there are at most
    ``configurations``, then over as many that are drawn from their distribution, the same for all examples. A gain is
    never more than it was given fewer labels, so an example is looked at again only if its last gain (a sampled one
    plus :data:`SLACK` standard errors) is above the best one found. A gain costs ``J S C`` multiplications for ``J``
    joint labels. All gains together are at most ``log S``, what there is to know about which of the weight samples is
    the right one: take many more samples than ``exp`` of the information that a batch shall have.

    Args:
        probabilities: ``(S, N, C)``; float64 is best for long batches.
        count: examples to choose, ``1 <= count``; all if there are fewer.
        configurations: at least ``C``.
        seed: of the drawn joint labels.

    Raises:
        ValueError: for a number out of range or probabilities that are none.

    Source: Kirsch, van Amersfoort, Gal (2019), "BatchBALD: Efficient and Diverse Batch Acquisition for Deep Bayesian
    Active Learning", eqs. 8 to 14 and algorithm 1.
    """
    check_samples(probabilities, "probabilities")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    if configurations < probabilities.shape[-1]:
        raise ValueError(f"configurations={configurations} must be at least the number of classes")
    p = probabilities.double()
    conditional = label_entropy(p).mean(0)
    bounds = bald(p)
    joint = JointLabels(len(p), p, configurations, seed)
    chosen: list[int] = []
    gains: list[float] = []
    exact: list[bool] = []
    for number in range(min(count, p.shape[1])):
        if number == 0:
            best, gain = int(bounds.argmax()), float(bounds.max())
        else:
            best, gain = _best(p, conditional, bounds, joint)
        chosen.append(best)
        gains.append(max(gain, 0.0))
        exact.append(joint.complete)
        bounds[best] = -torch.inf
        if number + 1 < count:
            joint.add(p[:, best])
    return JointSelection(torch.tensor(chosen), torch.tensor(gains, dtype=torch.float64), torch.tensor(exact))


def _best(p: Tensor, conditional: Tensor, bounds: Tensor, joint: JointLabels) -> tuple[int, float]:
    """The example of the largest gain, and the gain; gains become the new ``bounds``."""
    order = bounds.argsort(descending=True, stable=True)
    order = order[bounds[order] > -torch.inf]
    chunk = max(1, _HELD_NUMBERS // (joint.count * p.shape[-1]))
    best, best_gain = int(order[0]), -torch.inf
    for part in order.split(min(chunk, 64)):
        if float(bounds[part[0]]) < best_gain:
            break
        entropy, error = joint.entropy_given(p[:, part])
        found = entropy - conditional[part]
        bounds[part] = torch.minimum(bounds[part], found + SLACK * error)
        value, place = found.max(0)
        if float(value) > best_gain:
            best, best_gain = int(part[place]), float(value)
    return best, best_gain


class JointLabels:
    """Joint labels of some examples with their probabilities under every weight sample.

    Args:
        samples: number of weight samples ``S``.
        like: tensor whose dtype and device are used.
        most: joint labels that are held at most.
        seed: of those that are drawn where there are more.
    """

    def __init__(self, samples: int, like: Tensor, most: int, seed: int) -> None:
        self._most = most
        self._generator = torch.Generator().manual_seed(seed)
        self._log = like.new_zeros(1, samples)
        self._weights = like.new_ones(1)
        self._parts: list[Tensor] = []
        self._sources: Tensor | None = None

    @property
    def complete(self) -> bool:
        """Whether these are all joint labels, none of them drawn."""
        return self._sources is None

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._log)

    def add(self, p: Tensor) -> None:
        """One more example with probabilities ``(S, C)``."""
        samples, classes = p.shape
        self._parts.append(p)
        if self.complete and self.count * classes <= self._most:
            joint = (self._log.unsqueeze(1) + p.T.log()).reshape(-1, samples)
            weights = joint.exp().mean(1)
            self._log, self._weights = joint[weights > 0], weights[weights > 0]
            return
        new: Tensor = p
        if self._sources is None:  # each joint label has a weight sample as its source; every one as often
            self._sources = torch.arange(self._most) % samples
            self._log = p.new_zeros(self._most, samples)
            self._weights = p.new_full((self._most,), 1.0 / self._most)
            for earlier in self._parts[:-1]:
                self._draw(earlier)
        self._draw(new)

    def _draw(self, p: Tensor) -> None:
        """A label of one more example for every drawn joint label, from that label's source."""
        assert self._sources is not None
        labels = torch.multinomial(p.cpu()[self._sources], 1, generator=self._generator).squeeze(1).to(p.device)
        self._log = self._log + p.T[labels].log()

    def entropy_given(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """``H[y | joint label]``, averaged over the joint labels, of examples with ``p`` ``(S, n, C)``.

        Returns:
            The average and its standard error, zero if the joint labels are all there are; both ``(n,)``.
        """
        share = self._log.softmax(1)  # of the weight samples, given the joint label
        each = label_entropy((share @ p.flatten(1)).view(-1, *p.shape[1:]))
        mean = self._weights @ each
        if self.complete:
            return mean, torch.zeros_like(mean)
        return mean, (self._weights @ (each - mean).square() / self.count).sqrt()
