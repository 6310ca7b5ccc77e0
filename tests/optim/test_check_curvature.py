"""One line of user code tells how far every structured block is from the exact one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tiny_models import normal
from vogn import check_curvature
from vogn.capture import oracle
from vogn.layers.base import RULES, register_layer
from vogn.layers.linear import LinearRule
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg.rows import Rows
from vogn.structures import Diagonal, Kronecker


def labels(*shape, classes=3, seed=0):
    return torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 2), norm
        self.head = nn.Linear(3 * 4, 3)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().flatten(1))


class Tokens(nn.Module):
    """One loss term per position."""

    def __init__(self):
        super().__init__()
        self.table, self.mix, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        h = self.mix(self.table(tokens)).tanh()
        return self.out(h + h.mean(1, keepdim=True))


CASES = {
    "linear": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), lambda: (normal(9, 3), labels(9))),
    "convolution": (lambda: Convolutions(nn.GroupNorm(1, 3)), lambda: (normal(9, 2, 3, 3), labels(9))),
    "batch norm": (lambda: Convolutions(nn.BatchNorm2d(3)), lambda: (normal(9, 2, 3, 3), labels(9))),
    "tokens": (Tokens, lambda: (labels(9, 2, classes=5), labels(9, 2))),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
        lambda: (normal(9, 3), labels(9)),
    ),
}  # fmt: skip


def make(name, tools):
    model, batch = CASES[name]
    return tools.fill(model().double()), batch()


@pytest.mark.parametrize("statistic", ["ggn", "empirical"])
@pytest.mark.parametrize("name", CASES)
def test_exact_structures_have_no_error(tools, name, statistic):
    model, batch = make(name, tools)
    dense = check_curvature(model, Categorical(), batch, "dense", statistic=statistic, examples=4, verbose=False)
    diagonal = check_curvature(model, Categorical(), batch, "diagonal", statistic=statistic, examples=4, verbose=False)
    assert dense and all(row["compared"] == "dense" for row in dense)
    for row in dense:
        assert row["error"] < 1e-10 and row["diagonal_error"] < 1e-10, row
    for row in diagonal:
        assert row["diagonal_error"] < 1e-10, row
    assert max(row["error"] for row in diagonal) > 0.1


@pytest.mark.parametrize("statistic", ["ggn", "empirical"])
@pytest.mark.parametrize("structure", ["kronecker", "eigen_kronecker"])
def test_kronecker_products_are_exact_for_one_example_without_weight_sharing(tools, structure, statistic):
    model, batch = make("linear", tools)
    options = {"statistic": statistic, "verbose": False}
    for row in check_curvature(model, Categorical(), batch, structure, examples=1, **options):
        assert row["error"] < 1e-10, row
    rows = check_curvature(model, Categorical(), batch, structure, examples=5, **options)
    assert max(row["error"] for row in rows) > 1e-2


def test_a_linear_regression_is_a_kronecker_product(tools):
    model = tools.fill(nn.Linear(3, 2).double())
    (row,) = check_curvature(model, Gaussian(noise=0.7), (normal(9, 3), normal(9, 2, seed=1)), verbose=False)
    assert row["error"] < 1e-12 and row["structure"] == "Kronecker"


def test_the_eigen_correction_makes_the_error_smaller(tools):
    model, batch = make("convolution", tools)
    kfac, ekfac = (
        check_curvature(model, Categorical(), batch, structure, statistic="empirical", verbose=False)
        for structure in ("kronecker", "eigen_kronecker")
    )
    for one, two in zip(kfac, ekfac, strict=True):
        assert two["error"] <= one["error"] + 1e-12
    assert max(one["error"] - two["error"] for one, two in zip(kfac, ekfac, strict=True)) > 0.01


def test_the_error_is_the_relative_frobenius_norm_of_the_difference(tools):
    """Against the whole network's Gauss-Newton matrix and factors summed by hand."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh(), nn.Linear(2, 3, bias=False)).double())
    x, y = normal(5, 3), labels(5)
    likelihood = Categorical()
    exact = oracle.ggn(model, x, likelihood.hessian)[6:, 6:]
    hidden = model[:2](x).detach()
    a = hidden.T @ hidden / 5
    s = likelihood.hessian(model(x).detach()).mean(0)
    row = check_curvature(model, likelihood, (x, y), verbose=False)[1]
    expected = (torch.kron(s, a) - exact).norm() / exact.norm()
    assert row["error"] == pytest.approx(float(expected), rel=1e-10)
    diagonals = (torch.kron(s, a) - exact).diagonal().norm() / exact.diagonal().norm()
    assert row["diagonal_error"] == pytest.approx(float(diagonals), rel=1e-10)


def test_large_blocks_are_compared_along_random_directions(tools):
    model, batch = make("linear", tools)
    large = check_curvature(model, Categorical(), batch, "dense", max_dim=0, verbose=False)
    for row in large:
        assert row["compared"] == "projections" and row["error"] < 1e-10 and row["diagonal_error"] is None
        assert "are more than max_dim=0" in row["note"]
    assert max(r["error"] for r in check_curvature(model, Categorical(), batch, max_dim=0, verbose=False)) > 1e-2
    skipped = check_curvature(model, Categorical(), batch, max_dim=0, projections=0, verbose=False)
    assert skipped and all(row["compared"] == "skipped" and row["error"] is None and row["note"] for row in skipped)


class Scaled(nn.Linear):
    """A layer whose rule is wrong in the tests below."""


class WrongRule(LinearRule):
    def rows(self, module, attributes, saved, grad_output):
        rows = super().rows(module, attributes, saved, grad_output)
        return Rows(rows.a * 1.5, rows.g)


def test_a_wrong_layer_rule_is_found(tools):
    model, batch = (
        tools.fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Scaled(4, 3)).double()),
        (normal(9, 3), labels(9)),
    )
    register_layer(Scaled)(WrongRule)
    try:
        with pytest.warns(UserWarning, match="part of its gradient does not come through"):
            first, second = check_curvature(model, Categorical(), batch, "dense", statistic="empirical", verbose=False)
    finally:
        del RULES[Scaled]
    assert first["error"] < 1e-10 and second["error"] == pytest.approx(1.25, rel=1e-10)


def test_frozen_parameters_are_left_out_and_mappings_are_taken(tools):
    model, batch = make("linear", tools)
    model[0].bias.requires_grad_(False)
    rows = check_curvature(model, Categorical(), batch, {"2": "dense"}, verbose=False)
    assert [(row["block"], row["shape"], row["structure"]) for row in rows] == [
        ("0.weight", (4, 3), "Kronecker"),
        ("2.weight", (3, 5), "Dense"),
    ]
    assert rows[0]["error"] > 1e-3 and rows[1]["error"] < 1e-10
    (whole,) = check_curvature(model, Categorical(), batch, "dense", partition="model", verbose=False)
    assert whole["shape"] == (27, 1) and whole["error"] < 1e-10


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, left, right):
        return self.layer(left * right)


def test_inputs_may_be_a_tuple_or_a_dictionary(tools):
    model, left, right, y = tools.fill(Keywords().double()), normal(6, 3), normal(6, 3, seed=1), normal(6, 2, seed=2)
    for inputs in ((left, right), {"left": left, "right": right}):
        (row,) = check_curvature(model, Gaussian(noise=1.0), (inputs, y), "dense", examples=3, verbose=False)
        assert row["error"] < 1e-10


@pytest.mark.parametrize("name", ["batch norm", "dropout"])
def test_nothing_of_the_users_is_disturbed(tools, name):
    model, (x, y) = make(name, tools)
    model.float()
    likelihood = Gaussian(noise="learn")
    x = x.float()
    target = normal(9, 3).float()
    likelihood(model(x), target).backward()
    state, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    grads = [p.grad.clone() for p in model.parameters()]
    noise = [(p.detach().clone(), p.grad.clone()) for p in likelihood.parameters()]
    assert noise
    check_curvature(model, likelihood, (x, target), verbose=False)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert all(
        torch.equal(p, value) and torch.equal(p.grad, grad)
        for p, (value, grad) in zip(likelihood.parameters(), noise, strict=True)
    )
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_table_is_printed_unless_it_is_not_wanted(tools, capsys):
    model, batch = make("linear", tools)
    rows = check_curvature(model, Categorical(), batch, Diagonal(), examples=3)
    printed = capsys.readouterr().out
    assert printed == str(rows) + "\n"
    assert "curvature of 3 examples against the exact ggn" in printed and "0.weight" in printed
    check_curvature(model, Categorical(), batch, Kronecker(), verbose=False)
    assert capsys.readouterr().out == ""


WRONG = [
    ({"statistic": "mc"}, ValueError, "statistic='mc': there is an exact counterpart of 'ggn' and 'empirical' only"),
    ({"examples": 0}, ValueError, "examples=0 is out of range: it must be at least 1"),
    ({"max_dim": -1}, ValueError, "max_dim=-1 is out of range"),
    ({"batch": torch.ones(2, 3)}, ValueError, r"batch must be \(inputs, targets\)"),
    ({"structure": {"body": "dense"}}, ValueError, "'body' matches nothing"),
]


@pytest.mark.parametrize(("options", "error", "message"), WRONG)
def test_what_cannot_be_checked_is_refused(tools, options, error, message):
    model, batch = make("linear", tools)
    arguments = {"batch": batch, "verbose": False} | options
    with pytest.raises(error, match=message):
        check_curvature(model, Categorical(), **arguments)


def test_a_model_that_returns_no_tensor_is_refused():
    class Pair(nn.Linear):
        def forward(self, x):
            return (super().forward(x),)

    with pytest.raises(TypeError, match="the model returns tuple; give a module that returns the tensor"):
        check_curvature(Pair(3, 2), Gaussian(noise=1.0), (normal(4, 3), normal(4, 2)), verbose=False)
