"""Gradients of layers as sums of the rows that curvature goes through one by one anyway.

A diagonal of squared rows forms the gradient of every example where positions share weights; backward would form the
same products once more, as their sum. Linear layers with positions and convolutions therefore run a backward of ours
(:mod:`vogn.layers.weighted`) that takes this sum where there is one, and forms the gradient itself where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.capture.own_backward import OwnBackwards
from vogn.capture.partition import Block, Member
from vogn.capture.replication import sharded_block
from vogn.capture.statistics.base import Statistic
from vogn.capture.taps import Call, is_muted
from vogn.layers.weighted import ParameterGradients
from vogn.linalg.layout import MatrixLayout
from vogn.linalg.rows import Total


class _LayerTotal:
    """What is handed from the rows of a layer to its backward.

    Args:
        member: whose layer it is.
    """

    def __init__(self, member: Member) -> None:
        self._member = member
        self._grad: Tensor | None = None
        self._version = 0
        self._total = Total()

    def begin(self, grad: Tensor) -> Total:
        """The rows of an output gradient ``(1, N, ...)`` are about to be formed: where their sum shall be left."""
        self._grad, self._version, self._total = grad, grad._version, Total()
        return self._total

    def forget(self) -> None:
        """Drop what nobody has taken."""
        self._grad, self._total = None, Total()

    def __call__(self, grad: Tensor) -> ParameterGradients | None:
        """Gradients of weight and bias, if those of the rows of this very output gradient have been left."""
        if is_muted():
            return None
        expected, version, total = self._grad, self._version, self._total.value
        self.forget()
        if expected is None or total is None or torch.is_grad_enabled():
            return None
        if grad._version != version or not _same_memory(expected[0], grad):
            return None  # somebody's hook has changed it, or put another one in its place
        found = self._member.layout.unpack(total)
        by_attribute = {
            attribute: found[name].to(grad.dtype)
            for attribute, name in zip(self._member.attributes, self._member.layout.names, strict=True)
        }
        return by_attribute["weight"], by_attribute.get("bias")


def _same_memory(expected: Tensor, grad: Tensor) -> bool:
    """Whether two tensors, both alive, are the same numbers in memory."""
    return (
        expected.data_ptr() == grad.data_ptr()
        and expected.shape == grad.shape
        and expected.stride() == grad.stride()
        and expected.dtype == grad.dtype
    )


class GradientsFromRows:
    """The layers of one optimizer whose gradients are sums of their rows.

    Args:
        blocks: the optimizer's blocks.
        statistics: what is measured.
    """

    def __init__(self, blocks: Sequence[Block], statistics: Sequence[Statistic]) -> None:
        whole = any(statistic.reads_user_rows for statistic in statistics)
        self._layers = {
            member: _LayerTotal(member)
            for block in blocks
            if whole and block.structure.FORMS_ROWS and not block.joined and not block.has_bare
            for member in block.members
            if isinstance(member.layout, MatrixLayout) and "weight" in member.attributes
        }
        self._blocks = {block for block in blocks if not self._layers.keys().isdisjoint(block.members)}
        self._own = OwnBackwards(compiled=False, positions=True)
        self._bound: set[Member] = set()

    def attach(self) -> None:
        """Begin to hand over sums."""
        if not self._layers or sharded_block(self._blocks):
            return
        self._bound = {member for member, layer in self._layers.items() if self._own.bind(member, layer)}

    def detach(self) -> None:
        """The context is over."""
        self._own.unbind()
        for member in self._bound:
            self._layers[member].forget()
        self._bound.clear()

    def begin(self, call: Call) -> None:
        """The rows of a call are about to be formed, before the backward of its layer."""
        if call.member in self._bound and call.grad is not None:
            call.total = self._layers[call.member].begin(call.grad)
