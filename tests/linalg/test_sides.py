"""Sides of a Kronecker product: products of a matrix with itself, powers, multiplication from both sides."""

import pytest
import torch

from tiny_models import normal
from vogn.linalg import sides


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("size", [1, 5, 127, 128, 129, 301, 515])
def test_a_second_moment_by_halves_is_the_whole(lead, size):
    x = normal(*lead, 4, size)
    found = sides.second_moment(x, x, diagonal=False)
    torch.testing.assert_close(found, sides.second_moment(x, x.clone(), diagonal=False), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_powers_are_those_of_the_matrix(lead, exponent):
    values = normal(*lead, 6).square() + 0.1
    vectors = torch.linalg.qr(normal(*lead, 6, 6)).Q
    found = sides.power(values, vectors, exponent)
    torch.testing.assert_close(found, sides.compose(values.pow(exponent), vectors))
    flat = sides.power(values, torch.ones(*lead, 1, 6).double(), exponent)
    torch.testing.assert_close(flat, values.pow(exponent).unsqueeze(-2))


@pytest.mark.parametrize("left", ["matrix", "diagonal"])
@pytest.mark.parametrize("right", ["matrix", "diagonal"])
def test_multiplication_from_both_sides(left, right):
    v = normal(2, 3, 4, 5)  # a batch of two, three sub-blocks
    a = {"matrix": normal(3, 4, 4), "diagonal": normal(3, 1, 4)}[left]
    b = {"matrix": normal(3, 5, 5), "diagonal": normal(3, 1, 5)}[right]
    dense = [side if kind == "matrix" else torch.diag_embed(side.squeeze(-2)) for side, kind in ((a, left), (b, right))]
    torch.testing.assert_close(sides.multiply(v, a, b), dense[0] @ v @ dense[1])
