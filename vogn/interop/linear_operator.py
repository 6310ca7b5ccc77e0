"""Gaussian posteriors as matrices of the package linear_operator, which gpytorch computes with."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import replace
from functools import singledispatch

import torch
from linear_operator.operators import (
    BlockDiagLinearOperator,
    ConstantDiagLinearOperator,
    DenseLinearOperator,
    DiagLinearOperator,
    KroneckerProductAddedDiagLinearOperator,
    KroneckerProductLinearOperator,
    LinearOperator,
    LowRankRootAddedDiagLinearOperator,
    LowRankRootLinearOperator,
)
from torch import Tensor

from vogn.linalg.sides import is_diagonal
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import Dense, Diagonal, Identity, Kronecker, Structure
from vogn.structures.columns import ColumnStructure


def precision_operator(posterior: GaussianPosterior) -> LinearOperator:
    """``Lambda`` of the sampled parameters, ``(D, D)``, in the order of :meth:`GaussianPosterior.flatten`.

    Blocks keep their structure: diagonals, Kronecker products (plus a multiple of the identity) and diagonals plus low
    rank become the classes that linear_operator has for them, every other structure a :class:`BlockOperator`;
    :func:`structured` is the table. Above ``linear_operator.settings.max_cholesky_size`` those classes may iterate
    where a :class:`BlockOperator` is exact.

    Args:
        posterior: with at least one sampled block.

    Raises:
        ValueError: if nothing is sampled.

    Example:
        >>> import torch, vogn
        >>> from vogn.interop.linear_operator import precision_operator
        >>> model, likelihood = torch.nn.Linear(3, 2), vogn.likelihoods.Categorical()
        >>> posterior = vogn.laplace(model, likelihood, [(torch.randn(9, 3), torch.randint(2, (9,)))])
        >>> precision = precision_operator(posterior)
        >>> type(precision).__name__, tuple(precision.shape)
        ('KroneckerProductAddedDiagLinearOperator', (8, 8))
    """
    return _joined([structured(block.structure, block) for block in _sampled(posterior)])


def covariance_operator(posterior: GaussianPosterior) -> LinearOperator:
    """``Sigma`` of the sampled parameters, ``(D, D)``, in the order of :meth:`GaussianPosterior.flatten`.

    Products, solves, determinants, variances and draws are those of each block's structure, never of a dense matrix:
    every block is a :class:`BlockOperator`. (A Kronecker product of linear_operator would not do: its determinant takes
    no eigenvalue below 1e-7, where those of a covariance often are.)

    Args:
        posterior: with at least one sampled block.

    Raises:
        ValueError: if nothing is sampled.

    Example:
        >>> import torch, vogn
        >>> from gpytorch.distributions import MultivariateNormal
        >>> from vogn.interop.linear_operator import covariance_operator
        >>> model, likelihood = torch.nn.Linear(3, 2), vogn.likelihoods.Categorical()
        >>> posterior = vogn.laplace(model, likelihood, [(torch.randn(9, 3), torch.randint(2, (9,)))])
        >>> mean = posterior.flatten(posterior.mean())
        >>> tuple(MultivariateNormal(mean, covariance_operator(posterior)).rsample().shape)
        (8,)
    """
    return _joined([BlockOperator.of(block, covariance=True) for block in _sampled(posterior)])


@singledispatch
def structured(structure: Structure, block: PosteriorBlock) -> LinearOperator:
    """The precision of a block; a structure without an entry of its own becomes a :class:`BlockOperator`.

    ``@structured.register`` adds an entry for a structure of your own.
    """
    return BlockOperator.of(block, covariance=False)


@structured.register(Identity)
@structured.register(Diagonal)
def _diagonal(structure: Structure, block: PosteriorBlock) -> LinearOperator:
    ones = next(iter(block.state.values())).new_ones(block.layout.block_shape)
    return DiagLinearOperator(block.precision_product(ones).flatten())


@structured.register
def _dense(structure: Dense, block: PosteriorBlock) -> LinearOperator:
    return DenseLinearOperator(block.precision_matrix())


@structured.register
def _columns(structure: ColumnStructure, block: PosteriorBlock) -> LinearOperator:
    d, u = structure.flat(block.state, block.shift)
    low_rank = LowRankRootLinearOperator(math.sqrt(block.ess) * u)
    return LowRankRootAddedDiagLinearOperator(low_rank, DiagLinearOperator(block.ess * d.flatten()))


@structured.register
def _kronecker(structure: Kronecker, block: PosteriorBlock) -> LinearOperator:
    y, x, rest = structure.damped(block.state, block.shift)
    left, right = _side(block.ess * y, block.state["QS"]), _side(x, block.state["QA"])
    product = KroneckerProductLinearOperator(left, right)
    size = math.prod(block.layout.block_shape[-2:])
    if rest:
        constant = torch.full((*product.batch_shape, 1), block.ess * rest, dtype=y.dtype, device=y.device)
        product = KroneckerProductAddedDiagLinearOperator(product, ConstantDiagLinearOperator(constant, size))
    for _ in product.batch_shape:
        product = BlockDiagLinearOperator(product, block_dim=-3)
    return product


def _side(values: Tensor, vectors: Tensor) -> LinearOperator:
    """One factor with these eigenvalues ``(*lead, n)`` and eigenvectors."""
    if is_diagonal(vectors):
        return DiagLinearOperator(values)
    return DenseLinearOperator((vectors * values.unsqueeze(-2)) @ vectors.mT)


class SymmetricOperator(LinearOperator):
    """A symmetric positive definite matrix that knows its solves and its determinant.

    It has no batch dimensions; what adds some to it makes it dense.
    """

    @abstractmethod
    def solved(self, right: Tensor) -> Tensor:
        """``self^-1 right`` for ``(..., D, C)`` or ``(D,)``."""

    @abstractmethod
    def log_determinant(self) -> Tensor:
        """``log det self``, a scalar."""

    def solve(self, right_tensor: Tensor, left_tensor: Tensor | None = None) -> Tensor:
        """``left self^-1 right``."""
        solved = self.solved(right_tensor)
        return solved if left_tensor is None else left_tensor @ solved

    def inv_quad_logdet(
        self, inv_quad_rhs: Tensor | None = None, logdet: bool | None = False, reduce_inv_quad: bool | None = True
    ) -> tuple[Tensor | None, Tensor | None]:
        """``v^T self^-1 v``, column by column or their sum, and ``log det self``; ``None`` for what is not asked."""
        determinant = self.log_determinant() if logdet else None
        if inv_quad_rhs is None:
            return None, determinant
        columns = inv_quad_rhs if inv_quad_rhs.ndim > 1 else inv_quad_rhs.unsqueeze(-1)
        terms = (columns * self.solve(columns)).sum(-2)
        return terms.sum(-1) if reduce_inv_quad or inv_quad_rhs.ndim == 1 else terms, determinant

    def _transpose_nonbatch(self) -> LinearOperator:
        return self

    def _unsqueeze_batch(self, dim: int) -> LinearOperator:
        return DenseLinearOperator(self.to_dense().unsqueeze(dim))


class BlockOperator(SymmetricOperator):
    """The precision or covariance of one block, by the products, solves and determinants of its structure.

    Args:
        *state: the floating point tensors of the block's state, in its order.
        block: the block; these tensors replace its own.
        covariance: ``Sigma`` instead of ``Lambda``.
    """

    def __init__(self, *state: Tensor, block: PosteriorBlock, covariance: bool) -> None:
        super().__init__(*state, block=block, covariance=covariance)
        given = iter(state)
        own = {k: next(given) if t.is_floating_point() else t.to(state[0].device) for k, t in block.state.items()}
        self.block = replace(block, state=own)
        self.covariance = covariance

    @classmethod
    def of(cls, block: PosteriorBlock, *, covariance: bool) -> BlockOperator:
        """The operator of a block as it is."""
        state = [tensor for tensor in block.state.values() if tensor.is_floating_point()]
        return cls(*state, block=block, covariance=covariance)

    def inverse(self) -> LinearOperator:
        """``Lambda`` for ``Sigma`` and the other way round."""
        return BlockOperator(*self._args, block=self.block, covariance=not self.covariance)

    def solved(self, right: Tensor) -> Tensor:
        """See :meth:`SymmetricOperator.solved`."""
        solved: Tensor = self.inverse() @ right
        return solved

    def log_determinant(self) -> Tensor:
        """See :meth:`SymmetricOperator.log_determinant`."""
        return -self.block.logdet() if self.covariance else self.block.logdet()

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        """Draws ``(num_samples, D)`` with this matrix as covariance, from torch's global random state."""
        if not self.covariance:
            return super().zero_mean_mvn_samples(num_samples)
        noise = torch.randn((num_samples, *self.block.layout.block_shape), dtype=self.dtype, device=self.device)
        return self.block.root(noise).flatten(1)

    def to_dense(self) -> Tensor:
        """``(D, D)``."""
        matrix = self.block.precision_matrix()
        return torch.linalg.inv(matrix) if self.covariance else matrix

    def _matmul(self, rhs: Tensor) -> Tensor:
        rows = rhs.mT if rhs.ndim > 1 else rhs
        vectors = rows.reshape(*rows.shape[:-1], *self.block.layout.block_shape)
        times = self.block.covariance_product if self.covariance else self.block.precision_product
        flat = times(vectors).reshape(rows.shape)
        return flat.mT if rhs.ndim > 1 else flat

    def _size(self) -> torch.Size:
        return torch.Size((self.block.numel, self.block.numel))

    def _diagonal(self) -> Tensor:
        return self.block.variance().flatten() if self.covariance else self.to_dense().diagonal()


class BlockDiagonalOperator(SymmetricOperator):
    """Square matrices of different sizes along a diagonal.

    Args:
        *members: the matrices, without batch dimensions.
    """

    def __init__(self, *members: LinearOperator) -> None:
        super().__init__(*members)
        self.members = members
        self.sizes = [member.shape[-1] for member in members]

    def inverse(self) -> LinearOperator:
        """Member by member; linear_operator's own classes, of which precisions are made, have none: the inverse of
        ``precision_operator(posterior)`` is ``covariance_operator(posterior)``."""
        return BlockDiagonalOperator(*(member.inverse() for member in self.members))

    def solved(self, right: Tensor) -> Tensor:
        """See :meth:`SymmetricOperator.solved`."""
        return self._each("solve", right)

    def log_determinant(self) -> Tensor:
        """See :meth:`SymmetricOperator.log_determinant`."""
        return torch.stack([member.logdet() for member in self.members]).sum()

    def zero_mean_mvn_samples(self, num_samples: int) -> Tensor:
        """Draws ``(num_samples, D)`` with this matrix as covariance, from torch's global random state."""
        return torch.cat([member.zero_mean_mvn_samples(num_samples) for member in self.members], -1)

    def to_dense(self) -> Tensor:
        """``(D, D)``."""
        dense: Tensor = torch.block_diag(*(member.to_dense() for member in self.members))
        return dense

    def _matmul(self, rhs: Tensor) -> Tensor:
        return self._each("matmul", rhs)

    def _size(self) -> torch.Size:
        return torch.Size((sum(self.sizes), sum(self.sizes)))

    def _diagonal(self) -> Tensor:
        return torch.cat([member.diagonal() for member in self.members])

    def _each(self, method: str, rhs: Tensor) -> Tensor:
        """A method of every member with its part of ``(..., D, C)`` or ``(D,)``."""
        dim = 0 if rhs.ndim == 1 else -2
        parts = zip(self.members, rhs.split(self.sizes, dim), strict=True)
        return torch.cat([getattr(member, method)(part) for member, part in parts], dim)


def _sampled(posterior: GaussianPosterior) -> tuple[PosteriorBlock, ...]:
    blocks = posterior.sampled_blocks
    if not blocks:
        raise ValueError("this posterior is a point mass: it has no covariance to make an operator of")
    return blocks


def _joined(operators: list[LinearOperator]) -> LinearOperator:
    return operators[0] if len(operators) == 1 else BlockDiagonalOperator(*operators)
