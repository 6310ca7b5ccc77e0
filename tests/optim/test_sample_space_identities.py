"""Identities that the methods in sample space rest on, in double precision and by plain formulas."""

import itertools

import pytest
import torch
from torch import nn

import vogn
from tiny_models import normal
from vogn.capture import oracle
from vogn.likelihoods import Categorical, Gaussian
from vogn.linalg import fewer_columns
from vogn.structures import CompressedGram, Gram, InterpolativeGram

LAM = 0.05


def summed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="sum")


def vector(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def one_step(opt, model, likelihood, x, y):
    opt.zero_grad()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()
    return opt


# ---------------------------------------------------------------------- solves and draws


@pytest.mark.parametrize("count", [3, 7, 12])
def test_perturb_and_solve_is_an_exact_draw(count):
    """``z = (F + s I)^-1 (sqrt(s) e_1 + U e_2)`` as a linear map of both noises, for fewer, as many and more rows."""
    structure, rows = Gram(), normal(count, 7, seed=0)
    state = structure.init((7, 1), initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.update(state, {"J": rows}, decay=0.0, weight=1.0 / count, shift=0.0)
    perturbations = torch.cat([LAM**0.5 * torch.eye(7).double(), rows / count**0.5])  # rows: images of unit noise
    root = structure.solve(state, perturbations.unsqueeze(-1), LAM).squeeze(-1)
    dense = rows.T @ rows / count + LAM * torch.eye(7).double()
    torch.testing.assert_close(root.T @ root, torch.linalg.inv(dense), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_the_draw_of_compressed_rows_is_that_of_the_small_space(rank):
    """``z = (e + W ((I - s^1/2 E^T M E s^1/2)^1/2 - I) W^T e) / sqrt(lam)`` with ``W = U_S E s^-1/2``."""
    rows = normal(9, 30, seed=1) / 3
    u, eye = rows.T, torch.eye(30).double()
    k = u.T @ u
    s, _ = fewer_columns.pivoted_cholesky(k, rank)
    p, us, k_ss = torch.linalg.solve(k[s][:, s], k[s]).T, u[:, s], k[s][:, s]
    y = p.T @ torch.linalg.solve(k - p @ k_ss @ p.T + LAM * torch.eye(9).double(), p)
    m = y - y @ torch.linalg.solve(torch.eye(rank).double() + k_ss @ y, k_ss @ y)
    values, e = torch.linalg.eigh(k_ss)
    w = us @ e / values.sqrt()
    inner, turned = torch.linalg.eigh(torch.eye(rank).double() - (e * values.sqrt()).T @ m @ (e * values.sqrt()))
    small = (turned * inner.sqrt()) @ turned.T - torch.eye(rank).double()
    expected = (eye + w @ small @ w.T) / LAM**0.5
    structure = CompressedGram(rank=rank)
    state = structure.init((30, 1), initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.update(state, {"J": rows}, decay=0.0, weight=1.0, shift=0.0)
    found = structure.sample(state, eye.unsqueeze(-1), LAM).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_compression_is_as_good_as_the_rows_are_redundant():
    """A quarter of 32 rows, inner products that decay like ``b^(2 i)``; errors of the direction, mean of 10 draws."""
    errors = {}
    for b in (0.95, 0.7, 0.5):
        for kind in (CompressedGram, InterpolativeGram):
            total = 0.0
            for seed in range(10):
                source = torch.Generator().manual_seed(seed)
                mix, z = torch.randn(32, 32, generator=source).double(), torch.randn(32, 40, generator=source).double()
                j = mix @ torch.diag(b ** torch.arange(32).double()) @ z / 4
                dense = j.T @ j / 32 + 0.1 * torch.eye(40).double()
                exact = torch.linalg.solve(dense, j.mean(0))
                state = kind(rank=8).init((40, 1), initial=0.0, dtype=torch.float64, device="cpu")
                state = kind(rank=8).update(state, {"J": j}, decay=0.0, weight=1 / 32, shift=0.0)
                found = kind(rank=8).solve(state, j.mean(0).unsqueeze(-1), 0.1).squeeze(-1)
                total += float((found - exact).norm() / exact.norm()) / 10
            errors[b, kind] = total
    for kind in (CompressedGram, InterpolativeGram):
        slow, middle, fast = (errors[b, kind] for b in (0.95, 0.7, 0.5))
        assert slow > 4 * middle > 16 * fast and fast < 0.1


# ---------------------------------------------------------------------- Gauss-Newton


def test_the_square_root_of_the_softmax_hessian_needs_no_inverse():
    """``L = diag(sqrt p) - p sqrt(p)^T`` has ``L L^T = diag(p) - p p^T``, which is singular."""
    p = torch.softmax(normal(5, seed=0), 0)
    root = p.sqrt().diag() - torch.outer(p, p.sqrt())
    torch.testing.assert_close(root @ root.T, p.diag() - torch.outer(p, p), rtol=1e-14, atol=1e-16)
    assert abs(float(torch.linalg.det(root @ root.T))) < 1e-15


def test_gauss_newton_is_the_papers_formula_with_a_singular_output_hessian(tools):
    """``p = (g - Jc^T (lam m I + H Jc Jc^T)^-1 H Jc g) / lam`` with ``H = blockdiag(diag p - p p^T)``."""
    model, (x, y), lam = tools.network(), tools.batch(seed=0), 0.3
    jacobian = oracle.jacobian(model, x)  # (m, outputs, D)
    m, outputs, size = jacobian.shape
    probabilities = torch.softmax(model(x).detach(), 1)
    h = torch.block_diag(*[p.diag() - torch.outer(p, p) for p in probabilities])
    jc = jacobian.flatten(0, 1)
    g = oracle.flat(oracle.per_example_gradients(model, x, y, summed)).mean(0)
    inner = torch.linalg.solve(lam * m * torch.eye(m * outputs).double() + h @ jc @ jc.T, h @ jc @ g)
    expected, start = (g - jc.T @ inner) / lam, vector(model)
    options = {"weight_decay": 0.0, "damping": lam, "momentum": 0.0, "variational": False}
    one_step(vogn.SMW(model, 1.0, fisher="ggn", **options), model, Categorical(), x, y)
    torch.testing.assert_close(start - vector(model), expected, rtol=1e-10, atol=1e-12)
    assert size == len(expected)


def test_gauss_newton_of_squared_errors_is_the_fisher_of_unit_variance(tools):
    """Targets one above and one below the outputs have the second moment of draws from ``N(f, 1)``."""
    x, found = normal(6, 3, seed=0), []
    for fisher in ("ggn", "empirical"):
        model = tools.fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
        targets = model(x).detach() + torch.tensor([1.0, -1.0]).double().repeat(3).unsqueeze(1)
        opt = vogn.SMW(model, 0.0, ess=1.0, weight_decay=0.1, fisher=fisher, variational=False)
        (matrix,) = one_step(opt, model, Gaussian(noise=1.0), x, targets).posterior().precision_matrices().values()
        found.append(matrix)
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("scale", "alpha"), [(1.0, 0.5), (4.0, 0.5), (4.0, 1e-3)])
def test_gram_gauss_newton_is_the_papers_step(tools, scale, alpha):
    """``J^T (s J J^T + alpha I)^-1 (f - y)`` is the step with ``lr = 1 / s`` and ``damping = alpha / (s B)``."""
    x, y = normal(5, 3, seed=0), normal(5, 1, seed=1)
    model = tools.fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())
    j, residual, start = oracle.jacobian(model, x)[:, 0], (model(x) - y).detach().flatten(), vector(model)
    expected = j.T @ torch.linalg.solve(scale * j @ j.T + alpha * torch.eye(5).double(), residual)
    options = {"weight_decay": 0.0, "curvature_decay": 0.0, "momentum": 0.0, "variational": False}
    opt = vogn.GramGaussNewton(model, 1 / scale, damping=alpha / (scale * 5), **options)
    one_step(opt, model, Gaussian(noise=1.0), x, y)
    torch.testing.assert_close(start - vector(model), expected, rtol=1e-10, atol=1e-12)


def test_the_empirical_fisher_is_no_substitute_in_a_regression():
    """The minimum-norm step leaves no residual; with rows ``e_n J_n`` in place of ``J_n`` something is left."""
    x, y, left = normal(3, 4, seed=0), normal(3, 1, seed=1), {}
    for fisher in ("ggn", "empirical"):
        torch.manual_seed(0)
        model = nn.Linear(4, 1).double()
        before = float((model(x) - y).detach().norm())
        options = {"weight_decay": 0.0, "damping": 1e-12, "momentum": 0.0, "variational": False}
        one_step(vogn.SMW(model, 1.0, fisher=fisher, **options), model, Gaussian(noise=1.0), x, y)
        left[fisher] = float((model(x) - y).detach().norm()) / before
    assert left["ggn"] < 1e-9 and left["empirical"] > 0.1


# ---------------------------------------------------------------------- gradients of batches


def test_b_times_the_square_of_a_gradient_with_drawn_labels_is_the_fisher(tools):
    """All 9 pairs of labels of two examples, weighted by their probabilities."""
    model, (x, _) = tools.network(), tools.batch(seed=0)
    x = x[:2]
    p = torch.softmax(model(x).detach(), 1)
    rows = [
        oracle.flat(oracle.per_example_gradients(model, x, torch.full((2,), label), summed)) for label in range(3)
    ]  # of each label, (2, D)
    fisher = sum(p[n, c] * torch.outer(rows[c][n], rows[c][n]) for n in range(2) for c in range(3)) / 2
    drawn = torch.zeros_like(fisher)
    for first, second in itertools.product(range(3), repeat=2):
        g = (rows[first][0] + rows[second][1]) / 2
        drawn += 2 * p[0, first] * p[1, second] * torch.outer(g, g)
    torch.testing.assert_close(drawn, fisher, rtol=1e-12, atol=1e-14)


def test_with_true_labels_the_mean_gradient_comes_on_top(tools):
    """``B E[g g^T] = F + (B - 1) m m^T`` over all batches of three examples out of four, with replacement."""
    model, (x, y) = tools.network(), tools.batch(seed=0)
    rows = oracle.flat(oracle.per_example_gradients(model, x[:4], y[:4], summed))
    mean, total = rows.mean(0), torch.zeros(rows.shape[1], rows.shape[1]).double()
    for batch in itertools.product(range(4), repeat=3):
        g = rows[list(batch)].mean(0)
        total += 3 * torch.outer(g, g) / 4**3
    torch.testing.assert_close(total, rows.T @ rows / 4 + 2 * torch.outer(mean, mean), rtol=1e-12, atol=1e-14)
