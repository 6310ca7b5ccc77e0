"""Short runs of copies of an optimizer and its model, for searches: the originals and all random states stay."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from vogn.capture.objective import Objective
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.likelihoods import Gaussian
from vogn.optim.base import NaturalGradient
from vogn.optim.calling import outputs_of

Watch = Callable[[int, float, float], None]
Batch = tuple[Any, Any, Tensor | None]

STOP_FACTOR = 4.0
"""A run ends where a running mean of the loss is so many times its smallest value (above zero loss)."""
WARM_UP, END = 0.1, 0.25
"""Shares of a run: in which the rate rises, and whose losses count."""
NOISE_SHARE = 0.1
"""A learnable noise follows the residuals of so many batches: their share in its average."""


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
        optimizer, model, likelihood, loader, held_out, indexed, watch: see :func:`vogn.learning_rate_range_test`.
        rate: the largest of the run.
        steps: its length.

    Returns:
        Losses of the held-out examples after the run; without such, those of the last quarter of the steps. Empty where
        the run fails.
    """
    schedule = [rate * _schedule(step, steps) for step in range(steps)]
    run = trained(optimizer, model, likelihood, loader, schedule, indexed=indexed, watch=watch)
    if run.failed:
        return []
    if held_out is None:
        return run.losses[-round(END * steps) :]
    device = next(model.parameters()).device
    with _apart(held_out, device):
        outside = losses_on(run.model, run.likelihood, held_out, device)
        if all(map(math.isfinite, outside)):
            return outside
        for number, batch in enumerate(held_out, start=1):
            inputs, targets = _on(device, _pair(batch, "(inputs, targets)"))
            _require_finite_data(model, likelihood, f"held-out batch {number}", inputs, targets)
    return []


@dataclass(frozen=True)
class Run:
    """What has become of copies.

    Args:
        losses: of all steps that were made.
        failed: whether the loss blew up.
        model, likelihood: the copies.
    """

    losses: list[float]
    failed: bool
    model: nn.Module
    likelihood: Callable[[Tensor, Any], Tensor]


def trained(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    rates: Sequence[float],
    *,
    indexed: bool = False,
    watch: Watch | None = None,
) -> Run:
    """Train copies, one step per rate.

    Raises:
        ValueError: if the loader is empty, its batches are no pairs, or the loss of one of them, which is named, is not
            finite because its data are not.
    """
    device = next(model.parameters()).device
    twin, network, loss_of = copies(optimizer, model, likelihood)
    blame = partial(_require_finite_data, model, likelihood)
    with _apart(loader, device):
        losses, failed = _train(twin, network, loss_of, _forever(loader, device, indexed), rates, watch, blame)
    return Run(losses, failed, network, loss_of)


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
            inputs, targets = _on(device, _pair(batch, "(inputs, targets)"))
            seen.append((outputs_of(model, inputs), targets))
        if not seen:
            raise ValueError("held_out has no examples (or is an iterator that can be gone through only once)")
        if isinstance(likelihood, Gaussian):
            likelihood.follow(torch.cat([outputs for outputs, _ in seen]), torch.cat([targets for _, targets in seen]))
        terms = getattr(likelihood, "terms", likelihood)
        return [value for outputs, targets in seen for value in terms(outputs, targets).reshape(-1).tolist()]


def copies(*originals: Any) -> Any:
    """Deep copies of an optimizer and what belongs to it; hooks and the scaler stay with the original.

    What a plain function closes over, a learnable noise for instance, is not copied. A schedule that ``overhead=`` has
    not chosen yet is not chosen by the copies either, whose times differ: they keep the one on trial.
    """
    optimizer = originals[0]
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    # they belong to the run, and may hold what cannot be copied
    copied = copy.deepcopy(originals, {id(registered): OrderedDict() for registered in hooks})
    copied[0].grad_scaler = None
    for group in copied[0].param_groups:
        if not group.get("overhead_met"):
            group["overhead"] = None
    return copied


def _schedule(step: int, steps: int) -> float:
    """Factor on the rate of a short run: warm-up and cosine decay."""
    return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


def require_alone(optimizer: NaturalGradient, what: str, found: str) -> None:
    """Raise unless the optimizer works in one process, outside of sampled contexts."""
    if optimizer.replicas.size > 1:
        raise ValueError(f"{what} runs in one process: make it before the model is distributed, and pass {found} on")
    optimizer._contexts.require_mean(what)


def require_pairs(further: Sequence[Any], second: str) -> None:
    """Raise now rather than after minutes if further parts of the data are no pairs of a loader and ``second``."""
    for place, fold in enumerate(further):
        if not isinstance(fold, (tuple, list)) or len(fold) != 2:
            raise ValueError(f"further[{place}] is no pair of a loader and {second}")


def _train(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    batches: Iterator[Batch],
    rates: Sequence[float],
    watch: Watch | None,
    blame: Callable[[str, Any, Any], None],
) -> tuple[list[float], bool]:
    """See :func:`trained`; ``blame`` looks at the batch of a step that failed."""
    top = max(float(group["lr"]) for group in optimizer.param_groups)
    shares = [float(group["lr"]) / top if top > 0.0 else 1.0 for group in optimizer.param_groups]
    losses: list[float] = []
    running, lowest = 0.0, math.inf
    for number, rate in enumerate(rates, start=1):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        inputs, targets, indices = next(batches)
        try:
            loss = _step(optimizer, model, likelihood, inputs, targets, indices)
        except (NonFiniteStatisticsError, NotPositiveDefiniteError):
            loss = math.nan
        if not math.isfinite(loss):
            blame(f"the training batch of step {number}", inputs, targets)
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
            yield _on(device, (inputs, targets, indices))
        if not seen:
            raise ValueError("the loader has no (more) batches; give one that can be gone through again")


def _on(device: torch.device, values: tuple[Any, ...]) -> Any:
    """The same with all tensors on the device."""
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, values)


def _pair(value: Any, wanted: str) -> tuple[Any, Any]:
    if isinstance(value, (Tensor, Mapping)) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"a batch of the loader is no pair {wanted}")
    return value[0], value[1]


def _finite(values: Any) -> bool:
    """Whether all numbers in all tensors are finite."""
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _require_finite_data(
    model: nn.Module, likelihood: Callable[[Tensor, Any], Tensor], where: str, inputs: Any, targets: Any
) -> None:
    """Raise if it was the data that made a run fail: another rate, damping or temperature would not help.

    Data may hold NaN or infinity where the network or the likelihood masks them: they are to blame only if the loss is
    not finite at the weights from which all runs begin either.
    """
    guilty = [name for name, values in (("inputs", inputs), ("targets", targets)) if not _finite(values)]
    if not guilty:
        return
    network, loss_of = copy.deepcopy((model, likelihood))
    try:
        with torch.no_grad():
            fine = _finite(loss_of(outputs_of(network.eval(), inputs), targets))
    except ValueError:  # a likelihood that looks at its targets
        fine = False
    if not fine:
        raise ValueError(f"{where} has {guilty[0]} that are NaN or infinite: leave such examples out, or mend them")


@contextmanager
def _undisturbed(loader: Iterable[Any], device: torch.device) -> Iterator[None]:
    """The global random states, and those of the loader's generators, come back."""
    generators = _generators(loader)
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


def _generators(loader: Any) -> list[torch.Generator]:
    """Generators of a loader, its samplers and its data set, each once."""
    batches = getattr(loader, "batch_sampler", None)
    holders = loader, getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)
    found = [getattr(holder, "generator", None) for holder in (*holders, getattr(loader, "dataset", None))]
    return list({id(generator): generator for generator in found if isinstance(generator, torch.Generator)}.values())
