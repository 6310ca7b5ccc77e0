"""``structure={...}``: which block gets which structure, what is refused, and what both modes make of it."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from vogn import EKFAC, EVON, IVON, KFAC, SLANG, VOGN, VON, NaturalGradient, VAdam
from vogn.capture.selection import make_selection
from vogn.errors import CheckpointError, UnsupportedObservationError
from vogn.optim import METHODS
from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.body = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.LayerNorm(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(self.embedding(x).flatten(1)))


@pytest.fixture
def model(tools):
    return tools.fill(Network().double())


def chosen(opt):
    """First parameter of each block to its structure."""
    return {row["block"]: row["structure"] for row in opt.coverage()}


OPTIONS = {"ess": 50.0, "weight_decay": 0.02, "damping": 0.01}


def test_entries_match_names_modules_around_them_and_types_and_the_rest_keeps_its_structure(model):
    opt = KFAC(model, structure={"body": "diagonal", nn.Embedding: "dense", "hea?.w*": EigenKronecker()}, **OPTIONS)
    assert chosen(opt) == {
        "embedding.weight": "Dense",
        "body.0.weight": "Diagonal",
        "body.2.weight": "Diagonal",
        "head.weight": "EigenKronecker",
    }
    assert set(chosen(KFAC(model, structure={nn.Linear: "dense"}, **OPTIONS)).values()) == {"Dense", "Kronecker"}


def test_the_first_match_in_order_wins(model):
    first = KFAC(model, structure={"body.0": "dense", "body": "diagonal"}, **OPTIONS)
    assert [chosen(first)[name] for name in ("body.0.weight", "body.2.weight")] == ["Dense", "Diagonal"]
    types = KFAC(model, structure={"head": "dense", nn.Linear: "diagonal"}, **OPTIONS)
    assert [chosen(types)[name] for name in ("head.weight", "body.0.weight")] == ["Dense", "Diagonal"]


def test_a_type_matches_its_subclasses_and_what_is_inside(model):
    class Mine(nn.Linear):
        pass

    other = nn.Sequential(Mine(2, 2), nn.Sequential(nn.Linear(2, 2))).double()
    assert chosen(KFAC(other, structure={Mine: "dense"}, **OPTIONS)) == {"0.weight": "Dense", "1.0.weight": "Kronecker"}
    assert set(chosen(KFAC(other, structure={nn.Linear: "dense"}, **OPTIONS)).values()) == {"Dense"}
    assert set(chosen(KFAC(other, structure={nn.Sequential: "dense"}, **OPTIONS)).values()) == {"Dense"}


@pytest.mark.parametrize("method", [KFAC, EKFAC, VOGN, VON, SLANG])
def test_every_per_example_method_takes_a_mapping(tools, model, method):
    opt = method(model, structure={"head": "dense", "*.0": "kronecker"}, **OPTIONS)
    found = chosen(opt)
    assert found["head.weight"] == "Dense" and found["body.0.weight"] == "Kronecker"
    assert set(found.values()) == {"Dense", "Kronecker", type(opt.structure).__name__}
    tools.train(opt, model, 2, batches=tools.tokens)


@pytest.mark.parametrize("method", [VAdam, IVON, EVON])
def test_every_method_of_whole_gradients_takes_a_mapping(tools, model, method):
    structure = EigenKronecker(basis="contraction", restart=False, negative="retract", basis_decay=0.9)
    opt = method(model, structure={"head.weight": structure, "embedding.weight": "diagonal"}, ess=50.0)
    assert chosen(opt)["head.weight"] == "EigenKronecker" and chosen(opt)["embedding.weight"] == "Diagonal"
    tools.train(opt, model, 2, batches=tools.tokens)


def test_a_layer_that_is_matched_leaves_the_common_block(model):
    opt = SLANG(model, rank=2, structure={"head": "dense"}, **OPTIONS)
    rows = {row["parameter"]: (row["block"], row["structure"]) for row in opt.coverage()}
    assert rows["head.bias"] == ("head.weight", "Dense")
    assert {block for name, (block, _) in rows.items() if "head" not in name} == {"embedding.weight"}


def test_a_name_takes_over_how_the_method_reads_evidence(model):
    assert make_selection({"*": "dense"}, Diagonal(negative="retract")).rules[0][1] == Dense(negative="retract")
    assert make_selection({"*": "eigen_kronecker"}, Kronecker(sharing="reduce")).rules[0][1].sharing == "reduce"
    own = DiagonalLowRank(rank=7)
    assert make_selection({"*": "diagonal_low_rank"}, own).rules[0][1] is own


@pytest.mark.parametrize("variational", [False, True])
def test_mixed_blocks_take_the_steps_that_their_structures_take_alone(tools, variational):
    """A block's noise, curvature and step are those of the optimizer that has its structure everywhere."""
    structures = {"dense": Dense(), "diagonal": Diagonal(), "kronecker": Kronecker()}
    ends = {}
    for name, structure in structures.items():
        alone = tools.fill(Network().double())
        opt = NaturalGradient(alone, structure, "ggn", lr=0.1, variational=variational, **OPTIONS)
        tools.train(opt, alone, 1, batches=tools.tokens)
        ends[name] = tools.weights(alone)
    mixed = tools.fill(Network().double())
    entries = {"embedding": "diagonal", "body": "kronecker", "head": "dense"}
    opt = NaturalGradient(mixed, entries, "ggn", lr=0.1, variational=variational, **OPTIONS)
    tools.train(opt, mixed, 1, batches=tools.tokens)
    # before any evidence no weights are sampled, so all four saw the same gradients in this first step
    for name, weight in tools.weights(mixed).items():
        assert torch.equal(weight, ends[entries[name.split(".")[0]]][name]), name
    tools.train(opt, mixed, 2, start=1, batches=tools.tokens)
    if variational:
        draw = opt.posterior().sample(2)
        assert all(bool((draw[name][0] != draw[name][1]).all()) for name in draw)


WRONG = [
    ({"haed": "dense"}, ValueError, r"the entry 'haed' matches nothing.*close to it: head"),
    ({"*.embedding": "dense"}, ValueError, r"'\*\.embedding' matches nothing.*close to it: embedding"),
    ({nn.Conv2d: "dense"}, ValueError, r"Conv2d matches nothing.*types here: .*Embedding"),
    ({"*": "dense", "head": "diagonal"}, ValueError, r"'head' is never used: the entries before it take every block"),
    ({"head": "diagnoal"}, ValueError, r"entry 'head': 'diagnoal' is unknown; did you mean 'diagonal'\? registered:"),
    ({"head": 3}, TypeError, r"entry 'head': 3 is neither a structure nor the registered name"),
    ({3: "dense"}, TypeError, r"the key 3 is neither a name pattern nor a module type"),
    ({}, ValueError, r"structure=\{\} has no entries"),
    (7, TypeError, r"structure=7: give a structure, its registered name, or a mapping"),
]


@pytest.mark.parametrize(("structure", "error", "message"), WRONG)
def test_what_cannot_be_meant_is_refused_at_construction(model, structure, error, message):
    with pytest.raises(error, match=message):
        KFAC(model, structure=structure, **OPTIONS)


def test_types_need_the_model(model):
    with pytest.raises(ValueError, match="pass the model instead of its parameters"):
        IVON(model.named_parameters(), ess=50.0, structure={nn.Linear: "diagonal"})


class Pointwise(Diagonal):
    """A diagonal that cannot sample."""

    SUPPORTS = Diagonal.SUPPORTS - {"sample"}


def test_a_structure_that_cannot_do_what_its_block_needs_is_refused_by_name(tools, model):
    with pytest.raises(UnsupportedObservationError, match=r"block 'head.weight': Kronecker cannot be fed .*'price'"):
        IVON(model, ess=50.0, structure={"head": "kronecker"})
    with pytest.raises(UnsupportedObservationError, match=r"block 'head.weight': Dense has no powers"):
        VAdam(model, ess=50.0, structure={"head": "dense"})
    with pytest.raises(UnsupportedObservationError, match=r"block 'head.weight': Kronecker factors need the inputs"):
        NaturalGradient(model, {"head.weight": "kronecker"}, "gradient", lr=0.1, variational=False)
    with pytest.raises(UnsupportedObservationError, match=r"block 'head.weight': Pointwise cannot sample"):
        KFAC(model, structure={"head": Pointwise()}, **OPTIONS)
    tools.train(
        KFAC(model, structure={"head": Pointwise()}, variational=False, **OPTIONS), model, 1, batches=tools.tokens
    )


def test_an_entry_about_frozen_layers_waits_for_them(model):
    model.head.requires_grad_(False)
    opt = KFAC(model, structure={"head": "dense"}, **OPTIONS)
    assert {row["structure"] for row in opt.coverage() if "head" in row["parameter"]} == {""}
    model.head.requires_grad_(True)
    assert chosen(opt)["head.weight"] == "Dense"


def test_a_block_that_its_entry_cannot_hold_gets_the_fallback_and_one_warning(tools, model):
    opt = KFAC(model, structure={"head": Dense(max_dim=3)}, **OPTIONS)
    with pytest.warns(
        UserWarning, match=r"block 'head.weight': Dense does not fit \(3, 5\)\. It is stored as Diag"
    ) as seen:
        tools.train(opt, model, 2, batches=tools.tokens)
        rows = {row["parameter"]: row for row in opt.coverage()}
    assert len(seen) == 1
    assert rows["head.weight"]["structure"] == "Diagonal" and "does not fit" in rows["head.weight"]["note"]


def test_a_checkpoint_resumes_with_the_same_mapping_and_no_other(tools):
    mapping = {"head": "dense", nn.Embedding: "diagonal"}
    whole, first, second = (tools.fill(Network().double()) for _ in range(3))
    reference = KFAC(whole, structure=mapping, **OPTIONS)
    tools.train(reference, whole, 4, batches=tools.tokens)
    opt = KFAC(first, structure=mapping, **OPTIONS)
    tools.train(opt, first, 2, batches=tools.tokens)
    second.load_state_dict(first.state_dict())
    resumed = KFAC(second, structure=dict(mapping), **OPTIONS)
    resumed.load_state_dict(tools.through_a_file(opt.state_dict()))
    tools.train(resumed, second, 2, start=2, batches=tools.tokens)
    for name, weight in tools.weights(whole).items():
        assert torch.equal(weight, tools.weights(second)[name]), name
    for other in (None, {"head": "dense"}, {"head": "dense", nn.Embedding: "dense"}):
        with pytest.raises(CheckpointError, match="written by another method"):
            KFAC(second, structure=other, **OPTIONS).load_state_dict(tools.through_a_file(opt.state_dict()))
    with pytest.raises(CheckpointError, match="written by another method"):
        resumed.load_state_dict(tools.through_a_file(KFAC(second, **OPTIONS).state_dict()))


def test_a_mixed_posterior_survives_its_file(tools, model, tmp_path):
    opt = KFAC(model, structure={"head": "dense", "embedding": "diagonal"}, **OPTIONS)
    tools.train(opt, model, 2, batches=tools.tokens)
    posterior = opt.posterior()
    posterior.save(tmp_path / "posterior.safetensors")
    other = type(posterior).load(tmp_path / "posterior.safetensors")
    assert [type(block.structure) for block in other.blocks] == [type(block.structure) for block in posterior.blocks]
    for name, draw in posterior.sample(2, seed=1).items():
        assert torch.equal(draw, other.sample(2, seed=1)[name])


def test_all_named_methods_know_the_argument():
    for info in METHODS.values():
        assert "structure" in inspect.signature(info.constructor).parameters
