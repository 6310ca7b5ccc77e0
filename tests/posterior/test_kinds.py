"""Ensembles, SWAG, dropout and mixtures against dense covariances and plain loops."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

import vogn
from vogn.errors import CheckpointError
from vogn.likelihoods import Categorical
from vogn.posterior.loading import KINDS

NAMES = ("weight", "bias", "scale")
SHAPES = {"weight": (2, 3), "bias": (2,), "scale": ()}
SIZE = 9


def weights(seed, dtype=torch.float64):
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source, dtype=dtype) for name, shape in SHAPES.items()}


def flat(params):
    """``(*batch, 9)``."""
    return torch.cat([params[n].reshape(*params[n].shape[: params[n].ndim - len(SHAPES[n])], -1) for n in NAMES], -1)


def jacobian(seed=7):
    source = torch.Generator().manual_seed(seed)
    return {n: torch.randn(4, 2, *shape, generator=source, dtype=torch.float64) for n, shape in SHAPES.items()}


def dense_functional_variance(covariance):
    rows = torch.cat([jacobian()[n].reshape(4, 2, -1) for n in NAMES], -1)
    return rows @ covariance @ rows.transpose(-1, -2)


def swag(rank=3, count=6, **options):
    posterior = vogn.SWAG(rank, **options)
    for seed in range(count):
        posterior.collect(weights(seed))
    return posterior


def swag_by_hand(rank=3, count=6):
    """Mean and covariance from the paper's formulas, in a plain loop."""
    seen, mean, columns = [], torch.zeros(SIZE, dtype=torch.float64), []
    for seed in range(count):
        seen.append(flat(weights(seed)))
        mean = (len(seen) - 1) / len(seen) * mean + seen[-1] / len(seen)
        columns.append(seen[-1] - mean)
    values = torch.stack(seen)
    variance = values.square().mean(0) - values.mean(0).square()
    d = torch.stack(columns[-rank:], 1)
    return values.mean(0), 0.5 * (variance.diag() + d @ d.T / (rank - 1))


# ------------------------------------------------------------------ ensembles


def test_an_ensembles_moments_are_those_of_its_members():
    ensemble = vogn.Ensemble([weights(seed) for seed in range(4)])
    values = torch.stack([flat(weights(seed)) for seed in range(4)])
    covariance = torch.cov(values.T, correction=0)
    assert torch.allclose(flat(ensemble.mean()), values.mean(0), atol=1e-14)
    assert torch.allclose(flat(ensemble.variance()), covariance.diagonal(), atol=1e-13)
    found = ensemble.functional_variance(jacobian())
    assert torch.allclose(found, dense_functional_variance(covariance), atol=1e-12)


def test_draws_of_an_ensemble_are_its_members_in_turn():
    ensemble = vogn.Ensemble([weights(seed) for seed in range(3)])
    draws = ensemble.sample(4, start=2)
    for k, member in enumerate((2, 0, 1, 2)):
        assert all(torch.equal(draws[name][k], weights(member)[name]) for name in NAMES)


def test_predicting_with_an_ensemble_averages_probabilities():
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)) for _ in range(3)]
    x = torch.randn(6, 3)
    found = vogn.predict(networks[0], vogn.Ensemble(networks, likelihood=Categorical()), x, samples=3)
    expected = torch.stack([network(x).softmax(-1) for network in networks]).mean(0)
    assert torch.allclose(found.mean, expected, atol=1e-6)


def test_a_point_is_a_network_without_uncertainty():
    model = nn.Linear(3, 2)
    point = vogn.Point(model)
    assert all(torch.equal(point.sample(2)[name][1], parameter) for name, parameter in model.named_parameters())
    assert all(not value.any() for value in point.variance().values())
    model.weight.data.zero_()
    assert bool(point.mean()["weight"].any()), "the posterior must not follow the model"


def test_half_precision_is_kept_as_float32():
    assert vogn.Point(nn.Linear(2, 2).to(torch.bfloat16)).mean()["weight"].dtype == torch.float32


@pytest.mark.parametrize("what", ["log_prob", "entropy"])
def test_finitely_many_weights_have_no_density(what):
    with pytest.raises(NotImplementedError, match="have no density"):
        getattr(vogn.Point(weights(0)), what)(*([weights(0)] if what == "log_prob" else []))


def test_a_posterior_without_parameters_is_refused():
    with pytest.raises(ValueError, match="at least one parameter, got none"):
        vogn.Point(nn.ReLU())
    with pytest.raises(ValueError, match="at least one parameter, got none"):
        vogn.SWAG(2).collect({})


def test_members_must_agree():
    with pytest.raises(ValueError, match="at least one member"):
        vogn.Ensemble([])
    with pytest.raises(ValueError, match=r"member 1 and member 0 do not have the same parameters: \['scale'\]"):
        vogn.Ensemble([weights(0), {k: v for k, v in weights(1).items() if k != "scale"}])
    with pytest.raises(ValueError, match=r"'bias' has shape \(3,\) in member 1 and \(2,\) in member 0"):
        vogn.Ensemble([weights(0), weights(1) | {"bias": torch.zeros(3)}])


# ------------------------------------------------------------------ SWAG


def test_swag_has_the_papers_mean_and_covariance():
    mean, covariance = swag_by_hand()
    posterior = swag()
    assert torch.allclose(flat(posterior.mean()), mean, atol=1e-13)
    assert torch.allclose(flat(posterior.variance()), covariance.diagonal(), atol=1e-13)
    assert torch.allclose(posterior.functional_variance(jacobian()), dense_functional_variance(covariance), atol=1e-12)


def test_swags_density_and_entropy_are_the_dense_ones():
    mean, covariance = swag_by_hand()
    dense = torch.distributions.MultivariateNormal(mean, covariance)
    posterior = swag()
    batch = {name: torch.stack([weights(20)[name], weights(21)[name]]) for name in NAMES}
    assert torch.allclose(posterior.log_prob(batch), dense.log_prob(flat(batch)), rtol=1e-9)
    assert torch.allclose(posterior.log_prob(weights(20)), dense.log_prob(flat(weights(20))), rtol=1e-9)
    assert torch.allclose(posterior.entropy(), dense.entropy(), rtol=1e-10)


def test_draws_of_swag_have_its_covariance():
    mean, covariance = swag_by_hand()
    draws = flat(swag().sample(20000, seed=3))
    assert torch.allclose(draws.mean(0), mean, atol=4 * float(covariance.diagonal().max().sqrt()) / math.sqrt(20000))
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.05 * float(covariance.abs().max()))


def test_a_draw_of_swag_is_fixed_by_seed_and_number():
    posterior = swag()
    many, one = posterior.sample(5, seed=2), posterior.sample(1, seed=2, start=3)
    assert all(torch.equal(many[name][3], one[name][0]) for name in NAMES)
    assert not torch.equal(many["weight"], posterior.sample(5, seed=4)["weight"])


def test_swags_scale_multiplies_the_covariance():
    small, large = swag(), swag(scale=4.0)
    assert all(torch.allclose(large.variance()[name], 4 * small.variance()[name], rtol=1e-12) for name in NAMES)


def test_swag_refuses_what_it_cannot_use():
    posterior = vogn.SWAG(3)
    posterior.collect(weights(0))
    with pytest.raises(ValueError, match="has collected 1 sets of weights and needs at least two"):
        posterior.sample(1)
    with pytest.raises(ValueError, match="'bias' holds NaN or infinity; it was not collected"):
        posterior.collect(weights(1) | {"bias": torch.tensor([0.0, math.nan])})
    assert posterior.collected == 1
    with pytest.raises(ValueError, match="do not have the same parameters"):
        posterior.collect({"weight": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="rank=1 must be at least 2"):
        vogn.SWAG(1)
    with pytest.raises(ValueError, match="scale=0.0 must be a finite number > 0"):
        vogn.SWAG(2, scale=0.0)


# ------------------------------------------------------------------ mixtures


def mixture():
    return vogn.Mixture([swag(), swag(count=4), vogn.SWAG.from_content(*swag(count=5).content())], [1.0, 2.0, 5.0])


def moments():
    found = [swag_by_hand(), swag_by_hand(count=4), swag_by_hand(count=5)]
    shares = (0.125, 0.25, 0.625)
    mean = sum(w * m for w, (m, _) in zip(shares, found, strict=True))
    second = sum(w * (c + torch.outer(m, m)) for w, (m, c) in zip(shares, found, strict=True))
    return shares, found, mean, second - torch.outer(mean, mean)


def test_a_mixtures_moments_follow_the_law_of_total_variance():
    _, _, mean, covariance = moments()
    assert torch.allclose(flat(mixture().mean()), mean, atol=1e-13)
    assert torch.allclose(flat(mixture().variance()), covariance.diagonal(), atol=1e-12)
    found = mixture().functional_variance(jacobian())
    assert torch.allclose(found, dense_functional_variance(covariance), atol=1e-11)


def test_a_mixtures_density_is_the_weighted_sum():
    shares, found, _, _ = moments()
    point = weights(30)
    expected = sum(
        w * torch.distributions.MultivariateNormal(m, c).log_prob(flat(point)).exp()
        for w, (m, c) in zip(shares, found, strict=True)
    )
    assert torch.allclose(mixture().log_prob(point), expected.log(), rtol=1e-9)


def test_a_mixture_of_gaussians_has_their_density():
    """Two runs of one method, as in multi-IVON, against torch's own mixture."""
    parts = [gaussian(seed) for seed in (0, 1)]
    found = vogn.Mixture(parts, [1.0, 3.0])
    dense = torch.distributions.MultivariateNormal(
        torch.stack([part.flatten(part.mean()) for part in parts]).double(),
        torch.stack([part.to_dense() for part in parts]).double(),
    )
    expected = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.tensor([0.25, 0.75])), dense)
    draws = found.sample(5)
    where = parts[0].flatten(draws).double()
    assert torch.allclose(found.log_prob(draws).double(), expected.log_prob(where), rtol=1e-4)
    assert torch.allclose(parts[0].flatten(found.variance()).double(), expected.variance, rtol=1e-4)


def test_components_of_a_mixture_are_drawn_as_often_as_they_weigh():
    chosen = torch.tensor([mixture().component_of(k, seed=5) for k in range(800)])
    assert torch.allclose(torch.bincount(chosen) / 800.0, torch.tensor([0.125, 0.25, 0.625]), atol=0.01)
    draws = mixture().sample(6, seed=5)
    for k in range(6):
        component = mixture().components[int(chosen[k])]
        assert torch.equal(draws["weight"][k], component.sample(1, seed=5, start=k)["weight"][0])


@pytest.mark.parametrize("first", [0, 1 << 61])
def test_first_draws_of_many_seeds_are_as_frequent_as_their_weights(first):
    chosen = torch.tensor([mixture().component_of(0, seed=first + 1000 * k) for k in range(800)])
    shares = torch.tensor([0.125, 0.25, 0.625])
    errors = (torch.bincount(chosen, minlength=3) / 800.0 - shares) / (shares * (1 - shares) / 800).sqrt()
    assert float(errors.abs().max()) < 4.0


def test_a_component_without_weight_is_never_drawn():
    parts = vogn.Mixture([vogn.Point(weights(0)), vogn.Point(weights(1))], [1.0, 0.0])
    assert {parts.component_of(k) for k in range(100)} == {0}


def test_mixtures_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="at least one component"):
        vogn.Mixture([])
    with pytest.raises(ValueError, match="1 weights for 2 components"):
        vogn.Mixture([vogn.Point(weights(0)), vogn.Point(weights(1))], [1.0])
    with pytest.raises(ValueError, match="must be finite numbers >= 0, not all of them zero"):
        vogn.Mixture([vogn.Point(weights(0))], [0.0])
    with pytest.raises(ValueError, match="component 1 and component 0 do not have the same parameters"):
        vogn.Mixture([vogn.Point(weights(0)), vogn.Point({"weight": torch.zeros(2, 3)})])
    with pytest.raises(NotImplementedError, match="no closed form"):
        mixture().entropy()
    with pytest.raises(ValueError, match="dropout masks are none"):
        vogn.Mixture([vogn.MCDropout(weights(0))])


# ------------------------------------------------------------------ dropout


def dropout_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)).double()


def test_dropout_draws_masks_that_seed_and_number_fix():
    model, x = dropout_network(), torch.randn(5, 3, dtype=torch.float64)
    posterior = vogn.MCDropout(model, likelihood=Categorical())
    found = vogn.predict(model, posterior, x, samples=8, seed=1)
    again = vogn.predict(model, posterior, x, samples=8, seed=1)
    assert torch.equal(found.samples, again.samples)
    assert len({tuple(s.flatten().tolist()) for s in found.samples}) == 8
    assert not torch.equal(found.samples, vogn.predict(model, posterior, x, samples=8, seed=2).samples)


def test_the_average_over_masks_is_that_of_all_masks():
    """One hidden unit: two masks, known outputs."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.25), nn.Linear(1, 2, bias=False)).double()
    posterior = vogn.MCDropout(model, likelihood=Categorical())
    x = torch.ones(1, 1, dtype=torch.float64)
    kept = model[2](model[0](x) / 0.75).softmax(-1).detach()
    expected = 0.75 * kept + 0.25 * torch.full((1, 2), 0.5, dtype=torch.float64)
    found = vogn.predict(model, posterior, x, samples=4000).mean
    assert torch.allclose(found, expected, atol=4 * float((kept - 0.5).abs().max()) * math.sqrt(0.1875 / 4000))


def test_dropout_is_off_for_the_mean_and_afterwards():
    model, x = dropout_network(), torch.randn(5, 3, dtype=torch.float64)
    posterior = vogn.MCDropout(model, likelihood=Categorical())
    model.train()
    expected = model.eval()(x).softmax(-1)
    model.train()
    assert torch.allclose(vogn.predict(model, posterior, x, method="mean").mean, expected)
    state = torch.random.get_rng_state()
    vogn.predict(model, posterior, x, samples=2)
    assert model.training and model[2].training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_dropout_goes_off_again_after_an_error():
    model, x = dropout_network().eval(), torch.randn(2, 7, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="shapes"):
        vogn.predict(model, vogn.MCDropout(model, likelihood=Categorical()), x, samples=2)
    assert not model[2].training


def test_a_network_without_dropout_is_refused():
    with pytest.raises(ValueError, match="has no dropout layer with p > 0"):
        vogn.MCDropout(nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="no covariance over weights"):
        vogn.MCDropout(weights(0)).functional_variance(jacobian())


# ------------------------------------------------------------------ files


def gaussian(seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = vogn.VOGN(model, lr=0.1, ess=20.0)
    optimizer.zero_grad()
    with optimizer.sampled_params():
        Categorical()(model(torch.randn(8, 3)), torch.randint(0, 2, (8,))).backward()
    optimizer.step()
    return optimizer.posterior()


EXAMPLES = {
    "vogn.posterior.gaussian": gaussian,
    "vogn.posterior.ensemble": lambda: vogn.Ensemble([weights(0), weights(1)], likelihood=Categorical()),
    "vogn.posterior.point": lambda: vogn.Point(weights(0)),
    "vogn.posterior.mc_dropout": lambda: vogn.MCDropout(weights(0), likelihood=Categorical()),
    "vogn.posterior.swag": lambda: swag(likelihood=Categorical()),
    "vogn.posterior.mixture": lambda: vogn.Mixture([swag(), vogn.Point(weights(3))], [2.0, 1.0]),
}


def test_every_kind_has_an_example_here():
    assert EXAMPLES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_every_kind_comes_back_from_its_file_bit_for_bit(kind, tmp_path):
    posterior = EXAMPLES[kind]()
    assert isinstance(posterior, vogn.Posterior)
    posterior.save(tmp_path / "q.safetensors")
    loaded = vogn.load_posterior(tmp_path / "q.safetensors")
    assert type(loaded) is type(posterior)
    assert loaded.likelihood == posterior.likelihood
    for method in ("mean", "variance"):
        before, after = getattr(posterior, method)(), getattr(loaded, method)()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    before, after = posterior.sample(3, seed=4, start=2), loaded.sample(3, seed=4, start=2)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_file_is_read_in_another_process(tmp_path):
    path = tmp_path / "q.safetensors"
    swag().save(path)
    code = f"import vogn; print(vogn.load_posterior({str(path)!r}).sample(1, seed=3)['weight'].sum().item().hex())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert found.stdout.strip() == swag().sample(1, seed=3)["weight"].sum().item().hex()


def test_a_loaded_swag_goes_on_collecting(tmp_path):
    swag(count=4).save(tmp_path / "q")
    loaded = vogn.SWAG.load(tmp_path / "q")
    for seed in (4, 5):
        loaded.collect(weights(seed))
    assert torch.equal(loaded.sample(2)["weight"], swag().sample(2)["weight"])


def test_a_file_of_another_kind_is_refused(tmp_path):
    vogn.Point(weights(0)).save(tmp_path / "q")
    with pytest.raises(CheckpointError, match="its format is 'vogn.posterior.point', expected 'vogn.posterior.swag'"):
        vogn.SWAG.load(tmp_path / "q")


@pytest.mark.parametrize("kind", sorted(EXAMPLES))
def test_a_file_that_lacks_its_description_is_damaged(kind, tmp_path, monkeypatch):
    posterior = EXAMPLES[kind]()
    tensors = posterior.content()[1]
    monkeypatch.setattr(type(posterior), "content", lambda self: ({}, tensors))
    posterior.save(tmp_path / "q")
    with pytest.raises(CheckpointError, match="is damaged"):
        vogn.load_posterior(tmp_path / "q")


def test_a_mixture_of_what_cannot_be_saved_says_so(tmp_path):
    class Foreign:
        def mean(self):
            return weights(0)

    with pytest.raises(TypeError, match="component 1, a Foreign, cannot be saved"):
        vogn.Mixture([vogn.Point(weights(0)), Foreign()]).save(tmp_path / "q")
    assert not list(tmp_path.iterdir())


def test_a_mixture_of_mixtures_draws_from_all_of_them():
    a, b, c = (vogn.Point({"w": torch.tensor([float(k)])}) for k in range(3))
    nested = vogn.Mixture([vogn.Mixture([a, b], weights=[1, 3]), c], weights=[2, 1])
    flat = vogn.Mixture([a, b, c], weights=[1, 3, 2])
    assert nested.weights == pytest.approx(flat.weights)
    draws = nested.sample(600)["w"]
    assert [int((draws == k).sum()) for k in range(3)] == pytest.approx([100, 300, 200], abs=2)
    assert float(draws.mean()) == pytest.approx(float(nested.mean()["w"]), abs=0.01)


class Encoder(nn.Module):
    """Its layer has a fused form in evaluation mode, without dropout."""

    def __init__(self, layers):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
        self.body = layer if layers == 1 else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x).mean(1))


@pytest.mark.parametrize("layers", [1, 2])
def test_dropout_inside_transformer_layers_is_drawn(layers):
    torch.manual_seed(0)
    model, x = Encoder(layers), torch.randn(5, 4, 8)
    dropout = vogn.MCDropout(model, likelihood=vogn.likelihoods.Gaussian(0.1))
    found = vogn.predict(model, dropout, x, samples=20, keep_samples=True)
    assert float(found.epistemic.min()) > 1e-3
    assert torch.backends.mha.get_fastpath_enabled()
    with dropout.drawing(model.eval(), seed=0, draw=3), torch.no_grad():
        assert [m.training for m in model.modules() if isinstance(m, nn.Dropout)] == [True] * 3 * layers
        by_hand = model(x)
    torch.testing.assert_close(found.samples[3], by_hand)
