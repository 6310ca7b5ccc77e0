"""The Gaussian posterior equals its dense twin."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.posterior import GaussianPosterior, Posterior, Prior


def random_params(case, *batch, seed=3):
    source = torch.Generator().manual_seed(seed)
    return {n: torch.randn(*batch, *m.shape, generator=source, dtype=torch.float64) for n, m in case.means.items()}


def test_it_is_a_posterior(case):
    assert isinstance(case.posterior, Posterior)
    assert case.posterior.numel == 24


def test_to_dense_is_the_inverse_of_ess_times_curvature_plus_shift(case):
    assert_close(case.posterior.to_dense(), case.covariance())


def test_flatten_follows_the_order_of_to_dense(case):
    params = random_params(case, 4)
    assert_close(case.posterior.flatten(params), case.vector(params))


def test_precision_matrices_are_per_block(case):
    matrices = case.posterior.precision_matrices()
    assert list(matrices) == ["fc", "norm"]
    assert_close(torch.block_diag(*matrices.values()), case.precision())


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_log_prob_equals_multivariate_normal(case, batch):
    params = random_params(case, *batch)
    assert_close(case.posterior.log_prob(params), case.dense().log_prob(case.vector(params)))


def test_log_prob_ignores_point_masses(case):
    params = random_params(case)
    del params["frozen.scale"]
    assert torch.isfinite(case.posterior.log_prob(params))


def test_log_prob_gradient_is_minus_precision_times_displacement(case):
    params = {name: tensor.requires_grad_() for name, tensor in random_params(case).items()}
    names = [name for name in params if name != "frozen.scale"]
    gradient = torch.autograd.grad(case.posterior.log_prob(params), [params[name] for name in names])
    expected = -case.precision() @ (case.vector(params) - case.vector(case.means))
    assert_close(case.vector(dict(zip(names, gradient, strict=True))), expected.detach())


def test_entropy_equals_multivariate_normal(case):
    assert_close(case.posterior.entropy(), case.dense().entropy())


@pytest.mark.parametrize("mean", [0.0, 0.7, "tensors"])
def test_kl_equals_kl_divergence_of_multivariate_normals(case, mean):
    centre = random_params(case, seed=9)
    if mean == "tensors":
        vector, prior = case.vector(centre), Prior(centre, 2.5)
    else:
        vector, prior = torch.full((24,), mean, dtype=torch.float64), Prior(mean, 2.5)
    reference = MultivariateNormal(vector, torch.eye(24, dtype=torch.float64) / 2.5)
    assert_close(case.posterior.kl(prior), kl_divergence(case.dense(), reference))


def test_kl_to_itself_is_zero(case, whole):
    """Curvature zero and shift = precision / ess is the prior."""
    block = dataclasses.replace(
        case.posterior.blocks[0], state={"C": torch.zeros(12, 12, dtype=torch.float64)}, shift=0.25, ess=8.0
    )
    means = {name: torch.zeros_like(case.means[name]) for name in block.layout.names}
    assert_close(GaussianPosterior([block], means).kl(Prior(0.0, 2.0)), torch.zeros((), dtype=torch.float64))


def test_variance_is_the_diagonal_of_the_covariance(case):
    variance = case.posterior.variance()
    assert_close(case.vector(variance), case.covariance().diagonal())
    assert variance["frozen.scale"].eq(0).all()


def test_functional_variance_equals_dense_j_sigma_j(case):
    jacobian = random_params(case, 4, 2)
    rows = case.vector(jacobian)
    assert_close(case.posterior.functional_variance(jacobian), rows @ case.covariance() @ rows.transpose(-1, -2))


def test_functional_variance_is_symmetric(case):
    variance = case.posterior.functional_variance(random_params(case, 4, 3))
    assert variance.equal(variance.transpose(-1, -2))


def test_sample_is_linear_in_the_noise_with_root_of_the_covariance(case):
    """Unit vectors as noise: the displacements are the columns of S, and S S^T = Sigma."""
    unit = torch.eye(24, dtype=torch.float64)
    noise = {"fc": unit[:, :12].reshape(24, 3, 4), "norm": unit[:, 12:].reshape(24, 6, 2, 1)}
    columns = case.vector(case.posterior._from_noise(noise, 24)) - case.vector(case.means)
    assert_close(columns.T @ columns, case.covariance())
    doubled = case.posterior._from_noise({name: 2 * tensor for name, tensor in noise.items()}, 24)
    assert_close(case.vector(doubled) - case.vector(case.means), 2 * columns)


def test_sample_uses_unit_normal_noise_of_every_block(case):
    """Whitened samples of the two blocks are the raw draws: pooled mean and variance within five standard errors."""
    root = torch.linalg.cholesky(case.covariance())
    displacement = case.vector(case.posterior.sample(500, seed=1)) - case.vector(case.means)
    white = torch.linalg.solve_triangular(root, displacement.T, upper=False)
    assert abs(white.mean()) < 5 / math.sqrt(white.numel())
    assert abs(white.var() - 1) < 5 * math.sqrt(2 / white.numel())
    correlation = (white @ white.T / 500 - torch.eye(24)).abs()
    assert correlation.max() < 6 * math.sqrt(2 / 500)


def test_draw_k_of_a_seed_does_not_depend_on_n(case):
    four, two, third = case.posterior.sample(4, seed=7), case.posterior.sample(2, seed=7), None
    third = case.posterior.sample(1, seed=7, start=2)
    for name in case.means:
        # a product of other batch size may round differently in the last bit
        assert_close(four[name][:2], two[name], rtol=1e-14, atol=1e-15)
        assert_close(four[name][2:3], third[name], rtol=1e-14, atol=1e-15)


def test_seeds_and_draws_differ(case):
    first, second = (case.posterior.sample(2, seed=seed)["fc.weight"] for seed in (0, 1))
    assert not torch.isclose(first, second).any()
    assert not torch.isclose(first[0], first[1]).any()


def test_sample_leaves_the_global_random_state(case):
    before = torch.get_rng_state()
    case.posterior.sample(3)
    assert torch.get_rng_state().equal(before)


def test_point_masses_are_sampled_at_their_mean(case):
    assert case.posterior.sample(3)["frozen.scale"].equal(case.means["frozen.scale"].expand(3, 2))


def test_parameters_without_a_block_are_point_masses(case):
    means = {**case.means, "extra": torch.ones(2)}
    posterior = GaussianPosterior(case.posterior.blocks, means)
    assert posterior.sample(2)["extra"].equal(torch.ones(2, 2))
    assert_close(posterior.entropy(), case.posterior.entropy())


def test_a_pure_point_mass_has_zero_entropy_and_no_functional_variance():
    posterior = GaussianPosterior([], {"w": torch.ones(2)})
    assert posterior.entropy() == 0 and posterior.kl(Prior()) == 0
    with pytest.raises(ValueError, match="point mass"):
        posterior.functional_variance({"w": torch.ones(1, 1, 2)})


def test_it_keeps_its_own_copies(case):
    expected = case.posterior.log_prob(case.means).clone()
    mean = case.posterior.mean()
    for tensor in (*case.means.values(), *case.curvature.values(), *mean.values()):
        tensor.add_(1.0)
    for tensor in case.means.values():
        tensor.sub_(1.0)
    assert_close(case.posterior.log_prob(case.means), expected)


def test_half_precision_becomes_float32(case):
    posterior = GaussianPosterior(
        [dataclasses.replace(b, state={"C": b.state["C"].float()}) for b in case.posterior.blocks],
        {**{name: mean.bfloat16() for name, mean in case.means.items()}, "extra": torch.ones(2).half()},
    )
    assert {tensor.dtype for tensor in posterior.sample(2).values()} == {torch.float32}
    assert posterior.log_prob(posterior.mean()).dtype == torch.float32


def test_to_changes_the_precision(case):
    single = case.posterior.to(dtype=torch.float32)
    assert {tensor.dtype for tensor in single.sample(1).values()} == {torch.float32}
    assert_close(single.entropy().double(), case.posterior.entropy(), rtol=1e-5, atol=1e-5)
    assert single.likelihood == {"kind": "categorical"} and single.method == "test"
    with pytest.raises(ValueError, match="float32 or torch.float64"):
        case.posterior.to(dtype=torch.bfloat16)


@pytest.mark.parametrize("ess", [math.inf, 0.0, -1.0, math.nan])
def test_ess_must_be_positive_and_finite(case, ess):
    with pytest.raises(ValueError, match="'fc'.*ess="):
        dataclasses.replace(case.posterior.blocks[0], ess=ess)


@pytest.mark.parametrize("shift", [-0.1, math.inf, math.nan])
def test_shift_must_be_finite_and_not_negative(case, shift):
    with pytest.raises(ValueError, match="'fc'.*shift"):
        dataclasses.replace(case.posterior.blocks[0], shift=shift)


def test_no_curvature_and_no_shift_raises(case):
    zeros = {"C": torch.zeros(12, 12, dtype=torch.float64)}
    with pytest.raises(NotPositiveDefiniteError, match="'fc'.*weight decay is zero"):
        dataclasses.replace(case.posterior.blocks[0], state=zeros, shift=0.0)


def test_zero_shift_is_fine_with_positive_definite_curvature(case):
    block = dataclasses.replace(case.posterior.blocks[0], shift=0.0)
    assert_close(block.precision_matrix(), 50.0 * case.curvature["fc"])


def test_a_structure_that_cannot_sample_raises(case, whole):
    class Silent(whole):
        SUPPORTS = frozenset({"shift"})

    with pytest.raises(UnsupportedObservationError, match="'fc'.*Silent.*'sample'"):
        dataclasses.replace(case.posterior.blocks[0], structure=Silent((3, 4)))


@pytest.mark.parametrize(
    "feature, use", [("apply", "log_prob"), ("logdet", "entropy"), ("inverse_diagonal", "variance")]
)
def test_a_missing_feature_raises_at_its_use(case, whole, feature, use):
    class Partial(whole):
        SUPPORTS = whole.SUPPORTS - {feature}

    block = dataclasses.replace(case.posterior.blocks[0], structure=Partial((3, 4)))
    posterior = GaussianPosterior([block], case.means)
    posterior.sample(1)
    with pytest.raises(UnsupportedObservationError, match=f"'fc'.*Partial.*{feature}"):
        getattr(posterior, use)(*([case.means] if use == "log_prob" else []))


def test_a_parameter_without_a_mean_raises(case):
    del case.means["fc.bias"]
    with pytest.raises(ValueError, match=r"'fc\.bias' of block 'fc' has no mean"):
        GaussianPosterior(case.posterior.blocks, case.means)


def test_a_mean_of_another_shape_raises(case):
    case.means["fc.bias"] = torch.zeros(4)
    with pytest.raises(ValueError, match=r"'fc\.bias' has shape \(4,\)"):
        GaussianPosterior(case.posterior.blocks, case.means)


def test_a_parameter_in_two_blocks_raises(case):
    twin = dataclasses.replace(case.posterior.blocks[0], name="twin")
    with pytest.raises(ValueError, match=r"'fc\.weight' is in block 'fc' and in block 'twin'"):
        GaussianPosterior([*case.posterior.blocks, twin], case.means)


def test_two_blocks_of_one_name_raise(case):
    with pytest.raises(ValueError, match="two blocks are called 'fc'"):
        GaussianPosterior([case.posterior.blocks[0], case.posterior.blocks[0]], case.means)


def test_missing_and_misshapen_arguments_are_named(case):
    params = random_params(case)
    with pytest.raises(ValueError, match=r"'fc\.bias' of block 'fc' must end in shape \(3,\), got \(2,\)"):
        case.posterior.log_prob({**params, "fc.bias": torch.zeros(2)})
    del params["fc.bias"]
    with pytest.raises(ValueError, match=r"'fc\.bias' of block 'fc' is missing"):
        case.posterior.log_prob(params)
    with pytest.raises(ValueError, match=r"Jacobian of block 'fc' must have shape \(B, K"):
        case.posterior.functional_variance(random_params(case, 4))


@pytest.mark.parametrize("n, start", [(0, 0), (1, -1)])
def test_sample_needs_a_positive_count(case, n, start):
    with pytest.raises(ValueError, match="n >= 1"):
        case.posterior.sample(n, start=start)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_tempered_scales_the_covariance_and_keeps_the_mean(case, temperature):
    tempered = case.posterior.tempered(temperature)
    torch.testing.assert_close(tempered.to_dense(), temperature * case.posterior.to_dense())
    for name, mean in case.posterior.mean().items():
        assert torch.equal(tempered.mean()[name], mean)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_tempered_needs_a_positive_temperature(case, temperature):
    with pytest.raises(ValueError, match="temperature"):
        case.posterior.tempered(temperature)
