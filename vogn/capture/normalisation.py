"""The one normalisation of evidence: loss scale, reduction and counts are undone here, for all structures.

A leaf of degree ``d`` in the output gradients becomes ``leaf * scale^d / count``, a leaf of degree 0 is divided by the
number of rows. Leaves that are concatenated are no sums: they become ``leaf * (scale / sqrt(count))^d``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from vogn.capture.ledger import Ledger, Source
from vogn.capture.partition import Block
from vogn.errors import MissingCurvatureError
from vogn.structures.base import Structure
from vogn.types import Observation


class Leaf(NamedTuple):
    """A tensor and the number that it is still to be multiplied by."""

    tensor: Tensor
    factor: float

    def product(self) -> Tensor:
        """The normalised leaf; the tensor itself where the factor is 1."""
        return self.tensor if self.factor == 1.0 else self.tensor * self.factor


@dataclass
class Normalisation:
    """How the evidence in a ledger depends on the user's loss.

    Args:
        reduction: of the loss over its terms.
        loss_scale: the factor on the loss during the last backward (gradient scaling).
        processes: whose evidence the ledger holds; that of several has their scales undone already.
    """

    reduction: Literal["mean", "sum"]
    loss_scale: float = 1.0
    processes: int = 1

    def reset(self) -> None:
        """The ledger holds nothing but what this process will observe."""
        self.loss_scale, self.processes = 1.0, 1

    def scale(self, ledger: Ledger, source: Source, block: Block, mc_samples: int) -> float:
        """The factor on output gradients that makes them those of the sum of this process's losses."""
        scale = 1.0 / self.loss_scale if source in ("user", "exit") else 1.0
        if source == "user" and self.reduction == "mean":
            scale *= ledger.loss_terms(block) / mc_samples
        return scale

    def leaves(self, ledger: Ledger, block: Block, mc_samples: int) -> dict[str, Leaf]:
        """The leaves of a block and what normalises them, empty if nothing was observed.

        Args:
            ledger: the evidence.
            block: one of its blocks.
            mc_samples: number of weight samples that the gradients were summed over.
        """
        out: dict[str, Leaf] = {}
        for source, records in ledger.records.items():
            record = records.get(block.name)
            if record is None:
                continue
            count: float = ledger.loss_terms(block)
            scale = self.scale(ledger, source, block, mc_samples) if self.processes == 1 else 1.0
            if source == "exit" and self.reduction == "sum":
                require_count(count)
                scale /= count / mc_samples
                count = mc_samples
            elif source == "exit":
                count = mc_samples * self.processes
            if source == "step":
                count = 1
            out |= normalise(block.structure, record.leaves, scale=scale, count=count, rows=max(1, record.rows))
        return out


def normalise(structure: Structure, leaves: Observation, *, scale: float, count: float, rows: int) -> dict[str, Leaf]:
    """``leaf * scale^degree / count`` for every leaf; see the module's text."""
    out = {}
    for key, leaf in leaves.items():
        degree = structure.DEGREE[key]
        if not count:
            raise ValueError("the batch is empty: there is nothing to learn from; leave it out")
        if structure.REDUCE == "concat":
            factor = (scale / math.sqrt(count)) ** degree
        else:
            factor = scale**degree / (count if degree else rows)
        out[key] = Leaf(leaf, factor)
    return out


def require_count(count: float) -> None:
    """Raise if the number of loss terms of a summed loss is unknown."""
    if not count:
        raise MissingCurvatureError(
            "loss_reduction='sum' needs to know the number of loss terms: compute the loss with one of "
            "vogn.likelihoods inside `with opt.sampled_params():`, or use a mean loss"
        )
