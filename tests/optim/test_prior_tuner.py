"""The tuned precision is the maximum of the evidence: MacKay's fixed point, from any start, in both modes."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal, train
from vogn.errors import MissingCurvatureError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian

N, D, NOISE = 40, 4, 0.5
X = normal(N, D, seed=1)
Y = X @ torch.tensor([[1.5], [-0.5], [0.3], [0.0]], dtype=torch.float64) + NOISE * normal(N, 1, seed=2)


def log_evidence(delta):
    """Of the linear model, by the density of all targets together."""
    covariance = NOISE**2 * torch.eye(N).double() + X @ X.T / delta
    return float(torch.distributions.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(Y.squeeze(1)))


def mackay():
    """Precision and mean at the fixed point, by plain iteration."""
    delta, gram, target = 1.0, X.T @ X / NOISE**2, X.T @ Y / NOISE**2
    for _ in range(2000):
        precision = gram + delta * torch.eye(D).double()
        mean = torch.linalg.solve(precision, target)
        delta = float((D - delta * torch.linalg.inv(precision).trace()) / mean.square().sum())
    return delta, mean.T


def dense(delta, variational=False, **options):
    """Newton steps of a linear model; mirrored samples cancel in its gradient."""
    model = fill(nn.Linear(D, 1, bias=False).double())
    pairs = {"mc_samples": 2, "antithetic": True} if variational else {}
    opt = vogn.VON(
        model, lr=1.0, structure="dense", weight_decay=delta / N, momentum=0.0, variational=variational,
        **({"ess": N} | pairs | options),
    )  # fmt: skip
    return model, opt


def loop(model, opt, tuner, steps, x=X, y=Y):
    found = {}
    for _ in range(steps):
        opt.zero_grad()
        for _ in range(opt.param_groups[0]["mc_samples"]):
            with opt.sampled_params():
                Gaussian(noise=NOISE)(model(x), y).backward()
        opt.step()
        found |= tuner.step()
    return found


def test_mackay_s_fixed_point_is_the_maximum_of_the_evidence():
    delta, _ = mackay()
    assert log_evidence(delta) > max(log_evidence(0.98 * delta), log_evidence(1.02 * delta))


@pytest.mark.parametrize("variational", [False, True], ids=["deterministic", "variational"])
@pytest.mark.parametrize("start", [1e-4, 1.0, 1e5])
def test_a_linear_model_reaches_the_maximum_of_the_evidence_from_any_start(start, variational):
    delta, mean = mackay()
    model, opt = dense(start, variational)
    found = loop(model, opt, vogn.PriorTuner(opt, every=2), 60)
    assert found[0] == pytest.approx(delta, rel=1e-4)
    assert opt.param_groups[0]["weight_decay"] == pytest.approx(delta / N, rel=1e-4)
    torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-4, atol=1e-5)
    tuned = vogn.tune_prior_precision(opt.posterior())
    assert tuned.blocks[0].shift * N == pytest.approx(delta, rel=1e-4)


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_the_temperature_of_the_posterior_does_not_matter(temperature):
    delta, mean = mackay()
    model, opt = dense(1.0, ess=N / temperature)
    loop(model, opt, vogn.PriorTuner(opt, every=1, temperature=temperature), 60)
    assert opt.param_groups[0]["weight_decay"] == pytest.approx(delta / N, rel=1e-4)
    torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-4, atol=1e-5)


class Two(nn.Module):
    """One layer for inputs that matter, one for inputs that do not."""

    def __init__(self):
        super().__init__()
        self.useful, self.useless = nn.Linear(1, 1, bias=False), nn.Linear(3, 1, bias=False)

    def forward(self, x):
        return self.useful(x[:, :1]) + self.useless(x[:, 1:])


@pytest.mark.parametrize("start", [1e-4, 1e4])
@pytest.mark.parametrize("variational", [False, True], ids=["deterministic", "variational"])
def test_every_layer_gets_its_own_precision(start, variational):
    model = fill(Two().double())
    x = normal(N, 4, seed=5)
    y = 2.0 * x[:, :1] + NOISE * normal(N, 1, seed=6)
    opt = vogn.VON(
        model, lr=0.5, structure="dense", ess=N, weight_decay=start / N, momentum=0.0, variational=variational,
        groups=vogn.layer_groups(model),
    )  # fmt: skip
    found = loop(model, opt, vogn.PriorTuner(opt, every=5), 150, x, y)
    assert found[0] == pytest.approx(0.25, rel=0.2)
    assert found[1] > 20.0


@pytest.mark.parametrize(
    ("method", "options"),
    [(name, {}) for name in sorted(set(vogn.METHODS) - {"kalman", "fngd", "lissa", "seng", "hylo"})]
    + [("ekfac", {"factored": True})],
)
@pytest.mark.parametrize("variational", [False, True], ids=["deterministic", "variational"])
def test_every_method_solves_its_equation(method, options, variational):
    """``D = delta (|m|^2 + tr Sigma)`` for the covariance that the optimizer samples from.

    Factored damping adds too much: there it is that of the sum of curvature and prior that it stands for.
    """
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    common = {"lr": 0.05, "ess": 100, "weight_decay": 0.01, "damping": 0.01, "variational": variational}
    opt = vogn.METHODS[method].build(model, **(common | options))
    train(opt, model, 8)
    (delta,) = vogn.PriorTuner(opt, every=1).tune().values()
    posterior = opt.posterior()
    blocks = [
        replace(block, structure=replace(block.structure, damping="exact")) if method in ("kfac", "ekfac") else block
        for block in posterior.blocks
    ]
    posterior = vogn.GaussianPosterior(blocks, posterior.mean())
    squares = sum(float(mean.square().sum()) for mean in posterior.mean().values())
    trace = sum(float(variance.sum()) for variance in posterior.variance().values())
    assert delta * (squares + trace) == pytest.approx(31, rel=1e-4)
    train(opt, model, 3, start=8)


def test_it_draws_nothing_and_a_resumed_run_is_the_same():
    def build():
        model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
        opt = vogn.KFAC(model, lr=0.05, ess=100, weight_decay=0.3, groups=vogn.layer_groups(model))
        return model, opt, vogn.PriorTuner(opt, every=3, start=4)

    def go(model, opt, tuner, first, last):
        for step in range(first, last):
            x, y = batch(seed=step)
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
            due = tuner.step()
            assert bool(due) == (step + 1 in (6, 9, 12))

    whole, half, resumed = build(), build(), build()
    go(*whole, 0, 12)
    go(*half, 0, 7)
    resumed[0].load_state_dict(half[0].state_dict())
    resumed[1].load_state_dict(copy.deepcopy(half[1].state_dict()))
    go(*resumed, 7, 12)
    for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
        assert torch.equal(a, b)
    decays = [[group["weight_decay"] for group in run[1].param_groups] for run in (whole, resumed)]
    assert decays[0] == decays[1] and len(set(decays[0])) == 2


def test_bounds_hold():
    model, opt = dense(1.0)
    found = loop(model, opt, vogn.PriorTuner(opt, every=1, bounds=(50.0, 60.0)), 3)
    assert found[0] == 50.0


def test_point_masses_keep_what_they_have():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double())
    opt = vogn.VOGN(model, ess=100, norms="point", groups=vogn.layer_groups(model))
    train(opt, model, 2)
    assert set(vogn.PriorTuner(opt, every=1).tune()) == {0, 1}
    assert opt.param_groups[2]["weight_decay"] == 0.0


def test_groups_can_be_left_out():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    opt = vogn.VOGN(model, ess=100, groups=vogn.layer_groups(model))
    train(opt, model, 2)
    assert set(vogn.PriorTuner(opt, every=1, only=["2.*"]).tune()) == {1}
    assert set(vogn.PriorTuner(opt, every=1, only=["0.weight", "0.bias"]).tune()) == {0}
    assert set(vogn.PriorTuner(opt, every=1, only=["*"]).tune()) == {0, 1}
    with pytest.raises(ValueError, match=r"only=\['0.weight'\]: no sampled group has nothing but such parameters"):
        vogn.PriorTuner(opt, every=1, only=["0.weight"])


def test_layers_that_share_a_weight_share_a_group():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))
    model[1].weight = model[0].weight
    (group,) = vogn.layer_groups(model)
    assert group["params"] == [model[2].weight, model[2].bias]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0 must be a whole number of steps"),
        ({"every": 1.5}, "every=1.5 must be a whole number of steps"),
        ({"every": 1, "start": 0}, "start=0 must be a whole number of steps"),
        ({"every": 1, "temperature": 0.0}, "temperature=0.0 must be a positive finite number"),
        ({"every": 1, "bounds": (1.0, 1.0)}, "a smallest and a larger largest precision"),
    ],
)
def test_numbers_are_checked(options, message):
    _, opt = dense(1.0)
    with pytest.raises(ValueError, match=message):
        vogn.PriorTuner(opt, **options)


def test_what_has_no_evidence_says_so():
    model, opt = dense(1.0)
    tuner = vogn.PriorTuner(opt, every=1)
    with pytest.raises(MissingCurvatureError, match="block 'weight' has no curvature yet"):
        tuner.tune()
    with opt.sampled_params(), pytest.raises(RuntimeError, match="tuning the prior inside a sampled context"):
        tuner.tune()
    loop(model, opt, tuner, 1)
    opt.param_groups[0]["ess"] = None
    with pytest.raises(ValueError, match=r"set ess=len\(train_set\)"):
        tuner.tune()
    with pytest.raises(ValueError, match="KalmanNaturalGradient sets weight_decay itself"):
        vogn.PriorTuner(vogn.KalmanNaturalGradient(nn.Linear(3, 1), ess=5), every=1)


def test_a_structure_without_an_inverse_diagonal_is_named():
    model = fill(nn.Linear(3, 3).double())
    opt = vogn.SENG(model, ess=10, coordinates=2, variational=False)
    train(opt, model, 1)
    if "inverse_diagonal" in opt.structure.SUPPORTS:
        pytest.fail("take another structure for this test")
    with pytest.raises(UnsupportedObservationError, match="block 'weight': SketchedGram has no diagonal of its inver"):
        vogn.PriorTuner(opt, every=1).tune()


@pytest.mark.parametrize("variational", [False, True], ids=["deterministic", "variational"])
def test_the_curvature_can_be_measured_instead(variational):
    """VOGN's diagonal misses MacKay's precision; the dense curvature of all data finds it at the same mean."""
    delta, mean = mackay()
    model = fill(nn.Linear(D, 1, bias=False).double())
    opt = vogn.VOGN(model, lr=0.1, ess=N, weight_decay=delta / N, fisher="ggn", variational=variational)
    loop(model, opt, vogn.PriorTuner(opt, every=1000), 3)
    with torch.no_grad():
        model.weight.copy_(mean)
    (tracked,) = vogn.PriorTuner(opt, every=1).tune().values()
    random = torch.get_rng_state()

    def measured():
        return vogn.laplace(model, Gaussian(noise=NOISE), [(X, Y)], structure="dense", prior_precision=7.0)

    (found,) = vogn.PriorTuner(opt, every=1, measure=measured).tune().values()
    assert found == pytest.approx(delta, rel=1e-4) == opt.param_groups[0]["weight_decay"] * N
    assert tracked != pytest.approx(delta, rel=1e-3)
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(model.weight.detach(), mean)
    loop(model, opt, vogn.PriorTuner(opt, every=1000), 1)


def test_what_is_measured_must_fit_the_groups():
    model = fill(Two().double())
    opt = vogn.VOGN(model, lr=0.1, ess=N, groups=vogn.layer_groups(model))
    loop(model, opt, vogn.PriorTuner(opt, every=1000), 1)

    def tuner(**options):
        return vogn.PriorTuner(
            opt, every=1, measure=lambda: vogn.laplace(model, Gaussian(noise=NOISE), [(X, Y)], **options)
        )

    before = [group["weight_decay"] for group in opt.param_groups]
    with pytest.raises(ValueError, match=r"holds 'useless.weight' too, which is in another group"):
        tuner(structure="dense", partition="model").tune()
    with pytest.raises(ValueError, match=r"no curvature of 'useful.weight'"):
        tuner(subset=["useless.*"]).tune()
    assert [group["weight_decay"] for group in opt.param_groups] == before
    assert set(tuner(structure="dense").tune()) == {0, 1}


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_measured_is_tuned_as_after_training(frozen):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    model[0].bias.requires_grad_(not frozen)  # measured all the same, with its own length
    opt = vogn.KFAC(model, lr=0.05, ess=100, weight_decay=0.01, groups=vogn.layer_groups(model))
    train(opt, model, 3)

    def measured():
        return vogn.laplace(model, Categorical(), [batch()], structure="dense")

    found = vogn.PriorTuner(opt, every=1, measure=measured).tune()
    after = vogn.tune_prior_precision(measured()).sampled_blocks
    assert list(found.values()) == pytest.approx([block.shift * block.ess for block in after], rel=1e-4)


def test_one_pattern_is_one_pattern():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    opt = vogn.KFAC(model, lr=0.05, ess=100, weight_decay=0.01, groups=vogn.layer_groups(model))
    train(opt, model, 3)
    assert set(vogn.PriorTuner(opt, every=1, only="2.*").tune()) == {1}
    assert opt.param_groups[0]["weight_decay"] == 0.01


@pytest.mark.parametrize("only", ["3.*", ["2.*", "heads.*"]])
def test_a_pattern_that_matches_nothing_is_refused(only):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]  # the first is empty
    with pytest.raises(ValueError, match=r"only=.* matches no parameter"):
        vogn.PriorTuner(vogn.KFAC(model, ess=100, groups=groups), every=1, only=only)


def test_an_empty_default_group_is_none_to_tune():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    groups = [{"params": list(model.parameters()), "sampled": False}]
    with pytest.raises(ValueError, match="no sampled group"):
        vogn.PriorTuner(vogn.KFAC(model, ess=100, groups=groups), every=1)


def test_a_group_without_ess_is_refused_at_once():
    with pytest.raises(ValueError, match=r"set ess=len\(train_set\)"):
        vogn.PriorTuner(vogn.KFAC(nn.Linear(3, 3), variational=False), every=1)


def test_a_frozen_deterministic_body_needs_no_ess():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    model[0].requires_grad_(False)
    body = [{"params": list(model[0].parameters()), "variational": False, "ess": None}]
    opt = vogn.VOGN(model, lr=0.05, ess=100, weight_decay=0.01, groups=body)
    train(opt, model, 2)
    assert set(vogn.PriorTuner(opt, every=1).tune()) == {0}
