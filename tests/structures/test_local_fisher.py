"""Metrics of inputs alone against dense matrices written by hand, and the three ways to their roots."""

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import Kronecker, LocalFisher
from vogn.testing.structure_cases import assert_close, normalised, random_rows

SHAPE = (3, 5)
SHIFT = 0.05


def after(structure, rows, shape=SHAPE, initial=0.0):
    state = structure.init(shape, initial=initial, dtype=torch.float64, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    old, new = (0.7, 0.3) if initial else (0.0, 1.0)
    return structure.refresh(structure.update(state, seen, decay=old, weight=new, shift=0.1))


def vectors(shape=SHAPE):
    return torch.randn((4, *shape), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def inverse_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mT


def test_a_layers_metric_is_the_second_moment_of_its_inputs_whatever_the_gradients_are():
    rows = random_rows(SHAPE, seed=0, examples=9, positions=2)
    m = torch.einsum("nti,ntj->ij", rows.a, rows.a) / 18
    structure = LocalFisher()
    for g in (rows.g, rows.g * 1e3, rows.g[:0]):
        state = after(structure, Rows(rows.a, g))
        expected = torch.block_diag(m, m, m) + SHIFT * torch.eye(15).double()
        assert_close(structure.to_dense(state, SHIFT), expected, 1e-13, "C")
    v, shifted = vectors(), m + SHIFT * torch.eye(5).double()
    assert_close(structure.solve(state, v, SHIFT), v @ torch.linalg.inv(shifted), 1e-11, "dL/dW M^-1")
    assert_close(structure.sample(state, v, SHIFT), v @ inverse_root(shifted), 1e-11, "E M^-1/2")


def test_it_is_a_kronecker_product_with_the_identity():
    rows = random_rows(SHAPE, seed=0, examples=9)
    local, kfac = LocalFisher(), Kronecker(damping="exact")
    state = after(local, rows)
    other = kfac.refresh(after(kfac, rows) | {"S": torch.eye(3).double()})
    for name in ("solve", "sample", "apply"):
        assert_close(getattr(local, name)(state, vectors(), SHIFT), getattr(kfac, name)(other, vectors(), SHIFT),
                     1e-11, name)  # fmt: skip
    for name in ("logdet", "inverse_diagonal", "to_dense"):
        assert_close(getattr(local, name)(state, SHIFT), getattr(kfac, name)(other, SHIFT), 1e-11, name)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_a_units_metric_is_weighted_by_the_slope_of_its_output(lead):
    """``M_j = E[sigmoid(y_j)^2 x x^T]``, one block for each output; masked positions take no part."""
    shape = (*lead, *SHAPE)
    rows = random_rows(shape, seed=0, examples=4, positions=3)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=torch.bool)
    structure = LocalFisher(scope="unit")
    state = after(structure, Rows(rows.a, rows.g, mask, rows.outputs), shape)
    slopes = 1.0 / (1.0 + torch.exp(-rows.outputs))
    m = torch.einsum("nt,...nto,...nti,...ntj->...oij", mask.double(), slopes**2, rows.a, rows.a) / int(mask.sum())
    dense = torch.block_diag(*m.reshape(-1, 5, 5))
    assert_close(structure.to_dense(state, SHIFT), dense + SHIFT * torch.eye(len(dense)).double(), 1e-12, "C")
    v = vectors(shape)
    shifted = m + SHIFT * torch.eye(5).double()
    assert_close(
        structure.sample(state, v, SHIFT), (v.unsqueeze(-2) @ inverse_root(shifted)).squeeze(-2), 1e-11, "sample"
    )


@pytest.mark.parametrize("scope", ["layer", "unit"])
def test_all_roots_are_those_of_the_eigendecomposition(scope):
    rows = random_rows(SHAPE, seed=0, examples=4)
    exact = LocalFisher(scope=scope)
    for other in (LocalFisher(scope, "nystrom", columns=5), LocalFisher(scope, "denman_beavers")):
        for initial in (0.0, 0.5):
            states = after(exact, rows, initial=initial), after(other, rows, initial=initial)
            for name in ("solve", "sample", "apply"):
                a, b = (getattr(s, name)(state, vectors(), SHIFT)
                        for s, state in zip((exact, other), states, strict=True))  # fmt: skip
                assert_close(b, a, 1e-10, f"{other.root} {name}")


def test_few_nystrom_columns_keep_the_trace_and_are_exact_at_the_rank():
    rows = random_rows(SHAPE, seed=0, examples=3)
    m = rows.a[:, 0].T @ rows.a[:, 0] / 3
    at_rank, below = LocalFisher(root="nystrom", columns=3), LocalFisher(root="nystrom", columns=2)
    assert_close(at_rank.to_dense(after(at_rank, rows)), torch.block_diag(m, m, m), 1e-12, "rank 3")
    dense = below.to_dense(after(below, rows))
    assert float((dense - torch.block_diag(m, m, m)).abs().max()) > 1e-2
    assert_close(dense.trace(), 3 * m.trace(), 1e-12, "trace")


def test_the_metric_is_fixed_between_refreshes():
    structure = LocalFisher()
    state = after(structure, random_rows(SHAPE, seed=0))
    seen = normalised(structure, structure.observe(state, random_rows(SHAPE, seed=1)), 6)
    moved = structure.update(state, seen, decay=0.5, weight=0.5, shift=0.1)
    assert torch.equal(structure.solve(moved, vectors(), SHIFT), structure.solve(state, vectors(), SHIFT))
    assert not torch.equal(structure.refresh(moved)["x"], state["x"])


def test_elementwise_parameters_without_outputs_have_the_identity():
    structure = LocalFisher(scope="unit")
    rows = Rows(torch.ones(4, 6, 1, 1).double(), torch.ones(4, 0, 6, 1, 1).double())
    state = after(structure, rows, (4, 1, 1))
    assert torch.equal(structure.to_dense(state), torch.eye(4).double())


@pytest.mark.parametrize("max_dim", [2, 8])
def test_a_table_has_a_diagonal_metric(max_dim):
    index = torch.tensor([[0, 2, 2], [1, 3, 0]])
    structure = LocalFisher(max_dim=max_dim)
    state = after(structure, IndexedRows(index, torch.ones(0, 2, 3, 3).double(), 5), SHAPE)
    m = torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0]).double().diag() / 6
    assert_close(structure.to_dense(state), torch.block_diag(m, m, m), 1e-14, "counts")
    assert ("diagonal input factor (5)" in structure.restriction(SHAPE)) == (max_dim == 2)


def test_units_beyond_the_limit_do_not_fit():
    assert LocalFisher(scope="unit", max_elements=75).fits(SHAPE)
    assert not LocalFisher(scope="unit", max_elements=74).fits(SHAPE)
    assert LocalFisher().fits((1000, 10**6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scope": "network"}, "scope='network' is unknown"),
        ({"root": "newton"}, "root='newton' is unknown"),
        ({"columns": 0}, "columns=0 must be at least 1"),
        ({"max_dim": -1}, "max_dim=-1 must be at least 0"),
        ({"scope": "unit", "sharing": "reduce"}, "sharing='reduce' is unknown; allowed: 'expand'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LocalFisher(**options)


def test_rows_without_what_is_read_are_refused():
    pair = random_rows(SHAPE, seed=0)
    for scope in ("layer", "unit"):
        structure = LocalFisher(scope=scope)
        state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
        for rows in (GradientRow(torch.ones(SHAPE).double()), JoinedRows((pair,))):
            with pytest.raises(UnsupportedObservationError, match="inputs and output gradients of one layer"):
                structure.observe(state, rows)
    with pytest.raises(UnsupportedObservationError, match="reads a layer's outputs.*use scope='layer'"):
        structure.observe(state, Rows(pair.a, pair.g))


def test_a_singular_metric_without_a_shift_has_no_root():
    rows = random_rows(SHAPE, seed=0, examples=2)
    for root in ("eigh", "nystrom", "denman_beavers"):
        structure = LocalFisher(root=root, columns=3)
        state = after(structure, rows)
        if root == "eigh":  # rounding leaves an eigenvalue of exactly zero only where it is clamped
            state = state | {"x": state["x"].where(state["x"] > 1e-12, 0.0)}
        with pytest.raises(NotPositiveDefiniteError, match="set weight_decay, damping or initial_curvature above 0"):
            structure.sample(state, vectors(), 0.0)
