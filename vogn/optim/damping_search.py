"""Learning rate and damping together, by short runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from vogn.errors import RangeTestError
from vogn.optim.base import NaturalGradient
from vogn.optim.copied_runs import copies, require_pairs, run_ends
from vogn.optim.range_choice import STRIDE, Losses, better_in_all, climb, joined, mean_loss, plain_loss
from vogn.optim.range_test import CAUTION, STEPS, RangeTest, learning_rate_range_test, newton_rate

FACTOR = 10.0
"""Neighbouring dampings differ by it."""
FARTHEST = 1000.0
"""The search goes no farther from the optimizer's damping than this factor."""
LONGER = 3.0
"""The runs that decide between finalists are so many times as long as those that choose them."""
OTHER_ERRORS = 1.0
"""A finalist of another damping than the one to begin with, or at another rate than that of its damping's short runs,
must be better by so many standard errors."""
Setting = TypeVar("Setting")
Runs = Sequence[Losses]
"""The ends of a setting's runs, one for each fold."""


@dataclass(frozen=True)
class DampingSearch:
    """What a search has found.

    Args:
        damping: to train with.
        suggestion: the learning rate that goes with it.
        tests: damping and range test of all that were tried, ascending; ``None`` where no rate could be found.
        finals: damping, rate and final loss (infinite where it failed) of the longer runs, in the order of trial.
    """

    damping: float
    suggestion: float
    tests: tuple[tuple[float, RangeTest | None], ...]
    finals: tuple[tuple[float, float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        tests = [[damping, None if test is None else test.to_dict()] for damping, test in self.tests]
        finals = [[*setting, plain_loss(loss)] for *setting, loss in self.finals]
        return {"damping": self.damping, "suggestion": self.suggestion, "tests": tests, "finals": finals}


def damping_search(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    *,
    longer: float = LONGER,
    further: Sequence[tuple[Iterable[Any], Iterable[Any] | None]] = (),
    **options: Any,
) -> DampingSearch:
    """Range tests at the optimizer's damping and at neighbouring ones, as long as their best short run ends lower.

    A damping that is large beside the curvature makes a step that of gradient descent; one that is small trusts a noisy
    curvature where it is nearly zero. Which is better depends on the network and on the data, and the learning rate on
    the damping: each is therefore compared at its own best rate, on the same batches in the same order. Unlike rates,
    no damping is the safer one, nor is the one to begin with better than its neighbours before anything is known: the
    lowest mean loss decides, without a margin, and both larger and smaller ones are tried. Dampings differ by factors
    of ten, and no more than a thousand from where they began.

    What wins short runs need not win long ones: these stand less, of large rates and of small dampings alike, but have
    time for small rates. Up to six finalists, the winner and the damping to begin with, each at its rate, a quarter of
    a decade above it, where it was before a half step back, and half a decade below, are therefore compared once more
    by runs that are ``longer`` times as long: best ones as long as the run that follows, where that is affordable. Of
    a damping's rates another one must be better than its own by a standard error of the paired differences, or wins by
    chance; so must the winner of the short runs be beside the damping to begin with. Where a few hundred held-out
    examples and one run cannot tell them apart, ``further`` parts of the data repeat the finalists' runs.

    Costs a range test (four to seven times ``steps``) for each damping, three to five of them as a rule, and
    ``6 * longer * steps`` for the finalists, again for each of ``further``.

    Model, optimizer and likelihood are not touched: set ``damping`` and ``lr`` of the groups yourself.

    Args:
        optimizer, model, likelihood, loader: see :func:`vogn.learning_rate_range_test`. All groups have one damping.
        longer: length of the finalists' runs, in ``steps``, >= 1; 0 leaves them out. Together with ``steps`` it should
            not make them longer than the run that follows.
        further: pairs of loader and held-out batches besides ``loader`` and ``held_out``, other folds of a
            cross-validation for instance: the finalists are run on each, and compared by all of their losses.
        **options: further arguments of :func:`vogn.learning_rate_range_test`, ``held_out`` above all; not ``runs``.

    Raises:
        RangeTestError: if no damping has a rate at which the loss falls.
        ValueError: as there, and if ``longer`` is out of range, ``further`` holds something else than pairs, the
            damping is not positive, or not the same in all groups.

    Example:
        >>> import torch, vogn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> x = torch.randn(200, 4)
        >>> loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, :3].argmax(1)), batch_size=20)
        >>> opt = vogn.VOGN(model, ess="auto", data=loader, weight_decay=0.01, damping=0.01)
        >>> found = vogn.damping_search(opt, model, vogn.likelihoods.Categorical(), loader, steps=40)
        >>> for group in opt.param_groups:
        ...     group.update(damping=found.damping, lr=found.suggestion)
        >>> 1e-5 <= found.damping <= 10
        True
    """
    if "runs" in options:
        raise ValueError("a search compares the ends of short runs: runs= cannot be chosen")
    start = optimizer.param_groups[0]["damping"]
    if any(group["damping"] != start for group in optimizer.param_groups):
        raise ValueError("the groups have different dampings: a search needs one to begin with")
    if not (longer == 0.0 or 1.0 <= longer < math.inf):
        raise ValueError(f"longer={longer} must be 0 or at least 1")
    if not start > 0.0:
        raise ValueError(f"damping={start} must be positive: the search multiplies and divides it by {FACTOR:g}")
    require_pairs(further, "held-out batches (or None)")
    tests: dict[float, RangeTest | None] = {}
    failures: list[RangeTestError] = []

    def at(damping: float) -> tuple[NaturalGradient, nn.Module, Callable[[Tensor, Any], Tensor]]:
        found: tuple[NaturalGradient, nn.Module, Callable[[Tensor, Any], Tensor]] = copies(optimizer, model, likelihood)
        for group in found[0].param_groups:
            group["damping"] = damping
        return found

    def ends(damping: float) -> Losses:
        try:
            test = tests[damping] = learning_rate_range_test(*at(damping), loader, **options)
        except RangeTestError as error:
            tests[damping] = None
            failures.append(error)
            return []
        return test.final

    try:
        best, _, _ = climb(start, ends, start / FARTHEST, start * FARTHEST, FACTOR, errors=0.0)
    except RangeTestError:
        raise failures[0] from None
    chosen = tests[best]
    assert chosen is not None and math.isfinite(chosen.suggestion)
    setting = best, chosen.suggestion
    finals: list[tuple[float, float, float]] = []
    if longer:
        steps = round(longer * options.get("steps", STEPS))
        rest = {key: options[key] for key in ("indexed", "watch") if key in options}
        folds = ((loader, options.get("held_out")), *further)
        largest = options.get("largest") or newton_rate(optimizer)
        winners: dict[tuple[float, float], Runs] = {}
        for damping in dict.fromkeys((best, start)):
            test = tests[damping]
            if test is None:
                continue
            near = (test.suggestion * factor for factor in (1.0, CAUTION, 1.0 / STRIDE))
            rates = dict.fromkeys(min(max(rate, test.rates[0]), largest) for rate in near)
            subjects = at(damping)
            runs = {
                rate: [
                    run_ends(*subjects, batches, rate, steps, held_out=outside, **rest) for batches, outside in folds
                ]
                for rate in rates
            }
            finals += [(damping, rate, mean_loss(joined(losses))) for rate, losses in runs.items()]
            rate = _kept(runs)
            winners[damping, rate] = runs[rate]
        kept = _kept({setting: winners[setting] for setting in reversed(winners)})  # the damping to begin with first
        setting = kept if all(winners[kept]) else setting
    return DampingSearch(*setting, tuple(sorted(tests.items(), key=lambda pair: pair[0])), tuple(finals))


def _kept(runs: Mapping[Setting, Runs]) -> Setting:
    """The first, unless others are better by :data:`OTHER_ERRORS`: then the one of these whose mean loss is lowest."""
    own, *others = runs
    able = [own, *(setting for setting in others if better_in_all(runs[setting], runs[own], OTHER_ERRORS))]
    return min(able, key=lambda setting: mean_loss(joined(runs[setting])))
