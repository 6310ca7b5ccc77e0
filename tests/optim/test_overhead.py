"""The schedule that a bound on the cost of curvature chooses."""

import copy
import math

import pytest
import torch
from torch import nn

import vogn
from tiny_models import fill, normal
from vogn.likelihoods import Categorical
from vogn.optim.overhead import REPEATS, TRIAL, WARM_UP, OverheadBudget, intervals


class ScriptedClock:
    """Seconds that a loop is said to take: ``plain``, plus ``observe`` and ``refresh`` where its step does that."""

    def __init__(self, optimizer, plain, observe, refresh):
        self.optimizer, self.costs, self.now = optimizer, (plain, observe, refresh), 0.0

    def __call__(self):
        group = self.optimizer.param_groups[0]
        step = group["steps_done"] - 1
        plain, observe, refresh = self.costs
        self.now += plain
        self.now += observe * (step % group["observe_every"] == 0) + refresh * (step % group["refresh_every"] == 0)
        return self.now


def build(overhead=0.1, costs=(1.0, 0.3, 2.0), **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = vogn.KFAC(model, lr=0.05, ess=50.0, overhead=overhead, **options)
    optimizer._overhead = OverheadBudget(ScriptedClock(optimizer, *costs))
    return model, optimizer


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 3, generator=generator), torch.randint(0, 2, (8,), generator=generator)
        optimizer.zero_grad()
        with optimizer.sampled_params():
            vogn.likelihoods.Categorical()(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "budget, observe, refresh",
    [(0.1, 0.3, 2.0), (0.05, 0.5, 0.0), (0.02, 0.0, 3.0), (1.0, 0.1, 0.1), (0.013, 0.7, 0.2)],
)
def test_intervals_keep_the_bound_and_the_second_is_not_longer_than_it_must_be(budget, observe, refresh):
    every, again = intervals(budget, observe, refresh)
    assert again % every == 0
    assert observe / every + refresh / again <= budget * (1 + 1e-9)
    if again > every:
        assert observe / every + refresh / (again - every) > budget


def test_intervals_are_near_the_best_sum():
    """Against all pairs of intervals that keep the bound."""
    for budget, observe, refresh in [(0.1, 0.3, 2.0), (0.03, 0.2, 0.1), (0.5, 0.9, 4.0)]:
        every, again = intervals(budget, observe, refresh)
        best = min(
            o + r
            for o in range(1, 200)
            for r in range(o, 400, o)
            if observe / o + refresh / r <= budget * (1 + 1e-9)
        )
        assert every + again <= 1.25 * best + 1


def test_what_costs_nothing_is_done_every_step():
    assert intervals(0.1, -0.01, -0.2) == (1, 1)
    assert intervals(0.1, 0.0, 0.0) == (1, 1)


def test_the_measured_times_choose_the_schedule_of_all_groups():
    model, optimizer = build(groups=[])
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(2)), "lr": 0.01, "sampled": False})
    train(model, optimizer, 32)
    expected = dict(zip(("observe_every", "refresh_every"), intervals(0.1, 0.3, 2.0), strict=True))
    assert expected["observe_every"] > 1 and expected["refresh_every"] > expected["observe_every"]
    for group in optimizer.param_groups:
        assert {key: group[key] for key in expected} == expected
        assert group["overhead_met"]


def test_one_slow_step_does_not_count():
    model, optimizer = build()
    clock = optimizer._overhead._clock
    train(model, optimizer, 11)
    clock.now += 1000.0
    train(model, optimizer, 21, start=11)
    assert optimizer.param_groups[0]["observe_every"] == intervals(0.1, 0.3, 2.0)[0]


def test_nothing_is_chosen_before_all_kinds_of_steps_were_timed():
    model, optimizer = build()
    train(model, optimizer, 20)
    assert not optimizer.param_groups[0]["overhead_met"]
    assert (optimizer.param_groups[0]["observe_every"], optimizer.param_groups[0]["refresh_every"]) == (3, 6)


def test_what_a_factorisation_makes_the_next_step_do_is_counted():
    """K-FAC computes powers of its new factors when they are first needed: in the step after."""
    model, optimizer = build()
    clock = optimizer._overhead._clock

    class Late(ScriptedClock):
        def __call__(self):
            group = self.optimizer.param_groups[0]
            late = (group["steps_done"] - 1) % group["refresh_every"] == 1
            self.now += 5.0 * late
            return super().__call__()

    optimizer._overhead = OverheadBudget(Late(optimizer, *clock.costs))
    train(model, optimizer, 32)
    expected = intervals(0.1, 0.3, 7.0)
    assert (optimizer.param_groups[0]["observe_every"], optimizer.param_groups[0]["refresh_every"]) == expected


def test_a_group_that_is_added_later_has_the_same_schedule():
    model, optimizer = build()
    train(model, optimizer, 32)
    optimizer.add_param_group({"params": nn.Parameter(torch.zeros(2)), "sampled": False})
    train(model, optimizer, 1, start=32)
    first, second = optimizer.param_groups
    assert second["refresh_every"] == first["refresh_every"] and second["overhead_met"]


def test_a_resumed_run_keeps_the_choice_and_its_numbers():
    model, optimizer = build()
    train(model, optimizer, 32)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, 30, start=32)
    other, resumed = build(costs=(1.0, 5.0, 5.0))  # another machine
    other.load_state_dict(weights)
    resumed.load_state_dict(saved)
    train(other, resumed, 30, start=32)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_without_a_bound_the_intervals_stay():
    model, optimizer = build(overhead=None, observe_every=3, refresh_every=6)
    train(model, optimizer, 30)
    assert (optimizer.param_groups[0]["observe_every"], optimizer.param_groups[0]["refresh_every"]) == (3, 6)


@pytest.mark.parametrize("overhead", [0.0, -0.1, math.nan, math.inf])
def test_the_bound_is_positive(overhead):
    with pytest.raises(ValueError, match=r"overhead=.* must be a positive share of a step's time"):
        build(overhead=overhead)


def test_a_default_group_may_be_empty():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
    opt = vogn.KFAC(model, lr=0.01, ess=50, overhead=0.1, groups=groups)
    for _ in range(WARM_UP + REPEATS * TRIAL["refresh_every"] + 1):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(normal(8, 3)), torch.zeros(8, dtype=torch.long)).backward()
        opt.step()
    assert not opt.param_groups[0]["params"] and all(group["overhead_met"] for group in opt.param_groups)
