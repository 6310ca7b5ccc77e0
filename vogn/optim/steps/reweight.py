"""A natural gradient as a weighted sum of the examples' gradients, whose weights may be kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.capture.places import Places
from vogn.capture.reweighting import ExampleWeights
from vogn.capture.row_sums import SUM_TOLERANCE
from vogn.distributed import Replicas
from vogn.errors import in_block
from vogn.optim.steps.base import BlockView, Scope, Step, StepContext

SHARES = ("index", "batch", "mean")
"""How frozen coefficients find their examples: the group entry ``share``."""


@dataclass(frozen=True)
class Reweight(Step):
    """``u <- s (C + s)^-1 (u + weight_decay m)``, ``s = weight_decay + damping``, in place of prior and solve.

    Where the gradient is the mean ``J^T 1 / B`` of the rows that were observed in this step, the result is
    ``J^T c / B + weight_decay m`` with one coefficient per example, ``c = (s + J J^T / B)^-1 (s - weight_decay J m)``,
    formed from the rows. Another gradient (clipped, or with parts that do not come through the layer) is solved for:
    ``c`` is then stored, but not used. So are steps without observation, and structures without coefficients.

    After ``freeze_after`` steps the coefficients are kept and nothing is measured: ``.grad`` arrives as ``J^T c / B``
    with the stored ones, by ``share``: ``"index"``, of each example by its place in the data set; ``"batch"``, by the
    position in an order of the data that never changes; ``"mean"``, their mean over all examples. An example without
    one, and a parameter without rows, has the mean. The curvature's state is let go.

    ``memory`` keeps ``coefficients (examples,)``, NaN where there is none yet, and their sum and number.
    """

    SCOPE: ClassVar[Scope] = "model"  # every process weighs its own examples with the coefficients of all blocks

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        check_no_memory([block.group for block in context.blocks])
        directions = []
        for update, block in zip(updates, context.blocks, strict=True):
            with in_block(block.name):
                factors = self.linear(block.memory, block.group)
                directions.append(_measured(update, block) if factors is None else _frozen(update, block, *factors))
        return directions

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:
        """See :meth:`Step.prepare`."""
        size = 0 if group["share"] != "index" else group["examples"] or 0
        memory["coefficients"] = mean.new_full((size,), torch.nan)
        memory["coefficient_sum"] = torch.zeros((), dtype=torch.float64)
        memory["coefficient_count"] = torch.zeros((), dtype=torch.float64)

    def linear(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> tuple[float, float] | None:
        """See :meth:`Step.linear`: so are frozen coefficients."""
        if not self.without_curvature(group):
            return None
        check_no_memory([group])
        return (_mean(memory) if group["share"] == "mean" else 1.0), float(group["weight_decay"])

    def without_curvature(self, group: Mapping[str, Any]) -> str:
        """See :meth:`Step.without_curvature`."""
        if group["freeze_after"] is None or group["steps_done"] < group["freeze_after"]:
            return ""
        return (
            f"the coefficients are frozen since step {group['freeze_after']}: there is no curvature. Use "
            "freeze_after=None, or take the posterior before"
        )

    def places(self, group: Mapping[str, Any], indices: Tensor | None, replicas: Replicas) -> Places | None:
        """See :meth:`Step.places`.

        Raises:
            ValueError: if coefficients are to be shared by index and the loop gives none.
        """
        if group["share"] == "index":
            if indices is None and group["freeze_after"] is not None:
                raise ValueError(
                    "share='index' keeps a coefficient of every example: say which ones a batch holds, "
                    "`with opt.sampled_params(indices=indices):` (vogn.data.Indexed makes a loader yield them), or use "
                    "share='mean'"
                )
            return None if indices is None else Places(indices)
        if group["share"] == "mean" or group["freeze_after"] is None:
            return None
        done = group["examples_done"]
        if self.without_curvature(group):
            done %= max(1, group["examples_measured"])
        return Places(start=done * replicas.size + replicas.rank, stride=replicas.size)

    def example_weights(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> ExampleWeights | None:
        """See :meth:`Step.example_weights`."""
        if group["share"] == "mean" or not self.without_curvature(group) or not memory["coefficient_count"]:
            return None
        return ExampleWeights(memory["coefficients"], _mean(memory))


def check_no_memory(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise ``ValueError`` if a group's curvature would hold rows of former batches."""
    for group in groups:
        if group["curvature_decay"] != 0.0:
            raise ValueError(
                f"curvature_decay={group['curvature_decay']} must be 0: coefficients are those of the present batch"
            )


def _mean(memory: Mapping[str, Tensor]) -> float:
    """The mean coefficient, 1 before there is any."""
    count = float(memory["coefficient_count"])
    return float(memory["coefficient_sum"]) / count if count else 1.0


def _frozen(update: Tensor, block: BlockView, factor: float, decay: float) -> Tensor:
    """The gradient is weighted already, or all of it by one number."""
    update = update if factor == 1.0 else update * factor
    return update.add(block.mean, alpha=decay) if decay else update


def _measured(update: Tensor, block: BlockView) -> Tensor:
    """The direction from the rows, or Woodbury's; the coefficients of this step's examples go into the memory."""
    group, structure = block.group, block.structure
    decay = float(group["weight_decay"])
    shift = decay + float(group["damping"])
    prior = block.mean * decay if decay else None
    last = group["freeze_after"] is not None and group["steps_done"] + 1 >= group["freeze_after"]
    if not block.terms or "coefficients" not in structure.SUPPORTS:
        direction = structure.solve(block.state, update if prior is None else update + prior, shift) * shift
        if last:
            _let_go(block)
        return direction
    unit = block.terms**-0.5  # the rows are held as J / sqrt(B)
    c, places = structure.coefficients(block.state, shift, None if prior is None else prior / unit)
    _remember(block, c, places)
    plain = structure.combine(block.state, torch.ones_like(c)).mul_(unit)
    if bool((update - plain).norm() <= SUM_TOLERANCE * plain.norm()):
        direction = structure.combine(block.state, c).mul_(unit)
        direction = direction if prior is None else direction.add_(prior)
    else:
        direction = structure.solve(block.state, update if prior is None else update + prior, shift) * shift
    if last:
        _let_go(block)
    return direction


def _remember(block: BlockView, c: Tensor, places: Tensor) -> None:
    """Keep the coefficients; an example that came several times in this step keeps the mean."""
    memory = block.memory
    memory["coefficient_sum"] = memory["coefficient_sum"] + c.sum(dtype=torch.float64).cpu()
    memory["coefficient_count"] = memory["coefficient_count"] + len(c)
    known = places >= 0
    if block.group["freeze_after"] is None or not bool(known.any()):
        return
    index, inverse, counts = places[known].round().long().unique(return_inverse=True, return_counts=True)
    old = memory["coefficients"]
    size = max(len(old), int(index[-1]) + 1)
    table = torch.cat([old, old.new_full((size - len(old),), torch.nan)])  # never in place
    table[index] = torch.zeros_like(c[: len(index)]).index_add_(0, inverse, c[known]) / counts
    memory["coefficients"] = table


def _let_go(block: BlockView) -> None:
    """Nobody will ask for the curvature any more; examples without a coefficient get the mean."""
    block.memory["coefficients"] = block.memory["coefficients"].nan_to_num(nan=_mean(block.memory))
    block.state = block.structure.init(
        tuple(block.mean.shape), initial=0.0, dtype=block.mean.dtype, device=block.mean.device
    )
    block.memory["observations"] = torch.zeros_like(block.memory["observations"])
    block.memory["curvature_weight"] = torch.zeros_like(block.memory["curvature_weight"])
