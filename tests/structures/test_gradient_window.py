"""The window of gradients against dense matrices built from the gradients themselves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.rows import GradientRow, JoinedRows, Rows
from vogn.structures import GradientWindow
from vogn.types import State

SIZE = 13
LAM = 1e-3
FORMS = ["cholesky", "static", "dynamic"]


def gradients(count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """``(count, SIZE)``."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn((count, SIZE), generator=source, dtype=torch.float64).to(dtype)


def filled(
    structure: GradientWindow, rows: Tensor, *, decay: float = 1.0, weight: float = 0.1, initial: float = 0.0
) -> State:
    """The state after one update per row."""
    state = structure.init((SIZE, 1), initial=initial, dtype=rows.dtype, device="cpu")
    for row in rows:
        seen = structure.observe(state, GradientRow(row.unsqueeze(1)))
        state = structure.update(state, seen, decay=decay, weight=weight, shift=0.1)
    return state


def root(u: Tensor) -> Tensor:
    """``(U U^T)^1/2`` from the singular values of ``U``: a Gram matrix would lose half of the digits."""
    left, values, _ = torch.linalg.svd(u, full_matrices=False)
    return (left * values) @ left.T


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    error = float((actual.flatten() - expected.flatten()).norm() / expected.norm())
    assert error < tolerance, f"relative error {error:.3g}"


EYE = torch.eye(SIZE, dtype=torch.float64)
VECTOR = gradients(1, seed=99)[0]


# ---------------------------------------------------------------------- M-FAC


@pytest.mark.parametrize("inverse", FORMS)
@pytest.mark.parametrize("count", [0, 1, 3, 6, 7, 15])
def test_all_forms_of_mfac_are_the_dense_inverse_at_any_fill(inverse, count):
    """``lam I + 1/m sum g g^T`` with fixed ``m`` while the window fills and after it has wrapped."""
    structure, rows = GradientWindow(window=6, law="fixed", inverse=inverse), gradients(count)
    state, kept = filled(structure, rows), rows[-6:]
    dense = LAM * EYE + kept.T @ kept / 6
    close(structure.solve(state, VECTOR.unsqueeze(1), LAM), torch.linalg.solve(dense, VECTOR))
    close(structure.to_dense(state, LAM), dense, 1e-14)
    close(structure.inverse_diagonal(state, LAM), torch.linalg.inv(dense).diagonal())


@pytest.mark.parametrize("inverse", FORMS)
def test_the_order_in_the_ring_is_of_no_consequence(inverse):
    structure, rows = GradientWindow(window=6, law="fixed", inverse=inverse), gradients(6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    states = [filled(structure, rows), filled(structure, rows[order]), filled(structure, torch.cat([rows[3:], rows]))]
    solved = [structure.solve(state, VECTOR.unsqueeze(1), LAM) for state in states]
    for other in solved[1:]:
        close(other, solved[0], 1e-12)


@pytest.mark.parametrize("inverse", FORMS)
@pytest.mark.parametrize("shift", [1e-7, 1e-14])
def test_all_forms_agree_where_the_shift_is_tiny(inverse, shift):
    """Beyond ``SQUARED_LIMIT`` all of them use an orthonormal basis; the residual tells."""
    structure = GradientWindow(window=6, law="fixed", inverse=inverse)
    rows = gradients(6)
    state = filled(structure, rows)
    v = (rows.T @ gradients(1, seed=5)[0, :6]).unsqueeze(1)  # in the span, where gradients lie
    x = structure.solve(state, v, shift)
    close(structure.apply(state, x, shift), v)


def test_extreme_rows_do_not_leave_single_precision():
    """Squares of 1e25 and of 1e-25 are no float32; the kept inner products are those of scaled rows."""
    for scale in (1e25, 1e-25):
        structure = GradientWindow(window=4, law="fixed")
        rows = gradients(6, dtype=torch.float32) * scale
        state = filled(structure, rows)
        assert all(bool(leaf.isfinite().all()) for leaf in state.values())
        wide = rows[-4:].double()
        shift = float(wide.square().sum()) / 100
        if 1e-37 < shift < 1e38:
            dense = shift * EYE + wide.T @ wide / 4
            close(structure.solve(state, VECTOR.float().unsqueeze(1), shift).double(),
                  torch.linalg.solve(dense, VECTOR), 1e-6)  # fmt: skip
        assert bool(structure.solve(state, VECTOR.float().unsqueeze(1), 1e-3).isfinite().all())


# ---------------------------------------------------------------------- kept inner products


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("keep", [None, 3])
def test_the_kept_inner_products_do_not_drift(dtype, keep):
    """After many turns of the ring they are those of the rows to double precision, in single precision too."""
    structure = GradientWindow(window=7, law="average", keep=keep)
    state = filled(structure, gradients(200, dtype=dtype), decay=0.99)
    rows = state["rows"].flatten(1).double()
    close(state["gram"].double().sum(0), rows @ rows.T, 1e-13)


def test_single_precision_solves_to_single_precision():
    """Condition number 1e6 or so: inner products in single precision would leave nothing."""
    rows = gradients(6, dtype=torch.float32)
    for inverse in FORMS:
        structure = GradientWindow(window=6, law="fixed", inverse=inverse)
        state = filled(structure, rows)
        dense = 1e-6 * EYE + rows.double().T @ rows.double() / 6
        v = rows[-1].double()
        close(structure.solve(state, v.float().unsqueeze(1), 1e-6).double(), torch.linalg.solve(dense, v), 2e-6)


# ---------------------------------------------------------------------- GGT


@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("count", [1, 3, 5, 9])
def test_the_root_of_the_window_is_that_of_its_singular_values(beta, count):
    """``[(Gw Gw^T / mass)^1/2 + eps I]^-1 y`` with ``Gw = [g_t, beta g_{t-1}, ...]``, at any fill."""
    structure, rows, eps = GradientWindow(window=5, law="average"), gradients(count), 1e-4
    state = filled(structure, rows, decay=beta**2)
    kept = rows[-5:].flip(0)
    columns = (kept * (beta ** torch.arange(len(kept), dtype=torch.float64)).unsqueeze(1)).T
    mass = float(sum(beta ** (2 * age) for age in range(len(kept))))
    assert float(state["mass"]) == pytest.approx(mass, rel=1e-13)
    expected = torch.linalg.solve(root(columns) / mass**0.5 + eps * EYE, VECTOR)
    close(structure.solve(state, VECTOR.unsqueeze(1), eps, exponent=0.5), expected)
    close(structure.to_dense(state), columns @ columns.T / mass, 1e-13)


def test_the_root_survives_dependent_gradients():
    """Two almost equal gradients: the small matrix would know the second singular value to 1e-8 only."""
    rows = gradients(3)
    rows[1] = rows[0] + 1e-7 * rows[2]
    structure, eps = GradientWindow(window=3, law="average"), 1e-7
    state = filled(structure, rows[:2], decay=1.0)
    expected = torch.linalg.solve(root(rows[:2].T / 2**0.5) + eps * EYE, rows[2])
    close(structure.solve(state, rows[2].unsqueeze(1), eps, exponent=0.5), expected, 1e-8)


def test_the_pseudo_inverse_of_the_root_drops_the_complement():
    structure, rows = GradientWindow(window=5, law="average"), gradients(5)
    state = filled(structure, rows, decay=1.0)
    left, values, _ = torch.linalg.svd(rows.T / 5**0.5, full_matrices=False)
    cut = float(values[2] * values[3])  # between the third and the fourth eigenvalue
    expected = left[:, :3] @ ((left[:, :3].T @ VECTOR) / values[:3])
    close(structure.pseudo_solve(state, VECTOR.unsqueeze(1), cut, exponent=0.5), expected)
    assert float(structure.pseudo_solve(state, VECTOR.unsqueeze(1), 1e9, exponent=0.5).abs().max()) == 0.0


@pytest.mark.parametrize("inverse", FORMS)
def test_no_curvature_and_no_shift_raises_with_the_remedy(inverse):
    v, structure = VECTOR.unsqueeze(1), GradientWindow(window=2, inverse=inverse)
    state = filled(structure, gradients(0))
    for call in (
        lambda: structure.solve(state, v, 0.0),
        lambda: structure.solve(state, v, 0.0, exponent=0.5),
        lambda: structure.sample(state, v, 0.0),
        lambda: structure.logdet(state, 0.0),
        lambda: structure.inverse_diagonal(state, 0.0),
    ):
        with pytest.raises(NotPositiveDefiniteError, match="weight_decay"):
            call()


# ---------------------------------------------------------------------- laws


def test_the_law_of_decay_is_that_of_the_interface():
    """``C <- decay C + weight g g^T`` as long as nothing leaves the window."""
    structure, rows = GradientWindow(window=8), gradients(8)
    state = structure.init((SIZE, 1), initial=0.5, dtype=torch.float64, device="cpu")
    dense = 0.5 * EYE
    for k, row in enumerate(rows):
        decay, weight = (0.0, 1.0) if k == 0 else (0.8 + 0.01 * k, 0.2)
        state = structure.update(state, {"J": row.unsqueeze(0)}, decay=decay, weight=weight, shift=0.1)
        dense = decay * dense + weight * torch.outer(row, row)
        close(structure.to_dense(state), dense, 1e-13)


@pytest.mark.parametrize("initial", [0.0, 0.3])
def test_the_law_of_averages_is_an_average_at_any_step(initial):
    """The weights of all there is sum to one, the start counting as one observation before all others."""
    structure, rows, decay = GradientWindow(window=4, law="average"), gradients(7), 0.8
    for count in range(1, 8):
        state = filled(structure, rows[:count], decay=decay, initial=initial)
        kept = rows[:count][-4:]
        weights = decay ** torch.arange(len(kept) - 1, -1, -1, dtype=torch.float64)
        start = decay**count if initial else 0.0
        dense = (kept.T * weights) @ kept + start * initial * EYE
        close(structure.to_dense(state), dense / (weights.sum() + start), 1e-13)


def test_several_rows_of_one_observation_take_its_place_together():
    """Per-example rows: as many as ``columns`` are exact, and an observation leaves as a whole."""
    structure = GradientWindow(window=2, columns=4, law="average")
    batches = [gradients(3, seed=seed) for seed in range(3)]
    state = structure.init((SIZE, 1), initial=0.0, dtype=torch.float64, device="cpu")
    for rows in batches:
        state = structure.update(state, {"J": rows / 3**0.5}, decay=1.0, weight=1.0, shift=0.1)
    close(structure.to_dense(state), sum(rows.T @ rows / 3 for rows in batches[1:]) / 2, 1e-13)
    assert float(state["mass"]) == pytest.approx(2.0)


def test_of_more_rows_than_columns_the_best_directions_stay():
    structure, rows = GradientWindow(window=2, columns=2, law="average"), gradients(6)
    state = structure.init((SIZE, 1), initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.update(state, {"J": rows}, decay=1.0, weight=1.0, shift=0.1)
    left, values, _ = torch.linalg.svd(rows.T, full_matrices=False)
    close(structure.to_dense(state), (left[:, :2] * values[:2] ** 2) @ left[:, :2].T, 1e-12)


def test_a_group_of_layers_is_one_vector():
    structure, source = GradientWindow(window=3, columns=20), torch.Generator().manual_seed(0)
    a, g = (torch.randn(size, generator=source, dtype=torch.float64) for size in ((4, 1, 3), (1, 4, 1, 2)))
    joined = JoinedRows((Rows(a, g), Rows(a, g[..., :1])))
    state = structure.init((9, 1), initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.update(state, structure.observe(state, joined), decay=0.0, weight=1.0, shift=0.1)
    flat = joined.dense().reshape(4, 9)
    close(structure.to_dense(state), flat.T @ flat, 1e-13)


# ---------------------------------------------------------------------- TONGA


@pytest.mark.parametrize("count", [1, 4, 8])
def test_without_truncation_tongas_matrix_is_the_decayed_sum_and_push_through_the_dense_solution(count):
    """``C_t = gamma C_{t-1} + g g^T``; ``(C_t + lam I)^-1 g_t = X_t (X_t^T X_t + lam I)^-1 e_last``."""
    gamma, rows = 0.9, gradients(count)
    structure = GradientWindow(window=8, law="average", keep=3)
    state, total = filled(structure, rows, decay=gamma), torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for row in rows:
        total = gamma * total + torch.outer(row, row)
    mass = (1 - gamma**count) / (1 - gamma)
    close(float(state["mass"]) * structure.to_dense(state), total, 1e-13)
    assert float(state["mass"]) == pytest.approx(mass, rel=1e-13)
    x = (rows * (gamma ** torch.arange(count - 1, -1, -1, dtype=torch.float64)).sqrt().unsqueeze(1)).T
    last = torch.eye(count, dtype=torch.float64)[-1]
    pushed = x @ torch.linalg.solve(x.T @ x + LAM * torch.eye(count, dtype=torch.float64), last)
    solved = structure.solve(state, rows[-1].unsqueeze(1), LAM / mass) / mass
    close(solved, torch.linalg.solve(total + LAM * EYE, rows[-1]))
    close(solved, pushed)


def test_truncation_keeps_the_best_directions_and_the_mass():
    """Against the full eigendecomposition of the decayed sum, through three truncations."""
    gamma, keep, window = 0.9, 3, 6
    structure, rows = GradientWindow(window=window, law="average", keep=keep), gradients(16)
    total, held, truncations = torch.zeros(SIZE, SIZE, dtype=torch.float64), 0, 0
    for count in range(1, 17):
        if held == window:
            values, vectors = torch.linalg.eigh(total)
            total = (vectors[:, -keep:] * values[-keep:]) @ vectors[:, -keep:].T
            held, truncations = keep, truncations + 1
        total = gamma * total + torch.outer(rows[count - 1], rows[count - 1])
        held += 1
        state = filled(structure, rows[:count], decay=gamma)
        mass = (1 - gamma**count) / (1 - gamma)
        assert float(state["mass"]) == pytest.approx(mass, rel=1e-12)
        close(mass * structure.to_dense(state), total, 1e-11)
    assert truncations == 4


def test_nothing_is_lost_where_all_directions_are_kept():
    """``keep`` at least the rank: 30 gradients in a space of 13 dimensions, 13 kept."""
    gamma, rows = 0.95, gradients(30)
    state = filled(GradientWindow(window=17, law="average", keep=SIZE), rows, decay=gamma)
    total = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for row in rows:
        total = gamma * total + torch.outer(row, row)
    dense = GradientWindow(window=17, law="average", keep=SIZE).to_dense(state)
    close(float(state["mass"]) * dense, total, 1e-12)


# ---------------------------------------------------------------------- refusals


def test_nan_gradients_are_named():
    structure = GradientWindow(window=2)
    state = filled(structure, torch.full((1, SIZE), math.nan, dtype=torch.float64))
    for call in (structure.solve, structure.sample):
        with pytest.raises(NonFiniteStatisticsError, match="NaN"):
            call(state, VECTOR.unsqueeze(1), 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"columns": 0}, "columns=0 must be at least 1"),
        ({"law": "sum"}, "law='sum' is unknown; allowed: 'decay', 'fixed', 'average'"),
        ({"inverse": "lu"}, "inverse='lu' is unknown"),
        ({"window": 4, "keep": 4, "law": "average"}, "keep=4 must lie between 1 and"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        GradientWindow(**options)
