"""A whole step of diagonal blocks in one pass over their numbers, where a kernel for it runs.

The kernel knows the structure :class:`vogn.structures.Diagonal` and the chains of IVON, VOGN and VAdam. Everything
else goes through the structure and the chain's steps one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vogn.capture.normalisation import Leaf
from vogn.kernels import native
from vogn.kernels.dispatch import TABLE, fitting
from vogn.kernels.reference import DiagonalStep, StepOptions
from vogn.optim.steps import ClipElements, Momentum, Prior, RescaleToInitial, Solve, Step
from vogn.structures import Diagonal
from vogn.structures.base import Shift, Structure
from vogn.structures.earlier import kept, with_earlier
from vogn.types import Observation, State


@dataclass(frozen=True)
class ChainForm:
    """What a chain says to the kernel.

    Args:
        momentum: its momentum.
        prior_in_momentum: whether the prior's gradient enters the momentum, or comes after it.
        root: whether the curvature enters the step under a root.
        debias: whether the step divides the curvature by the total weight of its evidence.
        clip_radius: bound on the elements of the solution; ``inf`` for none.
        rescale: whether the update is rescaled to the initial curvature.
    """

    momentum: Momentum
    prior_in_momentum: bool
    root: bool
    debias: bool
    clip_radius: float
    rescale: bool


def chain_form(chain: Sequence[Step]) -> ChainForm | None:
    """What a chain is to the kernel; ``None`` for one that it does not know.

    It knows ``Momentum, Prior, Solve`` and ``Prior, Momentum, Solve``, then :class:`ClipElements` and at the end
    :class:`RescaleToInitial`, or without these.
    """
    steps, clip_radius = list(chain), math.inf
    rescale = bool(steps) and type(steps[-1]) is RescaleToInitial
    if rescale:
        steps.pop()
    if steps and isinstance(clip := steps[-1], ClipElements) and type(clip) is ClipElements:
        clip_radius = clip.radius
        steps.pop()
    kinds = [type(step) for step in steps]
    if kinds not in ([Momentum, Prior, Solve], [Prior, Momentum, Solve]):
        return None
    first, second, solve = steps
    momentum = first if isinstance(first, Momentum) else second
    assert isinstance(momentum, Momentum) and isinstance(solve, Solve)
    if solve.exponent not in (0.5, 1.0) or solve.total:
        return None
    return ChainForm(momentum, momentum is second, solve.exponent == 0.5, solve.debias, clip_radius, rescale)


@dataclass(frozen=True)
class Vectors:
    """Mean and gradient of a bundle.

    Args:
        mean, gradient: pack them.
        mean_columns, gradient_columns: their own memory, where the bundle is one block of a weight and a bias that a
            pass may read and write there.
    """

    mean: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    mean_columns: native.Columns | None = None
    gradient_columns: native.Columns | None = None


@dataclass
class OnePass:
    """Stands in for :meth:`Structure.update`; moves the mean in the same pass.

    Args:
        form: of the chain.
        kernel: ``diagonal_step``, Triton's or the one in C.
        structure: of the block.
        old_memory: the block's memory before the step.
        group: the block's param group.
        vectors: mean and gradient.
        rate: the learning rate.
        in_place: whether the result may be written over what it is computed from, once all blocks have been checked.
        factor: of the evidence.
        memory: after the call, what has changed in the block's memory.
        result: after the call, what the kernel has computed; ``None`` if that will be written in columns.
        in_columns: after the call, what does so.
        clipped: after the call, how many elements the radius has cut; ``None`` without one.
    """

    form: ChainForm
    kernel: Callable[..., DiagonalStep]
    structure: Diagonal
    old_memory: Mapping[str, Tensor]
    group: Mapping[str, Any]
    vectors: Vectors
    rate: float
    in_place: bool = False
    factor: float = 1.0
    memory: dict[str, Tensor] = field(default_factory=dict)
    result: DiagonalStep | None = None
    in_columns: Callable[[], None] | None = None
    clipped: Tensor | None = None

    @property
    def looks(self) -> bool:
        """Whether the kernel looks for numbers that are not finite."""
        return self.kernel is TABLE["diagonal_step"]["native"]

    @property
    def found_finite(self) -> bool:
        """After the call: whether it has looked and found none."""
        return self.in_columns is not None or (self.result is not None and bool(self.result.finite))

    def write(self) -> None:
        """Write what :meth:`__call__` has only looked at."""
        write = self.in_columns if self.result is None else self.result.write
        if write is not None:
            write()

    @property
    def suspect(self) -> Tensor | None:
        """After the call: the new momentum where the kernel has found something that is not finite, for a clip keeps
        the new mean finite."""
        return self.result.momentum if self.looks and self.result is not None and not self.result.finite else None

    @property
    def moved(self) -> Tensor | None:
        """The new mean, before :meth:`write` the memory where it will be; ``None`` if that is the parameters'."""
        return None if self.result is None else self.result.mean

    def __call__(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """See :meth:`Structure.update`."""
        group, form = self.group, self.form
        h = next(iter(observation.values()))
        retract = "probe" in observation and self.structure.negative == "retract"
        forced = "probe" in observation and not retract
        factor = self.factor
        if factor != 1.0 and (forced or "earlier" in state or not self.looks):
            h, factor = h * factor, 1.0
        h = with_earlier(h, state, "earlier")
        if forced and self.structure.negative == "abs":
            h = h.abs()
        elif forced:  # to be positive, but for what is not finite: nobody else looks at it
            h = torch.where(h > -torch.inf, h.clamp_min(0.0), torch.nan)
        average, share = None, 1.0
        if form.momentum.averages(self.old_memory, group):
            memory = dict(self.old_memory)
            share = form.momentum.share(memory, state["c"], group)
            average = memory["momentum"]
            self.memory["momentum_weight"] = memory["momentum_weight"]
        total = float(self.old_memory["curvature_weight"]) * decay + weight if form.debias else 1.0
        rescaled = float(group["initial_curvature"]) + group["weight_decay"] if form.rescale else 1.0
        numbers: StepOptions = {
            "lr": self.rate * rescaled,
            "decay": decay,
            "weight": weight,
            "momentum_rate": share,
            "weight_decay": float(group["weight_decay"]),
            "damping": float(group["damping"]),
            "retract": retract,
            "prior_in_momentum": form.prior_in_momentum,
            "root": form.root,
            "correction": 1.0 / total if total > 0.0 else 1.0,
            "ess": None,
            "clip_radius": form.clip_radius,
            "seed": 0,
            "offset": 0,
        }
        mean, gradient = self.vectors.mean_columns, self.vectors.gradient_columns
        if average is not None and mean is not None and gradient is not None:
            found = native.diagonal_step_in_columns(mean, state["c"], average, gradient, h, factor=factor, **numbers)
            if found is not None:
                self.in_columns, self.clipped = found
        if self.in_columns is None:
            packed = self.vectors.gradient()
            operands = (self.vectors.mean(), state["c"], packed if average is None else average, packed, h)
            if self.looks:
                later = self.in_place and average is not None
                self.result = self.kernel(*operands, later=later, factor=factor, **numbers)
            else:
                self.result = self.kernel(*operands, **numbers)
            self.clipped = self.result.clipped
        if average is not None:
            self.memory["momentum"] = average if self.result is None else self.result.momentum
        curvature = state["c"] if self.result is None else self.result.curvature
        return {"c": curvature} | kept(state, self.structure.EARLIER)


def fitting_pass(
    form: ChainForm | None,
    structure: Structure,
    old: Mapping[str, State],
    group: Mapping[str, Any],
    observation: Mapping[str, Leaf],
    vectors: Vectors,
    rate: float,
    *,
    in_place: bool = False,
) -> OnePass | None:
    """The pass that computes a step; ``None`` where structure and chain are to do it.

    They are where a number has to be looked at before it is used: a curvature without positive shift, or negative
    evidence that shall raise. That would be a second pass.

    Args:
        form: of the chain.
        structure: of the block.
        old: its ``"curvature"`` and ``"memory"`` before the step.
        group: its param group.
        observation: the evidence, and what normalises it.
        vectors: mean and gradient; their columns are used only ``in_place``.
        rate: the learning rate.
        in_place: see :class:`OnePass`.
    """
    if form is None or type(structure) is not Diagonal or len(observation) != 1:
        return None
    (channel, (evidence, factor)), memory = next(iter(observation.items())), old["memory"]
    c = old["curvature"]["c"]
    own = vectors.mean_columns, vectors.gradient_columns
    parts = [*own[0], *own[1]] if in_place and own[0] is not None and own[1] is not None else []
    if not parts or fitting("diagonal_step", *parts, c, evidence) is not native.diagonal_step:
        vectors = replace(vectors, mean_columns=None, gradient_columns=None)
        gradient = vectors.gradient()
        operands = vectors.mean(), c, memory.get("momentum", gradient), gradient, evidence
    else:
        operands = c, c, memory.get("momentum", c), c, evidence
    kernel = fitting("diagonal_step", *operands)
    if kernel is None:
        return None
    weight_decay, damping = float(group["weight_decay"]), float(group["damping"])
    retracts = structure.negative == "retract"
    if channel == "probe" and (structure.negative == "raise" or (retracts and weight_decay <= 0.0)):
        return None
    known = not form.rescale or group["initial_curvature"] != "first_batch"
    shaped = all(x.shape == c.shape for x in operands)
    if weight_decay + damping <= 0.0 or rate > torch.finfo(c.dtype).max or not known or not shaped:
        return None
    return OnePass(form, kernel, structure, memory, group, vectors, rate, in_place, factor)
