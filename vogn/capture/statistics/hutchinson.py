"""Hutchinson probes: Hessian-vector products with random directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vogn.announcement import LikelihoodCall
from vogn.capture.replication import check_not_sharded, check_own_pass
from vogn.capture.statistics.base import Statistic, kept, term_weights
from vogn.capture.taps import muted
from vogn.errors import UnsupportedObservationError
from vogn.linalg.noise import normal

if TYPE_CHECKING:
    from vogn.capture.collector import Collector


HESSIAN_PRODUCTS = "Hessian products"


def hessian_products(collector: Collector, call: LikelihoodCall, directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hessian of the *summed* loss of a likelihood call times a direction over the named blocks, as block vectors.

    A double backward through the user's graph, which is kept; ``.grad`` is untouched. Blocks that the graph does not
    reach are left out.

    Raises:
        UnsupportedObservationError: if the call came without targets.
    """
    blocks = [block for block in collector.blocks if block.name in directions]
    if call.targets is None:
        raise UnsupportedObservationError(
            "Hessian products need the loss itself: call opt.observe(outputs, likelihood, targets)"
        )
    check_own_pass(call.outputs, collector.statistics, collector.replicas)
    check_not_sharded(blocks, HESSIAN_PRODUCTS, collector.statistics)
    weight = term_weights(call)
    terms = call.likelihood.terms(kept(call.outputs, call.mask), kept(call.targets, call.mask))
    if isinstance(weight, Tensor):
        terms = terms * weight.reshape(terms.shape)
    along: dict[nn.Parameter, Tensor] = {}
    for block in blocks:
        direction = block.layout.unpack(directions[block.name])
        named = zip(block.layout.names, block.parameters, strict=True)
        along |= {parameter: direction[name] for name, parameter in named if parameter.requires_grad}
    with muted():
        found = torch.autograd.grad(terms.sum(), list(along), create_graph=True, allow_unused=True)
        gradients = {parameter: g for parameter, g in zip(along, found, strict=True) if g is not None}
        curved = [(g * along[parameter].to(g.dtype)).sum() for parameter, g in gradients.items() if g.requires_grad]
        products: dict[nn.Parameter, Tensor | None] = {}
        if curved:
            products = dict(zip(along, _second(torch.stack(curved).sum(), list(along)), strict=True))
    out = {}
    for block in blocks:
        if not any(parameter in gradients for parameter in block.parameters):
            continue
        responses = {}
        for name, parameter in zip(block.layout.names, block.parameters, strict=True):
            product = products.get(parameter)
            responses[name] = torch.zeros_like(parameter) if product is None else product.detach()
        out[block.name] = block.layout.pack(responses).to(directions[block.name].dtype)
    return out


def _second(inner: Tensor, parameters: list[nn.Parameter]) -> tuple[Tensor | None, ...]:
    """Gradient of a function of gradients."""
    try:
        return torch.autograd.grad(inner, parameters, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "double backward" in str(error):
            raise UnsupportedObservationError(
                "Hessian probes differentiate twice, which a torch.compile'd model cannot: leave the model uncompiled, "
                "use variational=True, or a method without Hessian probes"
            ) from error
        if "not implemented" in str(error):
            raise UnsupportedObservationError(
                f"Hessian probes differentiate twice, but {error} Fused attention has a differentiable twin: run the "
                "context inside torch.nn.attention.sdpa_kernel(SDPBackend.MATH); otherwise use variational=True, or a "
                "method without Hessian probes"
            ) from error
        raise


class Hutchinson(Statistic):
    """``(v, H v)`` with ``v ~ N(0, I)``: an unbiased estimate of the Hessian itself, which may be indefinite."""

    NAME = "hutchinson"
    PASSES = "one more backward through the gradient"
    CHANNEL = "probe"
    WHEN = frozenset({"likelihood"})
    NEEDS_LIKELIHOOD = True

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """See :meth:`Statistic.on_likelihood`."""
        assert collector.context is not None
        context = collector.context
        probes = {
            block.name: normal(
                block.layout.block_shape,
                seed=context.seed,
                stream="probes",
                step=context.step,
                sample=context.sample,
                name=block.name,
                rank=context.rank,
                dtype=block.curvature_dtype,
                device=block.parameters[0].device,
            )
            for block in collector.blocks
        }
        responses = hessian_products(collector, call, probes)
        with torch.no_grad():
            for block in collector.blocks:
                if block.name not in responses:
                    continue
                state = collector.state_of(block)
                leaves = block.structure.observe_probe(state, probes[block.name], responses[block.name])
                collector.add(block, leaves, "own", probe=True)
