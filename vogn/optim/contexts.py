"""Sampled contexts: a weight sample enters the model, gradients are computed at it, and the mean comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vogn.capture.context import SampleContext
from vogn.capture.places import Places
from vogn.capture.reweighting import ExampleWeights
from vogn.distributed import own_shard
from vogn.errors import MissingCurvatureError
from vogn.optim.blocks import BlockTable
from vogn.optim.checks import check_group
from vogn.optim.functional import displacement

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


class SampledContexts:
    """The weight sample that is in the model, and the number of those since the last step.

    Attributes:
        draws: contexts that have been completed: the coordinate of the next sample's noise.
        samples: those of them that had a backward: the weight samples that the gradients are sums over.
        examples: examples of the last context whose places in the data set were asked for.
        in_closure: whether ``step()`` runs a closure, whose ``zero_grad`` leaves the observations alone.
    """

    def __init__(self) -> None:
        self.draws = self.samples = self.examples = 0
        self.in_closure = False
        self._means: list[tuple[Tensor, Tensor]] | None = None
        self._marks: list[tuple[int, int] | None] = []

    @property
    def open(self) -> bool:
        """Whether a context is open."""
        return self._means is not None

    def require_mean(self, what: str) -> None:
        """The model holds the mean.

        Raises:
            RuntimeError: inside a sampled context.
        """
        if self.open:
            raise RuntimeError(f"{what} inside a sampled context would see noisy weights; call it after the context")

    def enter(self, table: BlockTable, context: SampleContext, parameters: Iterable[Tensor]) -> None:
        """Keep the mean and add a weight sample to it.

        Args:
            table: the optimizer's blocks.
            context: what was drawn.
            parameters: all parameters, whose gradients tell whether the context has a backward.
        """
        self._means = []
        for block in table.blocks:
            offsets = {}
            if block.name in context.displaced:
                offsets = table.placement[block].spread(context.displacement.get(block.name))
            for name, parameter in zip(block.layout.names, block.parameters, strict=True):
                if name in offsets and parameter.requires_grad:
                    self._means.append((parameter, parameter.detach().clone()))
                    _displace(parameter, offsets[name])
        self._marks = _gradient_marks(parameters)

    def leave(self) -> None:
        """Put the mean back, bit for bit."""
        assert self._means is not None
        means, self._means = self._means, None
        for parameter, mean in means:
            parameter.copy_(mean)

    def count(self, parameters: Iterable[Tensor], examples: int = 0) -> None:
        """The context that was left counts: as a weight sample if a gradient has changed since it was entered."""
        self.draws += 1
        self.examples = examples
        self.samples += int(_gradient_marks(parameters) != self._marks)

    def reset(self) -> None:
        """Count from zero."""
        self.draws = self.samples = self.examples = 0

    def divisor(self, group: Mapping[str, Any]) -> int:
        """What a group's gradients are to be divided by: its ``mc_samples``, or 1 without contexts.

        Raises:
            RuntimeError: if the contexts are not as many as ``mc_samples`` asks for.
        """
        wanted = int(group["mc_samples"])
        if self.samples and self.samples % wanted:
            raise RuntimeError(
                f"{self.samples} sampled contexts since the last step are not a multiple of mc_samples={wanted}; "
                "run the context mc_samples times per step (micro-batches inside one context accumulate)"
            )
        return wanted if self.samples else 1


def _displace(parameter: Tensor, offset: Tensor) -> None:
    """Add in the wider one of both dtypes."""
    if parameter.dtype == offset.dtype:
        parameter.add_(offset)
    else:
        parameter.copy_(parameter + offset)


def _gradient_marks(parameters: Iterable[Tensor]) -> list[tuple[int, int] | None]:
    """Identity and version of every gradient: a context in which none of them changes had no backward."""
    grads = [parameter.grad for parameter in parameters]
    return [None if grad is None else (id(grad), own_shard(grad)._version) for grad in grads]


def draw(optimizer: NaturalGradient, table: BlockTable, indices: Tensor | None = None) -> SampleContext:
    """A weight sample of all blocks that are sampled now, its coordinates, and what steps want to know about the
    examples; nothing is written.

    Raises:
        MissingCurvatureError: if a block is to be sampled that has no curvature any more.
    """
    sample = optimizer._contexts.draws
    drawn: dict[str, Tensor] = {}
    elsewhere: set[str] = set()
    with table.together():
        for block, group in table:
            if not (group["variational"] and group["sampled"]):
                continue
            check_group(optimizer, group)
            if reason := table.without_curvature(group):
                raise MissingCurvatureError(f"weights cannot be sampled: {reason}")
            if not table.known(block):
                continue  # no evidence yet: never a draw from the bare prior
            if not table.placement[block].held:
                elsewhere.add(block.name)
                continue
            drawn[block.name] = displacement(
                block.structure,
                table.state(block)["curvature"],
                block.layout.block_shape,
                ess=group["ess"],
                shift=group["weight_decay"],
                seed=optimizer.seed,
                step=group["steps_done"],
                sample=sample,
                name=block.name,
                antithetic=optimizer.antithetic,
                dtype=block.curvature_dtype,
                device=block.parameters[0].device,
                rank=optimizer.replicas.noise_rank,
                part=table.placement[block].cut,
            )
    return SampleContext(
        seed=optimizer.seed,
        step=optimizer.param_groups[0]["steps_done"],
        sample=sample,
        displacement=drawn,
        ess={block.name: group["ess"] for block, group in table},
        shift={block.name: group["weight_decay"] for block, group in table},
        rank=optimizer.replicas.noise_rank,
        places=_places(optimizer, indices),
        weights=_example_weights(optimizer, table),
        elsewhere=frozenset(elsewhere),
    )


def _places(optimizer: NaturalGradient, indices: Tensor | None) -> Places | None:
    """Where the examples of a new context stand in the data set, if a step wants to know."""
    found = (step.places(optimizer.param_groups[0], indices, optimizer.replicas) for step in optimizer.chain)
    return next((places for places in found if places is not None), None)


def _example_weights(optimizer: NaturalGradient, table: BlockTable) -> dict[str, ExampleWeights]:
    """Block name to the weights of the examples in its gradients, where they shall not count alike."""
    weights = {}
    for block, group in table:
        for step in optimizer.chain:
            found = step.example_weights(table.state(block)["memory"], group)
            if found is not None:
                weights[block.name] = found
    return weights


def run_closure(optimizer: NaturalGradient, parameters: Sequence[Tensor], closure: Callable[[], Any]) -> Any:
    """Call a closure in one context per weight sample, and leave the sum of its gradients in ``.grad``.

    Where a context of the caller's own is open, or has measured this step already, the closure belongs to it and runs
    once, as it is.

    Args:
        optimizer: whose contexts are opened.
        parameters: all its parameters.
        closure: clears the gradients, computes the loss, calls ``backward()`` and returns the loss.

    Returns:
        The closure's last value.
    """
    if optimizer._contexts.open or optimizer._contexts.samples:
        with torch.enable_grad():
            return closure()
    optimizer.zero_grad()
    sums: list[Tensor | None] = [None] * len(parameters)
    loss = None
    optimizer._contexts.in_closure = True
    try:
        for _ in range(optimizer.param_groups[0]["mc_samples"]):
            torch.optim.Optimizer.zero_grad(optimizer)
            with optimizer.sampled_params(), torch.enable_grad():
                loss = closure()
            for k, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    total = sums[k]
                    sums[k] = parameter.grad if total is None else total.add_(parameter.grad)
                    parameter.grad = None
    finally:
        optimizer._contexts.in_closure = False
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return loss
