"""The table of what happens to every parameter."""

from __future__ import annotations

import copy
import io
import math
import warnings
from pathlib import Path

import pages
import pytest
import torch
from torch import nn

import vogn
from vogn import KFAC, VOGN
from vogn.likelihoods import Categorical
from vogn.optim import METHODS
from vogn.structures import Dense, Diagonal, EigenKronecker, Identity, Kronecker
from vogn.structures.costs import Costs, costs

OPTIONS = {"ess": 50.0, "weight_decay": 0.02, "damping": 0.01}


class Network(nn.Module):
    """Look-up, norm, a bare parameter, a layer without a bias."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.shift = nn.Parameter(torch.zeros(6))
        self.norm = nn.LayerNorm(6)
        self.body = nn.Linear(6, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(self.norm(self.embedding(x).flatten(1) + self.shift)).tanh())


@pytest.fixture
def model(tools):
    return tools.fill(Network().double())


def state_bytes(opt, parameter):
    def tensors(state):
        return [t for value in state.values() for t in (tensors(value) if isinstance(value, dict) else [value])]

    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(opt.state[parameter]))


def by_name(rows):
    return {row["parameter"]: row for row in rows}


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_has_one_row_and_its_bytes_are_those_of_the_state_after_a_step(tools, model, method):
    model.norm.bias.requires_grad_(False)
    opt = METHODS[method].build(model, ess=50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bare parameter
        rows = opt.coverage()
        tools.train(opt, model, 1, batches=tools.tokens)
    assert [row["parameter"] for row in rows] == [n for group in opt.param_groups for n in group["param_names"]]
    assert sorted(row["parameter"] for row in rows) == sorted(name for name, _ in model.named_parameters())
    for name, parameter in model.named_parameters():
        row = by_name(rows)[name]
        assert row["frozen"] == (not parameter.requires_grad) and bool(row["block"]) == parameter.requires_grad
        stored = state_bytes(opt, parameter)
        if opt.structure.GROWS and "curvature" in opt.state[parameter]:  # by the rows of a batch
            assert 0 < row["bytes"] < stored, name
        else:
            assert row["bytes"] == stored, name
    assert rows == opt.coverage()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "structure", [{"head": Kronecker(max_dim=3)}, {"*": "dense"}, {"*": EigenKronecker(max_dim=4)}]
)
def test_bytes_are_exact_in_every_dtype_and_structure(structure, dtype):
    model = nn.Sequential()
    model.add_module("body", nn.Linear(2, 4))
    model.add_module("head", nn.Linear(4, 3))
    model.to(dtype)
    opt = KFAC(model, structure=structure, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = by_name(opt.coverage())
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(torch.ones(5, 2, dtype=dtype)), torch.zeros(5, dtype=torch.int64)).backward()
        opt.step()
    for name, parameter in model.named_parameters():
        assert rows[name]["bytes"] == state_bytes(opt, parameter), name


def test_a_row_says_what_happens_to_its_parameter(model):
    model.embedding.requires_grad_(False)
    rows = by_name(vogn.coverage(model, {"head": "dense"}, method="kfac", refresh_every=7, observe_every=3))
    assert rows["head.bias"] | {"extra_time": 0, "step_multiply_adds": 0, "bytes": 0} == {
        "parameter": "head.bias",
        "block": "head.weight",
        "layer": "Linear",
        "shape": (3, 5),
        "structure": "Dense",
        "statistics": ["mc"],
        "per_example": "layer rule",
        "observe_every": 3,
        "refresh_every": 7,
        "sampled": True,
        "frozen": False,
        "bytes": 0,
        "extra_time": 0,
        "extra_per": "",
        "step_multiply_adds": 0,
        "note": "",
    }
    assert rows["embedding.weight"]["frozen"] and "requires_grad=False" in rows["embedding.weight"]["note"]
    assert rows["shift"]["per_example"] == "own pass" and "no layer rule: elementwise" in rows["shift"]["note"]
    assert rows["shift"]["layer"] == "Network" and rows["norm.weight"]["layer"] == "LayerNorm"


def test_extra_time_counts_multiply_adds_relative_to_forward_and_backward():
    """A linear layer of N rows takes N o i multiply-adds in forward and 2 N o i in backward."""
    model = nn.Linear(6, 4, bias=False)
    layer, own = 3 * 6 * 4, 6 * 4

    def extra(**options):
        (row,) = vogn.coverage(model, **options)
        return row["extra_time"], row["extra_per"]

    assert extra(method="kfac") == (pytest.approx((36 + 16 + own) / layer), "")
    assert extra(method="kfac", fisher="empirical", observe_every=4) == (pytest.approx((36 + 16) / layer / 4), "")
    assert extra(method="kfac", fisher="ggn") == (pytest.approx((36 + 16 + own) / layer), "output")
    assert extra(method="kfac", fisher="ggn", ggn_samples=3) == (pytest.approx(3 * (36 + 16 + own) / layer), "")
    assert extra(method="vogn") == (pytest.approx(24 / layer), "")
    assert extra(structure=Kronecker(max_dim=5), statistic="empirical") == (pytest.approx((6 + 16) / layer), "")
    assert extra(method="slang")[0] is None  # depends on the batch size
    assert extra(method="ivon") == (None, "")


def test_the_cost_of_a_step_is_solving_plus_refreshing_over_its_period():
    (row,) = vogn.coverage(nn.Linear(6, 4, bias=False), method="kfac", refresh_every=10)
    assert row["step_multiply_adds"] == pytest.approx(2 * (4 * 6 * 6 + 4 * 4 * 6) + 4.5 * (6**3 + 4**3) / 10)


def test_costs_of_one_row_are_those_of_the_formulas():
    assert costs(Diagonal(), (3, 4)) == Costs(12.0, 0.0, 12.0)
    assert costs(Identity(), (3, 4)) == Costs(0.0, 0.0, 12.0)
    assert costs(Kronecker(), (2, 3, 4)).row == 2 * (9 + 16)
    assert costs(EigenKronecker(max_dim=3), (3, 4)).row == 2 * (9 + 4) + 12
    assert costs(Dense(), (3, 4)).row == 12 + 144

    class Mine(Dense):
        pass

    assert costs(Mine(), (3, 4)) == costs(Dense(), (3, 4))


def test_coverage_needs_no_optimizer_and_leaves_the_model_alone(model):
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the table says it all
        rows = vogn.coverage(model, method="kfac", structure={"head": Dense(max_dim=1)})
    assert by_name(rows)["head.weight"]["structure"] == "Diagonal"
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_method_the_structure_is_taken_with_sampled_labels(model):
    assert {row["structure"] for row in vogn.coverage(model)} == {"Kronecker"}
    rows = vogn.coverage(model, {nn.Embedding: "diagonal"}, statistic="empirical")
    assert by_name(rows)["embedding.weight"]["structure"] == "Diagonal"
    assert by_name(rows)["head.weight"]["structure"] == "Kronecker" and rows[0]["statistics"] == ["empirical"]
    with pytest.raises(ValueError, match="method='adam' is unknown; choose one of vogn, von"):
        vogn.coverage(model, method="adam")
    with pytest.raises(ValueError, match="statistic='mc' goes with method=None"):
        vogn.coverage(model, method="kfac", statistic="mc")
    with pytest.raises(ValueError, match="'haed' matches nothing"):
        vogn.coverage(model, {"haed": "dense"})


def test_bare_parameters_are_announced_once_with_a_remedy(tools, model):
    opt = VOGN(model, **OPTIONS)
    with pytest.warns(UserWarning, match=r"no layer rule for 'shift': .*register_layer.*IVON") as seen:
        tools.train(opt, model, 3, batches=tools.tokens)
        opt.coverage()
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vogn.IVON(model, ess=50.0).coverage()


def test_a_factor_that_is_too_large_is_announced_once_with_its_option():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    opt = KFAC(model, structure={"*": Kronecker(max_dim=4)}, **OPTIONS)
    expected = r"block '1.weight': diagonal input factor \(5\): larger than max_dim=4; Kronecker\(max_dim=\.\.\.\)"
    with pytest.warns(UserWarning, match=expected) as seen:
        for _ in range(2):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(torch.ones(2, 3).double()), torch.tensor([0, 1])).backward()
            opt.step()
    assert len(seen) == 1
    assert "larger than max_dim=4" in by_name(opt.coverage())["1.weight"]["note"]


def test_weights_tied_in_two_shapes_are_announced_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens):
            return self.head(self.table(tokens))

    tokens = torch.tensor([[0, 1], [2, 3]])
    with pytest.warns(
        UserWarning, match=r"block 'table.weight': shared by .*Kronecker keeps its diagonal.*untie"
    ) as seen:
        model = Tied()
        opt = KFAC(model, **OPTIONS)
        for _ in range(2):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(tokens), tokens).backward()
            opt.step()
        (row,) = opt.coverage()
    assert len(seen) == 1 and "in different shapes: elementwise" in row["note"]
    (row,) = vogn.coverage(Tied(), "diagonal")
    assert row["note"] == ""


def test_the_table_is_readable_text(model):
    model.body.requires_grad_(False)
    rows = vogn.coverage(model, method="kfac")
    text = str(rows)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["parameter", "block", "layer", "shape"]
    assert all(any(line.startswith(row["parameter"] + " ") for line in lines) for row in rows)
    assert f"{sum(row['bytes'] for row in rows)} bytes" in text and "7 parameters, 6 tracked, 1 frozen" in text
    assert "mc: one more backward per draw" in text
    assert isinstance(rows, list) and rows[0]["parameter"] in repr(rows)


def test_the_table_renders_on_a_rich_console(model):
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(vogn.coverage(model, method="kfac"))
    text = console.export_text()
    assert "embedding.weight" in text and "Kronecker" in text and "bytes of optimizer state" in text


def test_parameters_without_a_model_are_covered_too():
    weights = [nn.Parameter(torch.zeros(3, 2)), nn.Parameter(torch.zeros(4))]
    rows = vogn.IVON(weights, ess=10.0).coverage()
    assert [(row["parameter"], row["layer"], math.prod(row["shape"])) for row in rows] == [
        ("param0", "", 6),
        ("param1", "", 4),
    ]


def test_the_page_about_coverage_runs(capsys):
    namespace = pages.run(Path(__file__).resolve().parents[2] / "docs" / "coverage.md")
    errors = {row["block"]: row["error"] for row in namespace["rows"]}
    assert errors["head.weight"] < 1e-10 < errors["body.0.weight"]
    assert "diagonal input factor (20000)" in capsys.readouterr().out


def test_the_cost_of_an_explicit_forward_is_in_the_note():
    rows = vogn.coverage(nn.Sequential(nn.LSTM(2, 3), nn.GRUCell(3, 2)), method="kfac")
    notes = {row["block"]: row["note"] for row in rows if row["parameter"] == row["block"]}
    assert notes.keys() == {"0.weight_ih_l0", "0.weight_hh_l0", "1.weight_ih", "1.weight_hh"}
    assert all("step by step while capturing" in note for block, note in notes.items() if block.startswith("0."))
    assert all("without the fused kernel" in note for note in notes.values())
    assert not any(row["note"] for row in vogn.coverage(nn.MultiheadAttention(4, 2), method="kfac"))
