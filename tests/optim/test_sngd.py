"""SNGD in the weights against gradient descent on an explicitly reparametrised network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import SNGD, NaturalGradient
from vogn.likelihoods import Categorical
from vogn.linalg.noise import normal as draw
from vogn.structures import LocalFisher

LR, DAMPING = 0.3, 0.02


def roots(metric):
    """``M^(1/2)`` and ``M^(-1/2)``."""
    values, vectors = torch.linalg.eigh(metric)
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T


def with_ones(x):
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


class Reparametrised:
    """Linear-Tanh-Linear in the coordinates ``W' = W M^(1/2)``, biases as further columns."""

    def __init__(self, model):
        self.weights = [torch.cat([m.weight, m.bias.unsqueeze(1)], 1).detach() for m in (model[0], model[2])]
        self.velocity = [torch.zeros_like(w) for w in self.weights]
        self.roots = [torch.eye(w.shape[1], dtype=w.dtype) for w in self.weights]
        self.inverses = [r.clone() for r in self.roots]

    def inputs(self, x):
        """What the two layers multiply."""
        first = with_ones(x)
        return [first, with_ones(torch.tanh(first @ self.inverses[0] @ self.weights[0].T))]

    def __call__(self, x):
        return self.inputs(x)[1] @ self.inverses[1] @ self.weights[1].T

    def base_anew(self, metrics):
        """``W' <- W' M_old^(-1/2) M_new^(1/2)``, and the velocity with it."""
        for k, metric in enumerate(metrics):
            root, inverse = roots(metric)
            self.weights[k] = self.weights[k] @ self.inverses[k] @ root
            self.velocity[k] = self.velocity[k] @ self.inverses[k] @ root
            self.roots[k], self.inverses[k] = root, inverse

    def original(self):
        return [w @ inverse for w, inverse in zip(self.weights, self.inverses, strict=True)]

    def gradients(self, x, y, weight_decay):
        for w in self.weights:
            w.requires_grad_()
        penalty = sum(w.square().sum() for w in self.original())
        loss = F.cross_entropy(self(x), y) + 0.5 * weight_decay * penalty
        found = torch.autograd.grad(loss, self.weights)
        self.weights = [w.detach() for w in self.weights]
        return found


def packed(model):
    return [torch.cat([m.weight, m.bias.unsqueeze(1)], 1).detach() for m in (model[0], model[2])]


@pytest.mark.parametrize("root", ["eigh", "nystrom", "denman_beavers"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("refresh_every", [100, 4])
def test_it_is_gradient_descent_in_reconstructed_coordinates(tools, refresh_every, weight_decay, momentum, root):
    """20 steps; a metric that changes leaves the function of the reparametrised network as it is."""
    model = tools.network()
    opt = SNGD(
        model,
        lr=LR,
        metric="inputs",
        root=root,
        weight_decay=weight_decay,
        damping=DAMPING,
        momentum=momentum,
        curvature_decay=0.8,
        refresh_every=refresh_every,
        variational=False,
    )
    other, start, metrics, based = Reparametrised(model), packed(model), None, 0
    for step in range(20):
        x, y = tools.batch(seed=step)
        tools.train(opt, model, 1, start=step)
        seen = [a.T @ a / len(a) for a in other.inputs(x)]
        metrics = seen if metrics is None else [0.8 * m + 0.2 * s for m, s in zip(metrics, seen, strict=True)]
        if step % refresh_every == 0:
            before = other(x)
            shift = weight_decay + DAMPING
            other.base_anew([m + shift * torch.eye(len(m)).double() for m in metrics])
            torch.testing.assert_close(other(x), before, rtol=1e-10, atol=1e-10)
            based += 1
        for k, g in enumerate(other.gradients(x, y, weight_decay)):
            other.velocity[k] = momentum * other.velocity[k] + (1 - momentum) * g
            other.weights[k] = other.weights[k] - LR * other.velocity[k] / (1 - momentum ** (step + 1))
        for ours, theirs in zip(packed(model), other.original(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert based == (1 if refresh_every == 100 else 5)
    moved = max(float((a - b).abs().max()) for a, b in zip(packed(model), start, strict=True))
    assert moved > 0.05, "the run must go somewhere"


@pytest.mark.parametrize("root", ["eigh", "nystrom"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_the_identity_as_metric_it_is_gradient_descent_bit_for_bit(tools, dtype, root):
    model, other = tools.network(dtype=dtype), tools.network(dtype=dtype)
    opt = SNGD(
        model,
        lr=LR,
        root=root,
        weight_decay=0.0,
        damping=0.0,
        initial_curvature=1.0,
        curvature_decay=1.0,
        refresh_every=3,
        variational=False,
    )
    plain = torch.optim.SGD(other.parameters(), lr=LR)
    for step in range(20):
        tools.train(opt, model, 1, start=step, dtype=dtype)
        x, y = tools.batch(seed=step, dtype=dtype)
        plain.zero_grad()
        Categorical()(other(x), y).backward()
        plain.step()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("root", ["eigh", "denman_beavers"])
def test_a_weight_sample_is_noise_times_the_inverse_root_of_the_metric(tools, root):
    model, ess, weight_decay = tools.network(), 80.0, 0.05
    opt = SNGD(model, lr=LR, ess=ess, root=root, weight_decay=weight_decay, damping=DAMPING, seed=4)
    x, y = tools.batch(seed=0)
    inputs = Reparametrised(model).inputs(x)
    metrics = [a.T @ a / len(a) for a in inputs]
    tools.train(opt, model, 1)
    mean = packed(model)
    with opt.sampled_params():
        theta = packed(model)
    for k, name in enumerate(("0.weight", "2.weight")):
        eps = draw(tuple(mean[k].shape), dtype=torch.float64, seed=4, stream="weights", step=1, sample=0, name=name)
        shifted = metrics[k] + weight_decay * torch.eye(len(metrics[k])).double()
        torch.testing.assert_close(theta[k], mean[k] + ess**-0.5 * eps @ roots(shifted)[1], rtol=1e-10, atol=1e-10)
        outputs = len(mean[k])
        expected = torch.kron(torch.eye(outputs).double(), ess * shifted)
        torch.testing.assert_close(opt.posterior().precision_matrices()[name], expected, rtol=1e-10, atol=1e-10)


def test_neither_labels_nor_the_scale_of_the_loss_nor_its_likelihood_enter_the_metric(tools):
    states = []
    x, y = tools.batch(seed=0)
    losses = [
        lambda outputs: Categorical()(outputs, y),
        lambda outputs: Categorical()(outputs, 2 - y) * 7.0,
        lambda outputs: F.cross_entropy(outputs, y),
        lambda outputs: outputs.square().mean(),
    ]
    for loss in losses:
        model = tools.network()
        opt = SNGD(model, lr=0.0, metric="rfim_unit", variational=False)
        tools.backward(opt, lambda model=model, loss=loss: loss(model(x)))
        opt.step()
        states.append(tools.curvature(opt))
    for other in states[1:]:
        for name, state in states[0].items():
            torch.testing.assert_close(other[name]["M"], state["M"], rtol=1e-14, atol=0)


class Pictures(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(2, 3, 2)
        self.head = nn.Linear(12, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.head(F.relu(self.convolution(x), inplace=True).flatten(1)) * self.scale


@pytest.mark.parametrize("statistic", ["inputs", "empirical", "mc", "ggn"])
def test_a_units_metric_reads_the_outputs_before_an_activation_in_place(tools, statistic):
    """A convolution and a linear layer, in the user's pass and in passes of our own."""
    model = tools.fill(Pictures().double())
    x, y = tools.normal(5, 2, 3, 3), tools.batch(5)[1]
    opt = NaturalGradient(model, LocalFisher(scope="unit"), statistic, lr=0.0, damping=0.1, variational=False)
    tools.backward(opt, lambda: Categorical()(model(x), y))
    opt.step()
    patches = F.unfold(x, 2).transpose(1, 2)
    before = model.convolution(x).flatten(2).transpose(1, 2).detach()
    hidden = F.relu(model.convolution(x)).flatten(1).detach()
    layers = {
        "convolution.weight": (patches, before),
        "head.weight": (hidden.unsqueeze(1), model.head(hidden).unsqueeze(1).detach()),
    }
    states = tools.curvature(opt)
    for name, (a, outputs) in layers.items():
        a = torch.cat([a, torch.ones_like(a[..., :1])], -1)
        m = torch.einsum("nto,nti,ntj->oij", outputs.sigmoid() ** 2, a, a) / (a.shape[0] * a.shape[1])
        torch.testing.assert_close(states[name]["M"], m, rtol=1e-12, atol=1e-12)
    assert torch.equal(states["scale"]["M"], torch.ones(3, 1, 1, 1).double())


def test_layers_whose_units_are_too_many_have_the_shared_metric(tools, monkeypatch):
    model = tools.network()
    with pytest.warns(UserWarning, match="LocalFisher"):
        opt = SNGD(
            model,
            metric="rfim_unit",
            structure={"0": LocalFisher(scope="unit", max_elements=10)},
            ess=10.0,
        )
        tools.train(opt, model, 1)
    shapes = {name: tuple(state["M"].shape) for name, state in tools.curvature(opt).items()}
    assert shapes == {"0.weight": (4, 4), "2.weight": (3, 5, 5)}


def test_the_first_and_last_layer_may_share_one_metric_as_in_the_authors_code(tools):
    model = tools.network()
    opt = SNGD(model, metric="rfim_unit", structure={"2": LocalFisher()}, ess=10.0)
    tools.train(opt, model, 2)
    shapes = {name: tuple(state["M"].shape) for name, state in tools.curvature(opt).items()}
    assert shapes == {"0.weight": (4, 4, 4), "2.weight": (5, 5)}


def test_by_parameter_a_weight_has_the_metric_of_its_inputs_alone(tools):
    model = tools.network()
    opt = SNGD(model, ess=10.0, partition="parameter", curvature_decay=0.0)
    tools.train(opt, model, 1)
    x, _ = tools.batch(seed=0)
    states = tools.curvature(opt)
    torch.testing.assert_close(states["0.weight"]["M"], x.T @ x / len(x))
    assert torch.equal(states["0.bias"]["M"], torch.ones_like(states["0.bias"]["M"]))
