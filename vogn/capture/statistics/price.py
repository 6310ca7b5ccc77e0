"""Price's theorem: the Hessian's expectation from the very noise that the weights were sampled with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall
from vogn.capture.replication import check_not_sharded
from vogn.capture.statistics.base import Statistic
from vogn.capture.statistics.hutchinson import HESSIAN_PRODUCTS, hessian_products
from vogn.linalg.noise import normal

if TYPE_CHECKING:
    from vogn.capture.bundles import Bundle
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block


class Price(Statistic):
    """``(ess (C + shift) (theta - m), gradient at theta)``: no extra pass, variance grows with ``ess``.

    Its deterministic twin is the limit of an antithetic pair as ``ess`` grows: the probe pair ``((C + shift) z, H z)``
    with ``z = (C + shift)^(-1/2) eps``, one Hessian-vector product inside the likelihood call.

    Source: Shen et al. (2024), "Variational Learning is Effective for Large Deep Networks", Sec. 3.
    """

    NAME = "price"
    PASSES = "the weight noise and the gradient, no pass of its own; Hutchinson's in deterministic mode"
    CHANNEL = "probe"
    WHEN = frozenset({"sample_exit", "likelihood"})

    def on_entry(self, collector: Collector) -> None:
        """Remember the gradients that are already there."""
        for block in collector.blocks:
            if any(parameter.grad is not None for parameter in block.parameters):
                gradient = collector.gradient_of(block)
                if gradient is not None:
                    collector.entry_gradients[block.name] = gradient.clone()

    def on_exit(self, collector: Collector) -> None:
        """See :meth:`Statistic.on_exit`."""
        context = collector.context
        assert context is not None
        with torch.no_grad():
            observed = self._observe_at_once(collector)
            responses = {}
            for block in collector.blocks:
                if block in observed:
                    continue
                displaced = block.name in context.displaced
                response = collector.context_gradient(block) if displaced else None
                if block.name in context.elsewhere:
                    collector.add(block, {}, "exit", probe=True)
                if response is not None:
                    responses[block] = response
            for bundle in collector.bundles.of(responses):
                self._observe(collector, bundle, bundle.join([responses[block] for block in bundle.blocks]))

    def _observe_at_once(self, collector: Collector) -> set[Block]:
        """Observe the blocks whose gradients are there together; returns them."""
        context = collector.context
        assert context is not None
        observed: set[Block] = set()
        for bundle in collector.bundles.of(block for block in collector.blocks if block.name in context.displacement):
            response = collector.context_gradient_of(bundle)
            if response is not None:
                self._observe(collector, bundle, response)
                bundle.release("gradient")
                observed.update(bundle.blocks)
        return observed

    def _observe(self, collector: Collector, bundle: Bundle, response: Tensor) -> None:
        context, first = collector.context, bundle.blocks[0].name
        assert context is not None
        displacement = bundle.join([context.displacement[block.name] for block in bundle.blocks])
        if any(block.name in context.shared for block in bundle.blocks):  # the evidence may be written there, and stays
            displacement = displacement.clone()
        state = bundle.join_states([collector.state_of(block) for block in bundle.blocks])
        shift, ess = context.shift[first], context.ess[first]
        found = bundle.structure.observe_displacement(state, displacement, response, shift=shift, ess=ess)
        for block, own in zip(bundle.blocks, bundle.split_state(found), strict=True):
            collector.add(block, own, "exit", probe=True)

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """Blocks that are not displaced (deterministic mode, norms at a point): see the class's text."""
        context = collector.context
        assert context is not None
        still = [block for block in collector.blocks if block.name not in context.displaced]
        if not still:
            return
        check_not_sharded(still, HESSIAN_PRODUCTS, collector.statistics)
        probes, directions = {}, {}
        with torch.no_grad():
            for block in still:
                state, shift = collector.state_of(block), context.shift[block.name]
                noise = normal(
                    block.layout.block_shape,
                    seed=context.seed,
                    stream="weights",
                    step=context.step,
                    sample=context.sample,
                    name=block.name,
                    rank=context.rank,
                    dtype=block.curvature_dtype,
                    device=block.parameters[0].device,
                )
                directions[block.name] = block.structure.sample(state, noise, shift)
                probes[block.name] = block.structure.apply(state, directions[block.name], shift)
        responses = hessian_products(collector, call, directions)
        with torch.no_grad():
            for block in still:
                if block.name not in responses:
                    continue
                state = collector.state_of(block)
                leaves = block.structure.observe_probe(state, probes[block.name], responses[block.name])
                collector.add(block, leaves, "own", probe=True)
