"""A whole step of diagonal blocks in one pass over their numbers, where a kernel for it runs.

The kernel knows the structure :class:`vogn.structures.Diagonal` and the chains of IVON, VOGN and VAdam. Everything
else goes through the structure and the chain's steps one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vogn.kernels.dispatch import TABLE, fitting
from vogn.kernels.reference import DiagonalStep
from vogn.optim.steps import Momentum, Prior, RescaleToInitial, Solve, Step
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
        rescale: whether the update is rescaled to the initial curvature.
    """

    momentum: Momentum
    prior_in_momentum: bool
    root: bool
    debias: bool
    rescale: bool


def chain_form(chain: Sequence[Step]) -> ChainForm | None:
    """What a chain is to the kernel; ``None`` for one that it does not know.

    It knows ``Momentum, Prior, Solve`` and ``Prior, Momentum, Solve``, and :class:`RescaleToInitial` at the end. It
    does not count how many elements :class:`ClipElements` clips, which diagnostics report.
    """
    rescale = bool(chain) and type(chain[-1]) is RescaleToInitial
    steps = chain[:-1] if rescale else chain
    kinds = [type(step) for step in steps]
    if kinds not in ([Momentum, Prior, Solve], [Prior, Momentum, Solve]):
        return None
    first, second, solve = steps
    momentum = first if isinstance(first, Momentum) else second
    assert isinstance(momentum, Momentum) and isinstance(solve, Solve)
    if solve.exponent not in (0.5, 1.0) or solve.total:
        return None
    return ChainForm(momentum, momentum is second, solve.exponent == 0.5, solve.debias, rescale)


@dataclass
class OnePass:
    """Stands in for :meth:`Structure.update`; moves the mean in the same pass.

    Args:
        form: of the chain.
        kernel: ``diagonal_step``, Triton's or the one in C.
        structure: of the block.
        old_memory: the block's memory before the step.
        group: the block's param group.
        mean, gradient: block vectors.
        rate: the learning rate.
        in_place: whether the result may be written over what it is computed from, once all blocks have been checked.
        memory: after the call, what has changed in the block's memory.
        result: after the call, what the kernel has computed.
    """

    form: ChainForm
    kernel: Callable[..., DiagonalStep]
    structure: Diagonal
    old_memory: Mapping[str, Tensor]
    group: Mapping[str, Any]
    mean: Tensor
    gradient: Tensor
    rate: float
    in_place: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)
    result: DiagonalStep | None = None

    @property
    def looks(self) -> bool:
        """Whether the kernel looks for numbers that are not finite."""
        return self.kernel is TABLE["diagonal_step"]["native"]

    @property
    def found_finite(self) -> bool:
        """After the call: whether it has looked and found none."""
        return self.result is not None and bool(self.result.finite)

    def write(self) -> None:
        """Write what :meth:`__call__` has only looked at."""
        if self.result is not None and self.result.write is not None:
            self.result.write()

    @property
    def moved(self) -> Tensor:
        """The new mean; before :meth:`write` the memory where it will be."""
        assert self.result is not None
        return self.result.mean

    def __call__(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """See :meth:`Structure.update`."""
        group, form = self.group, self.form
        h = with_earlier(next(iter(observation.values())), state, "earlier")
        retract = "probe" in observation and self.structure.negative == "retract"
        if "probe" in observation and not retract:
            h = h.abs() if self.structure.negative == "abs" else h.clamp_min(0.0)
        average, share = self.gradient, 1.0
        if group["momentum"] or "momentum" in self.old_memory:
            memory = dict(self.old_memory)
            share = form.momentum.share(memory, self.gradient, group)
            average = memory["momentum"]
            self.memory["momentum_weight"] = memory["momentum_weight"]
        total = float(self.old_memory["curvature_weight"]) * decay + weight if form.debias else 1.0
        later = {"later": True} if self.in_place and self.looks and "momentum_weight" in self.memory else {}
        rescaled = float(group["initial_curvature"]) + group["weight_decay"] if form.rescale else 1.0
        self.result = self.kernel(
            self.mean,
            state["c"],
            average,
            self.gradient,
            h,
            lr=self.rate * rescaled,
            decay=decay,
            weight=weight,
            momentum_rate=share,
            weight_decay=float(group["weight_decay"]),
            damping=float(group["damping"]),
            retract=retract,
            prior_in_momentum=form.prior_in_momentum,
            root=form.root,
            correction=1.0 / total if total > 0.0 else 1.0,
            ess=None,
            clip_radius=float("inf"),
            seed=0,
            offset=0,
            **later,
        )
        if "momentum_weight" in self.memory:
            self.memory["momentum"] = self.result.momentum
        return {"c": self.result.curvature} | kept(state, self.structure.EARLIER)


def fitting_pass(
    form: ChainForm | None,
    structure: Structure,
    old: Mapping[str, State],
    group: Mapping[str, Any],
    observation: Observation,
    vectors: tuple[Tensor, Tensor],
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
        observation: the evidence.
        vectors: mean and gradient.
        rate: the learning rate.
        in_place: see :class:`OnePass`.
    """
    if form is None or type(structure) is not Diagonal or len(observation) != 1:
        return None
    (channel, evidence), (mean, gradient), memory = next(iter(observation.items())), vectors, old["memory"]
    operands = mean, old["curvature"]["c"], memory.get("momentum", gradient), gradient, evidence
    kernel = fitting("diagonal_step", *operands)
    if kernel is None:
        return None
    weight_decay, damping = float(group["weight_decay"]), float(group["damping"])
    retracts = structure.negative == "retract"
    if channel == "probe" and (structure.negative == "raise" or (retracts and weight_decay <= 0.0)):
        return None
    known = not form.rescale or group["initial_curvature"] != "first_batch"
    shaped = all(x.shape == mean.shape for x in operands)
    if weight_decay + damping <= 0.0 or rate > torch.finfo(mean.dtype).max or not known or not shaped:
        return None
    return OnePass(form, kernel, structure, memory, group, mean, gradient, rate, in_place)
