"""Rows as few pairs against singular value decompositions of every example, and the sketch of both sides."""

import pytest
import torch

from tiny_models import normal
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import GradientRow, IndexedRows, Rows
from vogn.linalg.truncated_pairs import truncated_pairs
from vogn.structures import Gram, PairGram, SketchedGram, SketchedPairGram
from vogn.testing.structure_cases import normalised

SHAPE = (5, 9)


def rows_of(positions, examples=6, columns=1, d_out=5, d_in=9, seed=0):
    a = normal(examples, positions, d_in, seed=seed)
    return Rows(a, normal(columns, examples, positions, d_out, seed=seed + 1))


def cut(rows, positions):
    """``G_p^T A`` of every example and column, ``(K N, d_out, d_in)``."""
    out = []
    for column in rows.g:
        for g, a in zip(column, rows.a, strict=True):
            left, values, right = torch.linalg.svd(g, full_matrices=False)
            short = (left[:, :positions] * values[:positions]) @ right[:positions]
            out.append(short.T @ a)
    return torch.stack(out)


def observed(structure, rows, state=None, decay=0.0, weight=1.0):
    state = state or structure.init(rows.shape, initial=0.0, dtype=rows.g.dtype, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    return structure.update(state, seen, decay=decay, weight=weight, shift=0.0)


@pytest.mark.parametrize(("steps", "positions"), [(1, 1), (3, 2), (4, 3), (7, 2), (30, 3), (30, 5), (3, 6)])
@pytest.mark.parametrize("columns", [1, 3])
def test_pairs_are_those_of_the_largest_singular_values(steps, positions, columns):
    rows = rows_of(steps, columns=columns)
    a, g = truncated_pairs(rows, positions)
    assert a.shape == (6 * columns, steps if steps <= positions else positions, 9) and g.shape == (*a.shape[:2], 5)
    found = torch.einsum("npo,npi->noi", g, a)
    torch.testing.assert_close(found, cut(rows, positions), rtol=1e-9, atol=1e-10)
    exact = torch.allclose(found, rows.dense().flatten(0, 1), rtol=1e-9, atol=1e-10)
    assert exact == (positions >= min(steps, 5))


def test_silent_examples_padding_and_repeated_positions_are_exact():
    rows = rows_of(12)
    rows.g[0, 1] = 0.0
    rows.g[0, 2, 3:] = 0.0
    rows.g[0, 3] = rows.g[0, 3, :1]  # rank 1
    a, g = truncated_pairs(rows, 5)
    torch.testing.assert_close(torch.einsum("npo,npi->noi", g, a), rows.dense()[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [4, 12])
def test_extreme_gradients_keep_their_pairs_and_numbers_that_are_not_finite_stay(steps):
    """The squares of the gradients leave single precision."""
    rows = rows_of(steps)
    for scale in (1e-30, 1e25):
        a, g = truncated_pairs(Rows(rows.a.float(), (rows.g * scale).float()), 3)
        found = torch.einsum("npo,npi->noi", g.double() / scale, a.double())
        torch.testing.assert_close(found, cut(rows, 3), rtol=1e-4, atol=1e-5)
    for number in (torch.nan, torch.inf):
        spoilt = rows.g.clone()
        spoilt[0, 2, 1, 0] = number
        g = truncated_pairs(Rows(rows.a, spoilt), 3)[1]
        assert g[[0, 1, 3, 4, 5]].isfinite().all() and not g[2].isfinite().all()
        gradient = GradientRow(spoilt[0, 2].clone())
        assert not truncated_pairs(gradient, 2)[1].isfinite().any()


def test_look_ups_and_a_gradient_are_read():
    index = torch.tensor([[0, 2, 2, 5], [1, 3, 0, 8]])
    table = IndexedRows(index, normal(1, 2, 4, 5, seed=1), 9)
    explicit = Rows(table.a, table.g)
    for positions in (2, 4):
        a, g = truncated_pairs(table, positions)
        torch.testing.assert_close(torch.einsum("npo,npi->noi", g, a), cut(explicit, positions), rtol=1e-9, atol=1e-10)
    gradient = normal(5, 9, seed=2)
    a, g = truncated_pairs(GradientRow(gradient), 2)
    left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    torch.testing.assert_close(g[0].T @ a[0], (left[:, :2] * values[:2]) @ right[:2])


@pytest.mark.parametrize("channels", [3, 40])
def test_a_convolution_says_the_same_as_its_patches(channels):
    """16 positions, fewer and more than outputs."""
    patches = Patches(normal(4, 2, 6, 6, seed=0), (3, 3), (1, 1), (1, 1), 1, True)
    rows = PatchRows(patches, normal(1, 4, 16, channels, seed=1))
    a, g = truncated_pairs(rows, 2)
    torch.testing.assert_close(torch.einsum("npo,npi->noi", g, a), cut(Rows(rows.a, rows.g), 2), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_curvature_and_operators_are_those_of_the_cut_rows(positions):
    rows, s = rows_of(12), 0.3
    structure = PairGram(positions=positions, above=10)
    state = observed(structure, rows)
    assert state["a"].shape == (6 * positions, 9)
    flat = cut(rows, positions).flatten(1)
    dense = flat.T @ flat / 6 + s * torch.eye(45).double()
    torch.testing.assert_close(structure.to_dense(state, s), dense, rtol=1e-10, atol=1e-11)
    v = normal(3, *SHAPE, seed=7)
    expected = torch.linalg.solve(dense, v.flatten(1).T).T.view(v.shape)
    torch.testing.assert_close(structure.solve(state, v, s), expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(structure.logdet(state, s), torch.logdet(dense), rtol=1e-10, atol=1e-10)
    root = structure.sample(state, torch.eye(45).double().view(45, *SHAPE), s).flatten(1)
    torch.testing.assert_close(root.T @ root, torch.linalg.inv(dense), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("shift", [1e-2, 1e-7])
def test_single_precision_solves_to_single_precision(shift):
    """A vector in the span of the rows, where Woodbury's identity cancels; beyond a limit rows are written out."""
    rows = rows_of(12)
    structure = PairGram(positions=3)
    state = observed(structure, Rows(rows.a.float(), rows.g.float()))
    exact = {key: tensor.double() for key, tensor in state.items()}
    v = state["g"].T @ state["a"]
    expected = structure.solve(exact, v.double(), shift)
    torch.testing.assert_close(structure.solve(state, v, shift).double(), expected, rtol=1e-3, atol=1e-4)


def test_the_oldest_rows_leave_and_a_batch_stays_whole():
    first, second, large = rows_of(3, seed=0), rows_of(3, seed=5), rows_of(3, examples=10, seed=9)
    structure, whole = PairGram(positions=3, window=8), Gram(window=45)
    state = observed(structure, second, observed(structure, first), decay=0.7, weight=0.3)
    assert len(state["length"]) == 8
    kept = Rows(first.a[4:], first.g[:, 4:])
    expected = 0.7 * whole.to_dense(observed(whole, kept)) * 2 / 6 + 0.3 * whole.to_dense(observed(whole, second))
    torch.testing.assert_close(structure.to_dense(state), expected, rtol=1e-10, atol=1e-11)
    state = observed(structure, large, state, decay=0.7, weight=0.3)
    torch.testing.assert_close(structure.to_dense(state), 0.3 * whole.to_dense(observed(whole, large)))


def test_rows_may_differ_in_length():
    """Batches of sequences: 1, 3 and 12 positions, the last ones cut to 3."""
    parts = [rows_of(steps, examples=2, seed=steps) for steps in (1, 3, 12)]
    structure = PairGram(positions=3)
    state, total = None, torch.zeros(45, 45).double()
    for rows in parts:
        state = observed(structure, rows, state, decay=0.5)
        flat = cut(rows, 3).flatten(1)
        total = 0.5 * total + flat.T @ flat / 2
    assert state["length"].tolist() == [1, 1, 3, 3, 3, 3]
    torch.testing.assert_close(structure.to_dense(state), total)
    v, eye = normal(2, *SHAPE, seed=7), 0.1 * torch.eye(45).double()
    expected = torch.linalg.solve(total + eye, v.flatten(1).T).T.view(v.shape)
    torch.testing.assert_close(structure.solve(state, v, 0.1), expected, rtol=1e-9, atol=1e-10)


def test_pairs_are_only_held_where_they_are_smaller_and_the_block_is_large():
    def held(structure, shape):
        return "U" not in structure.init(shape, initial=0.0, dtype=torch.float64, device="cpu")

    assert held(PairGram(positions=3), (5, 9)) and not held(PairGram(positions=4), (5, 9))  # 42 < 45 <= 56
    assert not held(PairGram(positions=1, above=45), (5, 9)) and not held(PairGram(positions=1), (2, 5, 9))
    assert not held(PairGram(positions=1), (45, 1))
    meta = PairGram(positions=16).init((512, 4608), initial=0.0, dtype=torch.float32, device="meta")
    assert meta["a"].shape == (0, 4608)
    for structure in (PairGram(above=50), SketchedPairGram(above=50, coordinates=7)):
        plain = Gram() if isinstance(structure, PairGram) else SketchedGram(coordinates=7)
        rows = rows_of(3)
        torch.testing.assert_close(structure.to_dense(observed(structure, rows)), plain.to_dense(observed(plain, rows)))


def test_the_sketch_of_both_sides_is_unbiased():
    """Inner products: mean of 2000 draws within 2%; curvature: no significant element."""
    rows = rows_of(12, d_out=8, d_in=12)
    structure = SketchedPairGram(positions=3, coordinates=36)
    fresh, flat = observed(structure, rows), cut(rows, 3).flatten(1) / 6**0.5
    assert len(fresh["inputs"]) == 6 and len(fresh["outputs"]) == 6
    draws, inner = [], torch.zeros(6, 6).double()
    for step in range(2000):
        state = observed(structure, rows, fresh | {"draws": torch.tensor(step)})
        draws.append(structure.to_dense(state))
        place = (state["outputs"][:, None] * 12 + state["inputs"]).flatten()
        inner += 96 / 36 * flat[:, place] @ flat[:, place].T / 2000
    assert float((inner - flat @ flat.T).norm() / (flat @ flat.T).norm()) < 0.02
    stack = torch.stack(draws)
    z = (stack.mean(0) - flat.T @ flat) / (stack.std(0) / len(draws) ** 0.5)
    assert float(z.abs().max()) < 5.0  # of 9216


def test_a_sketch_solves_its_own_matrix_and_another_seed_draws_another():
    rows, s = rows_of(12), 0.3
    results = []
    for seed in (0, 0, 1):
        structure = SketchedPairGram(positions=3, coordinates=9, seed=seed)
        state = observed(structure, rows)
        dense = structure.to_dense(state, s)
        assert not torch.allclose(dense, dense.T)
        v = normal(2, *SHAPE, seed=7)
        expected = torch.linalg.solve(dense, v.flatten(1).T).T.view(v.shape)
        torch.testing.assert_close(structure.solve(state, v, s), expected, rtol=1e-9, atol=1e-10)
        results.append(dense)
    assert torch.equal(results[0], results[1]) and not torch.allclose(results[0], results[2])


@pytest.mark.parametrize("options", [{"positions": 0}, {"above": -1}])
@pytest.mark.parametrize("kind", [PairGram, SketchedPairGram])
def test_options_have_a_range(kind, options):
    with pytest.raises(ValueError, match=f"{kind.__name__}: positions=.* must be at least 1 and above=.* at least 0"):
        kind(**options)
