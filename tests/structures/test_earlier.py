"""Curvature of earlier data comes to everything that is observed."""

import pytest
import torch

from tiny_models import normal
from vogn.errors import UnsupportedObservationError
from vogn.linalg.nearest_kronecker import nearest_kronecker
from vogn.linalg.rows import Rows
from vogn.structures import REGISTRY, Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker

SHAPE = (2, 3)
FAMILIES = [Diagonal(), Dense(), Kronecker(), EigenKronecker(), DiagonalLowRank(rank=6)]


def rows(seed):
    return Rows(normal(5, 1, 3, seed=seed), normal(1, 5, 1, 2, seed=seed + 1))


def empty(structure):
    return structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")


def observed(structure, state, seed, *, decay=0.0, weight=1.0):
    new = structure.update(state, structure.observe(state, rows(seed)), decay=decay, weight=weight, shift=0.1)
    return structure.refresh(new)


def ids(structure):
    return type(structure).__name__


def test_the_families_are_those_that_say_so():
    assert {type(s) for s in FAMILIES} == {kind for kind in REGISTRY.values() if kind.EARLIER}


@pytest.mark.parametrize("structure", FAMILIES, ids=ids)
def test_it_is_the_curvature_times_the_factor(structure):
    other = observed(structure, empty(structure), 3)
    state = structure.with_earlier(empty(structure), other, 0.7)
    dense, v = 0.7 * structure.to_dense(other), normal(2, 3, seed=9)
    torch.testing.assert_close(structure.to_dense(state), dense)
    torch.testing.assert_close(structure.earlier_product(state, v).flatten(), dense @ v.flatten())
    assert set(state) == set(empty(structure)) | set(structure.EARLIER)
    assert not structure.earlier_product(empty(structure), v).any()


@pytest.mark.parametrize("structure", FAMILIES, ids=ids)
def test_it_comes_to_the_average_of_the_evidence_and_does_not_fade(structure):
    """``C = EMA(evidence) + E``; of the sum, Kronecker factors have the nearest product, an eigenbasis the diagonal."""
    other = observed(structure, empty(structure), 3)
    state, plain = structure.with_earlier(empty(structure), other, 0.7), empty(structure)
    for k, (decay, weight) in enumerate([(0.0, 1.0), (0.8, 0.2), (0.8, 0.2), (0.8, 0.2)]):
        state = observed(structure, state, 20 + k, decay=decay, weight=weight)
        plain = observed(structure, plain, 20 + k, decay=decay, weight=weight)
    if isinstance(structure, Kronecker):
        s, a = (torch.stack(pair) for pair in zip(structure.factors(plain), structure.factors(other), strict=True))
        wanted = torch.kron(*nearest_kronecker(torch.tensor([1.0, 0.7]), s, a))
    elif isinstance(structure, EigenKronecker):
        wanted = in_the_basis_of_partial_traces(
            torch.kron(plain["S"], plain["A"]) + 0.7 * structure.to_dense(other)
        )
    else:
        wanted = structure.to_dense(plain) + 0.7 * structure.to_dense(other)
    torch.testing.assert_close(structure.to_dense(state), wanted)


def in_the_basis_of_partial_traces(dense):
    """``Q diag(Q^T M Q) Q^T`` with the eigenvectors of both partial traces, by the definition."""
    parts = dense.view(2, 3, 2, 3)
    qs, qa = (torch.linalg.eigh(torch.einsum(form, parts)).eigenvectors for form in ("aibi->ab", "aiaj->ij"))
    q = torch.kron(qs, qa)
    return q @ torch.diag((q.T @ dense @ q).diagonal()) @ q.T


@pytest.mark.parametrize("options", [{}, {"restart": False}, {"basis": "contraction", "restart": False}], ids=str)
def test_eigenbases_that_are_one_add_exactly(options):
    structure = EigenKronecker(**options)
    other = observed(structure, empty(structure), 3)
    alone = observed(structure, other, 3)  # the moments in the basis of the factors
    state = structure.with_earlier(alone, alone, 0.7)
    for _ in range(2):  # the same rows, the same basis
        state = observed(structure, state, 3)
        alone = observed(structure, alone, 3)
        torch.testing.assert_close(structure.to_dense(state), 1.7 * structure.to_dense(alone))


@pytest.mark.parametrize("basis", ["kfac", "contraction"])
def test_moments_between_refreshes_are_those_of_the_rows_and_the_earlier_diagonal(basis):
    structure = EigenKronecker(basis=basis, restart=False)
    other = observed(structure, observed(structure, empty(structure), 3), 3)
    state = structure.with_earlier(empty(structure), other, 0.7)
    state = structure.update(state, structure.observe(state, rows(5)), decay=0.0, weight=1.0, shift=0.1)
    q, gradients = torch.kron(state["QS"], state["QA"]), rows(5).dense().flatten(0, -3).flatten(1)
    moment = gradients.T @ gradients + 0.7 * structure.to_dense(other)
    torch.testing.assert_close(structure.to_dense(state), q @ torch.diag((q.T @ moment @ q).diagonal()) @ q.T)
    probe = normal(2, 3, seed=8)  # E v is exact whatever the present basis is
    product = structure.earlier_product(structure.refresh(state), probe)
    torch.testing.assert_close(product.flatten(), 0.7 * structure.to_dense(other) @ probe.flatten())


def test_sides_that_keep_to_the_axes():
    structure = EigenKronecker(max_dim=2)  # the inputs have three features
    other = observed(structure, empty(structure), 3)
    state = observed(structure, structure.with_earlier(empty(structure), other, 0.7), 3)
    assert state["QA"].shape == (1, 3)
    torch.testing.assert_close(structure.to_dense(state), 1.7 * structure.to_dense(other))


@pytest.mark.parametrize("structure", [Diagonal(negative="retract"), Dense(negative="retract")], ids=ids)
def test_a_retraction_has_its_fixed_point_at_the_sum(structure):
    """Probes of a fixed Hessian ``H``: once ``C`` is ``H + E``, it stays there."""
    v = torch.ones(SHAPE, dtype=torch.float64)
    evidence = structure.observe_probe(empty(structure), v, 2.0 * v)
    (key,) = empty(structure)
    other = {key: evidence["probe"]}
    state = structure.with_earlier(other, other, 0.5)  # C = H + E
    moved = structure.update(state, evidence, decay=0.9, weight=0.1, shift=0.1)
    torch.testing.assert_close(structure.to_dense(moved), 1.5 * structure.to_dense(other))


def test_others_refuse():
    for name, kind in REGISTRY.items():
        if not kind.EARLIER:
            structure = kind()
            with pytest.raises(UnsupportedObservationError, match="cannot start from the posterior of earlier data"):
                structure.with_earlier({}, {}, 1.0), name
