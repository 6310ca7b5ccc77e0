"""K-FAC from the rows of its factors: equal to K-FAC, to Woodbury's identity, and what a small rank keeps."""

import pytest
import torch

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import Kronecker, SwiftKronecker
from vogn.testing.structure_cases import assert_close, normalised, random_rows

SHAPE = (4, 6)


def after(structure, batches, shape=SHAPE, initial=0.0, decay=0.7):
    """The refreshed state after some batches, the first of which counts fully unless there is a start."""
    state = structure.init(shape, initial=initial, dtype=torch.float64, device="cpu")
    for step, rows in enumerate(batches):
        seen = normalised(structure, structure.observe(state, rows), rows.count)
        old, new = (0.0, 1.0) if step == 0 and not initial else (decay, 1.0 - decay)
        state = structure.update(state, seen, decay=old, weight=new, shift=0.1)
    return structure.refresh(state)


def vectors(shape=SHAPE):
    return torch.randn((3, *shape), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def assert_same_operators(structure, state, other, other_state, shift, shape=SHAPE, tolerance=1e-10):
    v = vectors(shape)
    for name in ("solve", "apply", "sample"):
        ours, theirs = getattr(structure, name)(state, v, shift), getattr(other, name)(other_state, v, shift)
        assert_close(ours, theirs, tolerance, name)
    assert_close(structure.to_dense(state, shift), other.to_dense(other_state, shift), tolerance, "to_dense")
    for name in ("logdet", "inverse_diagonal"):
        assert_close(getattr(structure, name)(state, shift), getattr(other, name)(other_state, shift), tolerance, name)


def duplicated(rows):
    return Rows(torch.cat([rows.a, rows.a[:2], rows.a[:2]]), torch.cat([rows.g, rows.g[:, :2], rows.g[:, :2]], 1))


BATCHES = {
    "fewer rows than either side": [random_rows(SHAPE, seed=0, examples=3)],
    "as many as outputs": [random_rows(SHAPE, seed=0, examples=4)],
    "as many as inputs": [random_rows(SHAPE, seed=0, examples=6)],
    "more rows": [random_rows(SHAPE, seed=0, examples=11)],
    "duplicated rows": [duplicated(random_rows(SHAPE, seed=0, examples=3))],
    "columns": [random_rows(SHAPE, seed=0, examples=3, columns=2)],
    "a memory of three batches": [random_rows(SHAPE, seed=s, examples=2) for s in range(3)],
}


@pytest.mark.parametrize("damping", ["factored", "exact"])
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_it_is_kfac_where_the_rank_is_that_of_the_factors(batches, damping):
    for rank in (6, None):
        swift, kfac = SwiftKronecker(rank=rank, damping=damping), Kronecker(damping=damping, sharing="reduce")
        for shift in (0.1, 1e-3):
            assert_same_operators(swift, after(swift, batches), kfac, after(kfac, batches), shift)


@pytest.mark.parametrize("sharing", ["reduce", "expand"])
@pytest.mark.parametrize("lead", [(), (2,)])
def test_positions_masks_and_leading_dimensions_enter_as_in_kfac(lead, sharing):
    shape = (*lead, *SHAPE)
    several = random_rows(shape, seed=1, examples=3, columns=2, positions=5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    masked = Rows(several.a, several.g * mask.unsqueeze(-1), mask)
    swift, kfac = SwiftKronecker(sharing=sharing), Kronecker(damping="factored", sharing=sharing)
    for rows in (several, masked):
        assert_same_operators(swift, after(swift, [rows], shape), kfac, after(kfac, [rows], shape), 0.1, shape)


@pytest.mark.parametrize("max_dim", [8, 5, 3])
@pytest.mark.parametrize("sharing", ["reduce", "expand"])
def test_look_ups_and_diagonal_sides_are_those_of_kfac(sharing, max_dim):
    index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 5, 2]])
    rows = IndexedRows(index, random_rows((4, 1), seed=1, examples=4, columns=2, positions=3).g, 6)
    swift = SwiftKronecker(sharing=sharing, max_dim=max_dim)
    kfac = Kronecker(damping="factored", sharing=sharing, max_dim=max_dim)
    assert_same_operators(swift, after(swift, [rows]), kfac, after(kfac, [rows]), 0.1)
    assert swift.restriction(SHAPE).split(":")[0] == kfac.restriction(SHAPE).split(":")[0]


def test_reduce_with_one_position_is_expand():
    rows = [random_rows(SHAPE, seed=0, examples=5)]
    reduce, expand = SwiftKronecker(sharing="reduce"), SwiftKronecker(sharing="expand")
    assert_same_operators(reduce, after(reduce, rows), expand, after(expand, rows), 0.1, tolerance=1e-13)


def test_a_factor_is_inverted_by_woodburys_identity_in_the_dimension_of_the_rows():
    """``A_g^-1 = (1 / d) (I - H (m d I + H^T H)^-1 H^T)`` for both factors, with inputs in the columns of ``H``."""
    m, shift = 3, 0.02
    rows = random_rows(SHAPE, seed=0, examples=m)
    structure = SwiftKronecker(rank=m)
    state = after(structure, [rows])
    h, b = rows.a[:, 0].T, rows.g[0, :, 0].T
    pi = float(((h.square().sum() / m / 6) / (b.square().sum() / m / 4)).sqrt())

    def inverse(columns, d):
        inner = torch.linalg.solve(m * d * torch.eye(m).double() + columns.T @ columns, columns.T)
        return (torch.eye(len(columns)).double() - columns @ inner) / d

    v = vectors()
    expected = inverse(b, shift**0.5 / pi) @ v @ inverse(h, pi * shift**0.5)
    assert_close(structure.solve(state, v, shift), expected, 1e-12, "Woodbury")


def test_nothing_of_the_size_of_a_factor_squared_is_stored():
    rank, shape = 3, (50, 70)
    state = after(SwiftKronecker(rank=rank), [random_rows(shape, seed=0, examples=5)], shape)
    assert max(tensor.numel() for tensor in state.values()) == 70 * rank
    assert SwiftKronecker(rank=rank).bytes_per_block(shape) < Kronecker().bytes_per_block(shape) / 8


def test_no_matrix_of_the_size_of_a_factor_is_formed_where_the_batch_is_smaller(monkeypatch):
    sizes = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: sizes.append(matrix.shape[-1]) or eigh(matrix))
    shape = (50, 70)
    structure = SwiftKronecker(rank=8)
    state = after(structure, [random_rows(shape, seed=s, examples=5) for s in range(3)], shape)
    structure.sample(state, vectors(shape), 0.1)
    assert sizes and max(sizes) == 13  # 8 columns and 5 rows


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_small_rank_keeps_the_largest_directions_and_the_trace(rank):
    """The kept part is the best of its rank, and the trace of the others is spread evenly."""
    rows = random_rows(SHAPE, seed=0, examples=20)
    structure = SwiftKronecker(rank=rank)
    state = after(structure, [rows])
    for full, u, rest in (
        (rows.a[:, 0].T @ rows.a[:, 0] / 20, state["UA"], state["A"]),
        (rows.g[0, :, 0].T @ rows.g[0, :, 0] / 20, state["US"], state["S"]),
    ):
        values, basis = torch.linalg.eigh(full)
        best = (basis[:, -rank:] * values[-rank:]) @ basis[:, -rank:].T
        assert_close(u @ u.T, best, 1e-12, "kept directions")
        assert_close(rest, values[:-rank].sum().reshape(1) / len(full), 1e-12, "rest")
    many = after(structure, [random_rows(SHAPE, seed=s, examples=7) for s in range(5)], initial=0.5)
    kfac = after(Kronecker(sharing="reduce"), [random_rows(SHAPE, seed=s, examples=7) for s in range(5)], initial=0.5)
    for u, rest, factor in (("UA", "A", "A"), ("US", "S", "S")):
        trace = many[u].square().sum() + many[rest].sum() * len(kfac[factor])
        assert_close(trace, kfac[factor].trace(), 1e-12, "trace after five batches")


def test_the_number_of_columns_that_are_not_zero_is_the_rank():
    for examples, rank in ((2, 2), (5, 5), (9, 6)):
        state = after(SwiftKronecker(), [duplicated(random_rows(SHAPE, seed=0, examples=examples))])
        assert int(state["UA"].any(0).sum()) == rank and int(state["US"].any(0).sum()) == min(rank, 4)


def test_without_memory_the_factors_are_those_of_the_last_batch():
    batches = [random_rows(SHAPE, seed=s, examples=3) for s in range(4)]
    structure = SwiftKronecker(rank=3)
    states = after(structure, batches, decay=0.0), after(structure, batches[-1:])
    assert_close(structure.to_dense(states[0], 0.1), structure.to_dense(states[1], 0.1), 1e-12, "last batch")


@pytest.mark.parametrize("sharing", ["reduce", "expand"])
def test_a_stride_takes_a_subset_of_the_positions_and_is_exact_where_they_are_alike(sharing):
    one = random_rows(SHAPE, seed=0, examples=3)
    alike = Rows(one.a.expand(-1, 7, -1), one.g.expand(-1, -1, 7, -1))
    all_positions, some = SwiftKronecker(sharing=sharing), SwiftKronecker(sharing=sharing, stride=3)
    assert_same_operators(some, after(some, [alike]), all_positions, after(all_positions, [alike]), 0.1)
    several = random_rows(SHAPE, seed=0, examples=3, positions=7)
    power = 7 / 3 if sharing == "reduce" else (7 / 3) ** 0.5
    subset = Rows(several.a[:, ::3], several.g[:, :, ::3] * power)
    assert_same_operators(some, after(some, [several]), all_positions, after(all_positions, [subset]), 0.1)
    index = torch.arange(6).repeat(2, 1)
    g = random_rows((4, 1), seed=1, examples=2, positions=6).g
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    tables = IndexedRows(index, g * mask.unsqueeze(-1), 6, mask)
    explicit = Rows(tables.a, tables.g, mask)
    assert_same_operators(some, after(some, [tables]), some, after(some, [explicit]), 0.1)


def test_accumulated_micro_batches_of_any_size_are_one_batch():
    rows = random_rows(SHAPE, seed=3, examples=13, columns=2, positions=3)
    structure = SwiftKronecker(sharing="expand")
    state = structure.init(SHAPE, initial=0.3, dtype=torch.float64, device="cpu")
    parts = [Rows(rows.a[n : n + 1], rows.g[:, n : n + 1]) for n in range(13)]
    seen = [structure.observe(state, part) for part in parts]
    joined = {key: torch.cat([leaf[key] for leaf in seen]) / 13**0.5 for key in seen[0]}
    whole = normalised(structure, structure.observe(state, rows), 13)
    dense = [
        structure.to_dense(structure.refresh(structure.update(state, leaf, decay=0.5, weight=0.5, shift=0.1)), 0.1)
        for leaf in (joined, whole)
    ]
    assert_close(dense[0], dense[1], 1e-12, "accumulation")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"max_dim": -1}, "max_dim=-1"),
        ({"damping": "both"}, "damping='both' is unknown"),
        ({"sharing": "some"}, "sharing='some' is unknown"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SwiftKronecker(**options)


def test_rows_without_a_pair_are_refused():
    structure = SwiftKronecker()
    state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    for rows in (GradientRow(torch.ones(SHAPE).double()), JoinedRows((random_rows(SHAPE, seed=0),))):
        with pytest.raises(UnsupportedObservationError, match="inputs and output gradients of one layer"):
            structure.observe(state, rows)
