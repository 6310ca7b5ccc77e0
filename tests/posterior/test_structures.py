"""Every registered structure that can sample yields a posterior equal to the dense one of its own ``to_dense``."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence
from torch.testing import assert_close

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.layout import MatrixLayout
from vogn.linalg.rows import Rows
from vogn.posterior import GaussianPosterior, PosteriorBlock, Prior
from vogn.structures import REGISTRY
from vogn.testing.structure_cases import normalised

LAYOUT = MatrixLayout(("weight", "bias"), ((2, 3), (2,)), (2, 3))
NAMES = [name for name, kind in REGISTRY.items() if {"sample", "shift"} <= kind.SUPPORTS]
LEARNING = [name for name in NAMES if name != "identity"]


def observed_state(structure):
    """Curvature of eight examples, factorised."""
    source = torch.Generator().manual_seed(0)
    a = torch.randn(8, 1, 4, generator=source, dtype=torch.float64)
    g = torch.randn(1, 8, 1, 2, generator=source, dtype=torch.float64)
    state = structure.init((2, 4), initial=0.0, dtype=torch.float64, device="cpu")
    evidence = normalised(structure, structure.observe(state, Rows(a, g)), 8)
    return structure.refresh(structure.update(state, evidence, decay=0.0, weight=1.0, shift=0.1))


@pytest.fixture(params=NAMES)
def posterior(request):
    structure = REGISTRY[request.param]()
    source = torch.Generator().manual_seed(1)
    means = {
        "weight": torch.randn(2, 3, generator=source, dtype=torch.float64),
        "bias": torch.randn(2, generator=source, dtype=torch.float64),
    }
    block = PosteriorBlock("layer", LAYOUT, structure, observed_state(structure), 0.1, 40.0)
    return GaussianPosterior([block], means, likelihood={"kind": "gaussian", "noise": 0.1}, method=request.param)


def dense(posterior):
    """``N(m, (ess (C + shift I))^-1)`` in the order of the block: each output's weights, then its bias."""
    block = posterior.blocks[0]
    precision = 40.0 * block.structure.to_dense(block.state, 0.1)
    return MultivariateNormal(vector(posterior.mean()), precision_matrix=precision)


def vector(params):
    return torch.cat([params["weight"], params["bias"].unsqueeze(-1)], -1).flatten(-2)


def test_density_entropy_kl_and_variance_equal_the_dense_gaussian(posterior):
    params = {"weight": torch.ones(5, 2, 3, dtype=torch.float64), "bias": torch.zeros(5, 2, dtype=torch.float64)}
    reference = dense(posterior)
    prior = MultivariateNormal(torch.zeros(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64) / 3)
    assert_close(posterior.log_prob(params), reference.log_prob(vector(params)))
    assert_close(posterior.entropy(), reference.entropy())
    assert_close(posterior.kl(Prior(0.0, 3.0)), kl_divergence(reference, prior))
    assert_close(vector(posterior.variance()), reference.variance)


def test_functional_variance_equals_the_dense_gaussian(posterior):
    source = torch.Generator().manual_seed(2)
    jacobian = {
        "weight": torch.randn(3, 2, 2, 3, generator=source, dtype=torch.float64),
        "bias": torch.randn(3, 2, 2, generator=source, dtype=torch.float64),
    }
    rows = vector(jacobian)
    expected = rows @ dense(posterior).covariance_matrix @ rows.transpose(-1, -2)
    assert_close(posterior.functional_variance(jacobian), expected)


def test_sample_root_squared_is_the_covariance(posterior):
    unit = torch.eye(8, dtype=torch.float64).reshape(8, 2, 4)
    columns = vector(posterior._from_noise({"layer": unit}, 8)) - vector(posterior.mean())
    assert_close(columns.T @ columns, dense(posterior).covariance_matrix)


def test_ess_scales_the_covariance(posterior):
    block = posterior.blocks[0]
    quarter = PosteriorBlock(block.name, block.layout, block.structure, block.state, block.shift, 4 * block.ess)
    variance = GaussianPosterior([quarter], posterior.mean()).variance()
    for name, value in posterior.variance().items():
        assert_close(variance[name], value / 4)


def test_save_and_load_is_bit_exact(posterior, tmp_path):
    posterior.save(tmp_path / "q.safetensors")
    loaded = GaussianPosterior.load(tmp_path / "q.safetensors")
    block, copy = posterior.blocks[0], loaded.blocks[0]
    assert (copy.name, copy.layout, copy.structure) == (block.name, block.layout, block.structure)
    assert (copy.shift, copy.ess, copy.sampled) == (block.shift, block.ess, block.sampled)
    assert list(copy.state) == list(block.state)
    for key, tensor in block.state.items():
        assert copy.state[key].equal(tensor) and copy.state[key].dtype == tensor.dtype
    for name, tensor in posterior.sample(3, seed=4).items():
        assert loaded.sample(3, seed=4)[name].equal(tensor)
    assert (loaded.likelihood, loaded.method) == (posterior.likelihood, posterior.method)


@pytest.mark.parametrize("name", LEARNING)
def test_no_evidence_and_no_shift_raises(name):
    structure = REGISTRY[name]()
    state = structure.init((2, 4), initial=0.0, dtype=torch.float64, device="cpu")
    with pytest.raises(NotPositiveDefiniteError, match="'layer'.*weight decay is zero"):
        PosteriorBlock("layer", LAYOUT, structure, state, 0.0, 40.0)


@pytest.mark.parametrize("name", LEARNING)
def test_no_evidence_is_the_prior(name):
    """Precision ess * shift I: KL to that prior is zero."""
    structure = REGISTRY[name]()
    state = structure.init((2, 4), initial=0.0, dtype=torch.float64, device="cpu")
    means = {"weight": torch.zeros(2, 3, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}
    posterior = GaussianPosterior([PosteriorBlock("layer", LAYOUT, structure, state, 0.05, 40.0)], means)
    assert_close(posterior.kl(Prior(0.0, 2.0)), torch.zeros((), dtype=torch.float64))
    assert_close(posterior.entropy(), torch.tensor(4 * (1 + math.log(2 * math.pi) - math.log(2.0))).double())
