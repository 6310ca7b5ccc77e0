"""Which weights go, what is left, and what it costs."""

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.predict import jacobian
from vogn.pruning import SCORES, PrunedPosterior, prune, pruning_curve, scores
from vogn.structures import Diagonal


@pytest.fixture
def model():
    return fill(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())


@pytest.fixture
def posterior(model):
    return vogn.laplace(model, Categorical(), [batch(40)], structure="diagonal")


def test_the_scores_by_hand(posterior):
    mean, std = posterior.mean()["0.weight"], posterior.variance()["0.weight"].sqrt()
    wanted = {
        "snr": mean.abs() / std,
        "second_order": mean**2 / std**2 / 2,
        "signal_plus_noise": mean.abs() + std,
        "magnitude": mean.abs(),
    }
    assert set(wanted) == set(SCORES)
    for name, value in wanted.items():
        torch.testing.assert_close(scores(posterior, name)["0.weight"], value)


def test_signal_to_noise_and_optimal_brain_damage_prune_the_same(posterior):
    for share in (0.1, 0.5, 0.9):
        a, b = prune(posterior, share), prune(posterior, share, score="second_order")
        assert all(torch.equal(a.keep[name], b.keep[name]) for name in a.keep)


def test_the_sum_of_second_order_scores_is_the_loss_of_a_quadratic():
    """``0.5 m^T H m`` of the weights that go, for a diagonal Hessian."""
    layout = MatrixLayout(("w",), ((4, 3),), (4, 3))
    precision, mean = normal(4, 3, seed=1).square(), normal(4, 3, seed=2)
    posterior = GaussianPosterior([PosteriorBlock("w", layout, Diagonal(), {"c": precision}, 0.0, 1.0)], {"w": mean})
    pruned = prune(posterior, 0.5)
    loss = float(posterior.log_prob(posterior.mean()) - posterior.log_prob(pruned.mean()))
    assert loss == pytest.approx(float(scores(posterior, "second_order")["w"][~pruned.keep["w"]].sum()))
    assert loss < float(scores(posterior, "second_order")["w"].sum()) / 4  # the cheapest half


def test_the_lowest_scores_go_over_all_parameters_or_in_each(posterior):
    weights = [name for name in posterior.names if name.endswith("weight")]
    for share in (0.0, 0.3, 1.0):
        pruned, found = prune(posterior, share), scores(posterior)
        flat = torch.cat([found[name].flatten() for name in weights])
        keep = torch.cat([pruned.keep[name].flatten() for name in weights])
        assert int((~keep).sum()) == round(share * len(flat))
        if 0 < share < 1:
            assert float(flat[~keep].max()) < float(flat[keep].min())
        assert all(bool(pruned.keep[name].all()) for name in pruned.keep if name.endswith("bias"))
    each = prune(posterior, 0.4, per="parameter")
    assert [int((~each.keep[name]).sum()) for name in weights] == [6, 8, 5]
    some = prune(posterior, 0.5, only=["2.*"])
    assert some.sparsity == pytest.approx(10 / sum(m.numel() for m in some.keep.values()))
    assert bool(some.keep["0.weight"].all()) and int((~some.keep["2.weight"]).sum()) == 10


def test_a_pruned_unit_says_nothing(model, posterior):
    pruned = prune(posterior, 4 / 9, by="unit")
    gone = {name: (~pruned.keep[name]).all(-1) for name in ("0.weight", "2.weight", "4.weight")}
    assert int(gone["0.weight"].sum() + gone["2.weight"].sum()) == 4 and not bool(gone["4.weight"].any())
    for layer in ("0", "2"):
        assert torch.equal(~pruned.keep[f"{layer}.bias"], gone[f"{layer}.weight"])
    pruned.write_to(model)
    hidden = model[:2](batch(6)[0])
    assert bool((hidden[:, gone["0.weight"]] == 0).all()) and bool((hidden[:, ~gone["0.weight"]] != 0).all())


def test_a_unit_scores_the_root_mean_square_of_what_enters_it(posterior):
    found = scores(posterior)
    rows = torch.cat([found["0.weight"], found["0.bias"].unsqueeze(1)], 1).square().mean(1).sqrt()
    pruned = prune(posterior, 0.4, by="unit", only=["0.weight"])
    assert set(torch.nonzero(~pruned.keep["0.bias"]).flatten().tolist()) == set(rows.argsort()[:2].tolist())


def test_filters_of_a_convolution_are_units():
    model = fill(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).double())
    x, y = normal(10, 1, 4, 4), torch.arange(10) % 2
    pruned = prune(vogn.laplace(model, Categorical(), [(x, y)], structure="diagonal"), 0.5, by="unit")
    pruned.write_to(model)
    silent = (model[0](x) == 0).all(0).all(-1).all(-1)
    assert int(silent.sum()) == 2


def test_what_is_left_keeps_its_distribution(model, posterior):
    pruned = prune(posterior, 0.5)
    draws, whole = pruned.sample(3, seed=1), posterior.sample(3, seed=1)
    for name, keep in pruned.keep.items():
        assert torch.equal(draws[name], whole[name] * keep)
        assert torch.equal(pruned.variance()[name] == 0, ~keep)
    _, slopes = jacobian(model, pruned.mean(), batch(4)[0])
    flat = torch.cat([(slopes[name] * pruned.keep[name]).flatten(2) for name in pruned.keep], 2)
    variance = torch.cat([pruned.variance()[name].flatten() for name in pruned.keep])
    torch.testing.assert_close(pruned.functional_variance(slopes), (flat * variance) @ flat.mT)
    assert vogn.predict(model, pruned, batch(4)[0], method="linearized", samples=4).mean.shape == (4, 3)
    assert isinstance(pruned, vogn.Posterior)
    for refused in (pruned.entropy, lambda: pruned.log_prob(pruned.mean())):
        with pytest.raises(NotImplementedError, match="no density"):
            refused()


def test_inputs_without_effect_are_found_by_signal_to_noise():
    """A linear model: half of the inputs do nothing. Large inputs have small weights, which magnitude would prune."""
    x = normal(200, 10, seed=1) * torch.tensor([100.0] * 5 + [0.05] * 5).double()
    y = x[:, :5] @ torch.full((5, 1), 0.01).double() + 0.1 * normal(200, 1, seed=2)
    model = nn.Linear(10, 1, bias=False).double()
    precision = x.T @ x / 0.1**2 + torch.eye(10).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / 0.1**2).T)
    posterior = vogn.laplace(model, Gaussian(noise=0.1), [(x, y)], structure="dense")
    assert prune(posterior, 0.5).keep["weight"].tolist() == [[True] * 5 + [False] * 5]
    assert prune(posterior, 0.5, score="magnitude").keep["weight"].tolist() != [[True] * 5 + [False] * 5]
    curve = pruning_curve(model, posterior, x, y, (0.0, 0.5, 0.9), samples=64)
    assert curve[1].quality < 0.12 < curve[2].quality and curve[2].nll > curve[1].nll + 1
    assert curve.largest(0.05) == curve[1] and curve[1].sparsity == 0.5


def test_the_curve_of_a_classifier_is_that_of_predict(model, posterior):
    x, y = batch(30, seed=5)
    curve = pruning_curve(model, posterior, x, y, (0.0, 0.8), samples=8, seed=3)
    found = vogn.predict(model, prune(posterior, 0.8), x, samples=8, seed=3)
    assert curve[1].nll == pytest.approx(float(found.nll(y).mean()))
    assert curve[1].quality == pytest.approx(float(vogn.metrics.accuracy(found.mean, y)))


def test_wrong_input_is_named(model, posterior):
    with pytest.raises(ValueError, match="share=1.5"):
        prune(posterior, 1.5)
    with pytest.raises(ValueError, match="score='size' is unknown; choose one of snr"):
        prune(posterior, 0.5, score="size")
    with pytest.raises(ValueError, match="by='layer'"):
        prune(posterior, 0.5, by="layer")
    with pytest.raises(ValueError, match="nothing to prune"):
        prune(posterior, 0.5, only=["no.such"])
    with pytest.raises(ValueError, match="must hold booleans"):
        PrunedPosterior(posterior, {"0.weight": torch.ones(5, 3)})
    with pytest.raises(ValueError, match="at least one share"):
        pruning_curve(model, posterior, *batch(4), shares=())
