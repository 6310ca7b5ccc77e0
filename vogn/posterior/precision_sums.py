"""Sums of the precisions of blocks, in the structure that the blocks have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.conjugate_gradient import conjugate_gradient
from vogn.linalg.nearest_kronecker import nearest_kronecker
from vogn.posterior.block import PosteriorBlock
from vogn.structures import Dense, Diagonal, Kronecker
from vogn.types import State


@dataclass(frozen=True)
class Term:
    """One Gaussian of a product: ``weight`` times the precision ``ess C + shift I``.

    Args:
        weight: its power, of any sign.
        block: holds ``C`` and ``ess``; ``None`` for a prior, whose ``C`` is zero.
        shift: precision of its prior.
        mean: block vector.
    """

    weight: float
    block: PosteriorBlock | None
    shift: float
    mean: Tensor

    def precision_product(self, v: Tensor) -> Tensor:
        """``(ess C + shift I) v``, without the weight."""
        return self.shift * v if self.block is None else self.block.precision_product(v)


@dataclass(frozen=True)
class Total:
    """A summed precision.

    Args:
        state: of the block's structure: the curvature over the new ``ess``.
        solve: from the new block and ``b`` to the solution with the *exact* sum.
    """

    state: State
    solve: Callable[[PosteriorBlock, Tensor], Tensor]


def sum_of_terms(terms: Sequence[Term], ess: float) -> Total:
    """The sum of all terms' curvatures, as the state of a block with this effective sample size.

    Raises:
        UnsupportedObservationError: if sums do not stay in the structure, and no nearest member is known.
        NotPositiveDefiniteError: if the sum is not positive definite.
    """
    structure = next(term.block.structure for term in terms if term.block is not None)
    rule = RULES.get(type(structure))
    if rule is None:
        names = ", ".join(kind.__name__ for kind in RULES)
        raise UnsupportedObservationError(
            f"posteriors with {type(structure).__name__} blocks cannot be merged; make them with one of {names}, "
            "for example by vogn.laplace(model, likelihood, loader, structure=...)"
        )
    return rule(terms, ess)


def _curvatures(terms: Sequence[Term]) -> list[tuple[float, PosteriorBlock]]:
    """Factor on ``C`` and block of every term that has one."""
    return [(term.weight * term.block.ess, term.block) for term in terms if term.block is not None and term.weight]


def _weighted(terms: Sequence[Term], key: str, ess: float) -> Tensor:
    return torch.stack([factor / ess * block.state[key] for factor, block in _curvatures(terms)]).sum(0)


def _diagonal(terms: Sequence[Term], ess: float) -> Total:
    def solve(block: PosteriorBlock, right: Tensor) -> Tensor:
        smallest = float((block.state["c"] + block.shift).min())
        if not smallest > 0.0:
            raise NotPositiveDefiniteError(f"a precision becomes {ess * smallest:g}: more is taken away than there is")
        return block.covariance_product(right)

    return Total({"c": _weighted(terms, "c", ess)}, solve)


def _dense(terms: Sequence[Term], ess: float) -> Total:
    def solve(block: PosteriorBlock, right: Tensor) -> Tensor:
        if not bool((torch.linalg.eigvalsh(block.precision_matrix()) > 0).all()):
            raise NotPositiveDefiniteError("a precision becomes negative: more is taken away than there is")
        return block.covariance_product(right)

    return Total({"C": _weighted(terms, "C", ess)}, solve)


def _kronecker(terms: Sequence[Term], ess: float) -> Total:
    """The nearest product; the mean by conjugate gradients on the sum of all of them."""
    found = _curvatures(terms)
    pairs = [block.structure.factors(block.state) for _, block in found if isinstance(block.structure, Kronecker)]
    sides = [torch.stack(side) for side in zip(*pairs, strict=True)]
    factors = torch.tensor([factor / ess for factor, _ in found], dtype=torch.float64, device=sides[0].device)
    s, a = nearest_kronecker(factors, sides[0], sides[1])
    state = found[0][1].structure.refresh({"S": s, "A": a})

    def product(v: Tensor) -> Tensor:
        return torch.stack([term.weight * term.precision_product(v) for term in terms]).sum(0)

    def solve(block: PosteriorBlock, right: Tensor) -> Tensor:
        return conjugate_gradient(
            product, right, preconditioner=block.covariance_product, start=block.covariance_product(right)
        )

    return Total(state, solve)


RULES: dict[type, Callable[[Sequence[Term], float], Total]] = {
    Diagonal: _diagonal,
    Dense: _dense,
    Kronecker: _kronecker,
}
"""Structure to how its sums are formed."""
