"""The interface of a statistic: what is measured, and when."""

from __future__ import annotations

from abc import ABC
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall
from vogn.linalg.rows import AnyRows

if TYPE_CHECKING:
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block

Event = Literal["backward", "likelihood", "sample_exit", "step"]


class Statistic(ABC):
    """One estimate of curvature.

    Class attributes:
        NAME: key in the registry.
        PASSES: the passes through the network that it takes, in words.
        CHANNEL: ``"rows"`` or ``"probe"``: how it feeds structures.
        WHEN: the events it listens to.
        NEEDS_PAIRS: whether it needs layer inputs and output gradients, hence a model instead of bare parameters.
        GIVES: what its rows hold, for structures that say what they read.
        NEEDS_LIKELIHOOD: whether a step without a likelihood call cannot be measured.
    """

    NAME: ClassVar[str]
    PASSES: ClassVar[str] = "see its documentation"
    CHANNEL: ClassVar[Literal["rows", "probe"]]
    WHEN: ClassVar[frozenset[Event]]
    NEEDS_PAIRS: ClassVar[bool] = False
    NEEDS_LIKELIHOOD: ClassVar[bool] = False
    GIVES: ClassVar[frozenset[str]] = frozenset({"inputs", "gradients", "outputs"})

    @property
    def columns_per_example(self) -> tuple[float, str]:
        """Columns of output gradients per example, or 1 and what one column stands for (``"output"``)."""
        return 1.0, ""

    @property
    def reads_user_rows(self) -> bool:
        """Whether structures observe all rows of the user's backward, as they are."""
        return False

    def on_entry(self, collector: Collector) -> None:  # noqa: B027
        """A sampled context begins."""

    def on_rows(self, collector: Collector, block: Block, rows: AnyRows) -> None:  # noqa: B027
        """The user's backward has produced rows of a block (event ``"backward"``)."""

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:  # noqa: B027
        """A likelihood has been evaluated (event ``"likelihood"``)."""

    def on_exit(self, collector: Collector) -> None:  # noqa: B027
        """A sampled context ends, the sample still known (event ``"sample_exit"``)."""

    def on_step(self, collector: Collector, block: Block, gradient: Tensor) -> None:  # noqa: B027
        """The gradient of a block is complete (event ``"step"``)."""


def share_of(rows: AnyRows, examples: int | None) -> AnyRows:
    """The first ``examples`` rows of a batch, scaled so that their curvature estimates that of the whole batch.

    Without bias if the order of the batch is random; everything if the batch has no more examples, or for ``None``.
    """
    if examples is None or rows.count <= examples:
        return rows
    return rows.first(examples, (rows.count / examples) ** 0.5)


def check_examples_option(examples: int | None) -> int | None:
    """Raise ValueError unless a number of examples is at least 1, or ``None`` for all."""
    if examples is not None and examples < 1:
        raise ValueError(f"curvature_examples={examples} must be at least 1, or None for the whole batch")
    return examples


def term_weights(call: LikelihoodCall) -> Tensor | float:
    """Per-term weights times mask, shaped to multiply the outputs.

    A scalar weight only rescales the loss (as ``1 / accumulation`` does) and does not enter curvature.
    """
    weight: Tensor | float = 1.0
    for part in (call.weight, call.mask):
        if isinstance(part, Tensor) and part.ndim > 0:
            part = part.to(call.outputs.dtype)
            weight = weight * part.reshape(*part.shape, *(1,) * (call.outputs.ndim - part.ndim))
    return weight


def kept(tensor: Tensor, mask: Tensor | None) -> Tensor:
    """``tensor`` with zeros where the mask is ``False``: whatever stands there, NaN or an invalid label, is ignored."""
    if mask is None:
        return tensor
    mask = mask.reshape(*mask.shape, *(1,) * (tensor.ndim - mask.ndim))
    return torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device))
