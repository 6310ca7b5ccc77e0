"""Dense curvature of a model: what the capture says, and what a loop over examples says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vogn import NaturalGradient
from vogn.capture import oracle
from vogn.structures import Dense


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(n, classes, seed=0):
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def fill(model, seed=0):
    """Reproducible weights in double precision without the global random state."""
    model.double()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=100 * seed + k) + (0.1 if parameter.ndim == 1 else 0.0))
    return model


def watch(model, statistic, **options):
    """An optimizer that only measures: no learning, no memory."""
    defaults = {
        "lr": 0.0,
        "ess": 1.0,
        "weight_decay": 1.0,
        "curvature_decay": 0.0,
        "momentum": 0.0,
        "variational": False,
        "partition": "model",
    }
    return NaturalGradient(model, Dense(), statistic, **(defaults | options))


def measured(opt):
    """``({block: C}, posterior)`` after a step."""
    opt.step()
    posterior = opt.posterior()
    return {n: m - torch.eye(len(m)) for n, m in posterior.precision_matrices().items()}, posterior


def block_rows(posterior, named):
    """Per-example gradients ``{name: (N, *shape)}`` as ``{block: (N, D)}``."""
    return {
        block.name: block.layout.pack({n: named[n] for n in block.layout.names}).flatten(1)
        for block in posterior.blocks
    }


def jacobian_rows(model, inputs):
    """``{name: (N, K, *shape)}`` of the outputs flattened to ``K``."""
    flat, named, position = oracle.jacobian(model, inputs), {}, 0
    for name, p in oracle.trainable(model).items():
        named[name] = flat[:, :, position : position + p.numel()].reshape(*flat.shape[:2], *p.shape)
        position += p.numel()
    return named


def ggn_blocks(model, posterior, inputs, hessian, count):
    """``{block: sum_n J_n^T H_n J_n / count}`` with ``hessian`` from outputs to ``(N, K, K)``."""
    named = jacobian_rows(model, inputs)
    with torch.no_grad():
        matrices = hessian(model(inputs))
    out = {}
    for block in posterior.blocks:
        rows = block.layout.pack({n: named[n] for n in block.layout.names}).flatten(2)
        out[block.name] = torch.einsum("nkd,nkl,nle->de", rows, matrices, rows) / count
    return out


def measure(model, statistic, likelihood, x, y, **options):
    """``({block: C}, posterior)`` of one batch."""
    opt = watch(model, statistic, **options)
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    return measured(opt)


def empirical(model, posterior, x, y):
    """``{block: mean_n g_n g_n^T}`` from a loop over examples."""
    rows = block_rows(posterior, oracle.per_example_gradients(model, x, y, cross_entropy))
    return {name: r.T @ r / len(x) for name, r in rows.items()}


def softmax_hessian(outputs):
    """Of the summed loss over positions: ``(N, T, C)`` to ``(N, T C, T C)``."""
    p = torch.softmax(outputs.reshape(len(outputs), -1, outputs.shape[-1]), -1)
    small = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return torch.stack([torch.block_diag(*matrices) for matrices in small])


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="sum")


def assert_blocks(ours, theirs, **tolerances):
    assert set(ours) == set(theirs)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **({"rtol": 1e-9, "atol": 1e-12} | tolerances), msg=name)


class Tools:
    normal = staticmethod(normal)
    labels = staticmethod(labels)
    fill = staticmethod(fill)
    watch = staticmethod(watch)
    measured = staticmethod(measured)
    block_rows = staticmethod(block_rows)
    jacobian_rows = staticmethod(jacobian_rows)
    ggn_blocks = staticmethod(ggn_blocks)
    measure = staticmethod(measure)
    empirical = staticmethod(empirical)
    softmax_hessian = staticmethod(softmax_hessian)
    cross_entropy = staticmethod(cross_entropy)
    assert_blocks = staticmethod(assert_blocks)


@pytest.fixture
def tools():
    return Tools
