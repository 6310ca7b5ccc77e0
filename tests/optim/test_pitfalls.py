"""Loops that users really write: each is either measured exactly or refused with the remedy, never silently wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vogn
from vogn.likelihoods import Categorical
from vogn.optim.update import mean_gradient

N, K = 12, 3
likelihood = Categorical()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, K)).double()


def data(n: int = N) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % K


def still(model: nn.Module, fisher: str = "empirical") -> vogn.VOGN:
    """Measures without moving: the curvature after a step is the batch's."""
    return vogn.VOGN(model, lr=0.0, ess=100.0, curvature_decay=0.0, variational=False, fisher=fisher, norms="sampled")


def measured(model: nn.Module, opt: vogn.NaturalGradient) -> dict[str, Tensor]:
    """Curvature by parameter."""
    out: dict[str, Tensor] = {}
    for block in opt.posterior().blocks:
        out |= block.layout.unpack(block.state["c"])
    return out


def squares(model: nn.Module, x: Tensor, y: Tensor, fisher: str = "empirical") -> dict[str, Tensor]:
    """Mean of squared per-example gradients (or of the Gauss-Newton's diagonal), example by example."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        logits = model(x[n : n + 1])
        if fisher == "empirical":
            directions = [likelihood.score(logits.detach(), y[n : n + 1])]
        else:
            directions = list(likelihood.hessian_sqrt(logits.detach()))
        for direction in directions:
            grads = torch.autograd.grad(logits, list(model.parameters()), direction, retain_graph=True)
            for name, grad in zip(total, grads, strict=True):
                total[name] += grad.square() / len(x)
    return total


def check(model: nn.Module, opt: vogn.NaturalGradient, fisher: str = "empirical") -> None:
    x, y = data()
    opt.step()
    torch.testing.assert_close(measured(model, opt), squares(model, x, y, fisher), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
class TestOneBatch:
    def test_losses_first_backwards_later(self, fisher: str) -> None:
        model = network()
        opt, (x, y) = still(model, fisher), data()
        with opt.sampled_params():
            losses = [likelihood(model(a), b) / 3 for a, b in zip(x.chunk(3), y.chunk(3), strict=True)]
            for loss in losses:
                loss.backward()
        check(model, opt, fisher)

    def test_a_likelihood_evaluated_for_logging_does_not_count(self, fisher: str) -> None:
        model = network()
        opt, (x, y) = still(model, fisher), data()
        with opt.sampled_params():
            likelihood(model(100 * x[:6]), y[:6])
            outputs = model(x)
            likelihood(outputs, y).backward()
            likelihood(outputs, y).detach()
            likelihood(model(100 * x[:6]), y[:6])
        check(model, opt, fisher)

    def test_two_heads_of_one_forward_pass_count_their_examples_once(self, fisher: str) -> None:
        model = network()
        opt, (x, y) = still(model, fisher), data()
        with opt.sampled_params():
            outputs = model(x)
            (likelihood(outputs, y, weight=0.5) + likelihood(outputs, y, weight=0.5)).backward()
        opt.step()
        expected = squares(model, x, y, fisher)
        factor = 1.0 if fisher == "empirical" else 2.0  # two observations of every example against one summed gradient
        for name, value in measured(model, opt).items():
            torch.testing.assert_close(value, factor * expected[name], rtol=1e-8, atol=1e-12)


def test_two_forward_passes_in_one_backward_are_refused_or_added() -> None:
    x, y = data()
    model = network()
    opt = still(model)
    with pytest.raises(TypeError, match="once per micro-batch"), opt.sampled_params():
        (sum(likelihood(model(a), b) for a, b in zip(x.chunk(3), y.chunk(3), strict=True)) / 3).backward()
    opt = still(model, "ggn")
    with opt.sampled_params():
        (sum(likelihood(model(a), b) for a, b in zip(x.chunk(3), y.chunk(3), strict=True)) / 3).backward()
    check(model, opt, "ggn")


def test_a_second_backward_through_the_same_forward_pass_is_refused() -> None:
    model = network()
    opt, (x, y) = still(model), data()
    with pytest.raises(TypeError, match="two backward passes"), opt.sampled_params():
        loss = likelihood(model(x), y)
        loss.backward(retain_graph=True)
        loss.backward()
    assert not opt._contexts.open


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fisher", ["empirical", "mc", "ggn"])
def test_heads_of_one_forward_pass_with_a_backward_each_are_refused(fisher: str, first: bool) -> None:
    body, heads = nn.Linear(4, 5).double(), [nn.Linear(5, K).double() for _ in range(2)]
    model = nn.ModuleList([body, *heads])
    opt, (x, y) = still(model, fisher), data()
    with pytest.raises(TypeError, match=r"two backward passes.*'0.weight'"), opt.sampled_params():
        hidden = torch.tanh(body(x))
        if first:  # both losses, then both backward passes
            for loss in [likelihood(head(hidden), y) for head in heads]:
                loss.backward(retain_graph=True)
        else:
            for head in heads:
                likelihood(head(hidden), y).backward(retain_graph=True)


@pytest.mark.parametrize("fisher", ["mc", "ggn"])
def test_a_second_forward_pass_of_a_body_with_another_head_is_another_batch(fisher: str) -> None:
    body, heads = nn.Linear(4, 5).double(), [nn.Linear(5, K).double() for _ in range(2)]
    model = nn.ModuleList([body, *heads])
    opt, (x, y) = still(model, fisher), data()
    with opt.sampled_params():
        for head in heads:
            (likelihood(head(torch.tanh(body(x))), y) / 2).backward()
    opt.step()


def test_time_first_layers_are_refused_by_name() -> None:
    class TimeFirst(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step, self.head = nn.Linear(2, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.step(x.transpose(0, 1))).sum(0))

    model = TimeFirst().double()
    opt = still(model)
    x = torch.randn(N, 5, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"'step.weight' saw 5 rows where the batch has 12"), opt.sampled_params():
        likelihood(model(x), data()[1]).backward()


def test_an_evaluation_context_is_no_weight_sample() -> None:
    model = network()
    opt, (x, y) = still(model), data()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    with opt.sampled_params(), torch.no_grad():
        model(x)
    gradient = model[0].weight.grad.clone()
    mean = mean_gradient(opt, *opt._build(), *opt._build()[0].items[0])
    torch.testing.assert_close(mean[:, :-1], gradient)
    check(model, opt)


def test_attention_is_covered_exactly_by_the_own_pass() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x.unflatten(1, (2, 4))).mean(1))

    torch.manual_seed(0)
    model = Classifier().double()
    x, y = torch.randn(5, 8, dtype=torch.float64), torch.arange(5) % K
    opt = still(model)
    covered = [line["parameter"] for line in opt.coverage()]
    assert sorted(covered) == sorted(name for name, _ in model.named_parameters())
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    torch.testing.assert_close(measured(model, opt), squares(model, x, y), rtol=1e-7, atol=1e-12)


@pytest.mark.filterwarnings("ignore:block 'first.weight'")
def test_a_layer_that_is_bypassed_inside_a_joined_block_is_refused() -> None:
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 5), nn.Linear(5, K)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.tanh(self.first(x)), self.head.weight, self.head.bias)

    model = Bypass().double()
    opt = vogn.SLANG(model, ess=100.0, rank=3)
    x, y = data()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    with pytest.raises(vogn.errors.MissingCurvatureError, match="'head.weight'"):
        opt.step()


def test_a_layer_that_is_never_used_keeps_the_prior() -> None:
    model = network()
    model.add_module("unused", nn.Identity())
    model.unused.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    opt = vogn.VOGN(model, ess=100.0, weight_decay=0.5)
    x, y = data()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    variance = opt.posterior().variance()["unused.weight"]
    torch.testing.assert_close(variance, torch.full((2,), 1 / 50.0, dtype=torch.float64))


def test_after_a_bad_batch_the_next_step_is_clean_even_without_the_optimizers_zero_grad() -> None:
    model = network()
    opt, (x, y) = still(model), data()
    with opt.sampled_params():
        likelihood(model(x * float("nan")), y).backward()
    with pytest.raises(vogn.errors.NonFiniteStatisticsError):
        opt.step()
    model.zero_grad()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    check(model, opt)


def test_the_posterior_knows_the_learned_noise_of_this_moment() -> None:
    model = nn.Linear(4, 1).double()
    noise = vogn.likelihoods.Gaussian(noise="learn")
    opt = vogn.VOGN(model, ess=100.0)
    x, _ = data()
    with opt.sampled_params():
        noise(model(x), x[:, :1]).backward()
    opt.step()
    with torch.no_grad():
        noise.log_noise.fill_(-1.0)
    assert opt.posterior().likelihood == noise.to_dict()


def test_every_method_builds_under_any_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for info in vogn.METHODS.values():
            info.build(network(), ess=10.0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_weight_used_beside_its_layer_is_warned_about_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(F.linear(torch.tanh(self.first(x)), self.first.weight)))

    model = Tied().double()
    opt = still(model)
    x, y = data()
    with pytest.warns(UserWarning, match="'first.weight': part of its gradient") as seen:
        for _ in range(2):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(x), y).backward()
            opt.step()
    assert len(seen) == 1


def test_a_joined_block_resumes_between_two_observations() -> None:
    """A step that is not due observes no layer; that is no reason to miss one after a checkpoint."""
    x, y = data()

    def advance(model: nn.Module, opt: vogn.NaturalGradient) -> None:
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x), y).backward()
        opt.step()

    model, other = network(), network()
    opt, resumed = (vogn.SLANG(m, ess=100.0, rank=3, observe_every=3) for m in (model, other))
    advance(model, opt)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(opt.state_dict())
    for _ in range(3):
        advance(model, opt)
        advance(other, resumed)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
