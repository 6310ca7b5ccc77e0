"""Compressed rows against HyLo's own formulas and dense solves, in both variants."""

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg import fewer_columns
from vogn.linalg.rows import Rows
from vogn.structures import CompressedGram, Gram, InterpolativeGram
from vogn.testing.structure_cases import normalised, random_rows

SHAPE, D = (4, 10), 40
LAM = 0.05
EYE = torch.eye(D, dtype=torch.float64)
BOTH = pytest.mark.parametrize("kind", [CompressedGram, InterpolativeGram])


def observed(structure, rows, state=None, decay=0.0, weight=1.0, shift=0.0):
    state = state or structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    return structure.update(state, seen, decay=decay, weight=weight, shift=shift)


def columns_of(rows):
    """``U``, ``(D, n)``."""
    return rows.dense().flatten(2).flatten(0, 1).T / rows.count**0.5


def repeated(rows, times):
    return Rows(rows.a.repeat(times, 1, 1), rows.g.repeat(1, times, 1, 1))


def inverse(structure, state, shift=LAM):
    """Columns are ``(C (+) shift)^-1 e_j``."""
    return structure.solve(state, EYE.reshape(D, *SHAPE), shift).reshape(D, D).T


def exact_inverse(rows, lam=LAM):
    u = columns_of(rows)
    return torch.linalg.inv(u @ u.T + lam * EYE)


def hylo(us, p, rest, k_ss):
    """``(I - U_S M U_S^T) / lambda``, ``Y = P^T (Res + lambda I)^-1 P``, ``M = Y - Y (I + K_SS Y)^-1 K_SS Y``."""
    eye = torch.eye(len(rest), dtype=torch.float64)
    y = p.T @ torch.linalg.solve(rest + LAM * eye, p)
    m = y - y @ torch.linalg.solve(torch.eye(len(y)).double() + k_ss @ y, k_ss @ y)
    # U_S^T g as in the paper's direction: the factor 1 / lambda is outside, so M holds none
    return (EYE - us @ m @ us.T) / LAM, m


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@BOTH
def test_with_all_rows_it_is_the_dense_solve(kind):
    rows = random_rows(SHAPE, seed=0, examples=12)
    for rank in (1.0, 12, 100):
        close(inverse(kind(rank=rank), observed(kind(rank=rank), rows)), exact_inverse(rows))


@BOTH
def test_with_duplicated_samples_a_lower_rank_is_exact(kind):
    rows = repeated(random_rows(SHAPE, seed=0, examples=5), 4)
    for rank in (0.25, 5, 9):
        state = observed(kind(rank=rank), rows)
        assert int(state["columns"]) == 5
        close(inverse(kind(rank=rank), state), exact_inverse(rows))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_interpolation_is_hylo_s_direction(rank):
    """The formulas of the paper with ``T = R_11^-1 R_12`` of a QR decomposition of the permuted ``K``."""
    rows = random_rows(SHAPE, seed=1, examples=9)
    u = columns_of(rows)
    k = u.T @ u
    s, _ = fewer_columns.pivoted_cholesky(k, rank)
    others = torch.tensor([n for n in range(9) if n not in s.tolist()])
    order = torch.cat([s, others])
    u, k = u[:, order], k[order][:, order]
    _, r = torch.linalg.qr(k)
    p = torch.cat([torch.eye(rank).double(), torch.linalg.solve(r[:rank, :rank], r[:rank, rank:])], 1).T
    expected, m = hylo(u[:, :rank], p, k - k[:, :rank] @ p.T, k[:rank, :rank])
    structure = InterpolativeGram(rank=rank)
    state = observed(structure, rows)
    close(inverse(structure, state), expected)
    close(structure.to_dense(state, LAM), torch.linalg.inv(expected))
    if rank > 1:
        assert float((m - m.T).abs().max()) > 1e-6 * float(m.abs().max()), "not symmetric, so no Gaussian"


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_the_projection_is_hylo_s_direction_with_a_symmetric_m_and_a_gaussian(rank):
    rows = random_rows(SHAPE, seed=1, examples=9)
    u = columns_of(rows)
    k = u.T @ u
    s, _ = fewer_columns.pivoted_cholesky(k, rank)
    p = torch.linalg.solve(k[s][:, s], k[s]).T
    expected, m = hylo(u[:, s], p, k - p @ k[s][:, s] @ p.T, k[s][:, s])
    close(m, m.T)
    assert float(torch.linalg.eigvalsh(expected)[0]) > 0
    structure = CompressedGram(rank=rank)
    state = observed(structure, rows)
    close(inverse(structure, state), expected)
    root = structure.sample(state, EYE.reshape(D, *SHAPE), LAM).reshape(D, D)
    close(root.T @ root, expected)
    torch.testing.assert_close(structure.logdet(state, LAM), -torch.logdet(expected), rtol=1e-10, atol=1e-10)
    close(structure.inverse_diagonal(state, LAM).flatten(), expected.diagonal())


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_what_is_missed_makes_the_curvature_smaller(rank):
    """Between that of the kept rows (small shifts) and the exact one inside their span (large shifts)."""
    rows = random_rows(SHAPE, seed=2, examples=9)
    u = columns_of(rows)
    structure = CompressedGram(rank=rank)
    state = observed(structure, rows)
    kept = Gram.columns(state)
    span, _ = torch.linalg.qr(kept)
    inside = span @ span.T @ u
    between = [structure.to_dense(state, lam) - lam * EYE for lam in (1e-3, 0.1, 10.0)]
    curvatures = [kept @ kept.T, *between, inside @ inside.T]
    for smaller, larger in zip(curvatures, curvatures[1:], strict=False):
        assert float(torch.linalg.eigvalsh(larger - smaller)[0]) > -1e-10


def test_its_direction_is_about_as_accurate_as_the_interpolated_one():
    """Gram spectra that decay like 0.7^(2i), a quarter of the rows: within 10% of each other on average, or better."""
    errors = {CompressedGram: 0.0, InterpolativeGram: 0.0, None: 0.0}
    for seed in range(20):
        source = torch.Generator().manual_seed(seed)
        mix, z = torch.randn(32, 32, generator=source).double(), torch.randn(32, D, generator=source).double()
        j = mix @ torch.diag(0.7 ** torch.arange(32).double()) @ z / 4
        seen, g = {"J": j / 32**0.5}, j.mean(0).reshape(SHAPE)
        exact = torch.linalg.solve(j.T @ j / 32 + 0.1 * EYE, g.flatten()).reshape(SHAPE)
        for kind in (CompressedGram, InterpolativeGram):
            fresh = kind(rank=8).init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
            state = kind(rank=8).update(fresh, seen, decay=0.0, weight=1.0, shift=0.0)
            errors[kind] += float((kind(rank=8).solve(state, g, 0.1) - exact).norm() / exact.norm()) / 20
        errors[None] += float((g / 0.1 - exact).norm() / exact.norm()) / 20
    assert errors[CompressedGram] < 1.1 * errors[InterpolativeGram] < errors[None] / 3


@BOTH
def test_a_share_of_the_rows_is_rounded_down_to_at_least_one(kind):
    rows = random_rows(SHAPE, seed=0, examples=12)
    for rank, columns in ((0.01, 1), (0.25, 3), (0.3, 3), (1.0, 12), (1, 1), (7, 7)):
        assert int(observed(kind(rank=rank), rows)["columns"]) == columns


@BOTH
def test_memory_at_full_rank_is_the_recursion(kind):
    state, expected = None, torch.zeros(D, D, dtype=torch.float64)
    for seed in range(3):
        rows = random_rows(SHAPE, seed=seed, examples=4)
        state = observed(kind(rank=1.0), rows, state, decay=0.7, weight=0.3)
        expected = 0.7 * expected + 0.3 * columns_of(rows) @ columns_of(rows).T
    close(kind(rank=1.0).to_dense(state, LAM), expected + LAM * EYE)


def test_old_curvature_enters_as_it_is_at_the_shift():
    structure = CompressedGram(rank=3)
    state = observed(structure, random_rows(SHAPE, seed=0, examples=8))
    nothing = {"J": torch.zeros(2, D, dtype=torch.float64)}
    new = structure.update(state, nothing, decay=0.5, weight=1.0, shift=LAM)
    before = structure.to_dense(state, LAM) - LAM * EYE
    close(structure.to_dense(new, LAM) - LAM * EYE, 0.5 * before)


@BOTH
def test_rows_beyond_the_window_are_merged_first(kind):
    rows = random_rows(SHAPE, seed=0, examples=12)
    u = columns_of(rows)
    left, values, _ = torch.linalg.svd(u, full_matrices=False)
    best = (left[:, :7] * values[:7].square()) @ left[:, :7].T
    structure = kind(rank=1.0, window=7)
    close(structure.to_dense(observed(structure, rows), LAM), best + LAM * EYE)


def test_what_needs_a_gaussian_is_refused_by_name():
    structure = InterpolativeGram(rank=2)
    state, v = observed(structure, random_rows(SHAPE, seed=0)), torch.ones(SHAPE, dtype=torch.float64)
    for feature in ("sample", "logdet", "inverse_diagonal"):
        arguments = (state, v, LAM) if feature == "sample" else (state, LAM)
        with pytest.raises(UnsupportedObservationError, match=f"InterpolativeGram has no {feature}.*CompressedGram"):
            getattr(structure, feature)(*arguments)


@BOTH
def test_a_shift_per_parameter_or_none_at_all_is_refused(kind):
    structure = kind(rank=2)
    state, v = observed(structure, random_rows(SHAPE, seed=0)), torch.ones(SHAPE, dtype=torch.float64)
    with pytest.raises(UnsupportedObservationError, match="adds one number to C"):
        structure.solve(state, v, 0.1 * v)
    with pytest.raises(NotPositiveDefiniteError, match="weight_decay, damping"):
        structure.solve(state, v, 0.0)


@BOTH
@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5])
def test_ranks_have_a_range(kind, rank):
    with pytest.raises(ValueError, match=f"{kind.__name__}: rank={rank} must be a whole number of at least 1"):
        kind(rank=rank)
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        kind(window=0)
