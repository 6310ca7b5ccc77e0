"""Param groups: own settings, dtypes, empty ones, schedulers, norm parameters."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import IVON, METHODS, VOGN, VON, VAdam
from vogn.likelihoods import Categorical, Gaussian

ALL = sorted(METHODS)
BARE = sorted(name for name, info in METHODS.items() if not info.needs_model)
PRICE = {"ivon", "evon"}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", [name for name in ALL if not METHODS[name].sets_groups])
def test_a_group_has_its_own_rate_and_prior(tools, method):
    """The second layer at lr = 0 stays; the first one moves as it would alone under its own weight decay."""
    model = tools.network()
    opt = tools.build(method, model, groups=[{"params": model[2].parameters(), "lr": 0.0, "weight_decay": 0.5}])
    before = tools.weights(model)
    tools.train(opt, model, 3)
    after = tools.weights(model)
    assert all(torch.equal(before[n], after[n]) == n.startswith("2") for n in before)
    posterior = opt.posterior()
    shifts = {name: block.shift for block in posterior.blocks for name in block.layout.names}
    assert shifts == {"0.weight": 1e-2, "0.bias": 1e-2, "2.weight": 0.5, "2.bias": 0.5}


def test_a_group_with_its_own_settings_is_an_optimizer_of_its_own(tools):
    """Deterministic VOGN is separable: two groups equal two hand-written diagonal recursions."""
    model, other = tools.network(), tools.network()
    opt = VOGN(
        model,
        lr=0.05,
        damping=0.1,
        weight_decay=0.01,
        momentum=0.0,
        variational=False,
        groups=[{"params": [model[2].bias], "lr": 0.01, "weight_decay": 0.3, "damping": 0.2, "curvature_decay": 0.5}],
    )
    settings = {"2.bias": (0.01, 0.3, 0.2, 0.5)}
    square = {}
    for step in range(4):
        x, y = tools.batch(seed=step)
        tools.train(opt, model, 1, start=step)
        rows = {n: [] for n, _ in other.named_parameters()}
        for k in range(len(x)):
            loss = F.cross_entropy(other(x[k : k + 1]), y[k : k + 1])
            for name, g in zip(rows, torch.autograd.grad(loss, list(other.parameters())), strict=True):
                rows[name].append(g)
        with torch.no_grad():
            for name, p in other.named_parameters():
                lr, wd, damping, decay = settings.get(name, (0.05, 0.01, 0.1, 0.95))
                g = torch.stack(rows[name])
                new = g.square().mean(0)
                square[name] = new if step == 0 else decay * square[name] + (1 - decay) * new
                p -= lr * (g.mean(0) + wd * p) / (square[name] + wd + damping)
    for name, p in other.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name], p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ALL)
def test_groups_may_differ_in_mode(tools, method):
    model = tools.network()
    opt = tools.build(method, model, observe_every=1, groups=[{"params": model[2].parameters(), "variational": False}])
    tools.train(opt, model, 2)
    before = tools.weights(model)
    with opt.sampled_params():
        inside = tools.weights(model)
    assert all(torch.equal(before[n], inside[n]) == n.startswith("2") for n in before)
    observed = [int(s["memory"]["observations"]) for s in opt.state.values() if "memory" in s]
    assert set(observed) == {2}, "the deterministic group learns its curvature too"


@pytest.mark.parametrize("method", BARE)
def test_bare_parameters_and_group_dictionaries_are_taken(tools, method):
    """Named by position; names given by the user win."""
    runs = []
    for form in ("parameters", "named", "dictionaries"):
        model = tools.network()
        if form == "parameters":
            params = model.parameters()
        elif form == "named":
            params = model.named_parameters()
        else:
            params = [{"params": list(model[0].parameters())}, {"params": model[2].parameters(), "lr": 0.01}]
        opt = METHODS[method].constructor(params, lr=0.05, ess=100.0, variational=False)
        names = [row["parameter"] for row in opt.coverage()]
        assert names == (
            [n for n, _ in model.named_parameters()] if form == "named" else [f"param{k}" for k in range(4)]
        )
        if form == "dictionaries":
            assert [group["lr"] for group in opt.param_groups] == [0.05, 0.01]
            opt.param_groups[1]["lr"] = 0.05
        tools.train(opt, model, 3)
        runs.append(tools.weights(model))
    if method == "vadam":  # the others draw their probes by name
        assert same(runs[0], runs[1])
    # a block over all parameters of a group is another block where there are two groups
    assert same(runs[0], runs[2]) == (opt.partition != "model")


@pytest.mark.parametrize("method", BARE)
def test_groups_of_several_dtypes_keep_them(tools, method):
    parameters = {
        torch.float32: nn.Parameter(torch.ones(3)),
        torch.float64: nn.Parameter(torch.ones(3).double()),
        torch.bfloat16: nn.Parameter(torch.ones(3).bfloat16()),
    }
    opt = METHODS[method].constructor(
        [{"params": [p]} for p in parameters.values()], lr=0.05, ess=100.0, initial_curvature=1.0
    )
    likelihood = Gaussian(noise=1.0)
    for _ in range(3):
        before = [p.detach().clone() for p in parameters.values()]
        opt.zero_grad()
        with opt.sampled_params():
            total = sum(p.double() for p in parameters.values())
            likelihood(total.unsqueeze(0), torch.zeros(1, 3).double()).backward()
        assert all(torch.equal(p, q) for p, q in zip(parameters.values(), before, strict=True))
        opt.step()
    for dtype, p in parameters.items():
        assert p.dtype == dtype and bool((p < 1).all())
        wanted = torch.float64 if dtype == torch.float64 else torch.float32
        assert {leaf.dtype for leaf in opt.state[p]["curvature"].values()} == {wanted}
    posterior = opt.posterior()
    assert {t.dtype for t in posterior.mean().values()} == {torch.float32, torch.float64}


@pytest.mark.parametrize("method", ALL)
def test_half_precision_models_train_with_curvature_in_single_precision(tools, method):
    model = tools.network(dtype=torch.bfloat16)
    opt = tools.build(method, model, initial_curvature=1.0)
    likelihood = Categorical()
    for step in range(3):
        x, y = tools.batch(seed=step)
        mean = tools.weights(model)
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x.bfloat16()), y).backward()
        assert same(mean, tools.weights(model))
        opt.step()
    assert all(p.dtype == torch.bfloat16 and bool(p.isfinite().all()) for p in model.parameters())
    for state in tools.curvature(opt).values():
        assert {leaf.dtype for leaf in state.values() if leaf.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("method", ALL)
def test_empty_groups_are_harmless(tools, method):
    runs = []
    for empty in (False, True):
        model = tools.network()
        groups = [{"params": [], "lr": 1.0}] if empty else []
        opt = tools.build(method, model, groups=groups)
        tools.train(opt, model, 3)
        assert len(opt.state_dict()["param_groups"]) == 1 + empty
        opt.posterior()
        runs.append(tools.weights(model))
    assert same(*runs)


def test_everything_in_extra_groups_leaves_an_empty_default_group(tools):
    model = tools.network()
    opt = tools.build("vogn", model, groups=[{"params": model.parameters(), "lr": 0.02}])
    assert [len(g["params"]) for g in opt.param_groups] == [0, 4]
    tools.train(opt, model, 2)


def test_groups_are_checked(tools):
    model, other = tools.network(), tools.network()
    with pytest.raises(
        ValueError, match=r"a group holds parameters that the model does not have, of shapes \[\(3,\)\]"
    ):
        VOGN(model, ess=10.0, groups=[{"params": [other[2].bias]}])
    with pytest.raises(ValueError, match="groups= goes with a model"):
        VAdam(model.parameters(), ess=10.0, groups=[{"params": []}])
    with pytest.raises(ValueError, match=r"lr=-1 is out of range"):
        VOGN(model, ess=10.0, groups=[{"params": [model[0].bias], "lr": -1}])
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        VOGN(model, ess=10.0, groups=[{"params": [model[0].bias]}, {"params": [model[0].bias]}])


def test_a_refused_group_is_not_added(tools):
    opt = VAdam([nn.Parameter(torch.zeros(2))], ess=10.0)
    extra = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="lr=-1 is out of range"):
        opt.add_param_group({"params": extra, "lr": -1})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": extra})
    assert [g["param_names"] for g in opt.param_groups] == [["param0"], ["param1"]]


@pytest.mark.parametrize("named", [True, False])
def test_a_group_may_be_added_later(tools, named):
    model = tools.network()
    model[0].requires_grad_(False)
    opt = VOGN(model, ess=100.0, damping=0.1, variational=False)
    assert {row["parameter"] for row in opt.coverage() if not row["frozen"]} == {"2.weight", "2.bias"}
    tools.train(opt, model, 1)
    extra = nn.Parameter(torch.zeros(3).double())
    name = "extra" if named else "param4"
    opt.add_param_group({"params": [(name, extra)] if named else extra, "lr": 0.1})
    for step in range(2):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x) + extra, y).backward()
        opt.step()
    assert bool((extra != 0).all())
    assert {row["parameter"] for row in opt.coverage() if not row["frozen"]} == {"2.weight", "2.bias", name}


def test_learning_rate_schedulers_work(tools):
    runs = []
    for scheduled in (False, True):
        model = tools.network()
        opt = tools.build("vogn", model, lr=0.08)
        scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5) if scheduled else None
        for step in range(3):
            if not scheduled:
                opt.param_groups[0]["lr"] = 0.08 * 0.5**step
            tools.train(opt, model, 1, start=step)
            if scheduler:
                scheduler.step()
        runs.append(tools.weights(model))
    assert same(*runs)


# ---------------------------------------------------------------------- norm parameters


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.inner(x))))


NORM = {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("method", ALL)
def test_norms_at_a_point_are_neither_sampled_nor_given_a_prior_but_preconditioned(tools, method):
    model = tools.fill(Normed().double())
    opt = tools.build(method, model, norms="point", observe_every=1)
    assert {row["parameter"] for row in opt.coverage() if not row["sampled"]} == NORM
    tools.train(opt, model, 3)
    mean = tools.weights(model)
    with opt.sampled_params():
        inside = tools.weights(model)
    assert {n for n in mean if torch.equal(mean[n], inside[n])} == NORM
    posterior = opt.posterior()
    variance, draws = posterior.variance(), posterior.sample(2)
    for name in mean:
        assert bool((variance[name] == 0).all()) == (name in NORM)
        assert bool((draws[name] == mean[name]).all()) == (name in NORM)
    observations = [int(s["memory"]["observations"]) for s in opt.state.values() if "memory" in s]
    assert set(observations) == {3}, "they are preconditioned by evidence like all others"


def test_norms_at_a_point_move_by_their_own_curvature_alone(tools):
    """No prior pulls them: (c + damping)^-1 g, with c the mean squared per-example gradient."""
    model = tools.fill(Normed().double())
    opt = VOGN(model, lr=0.05, ess=100.0, weight_decay=0.7, damping=0.1, momentum=0.0, variational=False)
    before, (x, y) = tools.weights(model), tools.batch()
    rows = torch.stack(
        [
            torch.autograd.grad(F.cross_entropy(model(x[k : k + 1]), y[k : k + 1]), model.norm.weight)[0]
            for k in range(len(x))
        ]
    )
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    expected = before["norm.weight"] - 0.05 * rows.mean(0) / (rows.square().mean(0) + 0.1)
    torch.testing.assert_close(model.norm.weight.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("method", "policy"), [("vogn", "point"), ("ivon", "sampled"), ("vadam", "sampled")])
def test_named_methods_follow_their_paper_about_norms(tools, method, policy):
    opt = METHODS[method].constructor(tools.fill(Normed().double()), ess=10.0)
    sampled = {row["parameter"]: row["sampled"] for row in opt.coverage()}
    assert {sampled[n] for n in NORM} == {policy == "sampled"}


def test_a_group_may_overrule_the_norm_policy(tools):
    model = tools.fill(Normed().double())
    opt = VOGN(model, ess=100.0, groups=[{"params": model.norm.parameters(), "weight_decay": 0.2}])
    assert all(row["sampled"] for row in opt.coverage())
    frozen = VON(model, ess=100.0, groups=[{"params": model.last.parameters(), "sampled": False}])
    tools.train(frozen, model, 2)
    assert bool((frozen.posterior().variance()["last.weight"] == 0).all())
    assert isinstance(IVON(model, ess=1.0), torch.optim.Optimizer)
