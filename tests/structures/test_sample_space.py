"""Curvature in sample space: the rows one by one, their coefficients and their places."""

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.rows import IndexedRows, JoinedRows, Rows
from vogn.structures import Gram, SampleSpace
from vogn.testing.structure_cases import assert_close, normalised, random_rows

STRUCTURE = SampleSpace()


def observed(*batches, decay=0.0, weight=1.0, state=None):
    """One update with micro-batches."""
    shape, total, count = batches[0].shape, None, sum(rows.count for rows in batches)
    state = state or STRUCTURE.init(shape, initial=0.0, dtype=torch.float64, device="cpu")
    for rows in batches:
        leaves = STRUCTURE.observe(state, rows)
        parts = [leaves] if total is None else [total, leaves]
        total = {key: torch.cat([part[key] for part in parts if key in part]) for part in parts for key in part}
    return STRUCTURE.update(state, normalised(STRUCTURE, total, count), decay=decay, weight=weight, shift=0.0)


def table(positions=2):
    index = torch.randint(0, 9, (5, positions), generator=torch.Generator().manual_seed(0))
    return IndexedRows(index, random_rows((8, 1), seed=1, examples=5, positions=positions).g, 9)


CASES = {
    "linear": [random_rows((6, 7), seed=0)],
    "more rows than parameters": [random_rows((2, 3), seed=0, examples=9)],
    "positions": [random_rows((6, 9), seed=0, positions=3)],
    "convolution": [random_rows((4, 3), seed=0, positions=12)],
    "columns": [random_rows((6, 7), seed=0, columns=3)],
    "groups": [random_rows((2, 4, 5), seed=0, positions=2)],
    "norm": [random_rows((5, 2, 1), seed=0)],
    "look-up": [table()],
    "joined": [JoinedRows((random_rows((2, 3), seed=0), random_rows((4, 1), seed=1)))],
    "micro-batches": [random_rows((6, 7), seed=0), random_rows((6, 7), seed=1, examples=3)],
    "sequences of different lengths": [
        random_rows((6, 7), seed=0, positions=2),
        random_rows((6, 7), seed=1, examples=3),
        random_rows((6, 7), seed=2, examples=2, positions=5),  # written out
    ],
}
every_case = pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())


@every_case
def test_the_curvature_is_that_of_gram(rows):
    explicit = torch.cat([r.dense().flatten(2).flatten(0, 1) for r in rows])
    expected = explicit.T @ explicit
    torch.testing.assert_close(STRUCTURE.to_dense(observed(*rows)), expected / sum(r.count for r in rows))


@every_case
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("shift", [1e-4, 1.0])
def test_combined_coefficients_are_the_dense_solve(rows, with_prior, shift):
    """``shift (C + shift I)^-1 (J^T 1 + prior) = J^T c + prior``."""
    state = observed(*rows)
    prior = torch.randn(rows[0].shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    c, places = STRUCTURE.coefficients(state, shift, prior if with_prior else None)
    gradient = STRUCTURE.combine(state, torch.ones_like(c))
    torch.testing.assert_close(
        gradient * sum(r.count for r in rows) ** 0.5, sum(r.dense().sum((0, 1)) for r in rows)
    )
    extra = prior if with_prior else torch.zeros_like(prior)
    found = STRUCTURE.combine(state, c) + extra
    expected = shift * torch.linalg.solve(STRUCTURE.to_dense(state, shift), (gradient + extra).flatten())
    assert_close(found.flatten(), expected, 1e-10, "direction")
    assert len(places) == sum(r.columns * r.count for r in rows)


@every_case
def test_growing_damping_tends_to_equal_coefficients(rows):
    c, _ = STRUCTURE.coefficients(observed(*rows), 1e12)
    torch.testing.assert_close(c, torch.ones_like(c), rtol=0, atol=1e-9)


def test_every_row_keeps_its_place():
    """Also where rows of both kinds come in turn, and with several columns per example."""
    long = random_rows((6, 7), seed=0, examples=2, positions=9)
    short = random_rows((6, 7), seed=1, examples=3, columns=2)
    with_places = [
        Rows(long.a, long.g, places=torch.tensor([7, 5])),
        Rows(short.a, short.g, places=torch.tensor([0, 9, 2])),
        long,
    ]
    state = observed(*with_places)
    assert state["place"].tolist() == [7, 5, 0, 9, 2, 0, 9, 2, -1, -1]
    assert STRUCTURE.coefficients(state, 1.0)[1].tolist() == [0, 9, 2, 0, 9, 2, 7, 5, -1, -1]


def test_pairs_are_kept_where_they_are_smaller():
    assert observed(random_rows((6, 7), seed=0))["a"].shape == (6, 7)
    assert observed(random_rows((6, 7), seed=0, positions=3))["a"].shape == (18, 7)  # 39 numbers for 42
    assert observed(random_rows((6, 7), seed=0, positions=4))["J"].shape == (6, 42)


def test_no_per_example_gradient_of_a_linear_layer_is_formed(monkeypatch):
    from vogn.kernels import reference

    rows = random_rows((6, 7), seed=0)
    monkeypatch.setattr(reference, "row_dense", lambda a, g: pytest.fail("a per-example gradient was formed"))
    monkeypatch.setattr(Rows, "dense", lambda self: pytest.fail("a per-example gradient was formed"))
    state = observed(rows)
    c, _ = STRUCTURE.coefficients(state, 0.1, torch.ones(6, 7, dtype=torch.float64))
    STRUCTURE.combine(state, c)


def test_old_rows_are_merged_into_as_many_as_parameters_without_an_error():
    state, gram, gram_state = None, Gram(), None
    for seed in range(4):
        rows = random_rows((2, 3), seed=seed, examples=4)
        state = observed(rows, decay=0.7, weight=0.3, state=state)
        gram_state = gram_state or gram.init((2, 3), initial=0.0, dtype=torch.float64, device="cpu")
        seen = normalised(gram, gram.observe(gram_state, rows), 4)
        gram_state = gram.update(gram_state, seen, decay=0.7, weight=0.3, shift=0.0)
    assert len(state["length"]) == 6 + 4
    torch.testing.assert_close(STRUCTURE.to_dense(state), gram.to_dense(gram_state))


def test_places_that_the_type_cannot_tell_apart_raise():
    rows = random_rows((6, 7), seed=0, examples=1)
    state = STRUCTURE.init((6, 7), initial=0.0, dtype=torch.float32, device="cpu")
    STRUCTURE.observe(state, Rows(rows.a.float(), rows.g.float(), places=torch.tensor([2**24 - 1])))
    with pytest.raises(ValueError, match="16777216 examples apart"):
        STRUCTURE.observe(state, Rows(rows.a.float(), rows.g.float(), places=torch.tensor([2**24])))


def test_without_a_shift_there_are_no_coefficients():
    with pytest.raises(NotPositiveDefiniteError, match="damping"):
        STRUCTURE.coefficients(observed(*CASES["more rows than parameters"]), -1.0)


