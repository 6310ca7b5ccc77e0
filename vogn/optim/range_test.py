"""A learning rate from a short run in which the rate rises at every step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from vogn.errors import RangeTestError
from vogn.optim.base import NaturalGradient
from vogn.optim.copied_runs import Watch, require_alone, run_ends, trained
from vogn.optim.methods import sets_groups
from vogn.optim.range_choice import ERRORS, STRIDE, better, choose, climb, mean_loss, plain_loss, smoothed

STEPS = 100
"""Steps of the sweep and of every short run, unless asked otherwise."""
FEWEST_STEPS = 20
"""A test needs at least so many steps."""
FAR, FIRST = 1e-2, 1e-1
"""Shares of the largest rate: a sweep that chooses less than the first may have seen a fall of the noise alone."""
CAUTION = math.sqrt(STRIDE)
"""A rate that is larger than the sweep's choice has only won short runs, and long ones stand less: half a step back."""


@dataclass(frozen=True)
class RangeTest:
    """What a range test has found.

    Args:
        rates: learning rate of every step, of the group with the largest; rising.
        losses: loss of every step, at the weights that the step saw (sampled ones in variational mode).
        smoothed: centred averages of ``losses``.
        suggestion: the learning rate to train with (the peak, where a schedule follows).
        diverged: whether the loss grew beyond bounds before the largest rate.
        runs: rate and final loss (infinite where it failed) of every short run, by rate; empty without them.
        final: the losses at the end of the best short run, which were compared with those of others.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float
    diverged: bool
    runs: tuple[tuple[float, float], ...] = ()
    final: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without ``final``; the loss of a run that failed is ``None``."""
        kept = {key: value for key, value in vars(self).items() if key != "final"}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in kept.items()}
        return plain | {"runs": [[rate, plain_loss(loss)] for rate, loss in self.runs]}


def learning_rate_range_test(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    *,
    smallest: float | None = None,
    largest: float | None = None,
    steps: int = STEPS,
    runs: bool = True,
    held_out: Iterable[Any] | None = None,
    indexed: bool = False,
    watch: Watch | None = None,
) -> RangeTest:
    """Train a copy for ``steps`` steps while the learning rate rises from ``smallest`` to ``largest``, and choose one.

    The sweep's choice lies among the rates at which the smoothed loss has done 90 % of its whole fall, a third of the
    way up (in logarithms): to the left learning is slow, to the right steps are too long, at first for a long run and
    then for the short test. Where nothing diverges (a KL clip makes long steps harmless) the range ends with a full
    Newton step.

    A learnable noise (:class:`vogn.likelihoods.Gaussian`) follows the residuals meanwhile, in the copy.

    Because a rate that rises at every step says little about a long run, the choice is then compared with its
    neighbours (half a decade apart) by short runs of ``steps`` steps, with warm-up and cosine decay: as long as their
    losses in the last quarter are lower, the neighbour is chosen; a larger one only where they are lower beyond the
    scatter of the differences, and then it is half a step back again: a short run stands more than a long one. Where
    the sweep has chosen less than a hundredth of the largest rate (its loss may fall because the noise of the weights
    does), a run at a tenth of that is compared with it first, in the same way. With
    ``held_out`` examples the losses that are compared are theirs, at the mean of the weights after the run: training
    losses prefer rates that fit fast, and do not see that they fit too much.

    Model, optimizer and likelihood are not touched: the steps are made by copies, with the noise that the optimizer
    would draw next. The global random states of Python, NumPy and PyTorch, and the generators of loaders and their
    samplers, come back; those of workers do not where they persist (``persistent_workers=True``), so that random
    augmentation there differs from run to run. While ``overhead=`` has not chosen a schedule, the copies keep the one
    on trial. Costs ``steps`` training steps for the sweep and for each of the runs, usually three to six, and the
    memory of a copy.

    Args:
        optimizer: in either mode; fresh, or in the middle of a run. Its groups keep the proportions of their rates.
        model: returns the outputs of the likelihood; its mode (``train()``) is used as it is.
        likelihood: ``likelihood(outputs, targets)``, the mean (or sum, as in ``loss_reduction``) over the batch. What a
            plain function closes over is not copied: give a learnable noise as :class:`vogn.likelihoods.Gaussian`.
        loader: batches ``(inputs, targets)``, gone through again from the beginning as often as needed.
        smallest, largest: bounds, ``0 < smallest < largest``; ``None``: the rate of a full Newton step (1, unless the
            method rescales its rate) and a ten-thousandth of ``largest``.
        steps: >= 20; about 20 a decade find the sweep's choice within a factor of 1.5.
        runs: compare with neighbours; without, the sweep alone chooses.
        held_out: batches ``(inputs, targets)`` that training does not see; gone through once after every short run, in
            evaluation mode. A few hundred examples do.
        indexed: batches are ``(indices, (inputs, targets))`` instead, as those of :class:`vogn.data.Indexed`.
        watch: called after every step with its number (from 1 in the sweep, and again in every run), rate and loss.

    Returns:
        Rates, losses and the choice; set ``lr`` of the groups yourself.

    Raises:
        RangeTestError: if the loss does not fall at any rate, is not finite at the smallest, or no short run ends.
        ValueError: if a bound or ``steps`` is out of range, the loader is empty, a loss is not finite because the data
            are not, several processes train together, or the method sets its step sizes itself.
        RuntimeError: inside a sampled context.

    Example:
        >>> import torch, vogn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> x = torch.randn(200, 4)
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), batch_size=20)
        >>> opt = vogn.VOGN(model, ess="auto", data=loader, weight_decay=0.01)
        >>> found = vogn.learning_rate_range_test(opt, model, vogn.likelihoods.Categorical(), loader)
        >>> for group in opt.param_groups:
        ...     group["lr"] = found.suggestion
        >>> 1e-3 < found.suggestion < 10
        True

    Source: Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3 (the rising rate); the
    rules are ours.
    """
    largest = newton_rate(optimizer) if largest is None else largest
    smallest = 1e-4 * largest if smallest is None else smallest
    _check(optimizer, smallest, largest, steps)
    rates = np.geomspace(smallest, largest, steps).tolist()

    made: dict[float, list[float]] = {}

    def ends(rate: float) -> list[float]:
        if rate not in made:
            made[rate] = run_ends(
                optimizer, model, likelihood, loader, rate, steps, held_out=held_out, indexed=indexed, watch=watch
            )
        return made[rate]

    sweep = trained(optimizer, model, likelihood, loader, rates, indexed=indexed, watch=watch)
    losses = sweep.losses
    if not losses:
        raise RangeTestError("the loss is not finite at the smallest learning rate: check data and model")
    rates = rates[: len(losses)]
    choice = choose(rates, losses)
    found = RangeTest(tuple(rates), tuple(losses), tuple(smoothed(losses)), choice, sweep.failed)
    if runs:
        first = max(FIRST * largest, smallest)
        far = choice < FAR * largest and bool(ends(choice)) and better(ends(first), ends(choice), ERRORS)
        best, _, final = climb(first if far else choice, ends, smallest, largest)
        best = best / CAUTION if best > choice else best
        tried = tuple((rate, mean_loss(losses)) for rate, losses in sorted(made.items()))
        found = replace(found, suggestion=best, runs=tried, final=tuple(final))
    return found


def newton_rate(optimizer: NaturalGradient) -> float:
    """The learning rate of a full Newton step ``C^-1 gradient``, the smallest of the groups."""
    return min(math.prod(step.newton_rate(group) for step in optimizer.chain) for group in optimizer.param_groups)


def _check(optimizer: NaturalGradient, smallest: float, largest: float, steps: int) -> None:
    if not 0.0 < smallest < largest < math.inf:
        raise ValueError(f"smallest={smallest} and largest={largest}: 0 < smallest < largest is needed")
    if steps < FEWEST_STEPS:
        raise ValueError(f"steps={steps} must be at least {FEWEST_STEPS}; about 20 a decade are a good number")
    require_alone(optimizer, "a range test", "lr")
    if sets_groups(optimizer):
        raise ValueError(f"{type(optimizer).__name__} sets its step sizes itself: there is no learning rate to test")
