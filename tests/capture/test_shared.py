"""Parameters in unusual places: shared by several layers, or behind a parametrisation."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from vogn.capture.partition import partition
from vogn.capture.statistics import GGN, Empirical, MonteCarlo
from vogn.likelihoods import Categorical
from vogn.structures import Dense, Diagonal, Kronecker

N, T = 4, 3
STATISTICS = [Empirical(), GGN()]


class Linears(nn.Module):
    """One weight in three linear maps, whose biases are their own."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.two.weight = self.three.weight = self.one.weight

    def forward(self, x):
        return self.three(torch.tanh(self.two(torch.tanh(self.one(x))))).mean(1)


class Language(nn.Module):
    """The table of the input embedding is the output layer, and that of the positions another embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.position, self.head = nn.Embedding(3, 2), nn.Embedding(3, 2, padding_idx=1), nn.Linear(2, 3)
        self.position.weight = self.head.weight = self.table.weight

    def forward(self, x):
        index = x.argmax(-1)
        return self.head(torch.tanh(self.table(index) + self.position(2 - index))).mean(1)


class Tables(nn.Module):
    """Two embeddings with one table."""

    def __init__(self):
        super().__init__()
        self.source, self.target, self.head = nn.Embedding(3, 4), nn.Embedding(3, 4), nn.Linear(4, 3)
        self.target.weight = self.source.weight

    def forward(self, x):
        index = x.argmax(-1)
        return self.head(torch.tanh(self.source(index) * self.target(index.flip(1))).sum(1))


class Inner(nn.Module):
    """Weights shared inside a recurrent network, across attention modules, and with a linear layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.MultiheadAttention(3, 1, batch_first=True) for _ in range(2))
        self.two.in_proj_weight = self.one.in_proj_weight
        self.rnn = nn.RNN(3, 3, num_layers=2, batch_first=True)
        self.rnn.weight_hh_l1 = self.rnn.weight_hh_l0
        self.head = nn.Linear(3, 3)
        self.head.weight = self.one.out_proj.weight

    def forward(self, x):
        y = self.one(x, x, x)[0]
        y = self.two(y, x, x)[0]
        return self.head(self.rnn(y)[0].mean(1))


class Unknown(nn.Module):
    """Shared with a module whose mathematics is unknown."""

    class Cosine(nn.Linear):
        def forward(self, x):
            return F.linear(F.normalize(x, dim=-1), self.weight, self.bias)

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), self.Cosine(3, 3)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x))).mean(1)


class Norms(nn.Module):
    """Scales and slopes shared by layers of one kind, and a kernel shared by two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.LayerNorm(3), nn.LayerNorm(3)
        self.two.weight = self.one.weight
        self.three, self.four = nn.Conv1d(3, 3, 3, padding=1), nn.Conv1d(3, 3, 3, dilation=1)
        self.four.weight = self.three.weight

    def forward(self, x):
        return self.four(torch.tanh(self.three(self.two(torch.sin(self.one(x))).mT))).mean(-1)


SHARED = {
    "linears": Linears,
    "language": Language,
    "tables": Tables,
    "inner": Inner,
    "unknown": Unknown,
    "norms": Norms,
}


def batch(tools):
    return tools.normal(N, T, 3), tools.labels(N, 3)


def agrees(tools, model, statistic, part="layer"):
    x, y = batch(tools)
    ours, posterior = tools.measure(model, statistic, Categorical(), x, y, partition=part)
    exact = tools.exact(model, statistic, posterior, x, y)
    tools.assert_blocks(ours, exact)
    names = [name for block in posterior.blocks for name in block.layout.names]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.NAME)
@pytest.mark.parametrize("part", ["layer", "parameter", "model"])
@pytest.mark.parametrize("name", SHARED)
def test_the_curvature_of_shared_parameters_is_exact(tools, name, part, statistic):
    agrees(tools, tools.fill(SHARED[name]()), statistic, part)


def blocks_of(model):
    blocks = partition(model, model.named_parameters(), structure=Dense(), fallback=Dense())
    return {block.name: block for block in blocks}


def test_rows_of_layers_that_see_a_weight_alike_are_further_positions():
    """The block keeps the layer's shape, so a Kronecker structure holds it; biases are blocks of their own."""
    blocks = blocks_of(Linears())
    assert {name: block.layout.block_shape for name, block in blocks.items()} == {
        "one.weight": (3, 3),
        "one.bias": (3, 1),
        "two.bias": (3, 1),
    }
    assert blocks_of(Tables())["source.weight"].layout.block_shape == (4, 3)
    assert not any(block.has_bare for block in blocks.values())


def test_a_table_that_is_also_the_output_layer_needs_no_pass_of_its_own():
    blocks = blocks_of(Language())
    assert blocks["table.weight"].layout.block_shape == (6, 1, 1) and not blocks["table.weight"].has_bare
    assert blocks_of(Unknown())["one.weight"].has_bare, "no rule knows all that happens to it"


@pytest.mark.parametrize("statistic", [*STATISTICS, MonteCarlo(2)], ids=lambda s: s.NAME)
def test_a_use_that_a_batch_leaves_out(tools, statistic):
    class Routed(Linears):
        def forward(self, x):
            return self.two(torch.tanh(x)).mean(1)

    model, (x, y) = tools.fill(Routed()), batch(tools)
    alone = nn.Sequential(nn.Tanh(), copy.deepcopy(model.two))
    expected, _ = tools.measure(alone, statistic, Categorical(), x.mean(1), y, partition="parameter")
    for part in ("parameter", "layer"):
        model.zero_grad()
        ours, _ = tools.measure(model, statistic, Categorical(), x.mean(1, keepdim=True), y, partition=part)
        torch.testing.assert_close(ours["one.weight"], expected["1.weight"], rtol=1e-12, atol=1e-14)
        assert expected["1.weight"].any() and not ours["one.bias"].any()


@pytest.mark.parametrize("structure", [Kronecker(), Diagonal()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SHARED)
def test_every_structure_takes_shared_parameters(tools, name, structure):
    from vogn import NaturalGradient

    model, (x, y) = tools.fill(SHARED[name]()), batch(tools)
    opt = NaturalGradient(model, structure, "empirical", lr=0.05, ess=1e6, weight_decay=1e-3, partition="layer")
    before = Categorical()(model(x), y).item()
    for _ in range(8):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    assert Categorical()(model(x), y).item() < before
    for _, p in model.named_parameters(remove_duplicate=False):
        assert any(p is q for group in opt.param_groups for q in group["params"])


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight.exp()


def normalised(layer, name="weight"):
    return parametrizations.weight_norm(layer, name)


def spectral(layer, name="weight"):
    return parametrizations.spectral_norm(layer, name)


def custom(layer, name="weight"):
    nn.utils.parametrize.register_parametrization(layer, name, Doubled(), unsafe=True)
    return layer


def old_normalised(layer, name="weight"):
    with pytest.warns(FutureWarning):
        return old_weight_norm(layer, name)


def old_spectral(layer, name="weight"):
    return old_spectral_norm(layer, name)


class Parametrised(nn.Module):
    """Linear, bias-free linear, convolution, embedding, norm, recurrent and attention weights."""

    def __init__(self, change):
        super().__init__()
        self.linear, self.plain = change(nn.Linear(3, 3)), change(nn.Linear(3, 3, bias=False))
        self.table = change(nn.Embedding(3, 3))
        self.conv = change(nn.Conv1d(3, 2, 2))
        self.rnn = change(nn.GRU(2, 2, batch_first=True), "weight_hh_l0")
        self.attention = change(nn.MultiheadAttention(2, 1, batch_first=True), "in_proj_weight")
        if change not in (old_normalised, old_spectral):  # their hooks never run: attention does not call it
            change(self.attention.out_proj)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        y = torch.tanh(self.plain(self.linear(x)) + self.table(x.argmax(-1)))
        y = self.rnn(self.conv(y.mT).mT)[0]
        return self.head(self.attention(y, y, y)[0].mean(1))


PARAMETRISATIONS = [normalised, spectral, custom, old_normalised, old_spectral]


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda s: s.NAME)
@pytest.mark.parametrize("change", PARAMETRISATIONS, ids=lambda f: f.__name__)
def test_the_parameters_behind_a_parametrisation_are_measured_exactly(tools, change, statistic):
    model = Parametrised(change).double()
    with torch.no_grad():  # power iterations of spectral norms have converged
        for _ in range(50):
            model(tools.normal(N, T, 3))
    model.eval()
    agrees(tools, model, statistic)


@pytest.mark.parametrize("change", PARAMETRISATIONS, ids=lambda f: f.__name__)
def test_a_layer_whose_weight_is_computed_is_tapped_for_its_bias_only(change):
    blocks = blocks_of(Parametrised(change))
    assert blocks["linear.bias"].layout.names == ("linear.bias",) and not blocks["linear.bias"].has_bare
    names = [name for name, _ in Parametrised(change).named_parameters()]
    hidden = [n for n in names if ("weight_" in n or "original" in n) and n != "rnn.weight_ih_l0"]
    assert len(hidden) >= 6, "linear, plain, table, convolution, recurrent and attention weights"
    for name in hidden:
        assert blocks[name].has_bare, name
    assert blocks["rnn.weight_ih_l0"].layout.names == ("rnn.weight_ih_l0", "rnn.bias_ih_l0")
    assert blocks["attention.in_proj_bias"].layout.block_shape == (3, 2, 1)
