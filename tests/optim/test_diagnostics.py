"""opt.diagnostics(): every number against a dense computation, and nothing is changed."""

import copy
import math

import pytest
import torch
from torch import nn

from vogn import METHODS, VOGN, NaturalGradient
from vogn.likelihoods import Categorical, Gaussian
from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Identity, Kronecker

ALL = sorted(METHODS)
MODES = [True, False]
ALWAYS = {"steps", "parameters", "weight_rms", "observations", "kept_factors", "damping", "weight_decay"}
MEASURED = {"posterior_std", "relative_std", "effective_parameters", "condition_number"}

STRUCTURES = {
    "identity": Identity(),
    "diagonal": Diagonal(),
    "dense": Dense(),
    "kronecker": Kronecker(),
    "kronecker factored": Kronecker(damping="factored"),
    "eigen": EigenKronecker(),
    "eigen factored": EigenKronecker(damping="factored"),
    "low rank": DiagonalLowRank(rank=3),
}


def engine(model, structure, **options):
    common = {"lr": 0.05, "ess": 50.0, "weight_decay": 0.01, "damping": 0.02, "curvature_decay": 0.8}
    return NaturalGradient(model, STRUCTURES[structure], "ggn", **(common | options))


def dense_blocks(opt):
    """``(C (+) weight_decay, C (+) (weight_decay + damping), weights, group)`` of every block, as full matrices."""
    out = {}
    for block, group in opt._build()[0]:
        state, shift = opt.state[block.parameters[0]]["curvature"], group["weight_decay"]
        precision = block.structure.to_dense(state, shift)
        stepped = block.structure.to_dense(state, shift + group["damping"])
        out[block.name] = precision, stepped, torch.cat([p.detach().flatten() for p in block.parameters]), group
    return out


def rms(values):
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("structure", sorted(STRUCTURES))
def test_every_number_of_every_structure_is_that_of_the_dense_matrices(tools, structure, variational):
    model = tools.network()
    opt = engine(model, structure, variational=variational)
    tools.train(opt, model, 3)
    numbers, blocks = opt.diagnostics(per_block=True), dense_blocks(opt)
    variances, effective, conditions = [], 0.0, []
    for name, (precision, stepped, weights, group) in blocks.items():
        variance = torch.linalg.inv(precision).diagonal() / group["ess"]
        # MacKay's sum over the eigenvalues; with factored damping C is what is left of C (+) shift
        curvature = precision - group["weight_decay"] * torch.eye(len(precision), dtype=torch.float64)
        if structure.endswith("factored"):
            known = float((curvature @ torch.linalg.inv(precision)).trace())
        else:
            eigenvalues = torch.linalg.eigvalsh(curvature)
            known = float((eigenvalues / (eigenvalues + group["weight_decay"])).sum())
        spectrum = torch.linalg.eigvalsh(stepped)
        mine = {key.rsplit("/", 1)[1]: value for key, value in numbers.items() if key.startswith(f"block/{name}/")}
        assert mine.keys() == MEASURED | {"parameters", "weight_rms", "observations", "kept_factors"}
        assert mine["parameters"] == len(weights) and mine["observations"] == 3 and mine["kept_factors"] == 0
        assert mine["weight_rms"] == pytest.approx(rms(weights), rel=1e-12)
        assert mine["posterior_std"] == pytest.approx(math.sqrt(variance.mean()), rel=1e-9)
        assert mine["relative_std"] == pytest.approx(math.sqrt(variance.mean()) / rms(weights), rel=1e-9)
        assert mine["effective_parameters"] == pytest.approx(known, rel=1e-9)
        condition = float(spectrum[-1] / spectrum[0])
        if structure == "low rank":
            assert condition <= mine["condition_number"] <= 2 * condition
        else:
            assert mine["condition_number"] == pytest.approx(condition, rel=1e-9)
        variances.append(variance)
        effective += known
        conditions.append(mine["condition_number"])
    together = torch.cat([weights for _, _, weights, _ in blocks.values()])
    std = math.sqrt(torch.cat(variances).mean())
    expected = {
        "steps": 3.0, "observations": 3.0, "kept_factors": 0.0, "parameters": float(len(together)),
        "weight_rms": rms(together), "posterior_std": std, "relative_std": std / rms(together),
        "effective_parameters": effective, "condition_number": max(conditions), "damping": 0.02, "weight_decay": 0.01,
        "refused_share": 0.0, "tolerated_share": 0.0,
    }  # fmt: skip
    overall = {key: value for key, value in numbers.items() if "/" not in key}
    assert overall == pytest.approx(expected, rel=1e-9)
    assert opt.diagnostics() == overall


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_the_posterior_std_is_that_of_the_posterior(tools, method, variational):
    model, opt = tools.trained(method, 3, variational=variational)
    variance = torch.cat([leaf.flatten() for leaf in opt.posterior().variance().values()])
    assert opt.diagnostics()["posterior_std"] == pytest.approx(math.sqrt(variance.mean()), rel=1e-9)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_all_values_are_floats_under_flat_names(tools, method, variational):
    model, opt = tools.trained(method, 2, variational=variational)
    numbers = opt.diagnostics(per_block=True)
    assert numbers.keys() >= ALWAYS | MEASURED
    assert all(type(key) is str and type(value) is float and math.isfinite(value) for key, value in numbers.items())


@pytest.mark.parametrize("method", ALL)
def test_before_the_first_observation_curvature_is_left_out(tools, method):
    model = tools.network()
    opt = tools.build(method, model)
    numbers = opt.diagnostics(per_block=True)
    assert {key for key in numbers if "/" not in key} == ALWAYS
    assert numbers["steps"] == numbers["observations"] == numbers["kept_factors"] == 0.0
    assert numbers["weight_rms"] == pytest.approx(rms(torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert not opt.state, "not even an empty state is made"


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_asking_changes_nothing(tools, method, variational):
    runs = []
    for asked in (False, True):
        model = tools.network()
        opt = tools.build(method, model, variational=variational)
        for step in range(4):
            tools.train(opt, model, 1, start=step)
            before = tools.everything(opt, model)
            if asked:
                opt.diagnostics(per_block=True)
            tools.assert_same(before, tools.everything(opt, model))
        runs.append(tools.weights(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_groups_are_told_apart(tools):
    """A group without noise, prior and damping of its own."""
    model = tools.network()
    quiet = {"params": list(model[2].parameters()), "weight_decay": 0.5, "sampled": False, "damping": 0.25}
    opt = engine(model, "dense", groups=[quiet])
    tools.train(opt, model, 2)
    numbers, blocks = opt.diagnostics(), dense_blocks(opt)
    (first, _, weights, group), (second, stepped, _, _) = blocks["0.weight"], blocks["2.weight"]
    variance = torch.linalg.inv(first).diagonal() / group["ess"]
    assert numbers["posterior_std"] == numbers["group0/posterior_std"]
    assert numbers["posterior_std"] == pytest.approx(math.sqrt(variance.mean()), rel=1e-9)
    assert numbers["relative_std"] == pytest.approx(math.sqrt(variance.mean()) / rms(weights), rel=1e-9)
    assert "group1/posterior_std" not in numbers and "group1/relative_std" not in numbers
    known = [len(first) - 0.01 * torch.linalg.inv(first).trace(), len(second) - 0.5 * torch.linalg.inv(second).trace()]
    assert numbers["group0/effective_parameters"] == pytest.approx(float(known[0]), rel=1e-9)
    assert numbers["group1/effective_parameters"] == pytest.approx(float(known[1]), rel=1e-9)
    assert numbers["effective_parameters"] == pytest.approx(float(sum(known)), rel=1e-9)
    spectrum = torch.linalg.eigvalsh(stepped)
    assert numbers["group1/condition_number"] == pytest.approx(float(spectrum[-1] / spectrum[0]), rel=1e-9)
    assert (numbers["group0/damping"], numbers["group1/damping"]) == (0.02, 0.25)
    assert (numbers["group0/weight_decay"], numbers["group1/weight_decay"]) == (0.01, 0.5)
    assert "damping" not in numbers and "weight_decay" not in numbers


def test_damping_and_flag_are_read_at_the_time_of_asking(tools):
    model = tools.network()
    opt = engine(model, "diagonal")
    tools.train(opt, model, 2)
    opt.param_groups[0]["damping"] = 3.0
    numbers, blocks = opt.diagnostics(), dense_blocks(opt)
    conditions = [float(stepped.diagonal().max() / stepped.diagonal().min()) for _, stepped, _, _ in blocks.values()]
    assert numbers["damping"] == 3.0
    assert numbers["condition_number"] == pytest.approx(max(conditions), rel=1e-12)


def test_without_a_sample_size_there_is_no_posterior_std(tools):
    model = tools.network()
    opt = engine(model, "diagonal", variational=False, ess=None)
    tools.train(opt, model, 2)
    assert opt.diagnostics().keys() & MEASURED == {"effective_parameters", "condition_number"}


def test_an_inverse_that_does_not_exist_is_left_out(tools):
    """No weight decay and an input that is always zero: the step survives through its damping."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 3, bias=False)).double())
    opt = engine(model, "diagonal", variational=False, weight_decay=0.0)
    x, y = tools.batch()
    x[:, 1] = 0.0
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    assert opt.diagnostics().keys() & MEASURED == {"condition_number"}
    opt.param_groups[0]["damping"] = 0.0
    assert not opt.diagnostics().keys() & MEASURED


def test_weights_that_are_all_zero_have_no_relative_std(tools):
    model = nn.Sequential(nn.Linear(3, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    opt = engine(model, "diagonal", lr=0.0)
    tools.train(opt, model, 1)
    assert opt.diagnostics().keys() & MEASURED == MEASURED - {"relative_std"}


def test_a_determined_parameter_counts_as_one_and_an_unseen_one_as_none(tools):
    """One input that is always on, one that is always off, squared loss: C = diag(1, 0)."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    opt = engine(model, "dense", weight_decay=1e-9, variational=False)
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    with opt.sampled_params():
        Gaussian(noise=1.0)(model(x), torch.zeros(4, 1, dtype=torch.float64)).backward()
    opt.step()
    assert opt.diagnostics()["effective_parameters"] == pytest.approx(1.0, abs=1e-6)


def test_inside_a_context_it_is_refused(tools):
    model = tools.network()
    opt = VOGN(model, ess=10.0)
    with opt.sampled_params(), pytest.raises(RuntimeError, match=r"diagnostics\(\) inside a sampled context"):
        opt.diagnostics()


def test_a_copy_and_a_resumed_optimizer_can_be_asked(tools):
    model, opt = tools.trained("kfac", 2)
    other = tools.network()
    other.load_state_dict(model.state_dict())
    resumed = tools.build("kfac", other)
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    mine, theirs = opt.diagnostics(), resumed.diagnostics()
    counted_here = {"refused_share", "tolerated_share", "kl_clipped_share", "kl_clip_factor"}
    assert {k: v for k, v in mine.items() if k not in counted_here} == theirs
    _, copied = copy.deepcopy((model, opt))
    assert copied.diagnostics() == mine


def test_it_takes_a_logger(tools):
    """The loop of the documentation."""
    written = []

    class Writer:
        def add_scalar(self, tag, value, step):
            written.append((tag, value, step))

    model, writer = tools.network(), Writer()
    opt = tools.build("ivon", model)
    for step in range(2):
        tools.train(opt, model, 1, start=step)
        for k, v in opt.diagnostics().items():
            writer.add_scalar(k, v, step)
    assert {tag for tag, _, step in written if step == 1} >= ALWAYS | MEASURED
