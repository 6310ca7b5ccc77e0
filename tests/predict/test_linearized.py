"""Predictions of the linearised network."""

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import Diagonal


def posterior_of(model, likelihood, data, **options):
    return vogn.laplace(model, likelihood, [data], **({"structure": "dense", "partition": "model"} | options))


def network():
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.LayerNorm(4), nn.Linear(4, 3)).double())


def test_samples_are_those_of_the_first_order_expansion():
    model, data = network(), batch(8, 0, torch.float64)
    posterior = posterior_of(model, Categorical(), data)
    x = normal(5, 3, seed=4)
    found = vogn.predict(model, posterior, x, method="linearized", samples=3, seed=2)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(weights):
        return torch.func.functional_call(model, weights, (x,))

    jacobian, draws = torch.func.jacrev(outputs)(parameters), posterior.sample(3, seed=2)
    for k in range(3):
        change = sum((jacobian[n] * (draws[n][k] - parameters[n])).flatten(2).sum(-1) for n in parameters)
        expected = (outputs(parameters) + change).softmax(-1)
        torch.testing.assert_close(found.samples[k], expected)
    torch.testing.assert_close(found.mean, found.samples.mean(0))


def test_a_linear_network_is_its_own_linearisation():
    model = fill(nn.Linear(3, 2).double())
    data = normal(6, 3, seed=1), normal(6, 2, seed=2)
    posterior = posterior_of(model, Gaussian(noise=0.5), data)
    x = normal(4, 3, seed=3)
    linear, plain = (vogn.predict(model, posterior, x, method=method, link="mc") for method in ("linearized", "mc"))
    torch.testing.assert_close(linear.mean, plain.mean)
    torch.testing.assert_close(linear.variance, plain.variance)


def test_its_variance_is_the_functional_variance():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    x, y = normal(20, 3, seed=1), normal(20, 1, seed=2)
    posterior = posterior_of(model, Gaussian(noise=0.5), (x, y))
    options = {"method": "linearized", "link": "mc", "samples": 20000, "keep_samples": False}
    found = vogn.predict(model, posterior, x[:4], **options)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(model, w, (x[:4],)))(parameters)
    exact = posterior.functional_variance(jacobian).squeeze(-1) + 0.25
    torch.testing.assert_close(found.variance, exact, rtol=0.05, atol=0.0)  # 20000 samples: 1 % standard error


def test_batch_after_batch_is_all_at_once():
    model, data = network(), batch(8, 0, torch.float64)
    posterior = posterior_of(model, Categorical(), data)
    x = normal(6, 3, seed=4)
    whole = vogn.predict(model, posterior, x, method="linearized", samples=4)
    parts = [vogn.predict(model, posterior, part, method="linearized", samples=4) for part in x.split(2)]
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), whole.mean)


def test_batch_norm_has_the_statistics_of_the_mean():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    fill(model)
    with torch.no_grad():
        model[1].running_mean.add_(0.3)
    data = batch(8, 0, torch.float64)
    posterior = posterior_of(model, Categorical(), data, subset="last_layer", partition="layer")
    model.train()
    found = vogn.predict(model, posterior, data[0], method="linearized", batchnorm="mean")
    plain = vogn.predict(model, posterior, data[0], method="mc", batchnorm="mean")
    torch.testing.assert_close(found.mean, plain.mean)  # the last layer is linear
    assert model.training and model[1].training


def test_attention_can_be_linearised():
    model = fill(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    head = nn.Sequential(model, nn.Flatten(), nn.Linear(24, 3))
    data = torch.randn(6, 3, 8), torch.randint(3, (6,))
    posterior = vogn.laplace(head, Categorical(), [data], prior_precision=10.0)
    found = vogn.predict(head, posterior, data[0], method="linearized", samples=2)
    assert bool(found.mean.isfinite().all()) and found.mean.shape == (6, 3)


class Rounds(torch.autograd.Function):
    """An operation without a forward derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Rounding(nn.Linear):
    def forward(self, x):
        return Rounds.apply(super().forward(x))


def test_an_operation_without_a_forward_derivative_is_an_error_with_the_remedy():
    model = Rounding(3, 3).double()
    posterior = vogn.laplace(nn.Linear(3, 3).double(), Categorical(), [batch(8, 0, torch.float64)])
    with pytest.raises((NotImplementedError, RuntimeError), match="method='mc'"):
        vogn.predict(model, posterior, normal(2, 3), method="linearized")


# ------------------------------------------------------------------ sampling the last layer from its features


@pytest.mark.parametrize("subset", ["last_layer", ["3.weight"], ["3.bias"]])
@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian(noise=0.5)], ids=str)
def test_the_last_layer_is_sampled_in_one_pass(subset, likelihood, monkeypatch):
    model, (x, y) = network(), batch(8, 0, torch.float64)
    y = y if likelihood.kind == "categorical" else normal(8, 3, seed=9)
    posterior = posterior_of(model, likelihood, (x, y), subset=subset, partition="layer", structure="diagonal")
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    options = {"samples": 6, "batchnorm": "mean", "link": "mc", "batch_size": 4}
    found = vogn.predict(model, posterior, x, method="linearized", **options)
    assert len(passes) == (2 if subset != ["3.bias"] else 12)
    plain = vogn.predict(model, posterior, x, method="mc", **options)  # the last layer is linear
    torch.testing.assert_close(found.samples, plain.samples)


def test_a_bare_layer_is_a_last_layer():
    model, (x, y) = fill(nn.Linear(3, 3).double()), batch(8, 0, torch.float64)
    posterior = posterior_of(model, Categorical(), (x, y))
    found = vogn.predict(model, posterior, x, method="linearized", samples=4)
    torch.testing.assert_close(found.samples, vogn.predict(model, posterior, x, samples=4).samples)


class Tied(nn.Module):
    """The last layer's weights are those of the first one too, so that its features do not tell."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        self.body = nn.Linear(3, 3, bias=False)
        self.body.weight = self.head.weight

    def forward(self, x):
        return self.head(self.body(x).tanh())


@pytest.mark.parametrize("link", ["mc", "probit"])
def test_a_last_layer_that_shares_its_weights_is_differentiated(link):
    model, x = fill(Tied().double()), normal(5, 3, seed=4)
    found = vogn.predict(model, around_head(model), x, method="linearized", link=link, samples=3, seed=2)
    mean = {"head.weight": model.head.weight.detach()}
    call = lambda weights: torch.func.functional_call(model, weights, (x,))  # noqa: E731
    jacobian = torch.func.jacrev(call)(mean)["head.weight"]
    if link == "mc":
        draws = around_head(model).sample(3, seed=2)["head.weight"]
        changes = [(jacobian * (draw - mean["head.weight"])).flatten(2).sum(-1) for draw in draws]
        expected = torch.stack([(call(mean) + change).softmax(-1) for change in changes]).mean(0)
    else:
        variance = 0.09 * jacobian.flatten(2).square().sum(-1)
        expected = (call(mean) / (1 + torch.pi / 8 * variance).sqrt()).softmax(-1)
    torch.testing.assert_close(found.mean, expected.detach())


def around_head(model):
    """Independent noise of standard deviation 0.3 on the last layer's weights."""
    layout = MatrixLayout(("head.weight",), ((3, 3),), (3, 3))
    state = Diagonal().init((3, 3), initial=1.0, dtype=torch.float64, device="cpu")
    block = PosteriorBlock("head.weight", layout, Diagonal(), state, shift=0.0, ess=0.3**-2)
    return GaussianPosterior([block], {"head.weight": model.head.weight}, likelihood={"kind": "categorical"})


@pytest.mark.parametrize(
    "likelihood, outputs, samples", [(Gaussian(), 2, None), (Categorical(), 3, 4)], ids=["real targets", "classes"]
)
def test_the_link_is_exact_where_it_can_be_unless_another_is_asked_for(likelihood, outputs, samples):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double())
    y = normal(9, 2, seed=2) if samples is None else torch.arange(9) % 3
    posterior = vogn.laplace(model, likelihood, [(normal(9, 3, seed=1), y)])
    found = vogn.predict(model, posterior, normal(4, 3, seed=3), method="linearized", samples=4)
    assert (found.samples is None) == (samples is None) and found.samples_used == (samples or 0)
    asked = vogn.predict(model, posterior, normal(4, 3, seed=3), method="linearized", link="mc", samples=4)
    assert len(asked.samples) == 4
