"""Multiply-adds of a structure, from the shape of a block: for reports, not for choices.

Elementwise work counts once per element, an eigendecomposition of an ``n x n`` matrix 4.5 n^3 (Golub and Van Loan,
"Matrix Computations", section 8.3: 9 n^3 operations with eigenvectors), a Cholesky factorisation n^3 / 6.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch

from vogn.structures.base import Structure
from vogn.structures.dense import Dense
from vogn.structures.diagonal import Diagonal
from vogn.structures.diagonal_low_rank import DiagonalLowRank
from vogn.structures.eigen_kronecker import EigenKronecker
from vogn.structures.gradient_window import GradientWindow
from vogn.structures.gram import Gram
from vogn.structures.identity import Identity
from vogn.structures.kronecker import Kronecker
from vogn.structures.local_fisher import LocalFisher
from vogn.structures.sample_space import SampleSpace
from vogn.structures.swift_kronecker import SwiftKronecker
from vogn.structures.unit_window import UnitGradientWindow
from vogn.types import Shape


@dataclass(frozen=True)
class Costs:
    """Multiply-adds.

    Args:
        row: of observing one row with one position: one example, one column of output gradients. ``None`` if it
            depends on the number of rows.
        refresh: of one :meth:`Structure.refresh`.
        solve: of one :meth:`Structure.solve`, the factorisation included where nothing is kept.
    """

    row: float | None
    refresh: float
    solve: float


@singledispatch
def costs(structure: Structure, shape: Shape) -> Costs | None:
    """The costs of a structure for blocks of ``shape``; ``None`` if they are not known.

    A third party adds its own: ``@costs.register`` above a function of its structure and a shape.
    """
    return None


@costs.register
def _(structure: Identity, shape: Shape) -> Costs:
    return Costs(0.0, 0.0, float(math.prod(shape)))


@costs.register
def _(structure: Diagonal, shape: Shape) -> Costs:
    size = float(math.prod(shape))
    return Costs(size, 0.0, size)


@costs.register
def _(structure: Dense, shape: Shape) -> Costs:
    size = float(math.prod(shape))
    return Costs(size + size**2, 0.0, size**3 / 6 + size**2)


@costs.register
def _(structure: DiagonalLowRank, shape: Shape) -> Costs:
    size = float(math.prod(shape))
    rank = min(structure.rank, size)
    return Costs(None, 0.0, size * rank * (rank + 4))


@costs.register(Gram)
@costs.register(SampleSpace)
def _(structure: Structure, shape: Shape) -> Costs | None:
    return None  # n^2 (D + n) for n rows at most: a matter of the batch


@costs.register
def _(structure: GradientWindow, shape: Shape) -> Costs:
    size = float(math.prod(shape))
    rows = structure.window * min(structure.columns, size)
    factors = {"cholesky": rows**3 / 6, "static": size * rows**2, "dynamic": 2 * rows**3 / 3}[structure.inverse]
    return Costs(size * rows, 0.0, 8 * size * rows + factors)


@costs.register
def _(structure: UnitGradientWindow, shape: Shape) -> Costs:
    size, rows = float(math.prod(shape)), structure.window
    return Costs(size * rows, 0.0, 8 * size * rows + math.prod(shape[:-1]) * rows**3 / 6)


@costs.register
def _(structure: Kronecker, shape: Shape) -> Costs:
    moments, refresh, rotation = _sides(structure, shape)
    return Costs(moments, refresh, 2 * rotation)


@costs.register
def _(structure: EigenKronecker, shape: Shape) -> Costs:
    moments, refresh, rotation = _sides(structure, shape)
    size = math.prod(shape)
    carried = 0.0 if structure.restart else rotation
    return Costs(2 * moments + size, refresh + carried, 2 * rotation)


@costs.register
def _(structure: SwiftKronecker, shape: Shape) -> Costs:
    *lead, o, i = shape
    left, right = (0 if n > structure.max_dim else min(n, structure.rank or n) for n in (o, i))
    refresh = sum(2 * n * rank**2 + 5.5 * rank**3 for n, rank in ((o, left), (i, right)))
    solve = 6.0 * o * i * (left + right) + o * i
    return Costs(None, math.prod(lead) * refresh, math.prod(lead) * solve)


@costs.register
def _(structure: LocalFisher, shape: Shape) -> Costs:
    *lead, o, i = shape
    metrics = math.prod(lead) * (o if structure.scope == "unit" else 1)
    if structure.scope == "layer" and i > structure.max_dim:
        return Costs(float(metrics * i), 0.0, float(math.prod(shape)))
    kept = min(structure.columns, i) if structure.root == "nystrom" else i
    refresh = {"eigh": 4.5 * i**3, "nystrom": 3 * i * kept**2 + 5.5 * kept**3, "denman_beavers": 0.0}[structure.root]
    solve = metrics * i**3 / 6 if structure.root == "denman_beavers" else 0.0
    passes = 4 if kept < i else 2
    return Costs(float(metrics * i**2), metrics * refresh, solve + passes * math.prod(shape) * kept)


def _sides(structure: Kronecker | EigenKronecker, shape: Shape) -> tuple[float, float, float]:
    """Second moments of one row, both eigendecompositions, and one rotation of a block vector."""
    *lead, o, i = shape
    moments = refresh = rotation = 0.0
    for size in (o, i):
        if size <= structure.max_dim:
            moments += size**2
            refresh += 4.5 * size**3
            rotation += o * i * size
        else:
            moments += size
    blocks = math.prod(lead)
    return blocks * moments, blocks * refresh, blocks * rotation
