"""Precisions and covariances as linear operators, against dense matrices."""

from __future__ import annotations

import math

import gpytorch
import linear_operator
import pytest
import torch
from linear_operator import operators
from torch.testing import assert_close

import vogn
from vogn.interop.linear_operator import (
    BlockDiagonalOperator,
    BlockOperator,
    covariance_operator,
    precision_operator,
    structured,
)
from vogn.linalg.layout import MatrixLayout
from vogn.linalg.rows import Rows
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import REGISTRY, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker
from vogn.testing.structure_cases import normalised

SHIFT, ESS = 0.1, 40.0
SAMPLING = [name for name, kind in REGISTRY.items() if {"sample", "shift"} <= kind.SUPPORTS]
OPTIONS = [
    *(pytest.param(REGISTRY[name](), id=name) for name in SAMPLING),
    pytest.param(Kronecker(damping="factored"), id="kronecker factored"),
    pytest.param(Kronecker(max_dim=3), id="kronecker with a diagonal factor"),
    pytest.param(Kronecker(max_dim=3, damping="factored"), id="kronecker factored with a diagonal factor"),
]
KEPT = {
    "Identity": "DiagLinearOperator",
    "Diagonal": "DiagLinearOperator",
    "Dense": "DenseLinearOperator",
    "Kronecker": "KroneckerProductAddedDiagLinearOperator",
    "DiagonalLowRank": "LowRankRootAddedDiagLinearOperator",
    "Gram": "LowRankRootAddedDiagLinearOperator",
    "EigenKronecker": "BlockOperator",
}


def block(structure, name="layer", seed=0, lead=()):
    """Curvature of eight examples in a linear layer from three inputs to two outputs with a bias."""
    source = torch.Generator().manual_seed(seed)
    a = torch.randn(*lead, 8, 1, 4, generator=source, dtype=torch.float64)
    g = torch.randn(*lead, 1, 8, 1, 2, generator=source, dtype=torch.float64)
    state = structure.init((*lead, 2, 4), initial=0.0, dtype=torch.float64, device="cpu")
    evidence = normalised(structure, structure.observe(state, Rows(a, g)), 8)
    state = structure.refresh(structure.update(state, evidence, decay=0.0, weight=1.0, shift=SHIFT))
    weight, bias = f"{name}.weight", f"{name}.bias"
    layout = MatrixLayout((weight, bias), ((*lead, 2, 3), (*lead, 2)), (*lead, 2, 3))
    return PosteriorBlock(name, layout, structure, state, SHIFT, ESS)


def posterior_of(*blocks):
    source = torch.Generator().manual_seed(1)
    means = {
        name: torch.randn(shape, generator=source, dtype=torch.float64)
        for part in blocks
        for name, shape in zip(part.layout.names, part.layout.shapes, strict=True)
    }
    return GaussianPosterior(blocks, means)


def dense(posterior):
    return torch.block_diag(*posterior.precision_matrices().values())


def vectors(size, columns=3):
    return torch.randn(size, columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def check(operator, matrix):
    """Everything that gpytorch asks of a matrix."""
    v = vectors(len(matrix))
    assert operator.shape == matrix.shape
    assert_close(operator.to_dense(), matrix)
    assert_close(operator @ v, matrix @ v)
    assert_close(operator @ v[:, 0], matrix @ v[:, 0])
    assert_close(operator.mT @ v, matrix @ v)
    assert_close(operator.diagonal(), matrix.diagonal())
    assert_close(operator.solve(v), torch.linalg.solve(matrix, v))
    assert_close(operator.solve(v[:, 0]), torch.linalg.solve(matrix, v[:, 0]))
    assert_close(operator.solve(v, v.T), v.T @ torch.linalg.solve(matrix, v))
    assert_close(operator.logdet(), torch.logdet(matrix))
    quadratic, determinant = operator.inv_quad_logdet(v, logdet=True)
    assert_close(quadratic, (v * torch.linalg.solve(matrix, v)).sum())
    assert_close(determinant, torch.logdet(matrix))


@pytest.mark.parametrize("structure", OPTIONS)
@pytest.mark.parametrize("covariance", [False, True], ids=["precision", "covariance"])
def test_one_block_is_the_dense_matrix(structure, covariance):
    posterior = posterior_of(block(structure))
    if covariance:
        check(covariance_operator(posterior), torch.linalg.inv(dense(posterior)))
    else:
        check(precision_operator(posterior), dense(posterior))


@pytest.mark.parametrize("structure", OPTIONS)
def test_solves_above_the_limit_of_cholesky_factors_are_right(structure):
    posterior = posterior_of(block(structure))
    with linear_operator.settings.max_cholesky_size(1), linear_operator.settings.cg_tolerance(1e-12):
        v = vectors(8)
        assert_close(precision_operator(posterior).solve(v), torch.linalg.solve(dense(posterior), v))


@pytest.mark.parametrize("name", KEPT)
def test_a_block_keeps_its_structure(name):
    kinds = {kind.__name__: kind for kind in REGISTRY.values()}
    assert type(precision_operator(posterior_of(block(kinds[name]())))).__name__ == KEPT[name]


def test_factored_damping_is_a_plain_kronecker_product():
    operator = precision_operator(posterior_of(block(Kronecker(damping="factored"))))
    assert type(operator) is operators.KroneckerProductLinearOperator
    assert [factor.shape[-1] for factor in operator.linear_ops] == [2, 4]


@pytest.mark.parametrize("damping", ["exact", "factored"])
def test_grouped_layers_are_block_diagonal(damping):
    posterior = posterior_of(block(Kronecker(damping=damping), lead=(3,)))
    check(precision_operator(posterior), dense(posterior))
    check(covariance_operator(posterior), torch.linalg.inv(dense(posterior)))


def several():
    return posterior_of(
        block(Kronecker(), "first"), block(DiagonalLowRank(rank=2), "second", 1), block(EigenKronecker(), "third", 2)
    )


def test_several_blocks_stand_along_the_diagonal():
    precision, covariance = precision_operator(several()), covariance_operator(several())
    assert type(precision) is BlockDiagonalOperator
    check(precision, dense(several()))
    check(covariance, torch.linalg.inv(dense(several())))
    check(covariance.inverse(), dense(several()))


@pytest.mark.parametrize("structure", [Kronecker(), EigenKronecker(), Diagonal()], ids=lambda s: type(s).__name__)
def test_the_inverse_of_a_covariance_is_the_precision(structure):
    posterior = posterior_of(block(structure))
    assert_close(covariance_operator(posterior).inverse().to_dense(), dense(posterior))
    assert_close(covariance_operator(posterior).inverse().inverse().to_dense(), torch.linalg.inv(dense(posterior)))


@pytest.mark.parametrize("covariance", [False, True])
def test_parts_and_batches_of_an_operator(covariance):
    posterior = several()
    operator = (covariance_operator if covariance else precision_operator)(posterior)
    matrix = torch.linalg.inv(dense(posterior)) if covariance else dense(posterior)
    assert_close(operator[2:11, :5].to_dense(), matrix[2:11, :5])
    assert_close(operator[3, 1], matrix[3, 1])
    assert_close(operator.unsqueeze(0).to_dense(), matrix.unsqueeze(0))
    assert_close(operator.expand(2, *matrix.shape).to_dense(), matrix.expand(2, *matrix.shape))
    quadratic, nothing = operator.inv_quad_logdet(vectors(24), reduce_inv_quad=False)
    assert_close(quadratic, (vectors(24) * torch.linalg.solve(matrix, vectors(24))).sum(0))
    assert nothing is None
    assert_close((operator + operators.DiagLinearOperator(torch.ones(24))).to_dense(), matrix + torch.eye(24))
    assert operator.float().to_dense().dtype == torch.float32
    assert_close(operator.float().to_dense(), matrix.float(), rtol=1e-4, atol=1e-4)


def test_products_with_a_batch_of_matrices():
    v = torch.randn(2, 8, 3, dtype=torch.float64)
    posterior = posterior_of(block(EigenKronecker()))
    assert_close(precision_operator(posterior) @ v, dense(posterior) @ v)


def test_a_product_is_differentiable_in_its_vector():
    v = vectors(24).requires_grad_()
    (gradient,) = torch.autograd.grad((v * (covariance_operator(several()) @ v)).sum(), v)
    assert_close(gradient, 2 * torch.linalg.solve(dense(several()), v.detach()))


def test_draws_have_the_covariance():
    torch.manual_seed(0)
    draws = covariance_operator(several()).zero_mean_mvn_samples(20000)
    covariance = torch.linalg.inv(dense(several()))
    spread = (torch.outer(covariance.diagonal(), covariance.diagonal()) + covariance.square()).sqrt()
    error = (draws.T @ draws / 20000 - covariance).abs() / (spread / math.sqrt(20000))
    assert float(error.max()) < 4.5  # standard errors, over 300 numbers


def test_draws_with_a_precision_as_covariance():
    torch.manual_seed(0)
    draws = precision_operator(posterior_of(block(EigenKronecker()))).zero_mean_mvn_samples(20000)
    expected = dense(posterior_of(block(EigenKronecker())))
    assert_close(draws.T @ draws / 20000, expected, atol=0.05 * float(expected.abs().max()), rtol=0.0)


def test_gpytorchs_gaussian_has_the_posteriors_density():
    posterior = several()
    mean = posterior.flatten(posterior.mean())
    gaussian = gpytorch.distributions.MultivariateNormal(mean, covariance_operator(posterior))
    draws = posterior.sample(4)
    where = posterior.flatten(draws)
    assert_close(torch.stack([gaussian.log_prob(point) for point in where]), posterior.log_prob(draws))
    assert_close(gaussian.variance, posterior.flatten(posterior.variance()))


def test_small_covariances_keep_their_determinant():
    """Eigenvalues below 1e-7, which a Kronecker product of linear_operator counts as 1e-7."""
    made = block(Kronecker(damping="factored"))
    posterior = posterior_of(PosteriorBlock(made.name, made.layout, made.structure, made.state, SHIFT, 1e10))
    assert_close(covariance_operator(posterior).logdet(), -torch.logdet(dense(posterior)))


def test_a_structure_of_ones_own_gets_an_entry():
    class Mine(Diagonal):
        pass

    made = block(Mine())
    assert type(structured(made.structure, made)) is operators.DiagLinearOperator

    @structured.register(Mine)
    def _mine(structure, block):
        return BlockOperator.of(block, covariance=False)

    assert type(structured(made.structure, made)) is BlockOperator


def test_a_point_mass_has_no_operator():
    point = GaussianPosterior([], {"w": torch.zeros(2)})
    for function in (precision_operator, covariance_operator):
        with pytest.raises(ValueError, match="is a point mass: it has no covariance"):
            function(point)


def test_a_network_with_every_layer():
    """From training to a gpytorch Gaussian, in single precision."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 2))
    likelihood = vogn.likelihoods.Categorical()
    posterior = vogn.laplace(model, likelihood, [(torch.randn(30, 3), torch.randint(2, (30,)))])
    matrix = torch.block_diag(*posterior.precision_matrices().values())
    v = torch.randn(len(matrix), 2)
    assert_close(precision_operator(posterior) @ v, matrix @ v, rtol=1e-4, atol=1e-4)
    assert_close(covariance_operator(posterior) @ (matrix @ v), v, rtol=1e-3, atol=1e-3)
