"""The inverse of the Hessian by a truncated power series of its products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.distributed import is_sharded
from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.noise import generator, normal
from vogn.optim.steps.base import Scope, Step, StepContext
from vogn.optim.steps.neumann import GROWTH

FIRST_ITERATIONS = 20
ITERATIONS = 4
MARGIN = 1.25
"""Power iterations for the largest eigenvalue, from a random start and from the vector of the step before, and what
their estimate, which comes from below, is multiplied by. The series converges up to twice its scale."""

Vectors = list[Tensor]


@dataclass(frozen=True)
class HessianNeumann(Step):
    """:class:`Neumann` over all blocks at once, with ``H`` the Hessian of the loss plus ``weight_decay + damping``.

    The products are double backwards through the loss of the step's :class:`vogn.Objective` at the present mean;
    nothing is stored, so there is no curvature to sample from or to take a posterior of. ``H`` has to be positive
    definite: where the loss is not convex, the damping must outweigh its most negative curvature.

    Args:
        depth: terms after the first, >= 0 (``S_2``); each is one product.
        chains: series that are averaged, >= 1 (``S_1``); more than one only changes something with ``examples``.
        scale: ``c``, at least half the largest eigenvalue of ``H``, and of every part with ``examples``; ``None``
            estimates the largest one by power iterations, 20 products at the first step and 4 at the later ones. With
            ``examples`` the estimate is multiplied by what bounds all parts of a convex loss, the size of the batch
            over ``examples``.
        examples: examples per term, drawn anew without replacement (the paper: 1); ``None`` takes the whole batch, on
            one graph for all terms. Layers that mix examples (batch normalisation) or draw for each (dropout) then see
            other things than in the whole batch.
        seed: of the draws.

    Raises:
        ValueError: if an option is out of range.
        NotPositiveDefiniteError: in a step, if the series diverges.
        UnsupportedObservationError: in a step, if the model is sharded or cannot be differentiated twice.

    With several processes every product is the mean of their products.

    Source: Agarwal, Bullins, Hazan (2017), "Second-Order Stochastic Optimization for Machine Learning in Linear Time",
    Algorithm 1; Pearlmutter (1994) for the products.
    """

    depth: int = 20
    chains: int = 1
    scale: float | None = None
    examples: int | None = None
    seed: int = 0

    REQUIRES: ClassVar[frozenset[str]] = frozenset({"objective"})
    SCOPE: ClassVar[Scope] = "model"  # differentiates the loss, in which all processes take part

    def __post_init__(self) -> None:
        if self.depth < 0 or self.chains < 1 or (self.examples is not None and self.examples < 1):
            raise ValueError(
                f"depth={self.depth} must be at least 0, chains={self.chains} at least 1 and examples={self.examples} "
                "at least 1 or None"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale={self.scale} must be positive, or None for an estimate of the largest eigenvalue")

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        _require_whole(context)
        whole = None if self.examples is not None and self.scale is not None else self._product(context, None)
        scale = self.scale
        if scale is None:
            assert whole is not None
            scale = self._largest(whole, context)
            if self.examples is not None and context.objective is not None:
                scale *= max(1.0, context.objective.count / self.examples)
        if not scale > 0:
            raise NotPositiveDefiniteError("the Hessian is 0; set weight_decay or damping above 0")
        context.notes["series_scale"] = torch.tensor(scale)
        totals = [torch.zeros_like(update) for update in updates]
        for chain in range(self.chains):
            source = generator(seed=self.seed, stream="neumann", step=context.step, sample=chain, name="hessian")
            for total, part in zip(totals, self._series(updates, context, whole, scale, source), strict=True):
                total += part
        return [total / (self.chains * scale) for total in totals]

    def without_curvature(self, group: Mapping[str, Any]) -> str:
        """See :meth:`Step.without_curvature`."""
        return "products with the Hessian keep no curvature, which may be indefinite. Use those of the rows"

    def _series(
        self,
        v: Sequence[Tensor],
        context: StepContext,
        whole: Callable[[Vectors], Vectors] | None,
        scale: float,
        source: torch.Generator,
    ) -> Vectors:
        term, total = list(v), [part.clone() for part in v]
        for _ in range(self.depth):
            product = whole if self.examples is None else self._product(context, source)
            assert product is not None
            term = [part - curved / scale for part, curved in zip(term, product(term), strict=True)]
            for old, part in zip(total, term, strict=True):
                old += part
        last, first = _norm(term), _norm(v)
        if not last <= GROWTH * first:
            raise NotPositiveDefiniteError(
                f"the Neumann series of the Hessian diverges: its last term is {last:.3g} after {first:.3g} with "
                f"scale={scale:.3g}. Raise scale, or the damping where the loss is not convex"
            )
        return total

    def _product(self, context: StepContext, source: torch.Generator | None) -> Callable[[Vectors], Vectors]:
        """``v -> H v`` over block vectors, of a random part of the batch if there is a source."""
        objective, blocks = context.objective, context.blocks
        assert objective is not None
        examples = None
        if source is not None and self.examples is not None:
            chosen = torch.randperm(objective.count, generator=source)[: self.examples]
            examples = chosen.to(blocks[0].mean.device)
        parameters = [parameter for block in blocks for parameter in block.parameters]
        hessian = objective.hessian([p for p in parameters if p.requires_grad], examples)

        def product(v: Vectors) -> Vectors:
            directions = []
            for block, part in zip(blocks, v, strict=True):
                assert block.layout is not None
                named = block.layout.unpack(part)
                pairs = zip(block.layout.names, block.parameters, strict=True)
                directions += [named[name] for name, parameter in pairs if parameter.requires_grad]
            found, out = iter(hessian(directions)), []
            for block, part in zip(blocks, v, strict=True):
                assert block.layout is not None
                pairs = zip(block.layout.names, block.parameters, strict=True)
                curved = {name: next(found) if p.requires_grad else torch.zeros_like(p) for name, p in pairs}
                packed = context.average(block.layout.pack(curved).to(part.dtype))
                out.append(packed + (block.group["weight_decay"] + block.group["damping"]) * part)
            return out

        return product

    def _largest(self, product: Callable[[Vectors], Vectors], context: StepContext) -> float:
        """The largest absolute eigenvalue of ``H``, about; the vector is kept for the next step."""
        known = all("leading" in block.memory for block in context.blocks)
        if known:
            v = [block.memory["leading"] for block in context.blocks]
        else:
            v = [
                normal(
                    tuple(block.mean.shape),
                    seed=self.seed,
                    stream="power",
                    step=context.step,
                    sample=0,
                    name=block.name,
                    dtype=block.mean.dtype,
                    device=block.mean.device,
                )
                for block in context.blocks
            ]
        length = _norm(v)
        v = [part / length for part in v]
        value = 0.0
        for _ in range(ITERATIONS if known else FIRST_ITERATIONS):
            new = product(v)
            value = _norm(new)
            if not value > 0.0:
                return 0.0
            v = [part / value for part in new]
        for block, part in zip(context.blocks, v, strict=True):
            block.memory["leading"] = part
        return MARGIN * value


def _norm(v: Sequence[Tensor]) -> float:
    return float(torch.stack([part.double().square().sum() for part in v]).sum().sqrt())


def _require_whole(context: StepContext) -> None:
    """Raise if a parameter is sharded: the graph holds gathered copies of it."""
    for block in context.blocks:
        if any(is_sharded(parameter) for parameter in block.parameters):
            raise UnsupportedObservationError(
                f"block {block.name!r} is sharded (fully_shard): products with the Hessian cannot be taken with "
                "respect to a sharded parameter. Train DistributedDataParallel, or use the products of the rows"
            )
