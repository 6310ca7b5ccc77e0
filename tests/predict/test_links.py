"""Closed-form predictions of the linearised network against dense Jacobians, quadrature and sampling."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.predict import closed_form, jacobians
from vogn.predict.last_layer import last_layer_of
from vogn.predict.links import LINKS, dirichlet_of, probit


def network(outputs=3):
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, outputs)).double())


def laplace(model, likelihood, data, **options):
    return vogn.laplace(model, likelihood, [data], **options)


def dense(model, posterior, x):
    """Outputs and ``J Sigma J^T`` from the Jacobian of the whole batch and the dense covariance."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x,)))(parameters)
    rows = posterior.flatten({n: jacobian[n] for n in posterior.names})
    return model(x).detach(), rows @ posterior.to_dense() @ rows.mT


STRUCTURES = ["dense", "diagonal", "kronecker", "eigen_kronecker", "diagonal_low_rank"]


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_exact_is_the_outputs_covariance_plus_the_noise(structure, subset):
    model, x = network(2), normal(5, 3, seed=4)
    posterior = laplace(
        model, Gaussian(noise=0.5), (normal(9, 3, seed=1), normal(9, 2, seed=2)), structure=structure, subset=subset
    )
    found = vogn.predict(model, posterior, x, method="linearized", link="exact")
    f, covariance = dense(model, posterior, x)
    torch.testing.assert_close(found.mean, f)
    torch.testing.assert_close(found.variance, covariance.diagonal(dim1=1, dim2=2) + 0.25, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.epistemic, covariance.diagonal(dim1=1, dim2=2), rtol=1e-7, atol=1e-10)
    assert found.samples is None


@pytest.mark.parametrize("partition", ["layer", "parameter", "model"])
@pytest.mark.parametrize(
    ("subset", "one_layer"), [("last_layer", True), (["3.weight"], True), (["3.weight", "2.*"], False)]
)
def test_the_last_layers_short_cut_changes_nothing(partition, subset, one_layer, monkeypatch):
    model, x = network(), normal(5, 3, seed=4)
    posterior = laplace(
        model, Categorical(), batch(8, 0, torch.float64), structure="dense", partition=partition, subset=subset
    )
    expected = one_layer and partition != "model"  # whose weights are one vector, no matrix
    assert (last_layer_of(model, posterior) is not None) == expected
    options = {"method": "linearized", "link": "laplace_bridge"}
    found = vogn.predict(model, posterior, x, **options)
    monkeypatch.setattr(closed_form, "last_layer_of", lambda model, posterior: None)
    plain = vogn.predict(model, posterior, x, **options)
    torch.testing.assert_close(found.mean, plain.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.aleatoric, plain.aleatoric, rtol=1e-8, atol=1e-12)


def test_the_last_layers_short_cut_needs_no_jacobian(monkeypatch):
    model = network()
    posterior = laplace(model, Categorical(), batch(8, 0, torch.float64), subset="last_layer")

    def refuse(*arguments):
        raise AssertionError("Jacobians were formed")

    monkeypatch.setattr(closed_form, "jacobians", refuse)
    vogn.predict(model, posterior, normal(5, 3, seed=4), method="linearized", link="probit")


class Scaled(nn.Module):
    """What follows the last layer makes its features not enough."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return 2.0 * self.head(self.body(x).tanh())


def test_a_network_that_goes_on_after_its_last_layer_is_seen_through():
    model = fill(Scaled().double())
    posterior = laplace(model, Categorical(), batch(8, 0, torch.float64), subset=["head"], structure="dense")
    x = normal(4, 3, seed=4)
    found = vogn.predict(model, posterior, x, method="linearized", link="probit")
    f, covariance = dense(model, posterior, x)
    expected = (f / (1 + math.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()).softmax(-1)
    torch.testing.assert_close(found.mean, expected, rtol=1e-8, atol=1e-10)


def test_few_examples_at_a_time_are_all_at_once(monkeypatch):
    model, x = network(), normal(7, 3, seed=4)
    posterior = laplace(model, Categorical(), batch(8, 0, torch.float64))
    options = {"method": "linearized", "link": "laplace_bridge"}
    whole = vogn.predict(model, posterior, x, **options)
    monkeypatch.setattr(jacobians, "JACOBIAN_BYTES", 1)
    torch.testing.assert_close(vogn.predict(model, posterior, x, **options).mean, whole.mean)
    last = laplace(model, Categorical(), batch(8, 0, torch.float64), subset="last_layer")
    whole = vogn.predict(model, last, x, **options)
    monkeypatch.setattr(closed_form, "COVARIANCE_ELEMENTS", 20)
    torch.testing.assert_close(vogn.predict(model, last, x, **options).mean, whole.mean)


class Branches(nn.Module):
    """A network that vmap cannot run: an example's path depends on a value."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return torch.stack([self.head(row) if float(row.sum()) > 0 else self.head(2.0 * row).tanh() for row in x])


def test_networks_that_cannot_be_vectorised_go_one_by_one():
    model = fill(Branches().double())
    posterior = laplace(model, Gaussian(noise=1.0), (normal(6, 3, seed=1), normal(6, 2, seed=2)), structure="dense")
    x = normal(5, 3, seed=3)
    found = vogn.predict(model, posterior, x, method="linearized", link="exact")
    for k in range(5):
        f, covariance = dense(model, posterior, x[k : k + 1])
        torch.testing.assert_close(found.variance[k], covariance[0].diagonal() + 1.0, rtol=1e-8, atol=1e-10)
    assert found.mean.shape == (5, 2)


def test_one_output_without_a_dimension():
    model = fill(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double())
    posterior = laplace(model, Gaussian(noise=0.5), (normal(9, 3, seed=1), normal(9, seed=2)), structure="dense")
    found = vogn.predict(model, posterior, normal(4, 3, seed=3), method="linearized", link="exact")
    assert found.mean.shape == found.variance.shape == found.aleatoric.shape == (4,)


# ------------------------------------------------------------------ the links themselves


def test_probit_of_two_classes_is_near_the_integral():
    """``mu = 1, v = 4``: 0.651056, where the integral is 0.647726."""
    p = probit(Bernoulli(), torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64))
    assert float(p.mean) == pytest.approx(0.651056, abs=1e-6)
    grid = torch.linspace(-40, 40, 200001, dtype=torch.float64)
    density = torch.distributions.Normal(1.0, 2.0).log_prob(grid).exp()
    assert float(p.mean) == pytest.approx(float(torch.trapezoid(density * grid.sigmoid(), grid)), abs=0.01)


def test_probit_without_variance_is_the_network():
    f = normal(4, 3, seed=1)
    found = probit(Categorical(), f, torch.zeros(4, 3, dtype=torch.float64))
    torch.testing.assert_close(found.mean, f.softmax(-1))
    torch.testing.assert_close(found.aleatoric, Categorical().uncertainty(f.softmax(-1), f))
    assert not found.variance.any()


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_probits_variance_and_information_are_right_to_first_order(likelihood):
    """Against many logits that are drawn with a small variance."""
    f, variance = normal(3, 4, seed=1), 1e-3 * (1 + normal(3, 4, seed=2).abs())
    found = probit(likelihood, f, variance)
    noise = torch.randn(200000, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, spread, samples = likelihood.predictive(f + variance.sqrt() * noise)
    torch.testing.assert_close(found.variance, spread, rtol=0.03, atol=1e-9)
    expected = likelihood.uncertainty(samples, samples).mean(0)
    information = likelihood.uncertainty(samples.mean(0), spread) - expected
    mine = likelihood.uncertainty(found.mean, found.variance) - found.aleatoric
    torch.testing.assert_close(mine, information, rtol=0.05, atol=1e-8)


def test_the_bridge_has_the_published_numbers():
    alpha = dirichlet_of(
        torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64),
        0.5 * torch.eye(3, dtype=torch.float64).unsqueeze(0),
        normalise=False,
    )
    expected = torch.tensor([[4.70244598, 2.36205376, 1.50107157]], dtype=torch.float64)
    torch.testing.assert_close(alpha, expected, rtol=1e-8, atol=0.0)


@pytest.mark.parametrize("k", [2, 10])
def test_the_bridge_normalises_to_a_mean_variance_of_the_root_of_half_the_classes(k):
    """Logits that sum to zero, their variances divided to the average ``sqrt(K / 2)``, then eq. 8; by hand."""
    f, root, one = normal(3, k, seed=1), normal(3, k, k, seed=2), torch.ones(k, dtype=torch.float64)
    for mean, covariance, alpha in zip(f, root @ root.mT, dirichlet_of(f, root @ root.mT), strict=True):
        direction = covariance @ one / (one @ covariance @ one)
        mu = mean - direction * mean.sum()
        variance = (covariance - torch.outer(direction, covariance @ one)).diagonal()
        factor = variance.mean() / math.sqrt(k / 2)
        mu, variance = mu / factor.sqrt(), variance / factor
        assert float(variance.mean()) == pytest.approx(math.sqrt(k / 2))
        expected = (1 - 2 / k + mu.exp() / k**2 * (-mu).exp().sum()) / variance
        torch.testing.assert_close(alpha, expected, rtol=1e-9, atol=0.0)
    assert not torch.allclose(dirichlet_of(f, root @ root.mT, normalise=False), dirichlet_of(f, root @ root.mT))


def test_the_bridge_does_not_depend_on_the_order_of_classes_or_a_common_logit():
    f, root = normal(2, 4, seed=1), normal(2, 4, 4, seed=2)
    covariance = root @ root.mT
    order = torch.tensor([2, 0, 3, 1])
    alpha = dirichlet_of(f, covariance)
    permuted = dirichlet_of(f[:, order], covariance[:, order][:, :, order])
    torch.testing.assert_close(permuted, alpha[:, order])
    plain = dirichlet_of(f, torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    torch.testing.assert_close(dirichlet_of(f + 3.0, torch.eye(4, dtype=torch.float64).expand(2, 4, 4)), plain)


def test_the_bridges_entropy_is_that_of_the_dirichlet():
    f, covariance = normal(1, 3, seed=1), 2.0 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    found = LINKS["laplace_bridge"].apply(Categorical(), f, covariance)
    torch.manual_seed(0)
    draws = torch.distributions.Dirichlet(dirichlet_of(f, covariance)).sample((200000,))
    torch.testing.assert_close(found.mean, draws.mean(0), atol=2e-3, rtol=0.0)
    torch.testing.assert_close(found.variance, draws.var(0), atol=2e-3, rtol=0.0)
    torch.testing.assert_close(found.aleatoric, Categorical().uncertainty(draws, draws).mean(0), atol=3e-3, rtol=0.0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_links_stay_finite(scale):
    f = normal(3, 5, seed=1) * 30.0
    covariance = scale * torch.eye(5, dtype=torch.float64).expand(3, 5, 5)
    bridge = LINKS["laplace_bridge"].apply(Categorical(), f, covariance)
    shrunk = probit(Categorical(), f, covariance.diagonal(dim1=1, dim2=2))
    for found in (bridge, shrunk):
        assert all(bool(part.isfinite().all()) for part in found)
        torch.testing.assert_close(found.mean.sum(-1), torch.ones(3, dtype=torch.float64))


def test_probit_is_near_the_average_over_logits():
    """Of a posterior that is not narrow, on a network of three classes. The bridge is not: see its docstring."""
    model, x = network(), normal(6, 3, seed=4)
    posterior = laplace(model, Categorical(), batch(40, 0, torch.float64), structure="dense", prior_precision=3.0)
    found = vogn.predict(model, posterior, x, method="linearized", link="probit").mean
    sampled = vogn.predict(model, posterior, x, method="linearized", samples=1000, keep_samples=False).mean
    assert float((found - sampled).abs().max()) < 0.05


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"link": "softmax"}, "unknown link 'softmax'; known links: mc, exact, laplace_bridge, probit"),
        ({"link": "exact"}, r"link='exact' is not meant for Categorical\(\); choose one of mc, laplace_bridge, probit"),
        ({"link": "probit", "method": "mc"}, "use method='linearized'"),
    ],
)
def test_links_that_do_not_fit_are_refused(options, message):
    model = network()
    posterior = laplace(model, Categorical(), batch(8, 0, torch.float64))
    with pytest.raises(ValueError, match=message):
        vogn.predict(model, posterior, normal(2, 3, seed=4), **({"method": "linearized"} | options))


def test_sequences_of_labels_are_refused_with_the_remedy():
    model = fill(nn.Linear(3, 4).double())
    posterior = vogn.Ensemble([model, model], likelihood=Categorical())
    with pytest.raises(ValueError, match="use link='mc'"):
        vogn.predict(model, posterior, normal(2, 5, 3, seed=4), method="linearized", link="probit")


@pytest.mark.parametrize("link", ["laplace_bridge", "probit"])
def test_an_ensemble_can_be_linearised(link):
    """The protocol is enough: outputs and covariance by products of the Jacobian with every member's deviation."""
    model, x = network(), normal(4, 3, seed=4)
    mean = {name: p.detach() for name, p in model.named_parameters()}
    shifts = [{name: 0.2 * normal(*p.shape, seed=7 * k) for name, p in mean.items()} for k in range(3)]
    ensemble = vogn.Ensemble([{n: p + shift[n] for n, p in mean.items()} for shift in shifts], likelihood=Categorical())
    found = vogn.predict(model, ensemble, x, method="linearized", link=link)
    centre = ensemble.mean()
    along = []
    for shift in shifts:
        deviation = {name: mean[name] + shift[name] - centre[name] for name in mean}
        outputs, change = torch.func.jvp(lambda w: torch.func.functional_call(model, w, (x,)), (centre,), (deviation,))
        along.append(change)
    covariance = torch.einsum("snk,snl->nkl", torch.stack(along), torch.stack(along)) / 3
    spread = covariance if LINKS[link].full else covariance.diagonal(dim1=1, dim2=2)
    expected = LINKS[link].apply(Categorical(), outputs.detach(), spread.detach())
    assert found.mean.shape == (4, 3)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.aleatoric, expected.aleatoric, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("link", ["probit", "laplace_bridge"])
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_networks_in_half_precision_are_linked_in_single(link, subset):
    model, x = fill(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5))).float(), normal(20, 4).float()
    posterior = laplace(model, Categorical(), (x, torch.arange(20) % 5), subset=subset, prior_precision=20.0)
    posterior = posterior.tempered(0.02)
    exact = vogn.predict(model, posterior, x, method="linearized", link=link)
    half = vogn.predict(model.bfloat16(), posterior, x.bfloat16(), method="linearized", link=link)
    assert half.mean.dtype == half.epistemic.dtype == torch.float32
    torch.testing.assert_close(half.mean.sum(-1), torch.ones(20))
    torch.testing.assert_close(half.mean, exact.mean, atol=0.01, rtol=0.0)
    torch.testing.assert_close(half.epistemic, exact.epistemic, atol=1e-5, rtol=0.1)


@pytest.mark.parametrize("link", ["exact", "mc"])
def test_a_hook_that_changes_the_last_layers_outputs_counts(link):
    model, x = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()), normal(8, 3)
    model[2].register_forward_hook(lambda module, inputs, outputs: 0.1 * outputs)
    posterior = laplace(model, Gaussian(noise=0.3), (x, normal(8, 2)), subset="last_layer", structure="dense")
    found = vogn.predict(model, posterior, x, method="linearized", link=link, samples=4000)
    _, covariance = dense(model, posterior, x)
    expected = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(found.epistemic, expected, rtol=1e-7 if link == "exact" else 0.1, atol=1e-12)


def test_a_last_layer_may_be_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(input=torch.tanh(self.body(x)))

    model, x = fill(Net().double()), normal(8, 3)
    posterior = laplace(model, Gaussian(noise=0.3), (x, normal(8, 2)), subset="last_layer", structure="dense")
    assert last_layer_of(model, posterior) is not None
    found = vogn.predict(model, posterior, x, method="linearized")
    _, covariance = dense(model, posterior, x)
    torch.testing.assert_close(found.epistemic, covariance.diagonal(dim1=1, dim2=2), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("where", ["hook", "forward"])
def test_outputs_of_the_last_layer_may_change_in_place(where):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            outputs = self.head(torch.tanh(self.body(x)))
            return outputs.mul_(0.1) if where == "forward" else outputs

    model, x = fill(Net().double()), normal(8, 3)
    if where == "hook":
        model.head.register_forward_hook(lambda module, inputs, outputs: outputs.mul_(0.1))
    posterior = laplace(model, Gaussian(noise=0.3), (x, normal(8, 2)), subset="last_layer", structure="dense")
    found = vogn.predict(model, posterior, x, method="linearized")
    weights = torch.cat([torch.tanh(model.body(x)), torch.ones(8, 1, dtype=torch.float64)], 1).detach()
    covariance = posterior.to_dense().reshape(2, 5, 2, 5).diagonal(dim1=0, dim2=2)
    expected = 0.01 * torch.einsum("ni,ijk,nj->nk", weights, covariance, weights)
    torch.testing.assert_close(found.epistemic, expected, rtol=1e-7, atol=1e-12)
