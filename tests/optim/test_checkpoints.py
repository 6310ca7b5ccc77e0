"""Checkpoints: a resumed run is the uninterrupted one, bit for bit, and a wrong one is refused."""

import copy

import pytest
import torch
from torch import nn

from vogn import IVON, KFAC, METHODS, SLANG, VOGN, NaturalGradient, VAdam
from vogn.errors import CheckpointError
from vogn.likelihoods import Categorical
from vogn.structures import Diagonal, Kronecker

ALL = sorted(METHODS)


def assert_same_state(a, b):
    """Nested dictionaries, bit for bit and with the same dtypes."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_state(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_state(x, y)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    else:
        assert a == b


def options_of(method):
    """Schedules that are not in phase with the checkpoint."""
    return {"refresh_every": 4, "observe_every": 2 if method == "kfac" else 1, "mc_samples": 2, "seed": 3}


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", ALL)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tools, method, variational):
    options = options_of(method) | {"variational": variational}
    model = tools.network()
    opt = tools.build(method, model, **options)
    tools.train(opt, model, 3, contexts=2)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 4, start=3, contexts=2)

    other = tools.network(seed=1)  # elsewhere, and with another learning rate: the checkpoint wins
    resumed = tools.build(method, other, **(options | {"lr": 0.5}))
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    tools.train(resumed, other, 4, start=3, contexts=2)

    assert_same_state(tools.weights(model), tools.weights(other))
    assert_same_state(opt.state_dict(), resumed.state_dict())
    a, b = opt.posterior(), resumed.posterior()
    assert_same_state(a.sample(2), b.sample(2))
    assert a.likelihood == b.likelihood


@pytest.mark.parametrize("method", ALL)
def test_loading_into_a_running_optimizer_forgets_its_own_run(tools, method):
    model = tools.network()
    opt = tools.build(method, model)
    tools.train(opt, model, 2)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 2, start=2)
    wanted = tools.weights(model)
    tools.train(opt, model, 3, start=10)
    with opt.sampled_params():  # observations of the other run, never used
        nn.functional.cross_entropy(model(tools.batch()[0]), tools.batch()[1]).backward()
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    tools.train(opt, model, 2, start=2)
    assert_same_state(wanted, tools.weights(model))


def test_saving_does_not_disturb_the_run_and_a_saved_state_does_not_move_with_it(tools):
    runs = []
    for saves in (False, True):
        model = tools.network()
        opt = tools.build("ivon", model)
        tools.train(opt, model, 2)
        if saves:
            kept = copy.deepcopy(opt.state_dict())
            loaded = tools.build("ivon", tools.network())
            loaded.load_state_dict(opt.state_dict())
        tools.train(opt, model, 2, start=2)
        runs.append(tools.weights(model))
    assert_same_state(*runs)
    # what was loaded is a copy: training the first optimizer on did not change the second one
    assert_same_state(kept["state"], loaded.state_dict()["state"])


@pytest.mark.parametrize("method", ALL)
def test_curvature_of_half_precision_parameters_stays_in_single_precision(tools, method):
    """torch casts loaded state to the dtype of the parameter; that would round the curvature to eight bits."""
    model = tools.network(dtype=torch.bfloat16)
    likelihood = Categorical()

    def step(opt, model, seed):
        x, y = tools.batch(seed=seed)
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x.bfloat16()), y).backward()
        opt.step()

    opt = tools.build(method, model, initial_curvature=1.0)
    for seed in range(2):
        step(opt, model, seed)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    other = tools.network(dtype=torch.bfloat16)
    resumed = tools.build(method, other, initial_curvature=1.0)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    leaves = [leaf for state in resumed.state.values() for leaf in state.get("curvature", {}).values()]
    assert {leaf.dtype for leaf in leaves if leaf.is_floating_point()} == {torch.float32}
    assert any(not torch.equal(leaf, leaf.bfloat16().float()) for leaf in leaves), "eight bits would not do"
    for state in resumed.state.values():
        if "memory" not in state:  # a later parameter of a block
            assert state["place_in_block"].dtype == torch.int64
            continue
        assert state["memory"]["observations"].dtype == torch.int64
        assert state["memory"]["curvature_weight"].dtype == torch.float64
    for seed in range(2, 5):
        step(opt, model, seed)
        step(resumed, other, seed)
    assert_same_state(opt.state_dict(), resumed.state_dict())
    assert_same_state(tools.weights(model), tools.weights(other))


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("method", ALL)
def test_switching_modes_in_memory_is_switching_across_a_checkpoint(tools, method, start):
    model = tools.network()
    opt = tools.build(method, model, variational=start, refresh_every=2)
    tools.train(opt, model, 3)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    mean, curvature = tools.weights(model), tools.curvature(opt)
    opt.param_groups[0]["variational"] = not start
    assert_same_state(mean, tools.weights(model))
    assert_same_state(curvature, tools.curvature(opt))
    tools.train(opt, model, 3, start=3)

    other = tools.network(seed=1)
    resumed = tools.build(method, other, refresh_every=2, variational=start)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    resumed.param_groups[0]["variational"] = not start
    tools.train(resumed, other, 3, start=3)
    assert_same_state(tools.weights(model), tools.weights(other))
    assert_same_state(opt.state_dict(), resumed.state_dict())


@pytest.mark.parametrize("method", ALL)
def test_the_flag_travels_with_the_checkpoint(tools, method):
    """A group entry, so the file decides; the constructor's flag is for new runs."""
    model = tools.network()
    opt = tools.build(method, model, variational=False)
    tools.train(opt, model, 1)
    resumed = tools.build(method, tools.network(), variational=True)
    resumed.load_state_dict(tools.through_a_file(opt.state_dict()))
    assert resumed.param_groups[0]["variational"] is False


def test_a_state_without_evidence_round_trips(tools):
    opt = tools.build("vogn", tools.network())
    model = tools.network()
    fresh = tools.build("vogn", model)
    fresh.load_state_dict(tools.through_a_file(opt.state_dict()))
    tools.train(fresh, model, 2)


REFUSED = {
    "another method": (lambda tools: tools.build("kfac", tools.network()), "was written by another method"),
    "another structure": (
        lambda tools: NaturalGradient(tools.network(), Kronecker(), "empirical", lr=0.1, ess=1.0, weight_decay=0.1),
        "was written by another method",
    ),
    "another statistic": (lambda tools: VOGN(tools.network(), ess=1.0, fisher="mc"), "was written by another method"),
    "another rank of SLANG": (
        lambda tools: NaturalGradient(tools.network(), Diagonal(negative="abs"), "empirical", lr=0.1, ess=1.0),
        "was written by another method",
    ),
    "another partition": (
        lambda tools: VOGN(tools.network(), ess=1.0, partition="model"),
        "was written by another method",
    ),
    "other parameter names": (
        lambda tools: VOGN(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)).double(), ess=1.0),
        r"holds other parameters: \['0.weight', '0.bias', '2.weight', '2.bias'\] instead of",
    ),
    "other shapes": (
        lambda tools: VOGN(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double(), ess=1.0),
        r"the curvature of block '0.weight' has shapes \{'c': \(4, 4\)\}, here \{'c': \(5, 4\)\}",
    ),
    "another number of groups": (
        lambda tools: VOGN(tools.network(), ess=1.0, groups=[{"params": []}]),
        "does not fit this optimizer",
    ),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(tools, case):
    build, message = REFUSED[case]
    model = tools.network()
    opt = tools.build("vogn", model)
    tools.train(opt, model, 2)
    saved = tools.through_a_file(opt.state_dict())
    other = build(tools)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(saved)
    assert_same_state(before, other.state_dict())


def test_a_rank_is_part_of_the_method(tools):
    model = tools.network()
    opt = SLANG(model, rank=3, ess=10.0)
    tools.train(opt, model, 1)
    with pytest.raises(CheckpointError, match="'rank': 3"):
        SLANG(tools.network(), rank=4, ess=10.0).load_state_dict(opt.state_dict())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda saved: saved["param_groups"][0]["engine"].update(schema=99), "was written by another method.*99"),
        (lambda saved: saved["param_groups"][0].pop("engine"), "was written by another method: it has None"),
        (lambda saved: saved.pop("param_groups"), "not an optimizer checkpoint"),
        (lambda saved: saved.pop("state"), "not an optimizer checkpoint"),
        (lambda saved: saved["state"][0].pop("curvature"), "damaged: the state of block '0.weight' has no"),
        (lambda saved: saved["state"][0].pop("memory"), "damaged: the state of block '0.weight' has no"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_refused(tools, damage, message):
    model = tools.network()
    opt = tools.build("vogn", model)
    tools.train(opt, model, 1)
    saved = tools.through_a_file(opt.state_dict())
    damage(saved)
    fresh = tools.build("vogn", tools.network())
    with pytest.raises(CheckpointError, match=message):
        fresh.load_state_dict(saved)


def test_a_checkpoint_of_another_optimizer_is_refused(tools):
    model = tools.network()
    adam = torch.optim.Adam(model.parameters())
    model(tools.batch()[0]).sum().backward()
    adam.step()
    with pytest.raises(CheckpointError, match="was written by another method: it has None"):
        VAdam(model, ess=10.0).load_state_dict(adam.state_dict())


@pytest.mark.parametrize("kind", [KFAC, IVON])
def test_the_seed_travels_with_the_checkpoint(tools, kind):
    """Noise is a function of the seed: a resumed run continues the stream that it was saved in."""
    model = tools.network()
    opt = kind(model, ess=100.0, seed=7)
    tools.train(opt, model, 2)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 2, start=2)
    other = tools.network()
    resumed = kind(other, ess=100.0)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    tools.train(resumed, other, 2, start=2)
    assert_same_state(tools.weights(model), tools.weights(other))
