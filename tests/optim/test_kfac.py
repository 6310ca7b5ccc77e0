"""K-FAC and noisy K-FAC against dense matrices written by hand for a network of two layers."""

import math

import pytest
import torch
from torch import nn

from vogn import KFAC
from vogn.capture import oracle
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg.noise import normal as draw

ESS, DT, GAMMA, LR, B1, B2 = 80.0, 2e-2, 1e-2, 0.05, 0.9, 0.7


def factors(model, x, y, fisher):
    """``[(A, S)]`` per layer of Linear-Tanh-Linear under a softmax: the chain rule by hand."""
    first, _, last = model
    hidden = torch.tanh(x @ first.weight.T + first.bias)
    p = torch.softmax(hidden @ last.weight.T + last.bias, 1)
    ones = torch.ones(len(x), 1).double()
    if fisher == "empirical":
        columns = (p - torch.eye(3).double()[y]).unsqueeze(0)
    else:  # H_n = diag(p) - p p^T = sum_k p_k (e_k - p)(e_k - p)^T
        columns = torch.stack([p[:, k : k + 1].sqrt() * (torch.eye(3).double()[k] - p) for k in range(3)])
    upper = columns  # b of the last layer, (K, N, 3)
    lower = (upper @ last.weight) * (1 - hidden**2)
    result = []
    for a, b in ((torch.cat([x, ones], 1), lower), (torch.cat([hidden, ones], 1), upper)):
        result.append((a.T @ a / len(x), torch.einsum("kno,knp->op", b, b) / len(x)))
    return result


def damped(a, s, shift, factored):
    """The dense preconditioned matrix in the row-major order of [W, bias], and its factors."""
    i, o = len(a), len(s)
    if factored:
        pi = math.sqrt((float(a.trace()) / i) / (float(s.trace()) / o))
        a = a + pi * math.sqrt(shift) * torch.eye(i).double()
        s = s + math.sqrt(shift) / pi * torch.eye(o).double()
        return torch.kron(s, a)
    return torch.kron(s, a) + shift * torch.eye(i * o).double()


def inverse_root(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ values.rsqrt().diag() @ vectors.T


def packed(model):
    return [torch.cat([layer.weight, layer.bias.unsqueeze(1)], 1).detach().clone() for layer in (model[0], model[2])]


def gradients(model):
    return [torch.cat([layer.weight.grad, layer.bias.grad.unsqueeze(1)], 1) for layer in (model[0], model[2])]


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize("kl_clip", [None, 1e-3])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_noisy_kfac_is_the_dense_recursion(tools, fisher, factored, kl_clip, variational):
    """Zhang et al. (2018), Algorithm 2; the prior's gradient at the mean, damping in the step only."""
    model = tools.network()
    opt = KFAC(
        model,
        lr=LR,
        ess=ESS,
        weight_decay=DT,
        damping=GAMMA,
        momentum=B1,
        curvature_decay=B2,
        fisher=fisher,
        factored=factored,
        kl_clip=kl_clip,
        refresh_every=1,
        variational=variational,
        seed=6,
    )
    mean, average = packed(model), None
    velocity = [torch.zeros_like(w) for w in mean]
    clipped = 0
    for step in range(12):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            if variational and average is not None:  # theta = m + ess^-1/2 (S_g (x) A_g)^-1/2 eps
                for k, (theta, name) in enumerate(zip(packed(model), ("0.weight", "2.weight"), strict=True)):
                    where = {"seed": 6, "stream": "weights", "step": step, "sample": 0, "name": name}
                    eps = draw(tuple(theta.shape), dtype=torch.float64, **where)
                    root = inverse_root(damped(*average[k], DT, factored))
                    expected = mean[k] + ESS**-0.5 * (root @ eps.flatten()).view_as(theta)
                    torch.testing.assert_close(theta, expected, rtol=1e-9, atol=1e-10)
            else:
                assert all(torch.equal(a, b) for a, b in zip(packed(model), mean, strict=True)) or step > 0
            new = [tuple(f.detach() for f in pair) for pair in factors(model, x, y, fisher)]
            Categorical()(model(x), y).backward()
        g = gradients(model)
        opt.step()
        average = (
            new
            if average is None
            else [
                tuple(B2 * old + (1 - B2) * fresh for old, fresh in zip(a, b, strict=True))
                for a, b in zip(average, new, strict=True)
            ]
        )
        directions = []
        for k, (a, s) in enumerate(average):
            regularised = g[k] + DT * mean[k]
            solved = torch.linalg.solve(damped(a, s, DT + GAMMA, factored), regularised.flatten())
            directions.append(solved.view_as(mean[k]))
        if kl_clip is not None:
            size = LR**2 * sum(float((p * q).sum()) for p, q in zip(directions, g, strict=True))
            nu = min(1.0, math.sqrt(kl_clip / size)) if size > 0 else 1.0
            clipped += nu < 1.0
            directions = [nu * p for p in directions]
        for k, p in enumerate(directions):
            velocity[k] = B1 * velocity[k] + (1 - B1) * p
            mean[k] = mean[k] - LR * velocity[k] / (1 - B1 ** (step + 1))
        for ours, theirs in zip(packed(model), mean, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert (clipped > 0) == (kl_clip is not None)
    precisions = opt.posterior().precision_matrices()
    for name, (a, s) in zip(("0.weight", "2.weight"), average, strict=True):
        torch.testing.assert_close(precisions[name], ESS * damped(a, s, DT, factored), rtol=1e-9, atol=1e-9)


def curvature_blocks(model, likelihood, x, y, **options):
    """``{block: C}`` after one observation, and the packing of per-example gradients into blocks."""
    opt = KFAC(model, lr=0.0, ess=1.0, weight_decay=1.0, fisher="ggn", factored=False, variational=False, **options)
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    posterior = opt.posterior()
    blocks = {name: matrix - torch.eye(len(matrix)) for name, matrix in posterior.precision_matrices().items()}
    return blocks, posterior


def exact_blocks(model, posterior, x, hessian):
    """Diagonal blocks of the exact GGN, packed like the posterior's blocks."""
    jacobian = oracle.jacobian(model, x)
    n, k, _ = jacobian.shape
    named, position = {}, 0
    for name, p in oracle.trainable(model).items():
        named[name] = jacobian[:, :, position : position + p.numel()].reshape(n, k, *p.shape)
        position += p.numel()
    blocks = {}
    with torch.no_grad():
        hessians = hessian(model(x))
    for block in posterior.blocks:
        rows = block.layout.pack(named).flatten(2)
        blocks[block.name] = torch.einsum("nkd,nkl,nle->de", rows, hessians, rows) / n
    return blocks


def identity_hessian(outputs):
    flat = outputs.flatten(1)
    return torch.eye(flat.shape[1]).double().expand(len(flat), -1, -1)


def softmax_hessian(outputs):
    p = torch.softmax(outputs, 1)
    return torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)


def assert_blocks(ours, exact):
    assert set(ours) == set(exact)
    for name, matrix in exact.items():
        torch.testing.assert_close(ours[name], matrix, rtol=1e-11, atol=1e-12)


def test_kfac_is_the_exact_block_ggn_of_a_deep_linear_network_with_squared_loss(tools):
    model = tools.fill(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 2)).double())
    x, y = tools.normal(6, 3), tools.normal(6, 2, seed=1)
    ours, posterior = curvature_blocks(model, Gaussian(noise=1.0), x, y)
    assert_blocks(ours, exact_blocks(model, posterior, x, identity_hessian))


def test_kfac_is_the_exact_block_ggn_on_one_datum_of_any_network(tools):
    model = tools.network()
    x, y = tools.batch(n=1)
    ours, posterior = curvature_blocks(model, Categorical(), x, y)
    assert_blocks(ours, exact_blocks(model, posterior, x, softmax_hessian))


def test_kfac_is_not_exact_for_several_data_of_a_nonlinear_network(tools):
    """Otherwise the two tests above could not fail."""
    model = tools.network()
    x, y = tools.batch(n=6)
    ours, posterior = curvature_blocks(model, Categorical(), x, y)
    exact = exact_blocks(model, posterior, x, softmax_hessian)
    error = (ours["0.weight"] - exact["0.weight"]).norm() / exact["0.weight"].norm()
    assert float(error) > 1e-2


class Positions(nn.Module):
    """Linear layers on ``(N, T, 3)``, mean over the positions or one output per position."""

    def __init__(self, pooled):
        super().__init__()
        self.first, self.last, self.pooled = nn.Linear(3, 4), nn.Linear(4, 2), pooled

    def forward(self, x):
        out = self.last(self.first(x))
        return out.mean(1) if self.pooled else out


@pytest.mark.parametrize(("pooled", "sharing"), [(True, "reduce"), (False, "expand")])
def test_weight_sharing_is_exact_in_its_own_setting(tools, pooled, sharing):
    model = tools.fill(Positions(pooled).double())
    x, y = tools.normal(5, 6, 3), tools.normal(5, 2, seed=1) if pooled else tools.normal(5, 6, 2, seed=1)
    ours, posterior = curvature_blocks(model, Gaussian(noise=1.0), x, y, kfac_approx=sharing)
    exact = exact_blocks(model, posterior, x, identity_hessian)
    terms = 1 if pooled else 6  # the loss is a mean over N T terms when every position has one
    assert_blocks(ours, {name: matrix / terms for name, matrix in exact.items()})
    other = "expand" if pooled else "reduce"
    wrong, _ = curvature_blocks(model, Gaussian(noise=1.0), x, y, kfac_approx=other)
    assert float((wrong["first.weight"] - ours["first.weight"]).norm() / ours["first.weight"].norm()) > 0.1


def test_sampled_labels_give_the_factors_of_those_labels(tools, monkeypatch):
    """The Monte Carlo Fisher with known draws is the empirical Fisher of the draws."""
    model, (x, y) = tools.network(), tools.batch()
    likelihood, labels = Categorical(), (y + 1) % 3
    monkeypatch.setattr(likelihood, "sample", lambda outputs, generator=None: labels)
    opt = KFAC(model, lr=0.0, ess=1.0, weight_decay=1.0, fisher="mc", factored=False, variational=False)
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    for (name, matrix), (a, s) in zip(
        opt.posterior().precision_matrices().items(), factors(model, x, labels, "empirical"), strict=True
    ):
        torch.testing.assert_close(matrix - torch.eye(len(matrix)), torch.kron(s, a).detach(), msg=name)
