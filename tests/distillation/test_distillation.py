"""A student's probabilities, variances and information approach the teacher's."""

import math

import pytest
import torch
from torch import nn

import vogn
from tiny_models import fill, normal
from vogn.distillation import Distilled, distill
from vogn.distillation.heads import DirichletHead, GaussianHead, head_for
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.predict import Predictive


def mlp(*sizes, seed=0):
    layers = []
    for a, b in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return fill(nn.Sequential(*layers[:-1]).double(), seed)


@pytest.fixture(scope="module")
def classes():
    """A teacher that is unsure about its weights, and inputs beyond those that it was trained on."""
    x = normal(40, 2, seed=1)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    model = mlp(2, 6, 3)
    opt = vogn.KFAC(model, lr=0.1, ess=40, weight_decay=1 / 40, variational=False)
    for _ in range(60):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    return model, vogn.laplace(model, Categorical(), [(x, y)]), 2.0 * normal(400, 2, seed=2)


def test_probabilities_and_information_approach_the_teachers(classes):
    model, posterior, x = classes
    losses = []
    student = distill(model, posterior, mlp(2, 32, 32, 4, seed=3), x, method="linearized", samples=200, epochs=120,
                      lr=1e-2, watch=lambda epoch, loss: losses.append(loss))  # fmt: skip
    teacher = vogn.predict(model, posterior, x, method="linearized", samples=200)
    found = student.predict(x)
    assert isinstance(student, Distilled) and found.samples is None
    assert float((found.mean - teacher.mean).abs().mean()) < 0.02
    torch.testing.assert_close(found.mean.sum(-1), torch.ones(400).double())
    assert float((found.variance.sum(-1) - teacher.variance.sum(-1)).abs().mean()) < 0.02
    assert float(teacher.variance.sum(-1).mean()) > 0.1
    for name in ("total", "epistemic"):
        pair = torch.stack([getattr(found, name), getattr(teacher, name)])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.95
        assert float((pair[0] - pair[1]).abs().mean()) < 0.05 and float(pair[1].mean()) > 0.1
    assert losses[-1] < 0.05 * losses[0] and losses[-1] < 0.02


def test_new_inputs_are_predicted_as_the_teacher_does(classes):
    model, posterior, x = classes
    new = 2.0 * normal(200, 2, seed=7)
    student = distill(model, posterior, mlp(2, 32, 32, 4, seed=3), x, method="linearized", epochs=120, lr=1e-2)
    teacher = vogn.predict(model, posterior, new, method="linearized", samples=400)
    found = student.predict(new, batch_size=64)
    mean_network = vogn.predict(model, posterior, new, method="mean")
    error = float((found.mean - teacher.mean).abs().mean())
    assert error < 0.03 and error < 0.5 * float((mean_network.mean - teacher.mean).abs().mean())


def test_means_and_variances_of_real_targets_approach_the_teachers():
    x = normal(30, 1, seed=1)
    y = torch.sin(2.0 * x) + 0.2 * normal(30, 1, seed=2)
    model = mlp(1, 8, 1)
    opt = vogn.KFAC(model, lr=0.1, ess=30, weight_decay=1 / 30, variational=False)
    for _ in range(100):
        opt.zero_grad()
        with opt.sampled_params():
            Gaussian(noise=0.2)(model(x), y).backward()
        opt.step()
    posterior = vogn.laplace(model, Gaussian(noise=0.2), [(x, y)])
    grid = torch.linspace(-3, 3, 300).double().unsqueeze(1)
    student = distill(model, posterior, mlp(1, 32, 32, 2, seed=5), grid, method="linearized", epochs=150, lr=1e-2)
    teacher, found = vogn.predict(model, posterior, grid, method="linearized"), student.predict(grid)
    assert float((found.mean - teacher.mean).abs().mean()) < 0.1 * float(teacher.variance.sqrt().mean())
    assert float((found.variance.log() - teacher.variance.log()).abs().mean()) < 0.1
    assert float(teacher.variance.log().std()) > 0.3
    assert float(torch.corrcoef(torch.stack([found.epistemic[:, 0], teacher.epistemic[:, 0]]))[0, 1]) > 0.98
    torch.testing.assert_close(found.aleatoric, torch.full((300, 1), 0.04).double())
    assert found.interval(0.9)[0].shape == (300, 1) and float(found.nll(teacher.mean).mean()) < 1.0


def test_a_dirichlet_distribution_is_learned_as_it_is():
    """Mean, variance, expected entropy and mutual information of a known Dirichlet, against samples of it."""
    alpha = torch.tensor([[4.0, 2.0, 1.0], [0.5, 0.5, 3.0]]).double()
    torch.manual_seed(0)
    draws = torch.distributions.Dirichlet(alpha).sample((200_000,))
    mean, variance = draws.mean(0), draws.var(0, correction=0)
    head = DirichletHead()
    teacher = Predictive(mean, variance, None, Categorical(), torch.special.entr(draws).sum(-1).mean(0))
    targets = head.targets(teacher)
    outputs = torch.cat([targets["p"].log(), torch.logit(targets["share"]).unsqueeze(-1)], -1)
    found = head.predictive(outputs)
    torch.testing.assert_close(found.mean, alpha / alpha.sum(-1, keepdim=True), atol=3e-3, rtol=0)
    torch.testing.assert_close(found.variance, variance, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.aleatoric, teacher.aleatoric, atol=3e-3, rtol=0)
    torch.testing.assert_close(found.epistemic, teacher.epistemic, atol=3e-3, rtol=0)
    assert float(head.loss(outputs, targets)) == pytest.approx(0.0, abs=1e-9)


def test_the_losses_are_divergences():
    """Against ``torch.distributions``, with a student that is wrong."""
    from torch.distributions import Bernoulli as Coin
    from torch.distributions import Categorical as Labels
    from torch.distributions import Normal, kl_divergence

    outputs = normal(5, 4, seed=1)
    p, share = normal(5, 3, seed=2).softmax(-1), torch.sigmoid(normal(5, seed=3))
    wanted = kl_divergence(Labels(p), Labels(logits=outputs[:, :3])) + kl_divergence(
        Coin(share), Coin(logits=outputs[:, 3])
    )
    torch.testing.assert_close(DirichletHead().loss(outputs, {"p": p, "share": share}), wanted.mean())
    head, mean, ratio = GaussianHead(0.5), normal(5, 2, seed=4), normal(5, 2, seed=5).exp()
    observed = kl_divergence(
        Normal(mean, 0.5 * (1 + ratio).sqrt()), Normal(outputs[:, :2], 0.5 * (1 + outputs[:, 2:].exp()).sqrt())
    )
    functions = kl_divergence(Normal(0.0, ratio.sqrt()), Normal(0.0, (0.5 * outputs[:, 2:]).exp()))
    found = head.loss(outputs, {"mean": mean, "ratio": ratio})
    torch.testing.assert_close(found, (observed + functions).sum(-1).mean())


def test_a_point_teacher_has_a_student_without_epistemic_uncertainty():
    model, x = mlp(2, 4, 3), normal(60, 2)
    teacher = vogn.Point(model, likelihood=Categorical())
    student = distill(model, teacher, mlp(2, 16, 4), x, epochs=300, lr=1e-2, samples=2)
    found = student.predict(x)
    assert float(found.epistemic.mean()) < 0.01 < float(found.total.mean())
    assert bool(torch.isfinite(found.variance).all())


def test_equal_seeds_give_equal_students_and_modes_come_back(classes):
    model, posterior, x = classes
    one, other = (
        distill(model, posterior, mlp(2, 8, 4).eval(), x, method="linearized", epochs=2, samples=5) for _ in range(2)
    )
    assert torch.equal(one(x), other(x)) and not one.network.training
    single = distill(model, posterior, mlp(2, 8, 4).float(), x, method="linearized", epochs=1, samples=5)
    assert single.predict(x.float()).mean.dtype == torch.float32


def test_wrong_input_is_named(classes):
    model, posterior, x = classes
    with pytest.raises(ValueError, match=r"returns outputs of shape \(64, 3\); \(N, 4\) is needed"):
        distill(model, posterior, mlp(2, 4, 3), x, samples=2)
    with pytest.raises(ValueError, match="epochs=0"):
        distill(model, posterior, mlp(2, 4, 4), x, epochs=0)
    with pytest.raises(ValueError, match="lr=0"):
        distill(model, posterior, mlp(2, 4, 4), x, lr=0.0)
    with pytest.raises(ValueError, match="Bernoulli cannot be distilled"):
        head_for(Bernoulli())
    with pytest.raises(ValueError, match="loss is not finite"):
        broken = mlp(2, 4, 4)
        nn.init.constant_(broken[0].bias, math.nan)
        distill(model, posterior, broken, x, samples=2)
