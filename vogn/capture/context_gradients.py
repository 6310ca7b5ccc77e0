"""What one sampled context adds to the gradients of blocks, on this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vogn.capture.bundles import Bundle
from vogn.capture.partition import Block
from vogn.capture.replication import sharded_block
from vogn.capture.taps import is_muted
from vogn.distributed import LocalGradients, Replicas, is_sharded


class ContextGradients:
    """``.grad`` accumulates over contexts, and may be an average over processes: here is the context's own part.

    Args:
        gradient_of: block to its packed ``.grad`` (zeros where a parameter has none), as far as this process holds it.
        replicas: the processes that train copies of the model.

    Attributes:
        at_entry: block name to the packed gradient that was there when the context began.
    """

    def __init__(self, gradient_of: Callable[[Block], Tensor | None], replicas: Replicas) -> None:
        self._gradient_of = gradient_of
        self._replicas = replicas
        self._local: LocalGradients | None = None
        self.at_entry: dict[str, Tensor] = {}

    def watch(self, blocks: Iterable[Block]) -> None:
        """Where ``.grad`` is an average over processes, record what it is an average of, for the given blocks."""
        if self._replicas.size == 1:
            return
        watched = [parameter for block in blocks for parameter in block.parameters if not is_sharded(parameter)]
        if watched:
            self._local = LocalGradients(watched, is_muted)
            self._local.attach()

    def clear(self) -> None:
        """``.grad`` has been cleared."""
        self.at_entry.clear()
        if self._local is not None:
            self._local.reset()

    def end(self) -> None:
        """The context is over."""
        self.at_entry.clear()
        if self._local is not None:
            self._local.detach()
        self._local = None

    def averaged(self, block: Block) -> bool:
        """Whether only an average over processes is known of the block's gradient."""
        return self._replicas.size > 1 and sharded_block([block]) is not None

    def of_bundle(self, bundle: Bundle) -> Tensor | None:
        """The same of all blocks of a bundle, in its memory for gradients; ``None`` if that takes more than a copy."""
        whole = self._local is None and not any(block.name in self.at_entry for block in bundle.blocks)
        return bundle.gradient() if whole else None

    def of(self, block: Block) -> Tensor | None:
        """What the context has added to the block's gradient, packed; ``None`` if nothing."""
        if self._local is not None and not sharded_block([block]):
            found = {n: self._local.get(p) for n, p in zip(block.layout.names, block.parameters, strict=True)}
            if all(gradient is None for gradient in found.values()):
                return None
            named = {
                name: torch.zeros_like(parameter) if (gradient := found[name]) is None else gradient
                for name, parameter in zip(block.layout.names, block.parameters, strict=True)
            }
            return block.layout.pack(named).to(block.curvature_dtype)
        if all(parameter.grad is None for parameter in block.parameters):
            return None
        gradient = self._gradient_of(block)
        if gradient is None:
            return None
        return gradient - self.at_entry[block.name] if block.name in self.at_entry else gradient
