"""Tiny models and plain training loops that every test of the optimizers shares."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tiny_models import OPTIONS, batch, fill, normal, square_network, train
from vogn.optim import METHODS


def network(seed=0, dtype=torch.float64):
    """3 inputs, 4 hidden units, 3 classes."""
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), seed).to(dtype)


def twin(model):
    """A copy of :func:`network` that no optimizer watches, for passes of the test's own inside a context."""
    other = network(dtype=next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


def tokens(n=8, seed=0, dtype=None):
    """Pairs of 5 tokens with labels of 3 classes; ``batches=tools.tokens`` trains on them."""
    source = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (n, 2), generator=source), torch.randint(0, 3, (n,), generator=source)


def build(method, model, **options):
    """A named method with settings under which every method moves visibly and stays calm."""
    return METHODS[method].constructor(model, **(OPTIONS | options))


def trained(method, steps, **options):
    """:func:`network` and its optimizer after some steps."""
    model = network()
    opt = build(method, model, **options)
    return train(opt, model, steps), opt


def backward(opt, loss):
    """One context around the backward pass of the loss that the function computes."""
    opt.zero_grad()
    with opt.sampled_params():
        loss().backward()


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def curvature(opt):
    """All curvature states, ``{parameter name: state}``."""
    names = {p: n for group in opt.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)}
    first = {parameter: state for parameter, state in opt.state.items() if "curvature" in state}
    return {names[p]: {k: t.clone() for k, t in state["curvature"].items()} for p, state in first.items()}


def through_a_file(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def tensors(nested):
    """All tensors of a nested container, with the path to each."""
    if isinstance(nested, torch.Tensor):
        return {(): nested}
    items = nested.items() if isinstance(nested, dict) else enumerate(nested) if isinstance(nested, list) else ()
    return {(key, *path): leaf for key, value in items for path, leaf in tensors(value).items()}


def everything(opt, model):
    """Weights, curvature, momentum, counters."""
    return copy.deepcopy({"model": model.state_dict(), "opt": opt.state_dict()})


def assert_same(a, b):
    """Bit for bit: two results of :func:`everything`, whatever the options of the groups."""
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        assert torch.equal(leaf, right[path]), path
    assert [g["steps_done"] for g in a["opt"]["param_groups"]] == [g["steps_done"] for g in b["opt"]["param_groups"]]


def assert_finite(opt, model):
    for path, leaf in tensors(everything(opt, model)).items():
        assert bool(leaf.isfinite().all()), path


class Tools:
    normal = staticmethod(normal)
    fill = staticmethod(fill)
    network = staticmethod(network)
    square_network = staticmethod(square_network)
    twin = staticmethod(twin)
    batch = staticmethod(batch)
    tokens = staticmethod(tokens)
    build = staticmethod(build)
    train = staticmethod(train)
    trained = staticmethod(trained)
    backward = staticmethod(backward)
    weights = staticmethod(weights)
    curvature = staticmethod(curvature)
    through_a_file = staticmethod(through_a_file)
    tensors = staticmethod(tensors)
    everything = staticmethod(everything)
    assert_same = staticmethod(assert_same)
    assert_finite = staticmethod(assert_finite)


@pytest.fixture
def tools():
    return Tools
