"""What PyTorch's own tests ask of every optimizer, asked of every named method.

Modelled on the records and generic checks of ``torch.testing._internal.common_optimizers``: legal inputs, illegal
inputs with their error, hooks, printing, state dictionaries.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vogn.optim import METHODS


@dataclass(frozen=True)
class Legal:
    """Options that every method takes, and whether the weights move under them."""

    options: dict[str, Any]
    name: str
    moves: bool = True


@dataclass(frozen=True)
class Illegal:
    """Options that every method refuses, and its words."""

    options: dict[str, Any]
    error: type[Exception]
    message: str


LEGAL = [
    Legal({}, "defaults"),
    Legal({"lr": 0.0}, "no-rate", moves=False),
    Legal({"weight_decay": 1.0}, "strong-prior"),
    Legal({"damping": 1.0}, "damped"),
    Legal({"momentum": 0.0}, "no-momentum"),
    Legal({"mc_samples": 2}, "two-samples"),
    Legal({"mc_samples": 2, "antithetic": True}, "mirrored"),
    Legal({"seed": 3}, "seed"),
]
ILLEGAL = [
    Illegal({"lr": -1.0}, ValueError, "lr=-1.0 is out of range"),
    Illegal({"lr": float("nan")}, ValueError, "lr=nan is out of range"),
    Illegal({"ess": 0.0}, ValueError, "ess=0.0 must be positive"),
    Illegal({"weight_decay": -0.1}, ValueError, "weight_decay=-0.1 is out of range"),
    Illegal({"damping": -0.1}, ValueError, "damping=-0.1 is out of range"),
    Illegal({"momentum": 1.0}, ValueError, "momentum=1.0 is out of range"),
    Illegal({"mc_samples": 0}, ValueError, "mc_samples=0 must be a whole number >= 1"),
]


@pytest.mark.promise("legal options train, illegal ones are refused by name")
@pytest.mark.parametrize("record", LEGAL, ids=lambda record: record.name)
def test_legal_options_train_print_and_round_trip(tools, case, record):
    model = tools.network()
    before = tools.flat(model)
    opt = case.build(model, **record.options)
    for step in range(2):
        opt.zero_grad()
        for _ in range(record.options.get("mc_samples", 1)):
            with opt.sampled_params():
                case.backward(model, step)
        opt.step()
    assert bool(tools.flat(model).isfinite().all())
    assert torch.equal(tools.flat(model), before) != record.moves
    assert type(opt).__name__ in repr(opt) and "weight_decay" in repr(opt)
    twin = copy.deepcopy(model)
    other = case.build(twin, **record.options)
    other.load_state_dict(opt.state_dict())
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("legal options train, illegal ones are refused by name")
@pytest.mark.parametrize("record", ILLEGAL, ids=lambda record: "-".join(map(str, *record.options.items())))
def test_illegal_options_are_refused(tools, case, record):
    with pytest.raises(record.error, match=re.escape(record.message)):
        case.build(tools.network(), **record.options)


@pytest.mark.promise("step, state-dict and global hooks of `torch.optim`")
def test_hooks_run_in_order(tools, case):
    model = tools.network()
    opt = case.build(model)
    calls = []
    handles = [
        opt.register_step_pre_hook(lambda *_: calls.append("pre")),
        opt.register_step_post_hook(lambda *_: calls.append("post")),
        opt.register_state_dict_pre_hook(lambda *_: calls.append("state pre")),
        opt.register_state_dict_post_hook(lambda *_: calls.append("state post")),
        opt.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre")),
        opt.register_load_state_dict_post_hook(lambda *_: calls.append("load post")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        case.train(opt, model, 1)
        opt.load_state_dict(opt.state_dict())
    finally:
        for handle in handles:
            handle.remove()
    assert calls == [
        *("global pre", "pre", "post", "global post"),
        *("state pre", "state post", "load pre", "load post"),
    ]


@pytest.mark.promise("a learning rate may be a tensor")
def test_a_tensor_rate_is_a_number(tools, case):
    model, twin = tools.network(), tools.network()
    opt, other = case.build(model, lr=0.05), case.build(twin, lr=torch.tensor(0.05, dtype=torch.float64))
    case.train(opt, model, 2)
    case.train(other, twin, 2)
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("a step without statistics or gradients is harmless")
def test_parameters_without_gradient_stay(tools, case):
    model = tools.network()
    opt = case.build(model)
    for step in range(2):
        opt.zero_grad()
        with opt.sampled_params():
            case.backward(model, step)
        if opt.partition != "model":  # one block over all layers needs them all
            model[3].weight.grad = model[3].bias.grad = None
        before = model[3].weight.detach().clone()
        opt.step()
        assert torch.equal(model[3].weight, before) == (opt.partition != "model")


@pytest.mark.promise("legal options train, illegal ones are refused by name")
def test_parameters_that_cannot_be_optimised_are_refused(tools, case):
    weight = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    model = tools.network()
    model.register_parameter("spectrum", weight)
    with pytest.raises(ValueError, match="'spectrum' has dtype torch.complex64"):
        case.build(model)
    with pytest.raises(ValueError, match=r"the model \(Sequential\) has no parameters"):
        case.build(nn.Sequential())
    error, message = (ValueError, "non-leaf Tensor")
    if METHODS[case.method].needs_model:  # a bare list is refused before its tensors are looked at
        error, message = (TypeError, "pass the model")
    with pytest.raises(error, match=message):
        case.build([torch.zeros(3, requires_grad=True).exp()])


@pytest.mark.promise("state_dict round trip, bit for bit, `weights_only=True`")
def test_a_state_dict_is_a_snapshot_in_a_fixed_order(tools, case):
    model = tools.network()
    opt = case.build(model)
    case.train(opt, model, 2)
    first, second = opt.state_dict(), opt.state_dict()
    assert list(first["state"]) == list(second["state"]) == sorted(first["state"])
    assert [list(g) for g in first["param_groups"]] == [list(g) for g in second["param_groups"]]
    assert all(not isinstance(value, torch.Tensor) for g in first["param_groups"] for value in g.values())
