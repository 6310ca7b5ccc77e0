"""A learning rate from a short run in which the rate rises at every step."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vogn.capture.objective import Objective
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError, RangeTestError
from vogn.likelihoods import Gaussian
from vogn.optim.base import NaturalGradient
from vogn.optim.calling import outputs_of
from vogn.optim.methods import sets_groups
from vogn.optim.range_choice import ERRORS, STRIDE, better, choose, climb, mean_loss, plain_loss, smoothed

Watch = Callable[[int, float, float], None]
Batch = tuple[Any, Any, Tensor | None]

STEPS = 100
"""Steps of the sweep and of every short run, unless asked otherwise."""
FEWEST_STEPS = 20
"""A test needs at least so many steps."""
STOP_FACTOR = 4.0
"""The sweep, or a run, ends where a running mean of the loss is so many times its smallest value (above zero loss)."""
WARM_UP, END = 0.1, 0.25
"""Shares of a short run: in which the rate rises, and whose losses count."""
FAR, FIRST = 1e-2, 1e-1
"""Shares of the largest rate: a sweep that chooses less than the first may have seen a fall of the noise alone."""
CAUTION = math.sqrt(STRIDE)
"""A rate that is larger than the sweep's choice has only won short runs, and long ones stand less: half a step back."""
NOISE_SHARE = 0.1
"""A learnable noise follows the residuals of so many batches: their share in its average."""


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
    would draw next. The global random states of Python, NumPy and PyTorch, and the loader's generator, come back.
    Costs ``steps`` training steps for the sweep and for each of the runs, usually three to six, and the memory of a
    copy.

    Args:
        optimizer: in either mode; fresh, or in the middle of a run. Its groups keep the proportions of their rates.
        model: returns the outputs of the likelihood; its mode (``train()``) is used as it is.
        likelihood: ``likelihood(outputs, targets)``, the mean (or sum, as in ``loss_reduction``) over the batch.
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
        ValueError: if a bound or ``steps`` is out of range, the loader is empty, several processes train together, or
            the method sets its step sizes itself.
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
    device = next(model.parameters()).device
    rates = np.geomspace(smallest, largest, steps).tolist()

    made: dict[float, list[float]] = {}

    def ends(rate: float) -> list[float]:
        if rate not in made:
            made[rate] = run_ends(
                optimizer, model, likelihood, loader, rate, steps, held_out=held_out, indexed=indexed, watch=watch
            )
        return made[rate]

    twin, network, loss_of = copies(optimizer, model, likelihood)
    with _apart(loader, device):
        losses, diverged = _train(twin, network, loss_of, _forever(loader, device, indexed), rates, watch)
    if not losses:
        raise RangeTestError("the loss is not finite at the smallest learning rate: check data and model")
    rates = rates[: len(losses)]
    choice = choose(rates, losses)
    found = RangeTest(tuple(rates), tuple(losses), tuple(smoothed(losses)), choice, diverged)
    if runs:
        first = max(FIRST * largest, smallest)
        far = choice < FAR * largest and bool(ends(choice)) and better(ends(first), ends(choice), ERRORS)
        best, _, final = climb(first if far else choice, ends, smallest, largest)
        best = best / CAUTION if best > choice else best
        tried = tuple((rate, mean_loss(losses)) for rate, losses in sorted(made.items()))
        found = replace(found, suggestion=best, runs=tried, final=tuple(final))
    return found


def run_ends(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    rate: float,
    steps: int,
    *,
    held_out: Iterable[Any] | None = None,
    indexed: bool = False,
    watch: Watch | None = None,
) -> list[float]:
    """Losses at the end of a copy's run with warm-up to ``rate`` and cosine decay, from the present state.

    All runs begin with the same random states and the same batches, so that their losses are comparable in pairs.

    Args:
        optimizer, model, likelihood, loader, held_out, indexed, watch: see :func:`learning_rate_range_test`.
        rate: the largest of the run.
        steps: its length.

    Returns:
        Losses of the held-out examples after the run; without such, those of the last quarter of the steps. Empty where
        the run fails.
    """
    device = next(model.parameters()).device
    twin, network, loss_of = copies(optimizer, model, likelihood)
    schedule = [rate * _schedule(step, steps) for step in range(steps)]
    with _apart(loader, device):
        losses, failed = _train(twin, network, loss_of, _forever(loader, device, indexed), schedule, watch)
        if failed:
            return []
        if held_out is None:
            return losses[-round(END * steps) :]
        outside = losses_on(network, loss_of, held_out, device)
        return outside if all(map(math.isfinite, outside)) else []


@contextmanager
def _apart(loader: Iterable[Any], device: torch.device) -> Iterator[None]:
    """For steps of copies: random states come back, and warnings are not shown: large rates are meant to go wrong."""
    with _undisturbed(loader, device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def losses_on(
    model: nn.Module, likelihood: Callable[[Tensor, Any], Tensor], loader: Iterable[Any], device: torch.device
) -> list[float]:
    """Losses of a copy in evaluation mode, of every term where the likelihood tells them, else of every batch.

    A learnable noise is set to the residuals of all these examples: another value would hide their differences.

    Raises:
        ValueError: if the loader is empty or its batches are no pairs.
    """
    model.eval()
    seen: list[tuple[Tensor, Any]] = []
    with torch.no_grad():
        for batch in loader:
            inputs, targets = tree_map(
                lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, _pair(batch, "(inputs, targets)")
            )
            seen.append((outputs_of(model, inputs), targets))
        if not seen:
            raise ValueError("held_out has no examples (or is an iterator that can be gone through only once)")
        if isinstance(likelihood, Gaussian):
            likelihood.follow(torch.cat([outputs for outputs, _ in seen]), torch.cat([targets for _, targets in seen]))
        terms = getattr(likelihood, "terms", likelihood)
        return [value for outputs, targets in seen for value in terms(outputs, targets).reshape(-1).tolist()]


def copies(*originals: Any) -> Any:
    """Deep copies of an optimizer and what belongs to it; hooks and the scaler stay with the original."""
    copied = copy.deepcopy(originals)
    optimizer = copied[0]
    optimizer.grad_scaler = None
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        hooks.clear()  # they belong to the run
    return copied


def _schedule(step: int, steps: int) -> float:
    """Factor on the rate of a short run: warm-up and cosine decay."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


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


def require_alone(optimizer: NaturalGradient, what: str, found: str) -> None:
    """Raise unless the optimizer works in one process, outside of sampled contexts."""
    if optimizer.replicas.size > 1:
        raise ValueError(f"{what} runs in one process: make it before the model is distributed, and pass {found} on")
    optimizer._contexts.require_mean(what)


def _train(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    batches: Iterator[Batch],
    rates: Sequence[float],
    watch: Watch | None,
) -> tuple[list[float], bool]:
    """One step per rate; losses so far, and whether the loss blew up."""
    top = max(float(group["lr"]) for group in optimizer.param_groups)
    shares = [float(group["lr"]) / top if top > 0.0 else 1.0 for group in optimizer.param_groups]
    losses: list[float] = []
    running, lowest = 0.0, math.inf
    for number, rate in enumerate(rates, start=1):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        try:
            loss = _step(optimizer, model, likelihood, *next(batches))
        except (NonFiniteStatisticsError, NotPositiveDefiniteError):
            loss = math.nan
        if not math.isfinite(loss):
            return losses, True
        losses.append(loss)
        if watch is not None:
            watch(number, rate, loss)
        running = 0.9 * running + 0.1 * (loss - losses[0])
        mean = losses[0] + running / (1.0 - 0.9**number)
        lowest = min(lowest, mean)
        if mean - lowest > (STOP_FACTOR - 1.0) * max(abs(lowest), abs(losses[0] - lowest)):
            return losses, True
    return losses, False


def _step(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    inputs: Any,
    targets: Any,
    indices: Tensor | None,
) -> float:
    """One step as in the training loop; its loss, averaged over the weight samples."""
    if any("objective" in step.REQUIRES for step in optimizer.chain):
        return float(type(optimizer).step(optimizer, Objective(model, likelihood, inputs, targets)))
    total, samples = 0.0, int(optimizer.param_groups[0]["mc_samples"])
    optimizer.zero_grad()
    for _ in range(samples):
        with optimizer.sampled_params(indices), torch.enable_grad():
            outputs = outputs_of(model, inputs)
            loss = likelihood(outputs, targets)
            loss.backward()
        total += loss.item()
        if isinstance(likelihood, Gaussian):
            likelihood.follow(outputs.detach(), targets, NOISE_SHARE)
    type(optimizer).step(optimizer)  # a scheduler's patch of the instance would step the original
    return total / samples


def _forever(loader: Iterable[Any], device: torch.device, indexed: bool) -> Iterator[Batch]:
    """Batches on the device, again and again."""
    while True:
        seen = False
        for batch in loader:
            seen = True
            indices, pair = _pair(batch, "(indices, (inputs, targets))") if indexed else (None, batch)
            inputs, targets = _pair(pair, "(indices, (inputs, targets))" if indexed else "(inputs, targets)")
            yield tree_map(
                lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, (inputs, targets, indices)
            )
        if not seen:
            raise ValueError("the loader has no (more) batches; give one that can be gone through again")


def _pair(value: Any, wanted: str) -> tuple[Any, Any]:
    if isinstance(value, (Tensor, Mapping)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"a batch of the loader is no pair {wanted}")
    return value[0], value[1]


@contextmanager
def _undisturbed(loader: Iterable[Any], device: torch.device) -> Iterator[None]:
    """The global random states, and those of the loader's generators, come back."""
    holders = (loader, getattr(loader, "sampler", None))
    found = [getattr(holder, "generator", None) for holder in holders]
    generators = [generator for generator in found if isinstance(generator, torch.Generator)]
    states = [generator.get_state() for generator in generators]
    python, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
