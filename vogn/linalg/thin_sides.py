"""Symmetric matrices known on a few directions: ``Q diag(values) Q^T + rest (I - Q Q^T)``, and functions of them.

A side is ``(*lead, n, n)`` without being formed: ``Q (*lead, n, r)`` has orthonormal columns, and everything across
them shares one number. A side whose basis are the axes has no columns and a number for each axis instead. Block
vectors are ``(*batch, *lead, o, i)``; a left side acts on ``o``, a right side on ``i``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vogn.linalg.eigh import eigh


@dataclass(frozen=True)
class Side:
    """One factor in its partial eigenbasis.

    Args:
        basis: ``Q``, ``(*lead, n, r)``.
        values: eigenvalues on the basis, ``(*lead, r)``.
        rest: eigenvalue across the basis, ``(*lead, 1)``; or ``(*lead, n)``, the diagonal, where ``r = 0``.
    """

    basis: Tensor
    values: Tensor
    rest: Tensor

    @property
    def size(self) -> int:
        """``n``."""
        return self.basis.shape[-2]

    @property
    def complete(self) -> bool:
        """Whether the basis spans everything, so that nothing is left across it."""
        return self.basis.shape[-1] == self.size

    @property
    def copies(self) -> int:
        """How often each number in ``rest`` is an eigenvalue."""
        return (self.size - self.basis.shape[-1]) // self.rest.shape[-1]

    @property
    def mean(self) -> Tensor:
        """Mean eigenvalue, ``(*lead, 1)``."""
        total = self.values.sum(-1, keepdim=True) + self.copies * self.rest.sum(-1, keepdim=True)
        return total / self.size

    def plus(self, number: Tensor | float) -> Side:
        """The side plus a multiple of the identity; ``number`` is a scalar or ``(*lead, 1)``."""
        return replace(self, values=self.values + number, rest=self.rest + number)

    def dense(self) -> Tensor:
        """The matrix ``(*lead, n, n)``."""
        if self.rest.shape[-1] == self.size and not self.values.shape[-1]:
            return torch.diag_embed(self.rest)
        inside = (self.basis * self.values.unsqueeze(-2)) @ self.basis.mT
        if self.complete:
            return inside
        eye = torch.eye(self.size, dtype=self.basis.dtype, device=self.basis.device)
        return inside + self.rest.unsqueeze(-1) * (eye - self.basis @ self.basis.mT)


def decompose(columns: Tensor, rest: Tensor) -> Side:
    """The side ``U U^T + rest I``.

    Args:
        columns: ``U``, ``(*lead, n, r)`` with ``r <= n``; dependent columns are harmless.
        rest: ``(*lead, 1)``, or ``(*lead, n)`` where ``r = 0``; clamped at zero.

    Raises:
        NonFiniteStatisticsError: if ``U`` holds NaN or infinity.
        FactorisationError: if the small eigendecomposition does not converge.
    """
    rest = rest.clamp_min(0.0)
    if not columns.shape[-1]:
        return Side(columns, rest[..., :0], rest)
    q, triangle = torch.linalg.qr(columns)
    squares, vectors = eigh(triangle @ triangle.mT)
    basis = q @ vectors
    largest = basis.gather(-2, basis.abs().argmax(-2, keepdim=True))  # a sign that rounding does not decide
    return Side(torch.where(largest < 0, -basis, basis).contiguous(), squares + rest, rest)


def across(v: Tensor, side: Side) -> tuple[Tensor, Tensor | None]:
    """Coordinates ``V Q`` of the rows of ``v (..., m, n)`` and what is left of them, ``None`` if the basis is complete.

    What is left is projected twice: the first difference cancels.
    """
    inside = v @ side.basis
    if side.complete:
        return inside, None
    if not side.basis.shape[-1]:
        return inside, v
    left = v - inside @ side.basis.mT
    return inside, left - (left @ side.basis) @ side.basis.mT


def multiply(v: Tensor, side: Side, function: Callable[[Tensor], Tensor]) -> Tensor:
    """``V f(side)`` for a function of eigenvalues; ``v`` is ``(*batch, *lead, m, n)``."""
    inside, left = across(v, side)
    product = (inside * function(side.values).unsqueeze(-2)) @ side.basis.mT
    return product if left is None else product + left * function(side.rest).unsqueeze(-2)


def diagonal(side: Side, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The diagonal of ``f(side)``, ``(*lead, n)``."""
    squares = side.basis.square()
    inside = (squares * function(side.values).unsqueeze(-2)).sum(-1)
    return inside if side.complete else inside + _outside(side) * function(side.rest)


Pairwise = Callable[[Tensor, Tensor], Tensor]
"""A function of an eigenvalue of the left side and one of the right side."""


def multiply_both(v: Tensor, left: Side, right: Side, function: Pairwise) -> Tensor:
    """``f(left (x) right) v``, ``f`` of pairs of eigenvalues."""
    total: Tensor | None = None
    for columns, rows in zip(_parts(v.mT, left), _kinds(left), strict=True):
        part, left_values, left_inside = columns.mT, rows[0].unsqueeze(-1), rows[1]
        for piece, (right_values, right_inside) in zip(_parts(part, right), _kinds(right), strict=True):
            piece = piece * function(left_values, right_values.unsqueeze(-2))
            piece = piece @ right.basis.mT if right_inside else piece
            piece = left.basis @ piece if left_inside else piece
            total = piece if total is None else total + piece
    assert total is not None
    return total


def diagonal_both(left: Side, right: Side, function: Pairwise) -> Tensor:
    """The diagonal, as a block vector ``(*lead, o, i)``, of ``f(left (x) right)``; of one sign if ``f`` is."""
    total = left.basis.new_zeros((*left.basis.shape[:-2], left.size, right.size))
    for left_values, left_inside in _kinds(left):
        rows = left.basis.square() if left_inside else _outside(left).unsqueeze(-1)
        for right_values, right_inside in _kinds(right):
            columns = right.basis.square() if right_inside else _outside(right).unsqueeze(-1)
            values = function(left_values.unsqueeze(-1), right_values.unsqueeze(-2))
            values = rows @ values if left_inside else rows * values
            total = total + (values @ columns.mT if right_inside else values * columns.mT)
    return total


def spectrum(left: Side, right: Side, function: Pairwise) -> Iterator[tuple[Tensor, int]]:
    """The values of ``f`` on all pairs of eigenvalues, with the number of times that each occurs."""
    for left_values, left_inside in _kinds(left):
        for right_values, right_inside in _kinds(right):
            copies = (1 if left_inside else left.copies) * (1 if right_inside else right.copies)
            yield function(left_values.unsqueeze(-1), right_values.unsqueeze(-2)), copies


def eigenvalues(side: Side, function: Callable[[Tensor], Tensor]) -> Iterator[tuple[Tensor, int]]:
    """The values of ``f`` on all eigenvalues, with the number of times that each occurs."""
    for values, inside in _kinds(side):
        yield function(values), 1 if inside else side.copies


def _kinds(side: Side) -> list[tuple[Tensor, bool]]:
    """The eigenvalues on the basis and across it, each with whether it is on it; only those that exist."""
    kinds = [(side.values, True)] if side.basis.shape[-1] else []
    return kinds if side.complete else [*kinds, (side.rest, False)]


def _parts(v: Tensor, side: Side) -> list[Tensor]:
    """The coordinates of the rows of ``v`` and what is left of them, in the order of :func:`_kinds`."""
    inside, left = across(v, side)
    parts = [inside] if side.basis.shape[-1] else []
    return parts if left is None else [*parts, left]


def _outside(side: Side) -> Tensor:
    """The diagonal of ``I - Q Q^T``, ``(*lead, n)``."""
    return (1.0 - side.basis.square().sum(-1)).clamp_min(0.0)
