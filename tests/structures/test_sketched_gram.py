"""Sketches of the coordinates and draws of the rows: exact where nothing is left out, unbiased where something is."""

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg import fewer_columns
from vogn.structures import Gram, SampledGram, SketchedGram
from vogn.testing.structure_cases import normalised, random_rows

SHAPE, D = (4, 10), 40
LAM = 0.05
EYE = torch.eye(D, dtype=torch.float64)


def observed(structure, rows, draws=0):
    state = structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    if "draws" in state:
        state["draws"] += draws
    return structure.update(state, seen, decay=0.0, weight=1.0, shift=0.0)


def columns_of(rows):
    return rows.dense().flatten(2).flatten(0, 1).T / rows.count**0.5


def solved(structure, state, shift=LAM):
    return structure.solve(state, EYE.reshape(D, *SHAPE), shift).reshape(D, D).T


def assert_unbiased(draws, expected, within):
    """z-test of the mean, and its distance from what is expected."""
    stack = torch.stack(draws)
    spread = stack.std(0)
    z = (stack.mean(0) - expected) / (spread / len(draws) ** 0.5).clamp_min(1e-12)
    assert float(z.abs().max()) < 5.0
    assert float((stack.mean(0) - expected).norm() / expected.norm()) < within
    assert float(spread.max()) > 0.05 * float(expected.abs().max()), "something must be random"


def test_without_a_sketch_it_is_gram_and_the_dense_solve():
    rows = random_rows(SHAPE, seed=0, examples=12)
    u = columns_of(rows)
    for coordinates in (D, 65536):
        state = observed(SketchedGram(coordinates=coordinates), rows)
        found = solved(SketchedGram(coordinates=coordinates), state)
        assert torch.equal(found, solved(Gram(), observed(Gram(), rows)))
        torch.testing.assert_close(found, torch.linalg.inv(u @ u.T + LAM * EYE), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coordinates", [1, 7, 20, 39])
def test_a_sketch_is_the_solve_with_both_operands_sketched(coordinates):
    """``(v - U (lambda I + (D / q) U_Omega^T U_Omega)^-1 (D / q) U_Omega^T v_Omega) / lambda``, and ``to_dense``."""
    rows, structure = random_rows(SHAPE, seed=0, examples=12), SketchedGram(coordinates=coordinates)
    state, u = observed(structure, rows), columns_of(rows)
    omega, ratio = state["omega"], D / coordinates
    assert len(set(omega.tolist())) == coordinates
    k = ratio * u[omega].T @ u[omega]
    middle = torch.linalg.inv(LAM * torch.eye(12).double() + k)
    expected = (EYE - u @ middle @ (ratio * u[omega].T) @ EYE[omega]) / LAM
    torch.testing.assert_close(solved(structure, state), expected, rtol=1e-10, atol=1e-10)
    pi = torch.zeros(D, dtype=torch.float64).index_fill_(0, omega, ratio).diag()
    dense = u @ u.T @ pi + LAM * EYE
    torch.testing.assert_close(structure.to_dense(state, LAM), dense, rtol=1e-12, atol=1e-12)
    product = structure.apply(state, EYE.reshape(D, *SHAPE), LAM).reshape(D, D).T
    torch.testing.assert_close(product, dense, rtol=1e-12, atol=1e-12)


def test_a_sketch_takes_a_shift_per_parameter():
    rows, structure = random_rows(SHAPE, seed=0, examples=12), SketchedGram(coordinates=15)
    state, shift = observed(structure, rows), LAM + torch.arange(D).double().reshape(SHAPE) / D
    torch.testing.assert_close(
        solved(structure, state, shift), torch.linalg.inv(structure.to_dense(state, shift)), rtol=1e-10, atol=1e-10
    )


def test_the_sketched_inner_products_are_unbiased():
    """Mean over 2000 draws within 2% of ``K``; the factor ``D / q`` on each operand would give ``D / q`` times it."""
    rows, structure = random_rows(SHAPE, seed=0, examples=6), SketchedGram(coordinates=20)
    u, draws = columns_of(rows), []
    for step in range(2000):
        omega = observed(structure, rows, draws=step)["omega"]
        draws.append(2.0 * u[omega].T @ u[omega])
    assert_unbiased(draws, u.T @ u, within=0.02)


def test_drawn_rows_are_unbiased():
    rows, structure = random_rows(SHAPE, seed=0, examples=12), SampledGram(rank=4)
    u = columns_of(rows)
    draws = [structure.to_dense(observed(structure, rows, draws=step)) for step in range(4000)]
    assert_unbiased(draws, u @ u.T, within=0.05)


def test_drawn_rows_keep_the_trace():
    """Rows drawn by importance have equal lengths, so their sum of squares is exact in every draw."""
    rows = random_rows(SHAPE, seed=0, examples=12)
    for rank in (1, 4, 30):
        dense = SampledGram(rank=rank).to_dense(observed(SampledGram(rank=rank), rows))
        torch.testing.assert_close(dense.trace(), columns_of(rows).square().sum())


def test_drawn_rows_follow_their_probabilities():
    """Intervals of the cumulated squares, and a row drawn ``m`` times comes once."""
    j = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0**0.5]], dtype=torch.float64)
    s = fewer_columns.importance_draw(j, torch.tensor([0.0, 0.24, 0.26, 0.9], dtype=torch.float64))
    torch.testing.assert_close(s, torch.tensor([[2**0.5, 0.0], [0.0, 2**0.5]], dtype=torch.float64))
    assert not fewer_columns.importance_draw(torch.zeros(3, 2), torch.rand(2, dtype=torch.float64)).any()


@pytest.mark.parametrize("structure", [SketchedGram(coordinates=9), SampledGram(rank=3)])
def test_draws_are_a_function_of_seed_and_count_and_leave_the_global_state_alone(structure):
    rows = random_rows(SHAPE, seed=0, examples=12)
    before = torch.random.get_rng_state()
    first, again, later = (observed(structure, rows, draws=n) for n in (0, 0, 1))
    other = observed(type(structure)(**{**vars(structure), "seed": 1}), rows)
    assert torch.equal(before, torch.random.get_rng_state())
    assert int(first["draws"]) == 1 and int(later["draws"]) == 2
    dense = structure.to_dense
    assert torch.equal(dense(first), dense(again))
    assert not torch.allclose(dense(first), dense(later)) and not torch.allclose(dense(first), dense(other))


def test_what_needs_a_gaussian_is_refused_by_name():
    structure = SketchedGram(coordinates=9)
    state, v = observed(structure, random_rows(SHAPE, seed=0)), torch.ones(SHAPE, dtype=torch.float64)
    for feature in ("sample", "logdet", "inverse_diagonal"):
        arguments = (state, v, LAM) if feature == "sample" else (state, LAM)
        with pytest.raises(UnsupportedObservationError, match=f"SketchedGram has no {feature}.*use Gram .*variational"):
            getattr(structure, feature)(*arguments)


def test_options_and_shifts_have_a_range():
    with pytest.raises(ValueError, match="coordinates=0 must be at least 1; use Gram"):
        SketchedGram(coordinates=0)
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        SketchedGram(window=0)
    with pytest.raises(ValueError, match="SampledGram: rank=0 must be"):
        SampledGram(rank=0)
    structure = SketchedGram(coordinates=9)
    state = observed(structure, random_rows(SHAPE, seed=0))
    with pytest.raises(NotPositiveDefiniteError, match="reaches 0; set weight_decay, damping"):
        structure.solve(state, torch.ones(SHAPE, dtype=torch.float64), 0.0)
