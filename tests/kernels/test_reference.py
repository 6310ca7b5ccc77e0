"""The reference kernels against einsum over explicit rows."""

import pytest
import torch

from vogn.kernels import TABLE, kernel, reference

SHAPES = {  # lead, K, N, T, d_out, d_in
    "one position": ((), 1, 5, 1, 3, 2),
    "columns": ((), 3, 5, 1, 3, 2),
    "positions": ((), 3, 5, 4, 3, 2),
    "groups": ((2,), 3, 5, 4, 3, 2),
    "as many groups as examples": ((5,), 3, 5, 4, 3, 2),
    "elements": ((7,), 2, 5, 1, 1, 1),
    "two leading dimensions": ((2, 2), 2, 3, 2, 2, 3),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def normal(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def operands(shape):
    lead, k, n, t, d_out, d_in = shape
    a, g = normal(*lead, n, t, d_in, seed=0), normal(*lead, k, n, t, d_out, seed=1)
    return a, g, torch.einsum("...knto,...nti->...knoi", g, a)


@every_shape
def test_row_dense(shape):
    a, g, rows = operands(shape)
    torch.testing.assert_close(kernel("row_dense")(a, g), rows)


@every_shape
def test_row_squares(shape):
    a, g, rows = operands(shape)
    torch.testing.assert_close(kernel("row_squares")(a, g), rows.square().sum((-4, -3)))


@every_shape
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_row_squares_in_chunks_equal_those_in_one_piece(monkeypatch, shape, budget):
    a, g, rows = operands(shape)
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", budget)
    torch.testing.assert_close(kernel("row_squares")(a, g), rows.square().sum((-4, -3)))


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape[3] > 1])
@pytest.mark.parametrize("budget", [1, 40, 100])
def test_row_squares_add_up_the_rows_too(monkeypatch, name, budget):
    a, g, rows = operands(SHAPES[name])
    total, start = torch.ones_like(rows.sum((-4, -3))), 1.0
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", budget)
    torch.testing.assert_close(kernel("row_squares")(a, g, total), rows.square().sum((-4, -3)))
    torch.testing.assert_close(total, start + rows.sum((-4, -3)))


def test_chunks_respect_the_budget_in_one_buffer(monkeypatch):
    a, g, _ = operands(SHAPES["positions"])  # 3 columns of 3 x 2: 18 numbers per example
    sizes, places = [], []
    matmul = torch.matmul

    def product(left, right, out):
        out = matmul(left, right, out=out)
        sizes.append(out.shape[-3])
        places.append(out.data_ptr())
        return out

    monkeypatch.setattr(torch, "matmul", product)
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", 40)
    reference.row_squares(a, g)
    assert sizes == [2, 2, 1] and places[0] == places[1]


@every_shape
def test_row_matvec(shape):
    a, g, rows = operands(shape)
    lead, _, _, _, d_out, d_in = shape
    v = normal(*lead, d_out, d_in, seed=2)
    products = (rows * v.unsqueeze(-3).unsqueeze(-3)).sum((-1, -2))
    products = products.reshape(-1, *products.shape[-2:]).sum(0)
    torch.testing.assert_close(kernel("row_matvec")(a, g, v), products)


@every_shape
def test_row_rmatvec(shape):
    a, g, rows = operands(shape)
    c = normal(*shape[1:3], seed=3)
    torch.testing.assert_close(kernel("row_rmatvec")(a, g, c), torch.einsum("...knoi,kn->...oi", rows, c))


@every_shape
def test_row_gram_has_slow_columns_and_fast_examples(shape):
    a, g, rows = operands(shape)
    _, k, n, *_ = shape
    gram = kernel("row_gram")(a, g)
    lead = rows.ndim - 4
    for i, j in ((0, 0), (1, n - 1), (k * n - 1, 0), (n % (k * n), 1)):
        left = rows.movedim((lead, lead + 1), (0, 1))[divmod(i, n)]
        right = rows.movedim((lead, lead + 1), (0, 1))[divmod(j, n)]
        torch.testing.assert_close(gram[i, j], (left * right).sum())
    assert gram.shape == (k * n, k * n)


@every_shape
@pytest.mark.parametrize("form", [reference.gram_by_pairs, reference.gram_by_rows])
@pytest.mark.parametrize("budget", [1, 30, 100, reference.CHUNK_ELEMENTS])
def test_both_forms_of_the_gram_matrix_equal_products_of_rows(monkeypatch, shape, form, budget):
    a, g, rows = operands(shape)
    _, k, n, *_ = shape
    lead = rows.ndim - 4
    flat = rows.movedim((lead, lead + 1), (0, 1)).reshape(k * n, -1)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", budget)
    torch.testing.assert_close(form(a, g), flat @ flat.T)


def test_the_cheaper_form_of_the_gram_matrix_is_taken(monkeypatch):
    forms = []
    for name in ("gram_by_pairs", "gram_by_rows"):
        monkeypatch.setattr(reference, name, lambda a, g, name=name: forms.append(name) or a)
    linear = (normal(64, 1, 400, seed=0), normal(1, 64, 1, 400, seed=1))
    few_positions = (normal(8, 4, 100, seed=0), normal(1, 8, 4, 100, seed=1))
    convolution = (normal(8, 64, 27, seed=0), normal(1, 8, 64, 16, seed=1))
    norm = (normal(16, 8, 1, 1, seed=0), normal(16, 1, 8, 1, 2, seed=1))
    for operand in (linear, few_positions, convolution, norm):
        reference.row_gram(*operand)
    assert forms == ["gram_by_pairs", "gram_by_pairs", "gram_by_rows", "gram_by_rows"]


def test_gram_costs_count_multiply_adds():
    """8 examples, 4 positions, 3 outputs, 2 inputs, 2 columns."""
    pairs, rows = reference.gram_costs(normal(8, 4, 2, seed=0), normal(2, 8, 4, 3, seed=1))
    assert pairs == 32**2 * 2 + 64**2 * (3 + 1)
    assert rows == 16 * 4 * 6 + 16**2 * 6


def test_pieces_of_the_gram_matrix_respect_the_budget(monkeypatch):
    a, g, _ = operands(SHAPES["groups"])  # 15 rows of 2 x 3 x 2
    sizes = []
    dense = reference.row_dense
    monkeypatch.setattr(reference, "row_dense", lambda a, g: sizes.append(dense(a, g).numel()) or dense(a, g))
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", 60)
    reference.gram_by_rows(a, g)
    assert sizes == [60, 30, 60, 30]


@pytest.mark.parametrize("op", TABLE)
def test_every_operation_has_a_reference(op):
    assert kernel(op) is TABLE[op]["reference"]


@pytest.mark.parametrize("lookup", [("row_sums", "reference"), ("row_dense", "abacus")])
def test_an_unknown_operation_or_backend_raises(lookup):
    with pytest.raises(KeyError):
        kernel(*lookup)
