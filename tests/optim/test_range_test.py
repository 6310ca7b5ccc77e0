"""The range test trains a copy, so that nothing of the run changes; its choice lies in the basin."""

import copy
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import vogn
from tiny_models import batch, fill, train
from vogn.data import Indexed
from vogn.errors import NotPositiveDefiniteError, RangeTestError
from vogn.likelihoods import Categorical
from vogn.optim.copied_runs import copies, run_ends
from vogn.optim.range_choice import choose
from vogn.optim.range_test import newton_rate

METHODS = sorted(name for name, info in vogn.METHODS.items() if not info.sets_groups)


def network():
    """Dropout and batch norm: buffers and the global generator would show every forward pass."""
    layers = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.2), nn.Linear(5, 3)
    return fill(nn.Sequential(*layers).double())


def loader(generator=None):
    x, _ = batch(48)
    return DataLoader(TensorDataset(x, x.argmax(1)), batch_size=8, shuffle=True, generator=generator)


def easy(n=192):
    """A loader of large batches, on which losses scatter little."""
    x, _ = batch(n)
    return DataLoader(TensorDataset(x, x.argmax(1)), batch_size=64)


def plain():
    """A network without dropout and batch norm."""
    return fill(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double())


def build(method="vogn", variational=True, **options):
    model = network()
    defaults = {"ess": 48, "weight_decay": 0.01, "variational": variational}
    return model, vogn.METHODS[method].build(model, **(defaults | options))


def everything(model, opt, generator):
    """All that a run's future depends on."""
    state = copy.deepcopy({"model": model.state_dict(), "opt": opt.state_dict()})
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    counters = opt._contexts.draws, opt._contexts.samples, vars(opt._evidence.record).copy(), opt.seed
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), generator.get_state()
    return state, grads, modes, counters, rng


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "deterministic"])
@pytest.mark.parametrize("started", [0, 4])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_changes_and_the_run_goes_on_as_without_it(method, started, variational):
    def run(tested):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        model, opt = build(method, variational)
        train(opt, model, started)
        if tested:
            opt.state_dict()  # writes its description into the groups
            before = everything(model, opt, generator)
            try:
                found = vogn.learning_rate_range_test(
                    opt, model, Categorical(), loader(generator), steps=20, runs=started == 0 and variational
                )
                assert newton_rate(opt) * 1e-4 <= found.suggestion <= newton_rate(opt)
            except RangeTestError:
                pass  # a few steps on noise need not learn; what matters here is that nothing changes
            assert same(before, everything(model, opt, generator))
        train(opt, model, 3, start=started)
        return everything(model, opt, generator)

    assert same(run(True), run(False))


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", ["vogn", "kfac", "ivon"])
def test_the_rate_that_it_finds_trains(method, variational):
    model = plain()
    opt = vogn.METHODS[method].build(model, ess=1920, weight_decay=1e-4, variational=variational)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), easy(), steps=120)
    for group in opt.param_groups:
        group["lr"] = found.suggestion
    losses = []
    for _ in range(20):
        for x, y in easy():
            opt.zero_grad()
            with opt.sampled_params():
                loss = Categorical()(model(x), y)
                loss.backward()
            opt.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_it_is_reproducible_and_reports_every_step():
    model, opt = build()
    told = []
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    torch.manual_seed(5)
    first = vogn.learning_rate_range_test(opt, model, Categorical(), loader(generators[0]), steps=40)
    second = vogn.learning_rate_range_test(
        opt, model, Categorical(), loader(generators[1]), steps=40, watch=lambda *step: told.append(step)
    )
    assert first == second
    assert told[:40] == list(zip(range(1, 41), first.rates, first.losses, strict=True))
    assert [number for number, _, _ in told] == list(range(1, 41)) * (1 + len(first.runs))
    assert first.rates[0] == pytest.approx(1e-4) and first.rates[-1] == pytest.approx(1.0)
    assert first.to_dict()["losses"] == list(first.losses)


def test_the_losses_are_those_of_the_loop_with_rising_rates():
    model, opt = build(mc_samples=2)
    twin, other = build(mc_samples=2)
    x, y = batch(48)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), [(x, x.argmax(1))], steps=20)
    losses = []
    torch.manual_seed(0)
    for rate in found.rates:
        other.param_groups[0]["lr"] = other.param_groups[1]["lr"] = rate
        other.zero_grad()
        pair = []
        for _ in range(2):
            with other.sampled_params():
                loss = Categorical()(twin(x), x.argmax(1))
                loss.backward()
                pair.append(loss.item())
        other.step()
        losses.append(sum(pair) / 2)
    torch.manual_seed(0)
    again = vogn.learning_rate_range_test(opt, model, Categorical(), [(x, x.argmax(1))], steps=20)
    assert list(again.losses) == losses


def test_groups_keep_their_proportions():
    model, seen = plain(), []
    opt = vogn.VOGN(model, lr=0.1, ess=192, groups=[{"params": list(model[2].parameters()), "lr": 0.025}])
    kind, step = type(opt), type(opt).step

    def watched(self, closure=None):
        seen.append([group["lr"] for group in self.param_groups])
        return step(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", watched)
        found = vogn.learning_rate_range_test(opt, model, Categorical(), easy(), steps=40)
    assert [pair[0] for pair in seen[:40]] == list(found.rates)
    assert all(pair[1] == pytest.approx(pair[0] / 4) for pair in seen)
    assert [group["lr"] for group in opt.param_groups] == [0.1, 0.025]


def test_a_scheduler_s_patch_and_hooks_of_the_run_stay_out_of_it():
    model = plain()
    opt = vogn.VOGN(model, ess=192)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 1.0)
    calls = []
    opt.register_step_pre_hook(lambda *arguments: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    vogn.learning_rate_range_test(opt, model, Categorical(), easy(), steps=40)
    assert same(before, copy.deepcopy(model.state_dict())) and not calls
    assert opt.param_groups[0]["steps_done"] == 0 and scheduler.last_epoch == 0


def test_methods_that_compare_losses_get_their_objective():
    model, opt = build("smw", False, adapt_damping=True, ess=None)
    damping = opt.param_groups[0]["damping"]
    found = vogn.learning_rate_range_test(opt, model, Categorical(), loader(), steps=40)
    assert found.suggestion > 0 and opt.param_groups[0]["damping"] == damping


def test_batches_may_say_where_their_examples_stand():
    model = plain()
    opt = vogn.FNGD(model, ess=192, lr=1.0, freeze_after=2, variational=False)
    data = DataLoader(Indexed(easy().dataset), batch_size=64)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), data, largest=10.0, steps=40, indexed=True)
    assert found.suggestion > 0 and opt.param_groups[0]["steps_done"] == 0
    with pytest.raises(ValueError, match=r"no pair \(indices, \(inputs, targets\)\)"):
        vogn.learning_rate_range_test(opt, model, Categorical(), easy(), indexed=True)


@pytest.mark.parametrize("method", ["ivon", "evon"])
def test_the_rate_of_a_newton_step_knows_of_rescaling(method):
    model = network()
    opt = vogn.METHODS[method].build(model, ess=48, initial_curvature=0.4, weight_decay=0.1)
    assert newton_rate(opt) == pytest.approx(2.0)
    assert newton_rate(build("kfac")[1]) == 1.0


# ---------------------------------------------------------------------- short runs


def test_short_runs_are_those_of_the_loop_with_warm_up_and_cosine_decay():
    model, opt = build()
    twin, other = build()
    x, y = batch(48)
    data = [(x, x.argmax(1))]
    torch.manual_seed(0)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), data, steps=20)
    assert found.runs and found.suggestion in [rate for rate, _ in found.runs]
    rate, expected = found.runs[0]
    losses = []
    torch.manual_seed(0)
    for step in range(20):
        for group in other.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 2) * 0.5 * (1 + np.cos(np.pi * step / 20))
        other.zero_grad()
        with other.sampled_params():
            loss = Categorical()(twin(x), x.argmax(1))
            loss.backward()
        other.step()
        losses.append(loss.item())
    assert expected == pytest.approx(np.mean(losses[-5:]), rel=1e-9)


# ---------------------------------------------------------------------- what goes wrong


def test_divergence_ends_the_test():
    model, opt = build("vogn", False, damping=0.0, momentum=0.0)
    x, _ = batch(48)
    y = 3.0 * x[:, :1].expand(-1, 3)
    found = vogn.learning_rate_range_test(
        opt, model, vogn.likelihoods.Gaussian(noise=0.1), [(x, y)], smallest=1e-3, largest=1e6, steps=60
    )
    assert found.diverged and len(found.rates) < 60 and found.suggestion < 1e4


def test_a_refused_step_ends_the_test(monkeypatch):
    model = plain()
    opt = vogn.VOGN(model, ess=192)
    steps = []

    def refuse(self, closure=None):
        steps.append(1)
        if len(steps) == 45:
            raise NotPositiveDefiniteError("too far")
        return original(self, closure)

    original = type(opt).step
    monkeypatch.setattr(type(opt), "step", refuse)
    found = vogn.learning_rate_range_test(opt, model, Categorical(), easy(), steps=60)
    assert found.diverged and len(found.losses) == 44


def test_a_loss_that_is_never_finite_is_an_error():
    model, opt = build()
    with pytest.raises(RangeTestError, match="not finite at the smallest learning rate"):
        vogn.learning_rate_range_test(opt, model, lambda o, y: Categorical()(o, y) * float("nan"), loader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest": 0.0}, "0 < smallest < largest is needed"),
        ({"smallest": 1.0, "largest": 0.5}, "0 < smallest < largest is needed"),
        ({"largest": float("inf")}, "0 < smallest < largest is needed"),
        ({"steps": 19}, "steps=19 must be at least 20"),
    ],
)
def test_bounds_are_checked(options, message):
    model, opt = build()
    with pytest.raises(ValueError, match=message):
        vogn.learning_rate_range_test(opt, model, Categorical(), loader(), **options)


def test_batches_are_checked():
    model, opt = build()
    x, _ = batch(8)
    for bad, message in (([], "no \\(more\\) batches"), ([x], "no pair"), (iter([(x, x.argmax(1))]), "no \\(more\\)")):
        with pytest.raises(ValueError, match=message):
            vogn.learning_rate_range_test(opt, model, Categorical(), bad)


def test_a_method_without_a_learning_rate_is_refused():
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="KalmanNaturalGradient sets its step sizes itself"):
        vogn.learning_rate_range_test(vogn.KalmanNaturalGradient(model, ess=5), model, Categorical(), loader())


def test_several_processes_are_refused(monkeypatch):
    model, opt = build()
    monkeypatch.setattr(type(opt.replicas), "size", 2)
    with pytest.raises(ValueError, match="runs in one process"):
        vogn.learning_rate_range_test(opt, model, Categorical(), loader())


def test_an_open_context_is_refused():
    model, opt = build()
    with opt.sampled_params(), pytest.raises(RuntimeError, match="a range test inside a sampled context"):
        vogn.learning_rate_range_test(opt, model, Categorical(), loader())


def test_warnings_of_its_steps_are_not_shown():
    model = plain()
    opt = vogn.VOGN(model, ess=192)

    def loss(outputs, targets):
        warnings.warn("the loss is large", stacklevel=1)
        return Categorical()(outputs, targets)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vogn.learning_rate_range_test(opt, model, loss, easy(), steps=40)


def test_a_fall_by_less_than_a_ten_thousandth_is_none():
    rates = np.geomspace(1e-4, 1.0, 48)
    losses = 1.1 - np.linspace(0.0, 1.0, 48) * 1.1
    assert choose(rates, losses)
    with pytest.raises(RangeTestError, match="does not fall"):
        choose(rates, 1.1 - np.linspace(0.0, 1.0, 48) * 1e-4)


@pytest.mark.parametrize("runs", [True, False])
def test_examples_that_are_not_finite_are_named(runs):
    model = plain()
    x, y = (tensor.clone() for tensor in easy().dataset.tensors)
    x[130, 0] = torch.nan
    data = DataLoader(TensorDataset(x, y), batch_size=64)
    with pytest.raises(ValueError, match="training batch of step 3 has inputs that are NaN or infinite"):
        vogn.learning_rate_range_test(vogn.VOGN(model, ess=192), model, Categorical(), data, runs=runs)


def test_generators_of_samplers_and_of_held_out_loaders_come_back():
    """Hence runs of another rate see the same batches, and held-out losses come in the same order."""
    model = plain()
    opt = vogn.VOGN(model, ess=192)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    examples = easy().dataset
    sampler = BatchSampler(RandomSampler(examples, generator=generators[0]), 64, False)
    batches = DataLoader(examples, batch_sampler=sampler)
    held_out = DataLoader(examples, batch_size=50, shuffle=True, generator=generators[1])
    states = [generator.get_state() for generator in generators]
    options = {"steps": 20, "held_out": held_out}
    first = run_ends(opt, model, Categorical(), batches, 0.01, **options)
    assert first == run_ends(opt, model, Categorical(), batches, 0.01, **options)
    options["held_out"] = DataLoader(examples, batch_size=50, shuffle=True)  # by the global state
    first, again = (run_ends(opt, model, Categorical(), batches, 0.01, **options) for _ in range(2))
    assert first == again
    assert all(map(torch.equal, states, [generator.get_state() for generator in generators]))


def test_hooks_are_not_copied_so_that_they_may_hold_anything(tmp_path):
    model = plain()
    opt = vogn.VOGN(model, ess=192)
    with open(tmp_path / "log", "w") as log:

        class Logger:
            def __init__(self):
                self.file = log  # cannot be copied

            def hook(self, *arguments):
                self.file.write("step")

        opt.register_step_post_hook(Logger().hook)
        vogn.learning_rate_range_test(opt, model, Categorical(), easy(), steps=20, runs=False)
        assert len(opt._optimizer_step_post_hooks) == 1
    assert not (tmp_path / "log").read_text()


def test_copies_do_not_choose_a_schedule_by_their_own_times():
    model = plain()
    opt = vogn.VOGN(model, ess=192, overhead=0.05)
    twin, _ = copies(opt, model)
    assert twin.param_groups[0]["overhead"] is None and opt.param_groups[0]["overhead"] == 0.05
    assert twin.param_groups[0]["observe_every"] == opt.param_groups[0]["observe_every"]
    for group in opt.param_groups:
        group.update(observe_every=7, overhead_met=True)
    assert copies(opt, model)[0].param_groups[0]["observe_every"] == 7


def test_targets_that_the_loss_masks_are_no_reason_to_fail():
    """A rate that is too large is divergence, though the batch holds NaN."""
    model = plain()
    x, _ = batch(64)
    y = (x @ x.new_tensor([[0.5], [0.2], [-0.3]])).exp()
    y[::4] = torch.nan

    def poisson(outputs, targets):
        seen = ~targets.isnan()
        return (outputs[:, :1].exp() - targets.nan_to_num() * outputs[:, :1])[seen].mean()

    opt = vogn.VOGN(model, ess=64, variational=False)
    bounds = {"smallest": 1e-3, "largest": 1e4}
    found = vogn.learning_rate_range_test(opt, model, poisson, [(x, y)], steps=80, runs=False, **bounds)
    assert found.diverged and found.suggestion < 1.0


def test_odd_data_sets_are_not_searched_for_generators():
    class Data(TensorDataset):
        sampler = dataset = batch_sampler = property(lambda self: self)

    x, _ = batch(48)
    found = DataLoader(Data(x, x.argmax(1)), batch_size=24)
    model = plain()
    assert vogn.learning_rate_range_test(vogn.VOGN(model, ess=48), model, Categorical(), found, steps=40, runs=False)
