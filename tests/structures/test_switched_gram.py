"""Switched compressions are, update by update, the compression or the draw that the phase asks for."""

import pytest
import torch

from vogn.structures import CompressedGram, InterpolativeGram, SampledGram, SwitchedGram, SwitchedInterpolativeGram
from vogn.testing.structure_cases import normalised, random_rows

SHAPE, LAM = (4, 10), 0.05
EYE = torch.eye(40, dtype=torch.float64)
PAIRS = pytest.mark.parametrize(
    ("switched", "own"), [(SwitchedGram, CompressedGram), (SwitchedInterpolativeGram, InterpolativeGram)]
)


def observed(structure, rows, state=None, decay=0.0, weight=1.0, shift=0.0):
    state = state or structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    return structure.update(state, seen, decay=decay, weight=weight, shift=shift)


def second_moment(rows):
    flat = rows.dense().flatten(2).flatten(0, 1)
    return flat.T @ flat / rows.count


@PAIRS
def test_it_starts_in_a_critical_phase_and_is_then_the_compression(switched, own):
    rows, later = random_rows(SHAPE, seed=0, examples=12), random_rows(SHAPE, seed=1, examples=12)
    states = []
    for structure in (switched(rank=5), own(rank=5)):
        state = observed(structure, later, observed(structure, rows), decay=0.6, weight=0.4, shift=0.1)
        states.append(structure.to_dense(state, LAM))
    assert torch.equal(*states)


@PAIRS
@pytest.mark.parametrize("rank", [3, 0.5])
def test_in_a_calm_phase_it_is_the_draw(switched, own, rank):
    rows = random_rows(SHAPE, seed=0, examples=12)
    structure, drawn = switched(rank=rank, seed=4), SampledGram(rank=rank, seed=4)
    calm = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    calm = observed(structure, rows, structure.with_phase(calm, critical=False))
    expected = drawn.to_dense(observed(drawn, rows), LAM)
    torch.testing.assert_close(structure.to_dense(calm, LAM), expected, rtol=1e-12, atol=1e-13)
    solved = structure.solve(calm, EYE.reshape(40, *SHAPE), LAM).flatten(1).T
    torch.testing.assert_close(solved, torch.linalg.inv(expected), rtol=1e-9, atol=1e-10)
    assert not torch.allclose(expected, own(rank=rank).to_dense(observed(own(rank=rank), rows), LAM), rtol=1e-2)


def test_a_switch_carries_old_curvature_along():
    """A draw among the old curvature's columns and the new rows has that curvature plus the rows as its mean."""
    old, new = random_rows(SHAPE, seed=0, examples=6), random_rows(SHAPE, seed=1, examples=6)
    structure = SwitchedGram(rank=1.0, window=12)
    first = observed(structure, old)
    total, square, count = torch.zeros_like(EYE), torch.zeros_like(EYE), 2000
    for step in range(count):
        state = structure.with_phase(first, critical=False) | {"draws": torch.tensor(step)}
        dense = structure.to_dense(observed(structure, new, state, decay=0.7, weight=0.3))
        total, square = total + dense / count, square + dense.square() / count
    expected = 0.7 * second_moment(old) + 0.3 * second_moment(new)
    z = (total - expected) / ((square - total.square()) / count).sqrt()
    assert float(z.abs().max()) < 5.0  # of 820 numbers
    back = structure.with_phase(state, critical=True)
    both = observed(structure, new, observed(structure, new, back, decay=0.7, weight=0.3), decay=0.5, weight=0.5)
    assert int(both["columns"]) == 12 and int(both["draws"]) == count - 1


def test_more_draws_than_parameters_are_merged_without_a_loss():
    shape, rows = (2, 2), random_rows((2, 2), seed=0, examples=30)
    structure, drawn = SwitchedGram(rank=20), SampledGram(rank=20)
    state = structure.init(shape, initial=0.0, dtype=torch.float64, device="cpu")
    state = observed(structure, rows, structure.with_phase(state, critical=False))
    assert int(state["columns"]) == 4
    torch.testing.assert_close(structure.to_dense(state), drawn.to_dense(observed(drawn, rows)), rtol=1e-11, atol=1e-12)
