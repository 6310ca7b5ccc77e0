"""``kfac_approx``: expand and reduce, exact where their assumptions hold, with every reduction of the loss.

Source of the cases: Eschenhagen et al. 2023, "Kronecker-Factored Approximate Curvature for Modern Neural Network
Architectures", propositions on deep linear networks in the expand and the reduce setting.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tiny_models import normal
from vogn import EKFAC, KFAC, NaturalGradient
from vogn.capture import oracle
from vogn.likelihoods import Categorical, Gaussian
from vogn.structures import Kronecker

N, T = 4, 3
MASK = torch.arange(T) < torch.tensor([3, 1, 2, 3]).unsqueeze(1)


class Deep(nn.Module):
    """A deep linear network on every position; one output per position, or of their mean."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean
        self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.two(self.one(x))
        return self.head(h.mean(1) if self.mean else h)


def measured(model, sharing, likelihood, x, statistic="ggn", **terms):
    """``{block: C}`` of one batch."""
    opt = NaturalGradient(
        model, Kronecker(sharing=sharing), statistic, lr=0.0, variational=False, curvature_decay=0.0, steps=()
    )
    opt.zero_grad()
    with opt.sampled_params():
        out = model(x)
        likelihood(out, torch.zeros_like(out), **terms).backward()
    opt.step()
    table, _ = opt._build()
    return {block.name: block.structure.to_dense(table.state(block)["curvature"]) for block in table.blocks}


def exact(model, x, hessian):
    """``{block: sum_n J_n^T H_n J_n}`` in the layout ``(d_out, d_in + 1)`` of a linear layer."""
    jacobians, position, out = oracle.jacobian(model, x), 0, {}
    matrices = hessian(model(x).detach())
    for name, layer in model.named_children():
        parts = []
        for parameter in (layer.weight, layer.bias):
            flat = jacobians[:, :, position : position + parameter.numel()]
            parts.append(flat.unflatten(-1, (layer.out_features, -1)))
            position += parameter.numel()
        rows = torch.cat(parts, -1).flatten(2)
        out[f"{name}.weight"] = torch.einsum("nkd,nkl,nle->de", rows, matrices, rows)
    return out


def per_term(weight):
    """Output Hessians ``(N, T * 2, T * 2)`` of a unit Gaussian with these weights ``(N, T)`` of the loss terms."""
    return lambda out: torch.diag_embed(weight.double().repeat_interleave(2, 1))


def assert_exact(found, expected):
    for name, matrix in expected.items():
        error = (found[name] - matrix).norm() / matrix.norm()
        assert error < 1e-10, f"{name}: {error}"


def error(found, expected, name):
    return float((found[name] - expected[name]).norm() / expected[name].norm())


TERMS = {
    "all": ({}, torch.ones(N, T), N * T),
    "weighted alike": ({"weight": torch.full((N, T), 2.5).double()}, torch.full((N, T), 2.5), N * T),
    "a sum over positions": ({"weight": torch.full((N, T), float(T)).double()}, torch.ones(N, T), N),
    "masked": ({"mask": MASK}, MASK, int(MASK.sum())),
    "masked and weighted alike": (
        {"mask": MASK, "weight": torch.full((N, T), 2.5).double()},
        2.5 * MASK,
        int(MASK.sum()),
    ),
}


@pytest.mark.parametrize("terms", TERMS)
def test_expand_is_exact_for_a_deep_linear_network_with_one_loss_term_per_position(tools, terms):
    options, weight, count = TERMS[terms]
    model, x = tools.fill(Deep(mean=False).double()), normal(N, T, 3)
    expected = {k: v / count for k, v in exact(model, x, per_term(weight)).items()}
    assert_exact(measured(model, "expand", Gaussian(noise=1.0), x, **options), expected)
    assert error(measured(model, "reduce", Gaussian(noise=1.0), x, **options), expected, "one.weight") > 0.1


def test_a_scalar_weight_is_no_part_of_the_curvature(tools):
    model, x = tools.fill(Deep(mean=False).double()), normal(N, T, 3)
    plain, scaled = (measured(model, "expand", Gaussian(noise=1.0), x, weight=w) for w in (1.0, 0.25))
    for name, matrix in plain.items():
        torch.testing.assert_close(scaled[name], matrix)


@pytest.mark.parametrize("weight", [None, 2.5])
@pytest.mark.parametrize("masked", [False, True])
def test_reduce_is_exact_for_a_deep_linear_network_of_the_mean_over_positions(tools, masked, weight):
    model, x = tools.fill(Deep(mean=True).double()), normal(N, T, 3)
    mask = torch.tensor([True, False, True, True]) if masked else torch.ones(N, dtype=torch.bool)
    options = {"mask": mask} if masked else {}
    options |= {} if weight is None else {"weight": torch.full((N,), weight).double()}
    hessian = torch.eye(2).double() * (mask.double() * (weight or 1.0))[:, None, None]
    expected = {k: v / int(mask.sum()) for k, v in exact(model, x, lambda out: hessian).items()}
    assert_exact(measured(model, "reduce", Gaussian(noise=1.0), x, **options), expected)
    expand = measured(model, "expand", Gaussian(noise=1.0), x, **options)
    assert error(expand, expected, "one.weight") > 0.1 > error(expand, expected, "head.weight")


class Table(nn.Module):
    """Embedding of padded sequences; outputs per position, or of the mean over the tokens that are no padding."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean
        self.table = nn.Embedding(5, 3, padding_idx=0)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens):
        h, kept = self.table(tokens), (tokens != 0).double().unsqueeze(-1)
        return self.head((h * kept).sum(1) / kept.sum(1) if self.mean else h)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_padding_of_an_embedding_is_no_input(tools, sharing):
    tokens = torch.tensor([[1, 2, 2], [3, 0, 0], [4, 1, 0], [2, 3, 4]])
    model = tools.fill(Table(mean=sharing == "reduce").double())
    options = {"mask": tokens != 0} if sharing == "expand" else {}
    found = measured(model, sharing, Gaussian(noise=1.0), tokens, **options)["table.weight"]
    one_hot = torch.nn.functional.one_hot(tokens, 5).double() * (tokens != 0).unsqueeze(-1)
    jtj = model.head.weight.T @ model.head.weight
    if sharing == "expand":
        a = torch.einsum("nti,ntj->ij", one_hot, one_hot) / int((tokens != 0).sum())
    else:
        mean = one_hot.sum(1) / (tokens != 0).sum(1, keepdim=True)
        a = mean.T @ mean / N
    torch.testing.assert_close(found, torch.kron(jtj.detach(), a))


def test_masked_positions_that_carry_a_gradient_are_inputs(tools):
    """The model looks at the first token from the last: its loss is masked, it is no padding."""

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 2)

        def forward(self, x):
            return self.one(x).cumsum(1)

    model, x = tools.fill(Looking().double()), normal(N, 2, 3)
    mask = torch.tensor([[False, True]] * N)
    found = measured(model, "expand", Gaussian(noise=1.0), x, mask=mask)["one.weight"]
    a = torch.cat([x, torch.ones(N, 2, 1).double()], -1).flatten(0, 1)
    torch.testing.assert_close(found, torch.kron(2 * torch.eye(2).double(), a.T @ a / len(a)))


@pytest.mark.parametrize("statistic", ["empirical", "mc", "ggn"])
def test_padding_changes_nothing(tools, statistic):
    """Sequences of one length and the same ones with masked positions behind them."""
    model, x = tools.fill(Deep(mean=False).double()), normal(N, T, 3)
    padded = torch.cat([x, normal(N, 2, 3, seed=1)], 1)
    mask = torch.arange(T + 2).expand(N, -1) < T
    plain = measured(model, "expand", Gaussian(noise=1.0), x, statistic)
    masked = measured(model, "expand", Gaussian(noise=1.0), padded, statistic, mask=mask)
    for name, matrix in plain.items():
        if statistic != "mc":  # other labels are drawn for another number of terms
            torch.testing.assert_close(masked[name], matrix)
        else:
            a, b = matrix.diagonal().view(model.get_submodule(name[:-7]).out_features, -1), masked[name].diagonal()
            torch.testing.assert_close(a / a.sum(1, keepdim=True), b.view_as(a) / b.view_as(a).sum(1, keepdim=True))


def test_micro_batches_of_different_lengths_count_positions(tools):
    model = tools.fill(Deep(mean=False).double())
    short, long = normal(2, 1, 3), normal(2, 4, 3, seed=1)
    opt = NaturalGradient(
        model, Kronecker(), "ggn", lr=0.0, variational=False, curvature_decay=0.0, steps=(), loss_reduction="mean"
    )
    opt.zero_grad()
    with opt.sampled_params():
        for x in (short, long):
            out = model(x)
            (Gaussian(noise=1.0)(out, torch.zeros_like(out)) / 2).backward()
    opt.step()
    table, _ = opt._build()
    inputs = torch.cat([short.flatten(0, 1), long.flatten(0, 1)])
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1).double()], 1)
    torch.testing.assert_close(table.state(table.blocks[0])["curvature"]["A"], inputs.T @ inputs / len(inputs))


@pytest.mark.parametrize("method", [KFAC, EKFAC])
@pytest.mark.parametrize("variational", [False, True])
def test_named_methods_take_kfac_approx(tools, method, variational):
    opt = method(Deep(mean=True), kfac_approx="reduce", ess=20.0, variational=variational)
    assert opt.structure.sharing == "reduce" and method(Deep(mean=True), ess=20.0).structure.sharing == "expand"
    model = tools.fill(Deep(mean=True).double())
    opt = method(model, kfac_approx="reduce", ess=20.0, weight_decay=0.05, variational=variational)
    for step in range(3):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(normal(N, T, 3, seed=step)), torch.tensor([0, 1, 0, 1])).backward()
        opt.step()
    with pytest.raises(ValueError, match="sharing='mean' is unknown; allowed: 'expand', 'reduce'"):
        method(model, kfac_approx="mean", ess=20.0)
