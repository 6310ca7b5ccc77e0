"""Short runs of copies of an optimizer and its model, for searches: the originals and all random states stay."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    device = next(model.parameters()).device
    twin, network, loss_of = copies(optimizer, model, likelihood)
    schedule = [rate * _schedule(step, steps) for step in range(steps)]
    losses, failed = trained(twin, network, loss_of, loader, device, schedule, indexed=indexed, watch=watch)
    if failed:
        return []
    if held_out is None:
        return losses[-round(END * steps) :]
    with _apart(held_out, device):
        outside = losses_on(network, loss_of, held_out, device)
    return outside if all(map(math.isfinite, outside)) else []


def trained(
    optimizer: NaturalGradient,
    model: nn.Module,
    likelihood: Callable[[Tensor, Any], Tensor],
    loader: Iterable[Any],
    device: torch.device,
    rates: Sequence[float],
    *,
    indexed: bool = False,
    watch: Watch | None = None,
) -> tuple[list[float], bool]:
    """Train copies, one step per rate.

    Returns:
        The losses so far, and whether the loss blew up.

    Raises:
        ValueError: if the loader is empty, its batches are no pairs, or one of them, which is named, is not finite.
    """
    with _apart(loader, device):
        return _train(optimizer, model, likelihood, _forever(loader, device, indexed), rates, watch)


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
        ValueError: if the loader is empty, its batches are no pairs, or examples are not finite.
    """
    model.eval()
    seen: list[tuple[Tensor, Any]] = []
    with torch.no_grad():
        for number, batch in enumerate(loader, start=1):
            inputs, targets = tree_map(
                lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, _pair(batch, "(inputs, targets)")
            )
            outputs = outputs_of(model, inputs)
            if not _finite(outputs):
                _require_finite(inputs, targets, f"held-out batch {number}")
            seen.append((outputs, targets))
        if not seen:
            raise ValueError("held_out has no examples (or is an iterator that can be gone through only once)")
        if isinstance(likelihood, Gaussian):
            likelihood.follow(torch.cat([outputs for outputs, _ in seen]), torch.cat([targets for _, targets in seen]))
        terms = getattr(likelihood, "terms", likelihood)
        found: list[float] = []
        for number, (outputs, targets) in enumerate(seen, start=1):
            losses = terms(outputs, targets)
            if not _finite(losses):
                _require_finite((), targets, f"held-out batch {number}")
            found += losses.reshape(-1).tolist()
        return found


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
) -> tuple[list[float], bool]:
    """See :func:`trained`."""
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
            _require_finite(inputs, targets, f"the training batch of step {number}")
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


def _finite(values: Any) -> bool:
    """Whether all numbers in all tensors are finite."""
    return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def _require_finite(inputs: Any, targets: Any, where: str) -> None:
    """Raise if it was the data: a run with another rate, damping or temperature would fail as well."""
    for name, values in (("inputs", inputs), ("targets", targets)):
        if not _finite(values):
            raise ValueError(f"{where} has {name} that are NaN or infinite: leave such examples out, or mend them")


@contextmanager
def _undisturbed(loader: Iterable[Any], device: torch.device) -> Iterator[None]:
    """The global random states, and those of the loader's generators, come back."""
    generators = list(_generators(loader))
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


def _generators(loader: Any) -> Iterator[torch.Generator]:
    """Generators of a loader, its samplers and its data set."""
    for name in ("generator", "sampler", "batch_sampler", "dataset"):
        part = getattr(loader, name, None)
        if isinstance(part, torch.Generator):
            yield part
        elif part is not None:
            yield from _generators(part)
