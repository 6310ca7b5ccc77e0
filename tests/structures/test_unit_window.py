"""A matrix for every unit against windows of the units one by one."""

import pytest
import torch

from tiny_models import normal
from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.rows import GradientRow, Rows
from vogn.structures import GradientWindow, UnitGradientWindow

SHAPE, UNITS = (2, 3, 6), 6
WINDOWS = [(5, None, 3), (5, None, 9), (4, 2, 11), (20, 3, 15)]


def filled(structure, gradients, dtype=torch.float64, initial=0.3):
    state = structure.init(gradients.shape[1:], initial=initial, dtype=dtype, device="cpu")
    for gradient in gradients:
        seen = structure.observe(state, GradientRow(gradient.to(dtype)))
        state = structure.update(state, seen, decay=0.8, weight=0.2, shift=0.0)
    return state


def one_by_one(window, keep, gradients, initial=0.3):
    """The states of :class:`GradientWindow` of the units."""
    structure = GradientWindow(window=window, law="average", keep=keep)
    own = gradients.reshape(len(gradients), UNITS, 1, -1)
    return structure, [filled(structure, own[:, k], initial=initial) for k in range(UNITS)]


@pytest.mark.parametrize(("window", "keep", "count"), WINDOWS)
@pytest.mark.parametrize("shift", [0.1, 1e-13])
def test_it_is_a_window_of_every_unit(window, keep, count, shift):
    gradients, v = normal(count, *SHAPE, seed=0), normal(2, *SHAPE, seed=1)
    structure = UnitGradientWindow(window=window, keep=keep)
    initial = 0.3 if shift == 0.1 else 0.0
    state = filled(structure, gradients, initial=initial)
    single, states = one_by_one(window, keep, gradients, initial)
    dense = torch.block_diag(*[single.to_dense(own, shift) for own in states])
    torch.testing.assert_close(structure.to_dense(state, shift), dense, rtol=1e-11, atol=1e-12)
    parts = v.reshape(2, UNITS, 1, -1)
    for operator in ("solve", "apply", "sample"):
        expected = [getattr(single, operator)(own, parts[:, k], shift) for k, own in enumerate(states)]
        found = getattr(structure, operator)(state, v, shift)
        scale = float(torch.stack(expected).abs().max())
        torch.testing.assert_close(found, torch.stack(expected, 1).view(v.shape), rtol=1e-7, atol=1e-10 * scale)
    bounds = [single.eigenvalue_bounds(own, shift) for own in states]
    low, high = structure.eigenvalue_bounds(state, shift)
    torch.testing.assert_close(low, min(b[0] for b in bounds), rtol=1e-6, atol=1e-13)
    torch.testing.assert_close(high, max(b[1] for b in bounds))
    torch.testing.assert_close(
        structure.logdet(state, shift), sum(single.logdet(own, shift) for own in states), rtol=1e-9, atol=1e-9
    )


def test_of_several_rows_each_unit_takes_its_own_best_direction():
    rows = Rows(normal(7, 1, 4, seed=0), normal(1, 7, 1, 3, seed=1))
    structure = UnitGradientWindow(window=3)
    state = structure.init((3, 4), initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.update(state, structure.observe(state, rows), decay=0.0, weight=1.0, shift=0.0)
    for k, own in enumerate(rows.dense()[0].unbind(1)):
        _, values, right = torch.linalg.svd(own)
        expected = values[0] ** 2 * torch.outer(right[0], right[0])
        torch.testing.assert_close(structure.to_dense(state)[4 * k : 4 * k + 4, 4 * k : 4 * k + 4], expected)


@pytest.mark.parametrize("keep", [None, 5])
def test_single_precision_keeps_tiny_and_huge_gradients(keep):
    scales = torch.tensor([1e-30, 1e-25, 1e18]).repeat(2).view(2, 3, 1)
    gradients = normal(12, *SHAPE, seed=0) * scales
    structure = UnitGradientWindow(window=6, keep=keep)
    single, double = filled(structure, gradients.float(), torch.float32, 0.0), filled(structure, gradients, initial=0.0)
    dense = structure.to_dense(double)
    for k in range(UNITS):
        shift = 0.1 * float(dense[6 * k : 6 * k + 6, 6 * k : 6 * k + 6].trace())
        a, b = (structure.solve(state, gradients[0].to(state["rows"].dtype), shift) for state in (single, double))
        a, b = a.reshape(UNITS, 6)[k].double(), b.reshape(UNITS, 6)[k]
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_nothing_without_a_shift_has_an_inverse_and_options_have_a_range():
    structure = UnitGradientWindow(window=3)
    state = filled(structure, normal(2, 3, 4, seed=0), initial=0.0)
    for call in (structure.solve, structure.sample):
        with pytest.raises(NotPositiveDefiniteError, match="set weight_decay, damping or initial_curvature"):
            call(state, torch.ones(3, 4).double(), 0.0)
    for call in (structure.logdet, structure.inverse_diagonal):
        with pytest.raises(NotPositiveDefiniteError, match="set weight_decay, damping or initial_curvature"):
            call(state, 0.0)
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        UnitGradientWindow(window=0)
    with pytest.raises(ValueError, match="keep=3 must lie between 1 and window - 1 = 2; raise window"):
        UnitGradientWindow(window=3, keep=3)
