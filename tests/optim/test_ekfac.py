"""EKFAC: exact second moments in a Kronecker eigenbasis."""

import pytest
import torch
from torch import nn

from vogn import EKFAC, KFAC
from vogn.capture import oracle
from vogn.likelihoods import Categorical


def convolutional(tools):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2, groups=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )
    return tools.fill(model.double())


def dense_blocks(kind, model, x, y, steps, **options):
    """``{block: C}`` at fixed weights."""
    opt = kind(
        model,
        lr=0.0,
        ess=1.0,
        weight_decay=1.0,
        curvature_decay=0.0,
        fisher="empirical",
        refresh_every=100,
        variational=False,
        **options,
    )
    for _ in range(steps):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    posterior = opt.posterior()
    return {n: m - torch.eye(len(m)) for n, m in posterior.precision_matrices().items()}, posterior, opt


@pytest.mark.parametrize("kind", ["linear", "convolutional"])
def test_on_one_batch_its_error_never_exceeds_that_of_kfac(tools, kind):
    """The basis comes from the first observation, the spectrum from the second one of the same batch."""
    for seed in range(3):
        if kind == "linear":
            model, (x, y) = tools.network(seed), tools.batch(seed=seed)
        else:
            model, x, y = convolutional(tools), tools.normal(6, 2, 4, 4, seed=seed), tools.batch(n=6, seed=seed)[1]
        kfac, _, _ = dense_blocks(KFAC, model, x, y, 1, factored=False)
        ekfac, posterior, _ = dense_blocks(EKFAC, model, x, y, 2)
        rows = oracle.per_example_gradients(
            model, x, y, lambda out, target: nn.functional.cross_entropy(out, target, reduction="sum")
        )
        for block in posterior.blocks:
            flat = block.layout.pack(rows).flatten(1)
            fisher = flat.T @ flat / len(x)
            ours, theirs = ((c[block.name] - fisher).norm() for c in (ekfac, kfac))
            assert float(ours) <= float(theirs) * (1 + 1e-12)
            assert float(theirs - ours) > 1e-6 * float(theirs), "equality would make this test empty"


def test_its_spectrum_is_the_diagonal_of_the_fisher_in_the_basis_of_kfac(tools):
    """The best diagonal in that basis: s = diag(U^T F U)."""
    model, (x, y) = tools.network(), tools.batch()
    kfac, _, _ = dense_blocks(KFAC, model, x, y, 1, factored=False)
    ekfac, posterior, opt = dense_blocks(EKFAC, model, x, y, 2)
    rows = oracle.per_example_gradients(
        model, x, y, lambda out, target: nn.functional.cross_entropy(out, target, reduction="sum")
    )
    for block in posterior.blocks:
        flat = block.layout.pack(rows).flatten(1)
        fisher = flat.T @ flat / len(x)
        state = tools.curvature(opt)[block.name]
        basis = torch.kron(state["QS"], state["QA"])
        turned = basis.T @ kfac[block.name] @ basis
        torch.testing.assert_close(turned, turned.diagonal().diag(), rtol=0, atol=1e-12)  # it is K-FAC's basis
        expected = basis @ (basis.T @ fisher @ basis).diagonal().diag() @ basis.T
        torch.testing.assert_close(ekfac[block.name], expected, rtol=1e-10, atol=1e-13)


def test_a_fresh_basis_restarts_at_kfac(tools):
    model, (x, y) = tools.network(), tools.batch()
    kfac, _, _ = dense_blocks(KFAC, model, x, y, 1, factored=False)
    ekfac, _, _ = dense_blocks(EKFAC, model, x, y, 1)
    for name, matrix in kfac.items():
        torch.testing.assert_close(ekfac[name], matrix, rtol=1e-10, atol=1e-13)


def test_noisy_ekfac_samples_with_the_corrected_spectrum(tools):
    """theta = m + U_S [E / sqrt(ess (s + dt))] U_A^T (Bae et al. 2018)."""
    from vogn.linalg.noise import normal as draw

    model = tools.network()
    opt = tools.build("ekfac", model, seed=4, refresh_every=2)
    tools.train(opt, model, 3)
    mean, states = tools.weights(model), tools.curvature(opt)
    with opt.sampled_params():
        for layer in ("0", "2"):
            state = states[f"{layer}.weight"]
            where = {"seed": 4, "stream": "weights", "step": 3, "sample": 0, "name": f"{layer}.weight"}
            eps = draw(tuple(state["s"].shape), dtype=torch.float64, **where)
            qs, qa = state["QS"], state["QA"]
            moved = qs @ ((qs.T @ eps @ qa) / (100.0 * (state["s"] + 1e-2)).sqrt()) @ qa.T
            module = model[int(layer)]
            ours = torch.cat(
                [module.weight - mean[f"{layer}.weight"], (module.bias - mean[f"{layer}.bias"]).unsqueeze(1)], 1
            )
            torch.testing.assert_close(ours.detach(), moved, rtol=1e-10, atol=1e-13)
