"""Curvature of earlier data comes to everything that is observed."""

import pytest
import torch

from tiny_models import normal
from vogn.errors import UnsupportedObservationError
from vogn.linalg.nearest_kronecker import nearest_kronecker
from vogn.linalg.rows import Rows
from vogn.structures import REGISTRY, Dense, Diagonal, DiagonalLowRank, Kronecker

SHAPE = (2, 3)
FAMILIES = [Diagonal(), Dense(), Kronecker(), DiagonalLowRank(rank=6)]


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
    """``C = EMA(evidence) + E``; for Kronecker factors the nearest product to that sum."""
    other = observed(structure, empty(structure), 3)
    state, plain = structure.with_earlier(empty(structure), other, 0.7), empty(structure)
    for k, (decay, weight) in enumerate([(0.0, 1.0), (0.8, 0.2), (0.8, 0.2), (0.8, 0.2)]):
        state = observed(structure, state, 20 + k, decay=decay, weight=weight)
        plain = observed(structure, plain, 20 + k, decay=decay, weight=weight)
    if isinstance(structure, Kronecker):
        s, a = (torch.stack(pair) for pair in zip(structure.factors(plain), structure.factors(other), strict=True))
        wanted = torch.kron(*nearest_kronecker(torch.tensor([1.0, 0.7]), s, a))
    else:
        wanted = structure.to_dense(plain) + 0.7 * structure.to_dense(other)
    torch.testing.assert_close(structure.to_dense(state), wanted)


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
