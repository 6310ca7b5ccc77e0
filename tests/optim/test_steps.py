"""The transforms between a gradient and an update, one by one."""

import math

import pytest
import torch

from vogn.optim.steps import (
    BlockView,
    ClipElements,
    ClipKL,
    Momentum,
    Passed,
    Prior,
    RescaleToInitial,
    Solve,
    StepContext,
)
from vogn.structures import Diagonal


def block(name="a", *, seed=0, c=1.0, **group):
    generator = torch.Generator().manual_seed(seed)
    mean, gradient = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    defaults = {"lr": 0.1, "weight_decay": 0.2, "damping": 0.3, "momentum": 0.9, "initial_curvature": 0.5}
    state = {"c": torch.full((2, 3), c, dtype=torch.float64)}
    memory = {"curvature_weight": torch.tensor(1.0, dtype=torch.float64)}
    return BlockView(name, Diagonal(), state, memory, defaults | group, mean, gradient)


def run(step, *blocks, updates=None):
    context = StepContext(blocks, step=0)
    return step(updates or [b.gradient for b in blocks], context)


@pytest.mark.parametrize("kappa", [1e-4, 1e-2])
def test_after_an_active_kl_clip_the_step_has_the_size_kappa(kappa):
    """nu^2 sum_b lr_b^2 <P_b, G_b> = kappa over all blocks, each with its own rate."""
    blocks = [block("a", lr=1.0), block("b", seed=1, lr=0.5)]
    updates = [b.gradient / 2.0 for b in blocks]  # P = C^-1 G with C = 2 I
    clipped = run(ClipKL(kappa), *blocks, updates=updates)
    full = sum(b.group["lr"] ** 2 * float((u * b.gradient).sum()) for u, b in zip(updates, blocks, strict=True))
    for u, before in zip(clipped, updates, strict=True):
        torch.testing.assert_close(u, math.sqrt(kappa / full) * before)
    # lr^2 u^T C u, twice the second-order divergence, is what the bound is about
    size = sum(b.group["lr"] ** 2 * 2.0 * float(u.square().sum()) for u, b in zip(clipped, blocks, strict=True))
    assert size == pytest.approx(kappa, rel=1e-12)


def test_an_inactive_kl_clip_changes_nothing():
    blocks = [block("a"), block("b", seed=1)]
    for u, b in zip(run(ClipKL(1e3), *blocks), blocks, strict=True):
        assert torch.equal(u, b.gradient)
    assert ClipKL(1.0)([], StepContext([], 0)) == []


def test_a_kl_clip_of_an_ascent_direction_changes_nothing():
    """Momentum may point uphill; a negative size is no reason to scale."""
    b = block()
    (u,) = run(ClipKL(1e-9), b, updates=[-b.gradient])
    assert torch.equal(u, -b.gradient)


def test_momentum_returns_a_constant_input_whatever_its_decay_was():
    """The average carries its own weight: exact debiasing for a changed decay."""
    b = block()
    for beta in (0.9, 0.5, 0.99, 0.0, 0.7):
        b.group["momentum"] = beta
        (u,) = run(Momentum(), b)
        torch.testing.assert_close(u, b.gradient, rtol=1e-13, atol=0)


def test_momentum_is_the_exponential_average():
    b, average = block(), 0.0
    for t in range(1, 6):
        b.gradient = torch.full((2, 3), float(t), dtype=torch.float64)
        average = 0.9 * average + 0.1 * t
        (debiased,) = run(Momentum(), b)
        assert float(debiased[0, 0]) == pytest.approx(average / (1 - 0.9**t), rel=1e-13)
    plain = block()
    (u,) = run(Momentum(debias=False), plain)
    torch.testing.assert_close(u, 0.1 * plain.gradient)


def test_no_momentum_keeps_no_memory():
    b = block(momentum=0.0)
    (u,) = run(Momentum(), b)
    assert torch.equal(u, b.gradient) and "momentum" not in b.memory


def test_the_prior_pulls_at_the_mean():
    b = block()
    torch.testing.assert_close(run(Prior(), b)[0], b.gradient + 0.2 * b.mean)
    free = block(weight_decay=0.0)
    assert torch.equal(run(Prior(), free)[0], free.gradient)


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("weight", [1.0, 0.19])
def test_solve_divides_by_the_debiased_power_plus_the_shift(exponent, weight):
    """(C / weight)^exponent + weight_decay + damping."""
    b = block(c=0.4)
    b.memory["curvature_weight"] = torch.tensor(weight, dtype=torch.float64)
    (u,) = run(Solve(exponent=exponent, debias=True), b)
    torch.testing.assert_close(u, b.gradient / ((0.4 / weight) ** exponent + 0.5), rtol=1e-13, atol=0)
    (u,) = run(Solve(exponent=exponent), b)
    torch.testing.assert_close(u, b.gradient / (0.4**exponent + 0.5), rtol=1e-13, atol=0)


def test_clipped_elements_stay_within_the_radius():
    b = block()
    (u,) = run(ClipElements(0.25), b)
    assert float(u.abs().max()) == 0.25
    small = b.gradient.abs() < 0.25
    assert torch.equal(u[small], b.gradient[small])
    for radius in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="must be positive, or inf for none"):
            ClipElements(radius)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_a_clip_counts_what_kernels_have_clipped(own, divided):
    """The share of all elements; where processes divide blocks, one of them counts those that others hold too."""
    blocks = [block(), block(seed=1)] if own else []
    others = [Passed(torch.tensor(3), 10), Passed(torch.tensor(5), 7, counts=False)]
    elsewhere = iter((100.0, 1000.0)) if divided else None
    over_processes = (lambda number: number + next(elsewhere)) if divided else None
    context = StepContext(
        blocks, step=0, passed=others, groups=[block().group], over_processes=over_processes
    )
    ClipElements(0.25)([b.gradient for b in blocks], context)
    clipped = 3 + sum(int((b.gradient.abs() > 0.25).sum()) for b in blocks)
    elements = 10 + 6 * len(blocks)
    expected = (clipped + 100.0) / (elements + 1000.0) if divided else (clipped + 5) / (elements + 7)
    assert float(context.notes["elements_clipped_share"]) == pytest.approx(expected, rel=1e-6)


def test_rescaling_makes_the_first_step_that_of_gradient_descent():
    """lr (h0 + wd) / (h0 + wd) = lr."""
    b = block(c=0.5, damping=0.0)
    (solved,) = run(Solve(), b)
    (u,) = run(RescaleToInitial(), b, updates=[solved])
    torch.testing.assert_close(u, b.gradient, rtol=1e-13, atol=0)
