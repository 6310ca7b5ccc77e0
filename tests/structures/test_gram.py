"""The sample-space structure against dense matrices, from fewer rows than parameters to more, duplicates included."""

import itertools

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.rows import JoinedRows
from vogn.structures import Gram
from vogn.testing.structure_cases import normalised, random_rows

SHAPE, D = (3, 4), 12
SHIFT = 0.05


def rows_of(kind):
    rows = random_rows(SHAPE, seed=0, examples={"fewer": 5, "as many": 12, "more": 20, "duplicates": 4}[kind])
    if kind == "duplicates":
        rows = type(rows)(rows.a.repeat(2, 1, 1), rows.g.repeat(1, 2, 1, 1))
    return rows


def observed(structure, rows, state=None, decay=0.0, weight=1.0):
    state = state or structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    return structure.update(state, seen, decay=decay, weight=weight, shift=0.0)


def columns(state):
    return state["U"].reshape(-1, state["U"].shape[-1])[:, : int(state["columns"])]


def test_a_part_of_the_rows_estimates_the_curvature_without_bias():
    rows, gram = rows_of("fewer"), Gram()
    state = observed(gram, rows)
    subsets = [list(c) for c in itertools.combinations(range(5), 2)]
    j = rows.dense().flatten(2).flatten(0, 1)
    exact = sum(2.5 * j[s].T @ j[s] / 5 for s in subsets) / len(subsets)
    torch.testing.assert_close(exact, gram.to_dense(state))  # what is drawn from
    part, factor = gram.part(state, 2, torch.Generator().manual_seed(0))
    assert factor == 2.5 and gram.part(state, 5, torch.Generator())[1] == 1.0
    assert any(torch.allclose(gram.to_dense(part), 2.5 * j[s].T @ j[s] / 5, atol=1e-12) for s in subsets)


def dense_fisher(rows):
    j = rows.dense().flatten(2).flatten(0, 1)
    return j.T @ j / rows.count


@pytest.mark.parametrize("kind", ["fewer", "as many", "more", "duplicates"])
def test_solve_logdet_and_both_samplers_equal_the_dense_ones(kind):
    rows, gram = rows_of(kind), Gram()
    state = observed(gram, rows)
    dense = dense_fisher(rows) + SHIFT * torch.eye(D, dtype=torch.float64)
    inverse = torch.linalg.inv(dense)
    eye = torch.eye(D, dtype=torch.float64)
    exact = {"rtol": 1e-10, "atol": 1e-10 * float(inverse.abs().max())}
    torch.testing.assert_close(gram.solve(state, eye.reshape(D, *SHAPE), SHIFT).reshape(D, D), inverse, **exact)
    torch.testing.assert_close(gram.logdet(state, SHIFT), torch.logdet(dense), rtol=1e-10, atol=1e-10)
    root = gram.sample(state, eye.reshape(D, *SHAPE), SHIFT).reshape(D, D)
    torch.testing.assert_close(root.T @ root, inverse, **exact)


def test_columns_are_never_more_than_parameters_or_the_window():
    assert columns(observed(Gram(), rows_of("more"))).shape == (D, D)
    assert columns(observed(Gram(window=7), rows_of("more"))).shape == (D, 7)
    assert columns(observed(Gram(window=7), rows_of("fewer"))).shape == (D, 5)


def test_old_batches_keep_decaying_weights():
    gram, expected, state = Gram(), torch.zeros(D, D, dtype=torch.float64), None
    for seed in range(4):
        rows = random_rows(SHAPE, seed=seed, examples=2)
        state = observed(gram, rows, state, decay=0.7, weight=0.3)
        expected = 0.7 * expected + 0.3 * dense_fisher(rows)
    assert columns(state).shape[1] == 8
    torch.testing.assert_close(gram.to_dense(state), expected)


def test_merging_beyond_the_window_keeps_the_best_directions():
    gram, full, states = Gram(window=4), Gram(), [None, None]
    for seed in range(3):
        rows = random_rows(SHAPE, seed=seed, examples=2)
        states = [observed(g, rows, s, decay=0.7, weight=0.3) for g, s in zip((gram, full), states, strict=True)]
        if seed == 1:
            torch.testing.assert_close(gram.to_dense(states[0]), full.to_dense(states[1]))  # 4 rows fit
    merged, exact = gram.to_dense(states[0]), full.to_dense(states[1])
    values, vectors = torch.linalg.eigh(exact)
    torch.testing.assert_close(merged, (vectors[:, -4:] * values[-4:]) @ vectors[:, -4:].T)
    assert float(torch.linalg.eigvalsh(exact - merged)[0]) > -1e-12  # never larger


def test_no_memory_is_the_present_batch_alone():
    gram = Gram(window=3)
    state = observed(gram, random_rows(SHAPE, seed=0, examples=3))
    rows = random_rows(SHAPE, seed=1, examples=3)
    torch.testing.assert_close(gram.to_dense(observed(gram, rows, state)), dense_fisher(rows))


def test_inner_products_of_joined_rows_are_sums_over_layers():
    first, second = random_rows((3, 4), seed=0, columns=2), random_rows((2, 3), seed=1, columns=2)
    state = observed(Gram(), JoinedRows((first, second)))
    u = columns(state)
    torch.testing.assert_close(u.T @ u, (first.gram() + second.gram()) / first.count)


def test_without_a_shift_there_is_no_inverse():
    state = observed(Gram(), rows_of("fewer"))
    with pytest.raises(NotPositiveDefiniteError, match="weight_decay, damping"):
        Gram().solve(state, torch.ones(SHAPE, dtype=torch.float64), 0.0)


def test_the_window_has_a_range():
    with pytest.raises(ValueError, match="window=0 must be at least 1"):
        Gram(window=0)
