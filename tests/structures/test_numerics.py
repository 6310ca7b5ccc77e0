"""Structures at the ends of the range of float32, and factorisations that rounding spoils."""

from __future__ import annotations

import math

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.rows import Rows
from vogn.structures import REGISTRY, Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker, Structure
from vogn.structures import evidence as evidence_module
from vogn.testing.structure_cases import normalised, random_rows

STRUCTURES: dict[str, Structure] = {name: kind() for name, kind in REGISTRY.items()} | {
    "kronecker factored": Kronecker(damping="factored"),
    "eigen contraction": EigenKronecker(basis="contraction", restart=False),
}
GAUSSIAN = sorted(name for name, structure in STRUCTURES.items() if "sample" in structure.SUPPORTS)
OTHERS = sorted(STRUCTURES.keys() - set(GAUSSIAN))  # not symmetric: no bound on their inverses
SHAPE = (3, 4)
SCALES = [
    pytest.param(a, g, id=f"{a:g}-{g:g}") for a in (0.0, 1e-18, 1e-30, 1e12) for g in (0.0, 1e-18, 1e-30, 1e6)
]


def observed(structure: Structure, rows: Rows) -> dict[str, torch.Tensor]:
    state = structure.init(rows.shape, initial=0.0, dtype=rows.a.dtype, device="cpu")
    seen = normalised(structure, structure.observe(state, rows), rows.count)
    return structure.refresh(structure.update(state, seen, decay=0.0, weight=1.0, shift=1e-4))


@pytest.mark.parametrize(("a_scale", "g_scale"), SCALES)
@pytest.mark.parametrize("name", GAUSSIAN)
def test_single_precision_survives_tiny_zero_and_huge_rows(name, a_scale, g_scale):
    """Finite, and between the bounds of any inverse: |solve v| <= |v| / shift."""
    structure, rows = STRUCTURES[name], random_rows(SHAPE, seed=0)
    state = observed(structure, Rows(rows.a.float() * a_scale, rows.g.float() * g_scale))
    shift, v = 1e-4, torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1))
    solved, drawn = structure.solve(state, v, shift), structure.sample(state, v, shift)
    for leaf in (*state.values(), solved, drawn, structure.logdet(state, shift)):
        assert bool(leaf.isfinite().all())
    assert float(solved.norm()) <= 1.001 * float(v.norm()) / shift
    assert float(drawn.norm()) <= 1.001 * float(v.norm()) / shift**0.5
    variance = structure.inverse_diagonal(state, shift)
    assert bool((variance > 0).all()) and float(variance.max()) <= 1.001 / shift


@pytest.mark.parametrize(("a_scale", "g_scale"), SCALES)
@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_gaussian_survives_tiny_zero_and_huge_rows(name, a_scale, g_scale):
    structure, rows = STRUCTURES[name], random_rows(SHAPE, seed=0)
    state = observed(structure, Rows(rows.a.float() * a_scale, rows.g.float() * g_scale))
    v = torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1))
    for leaf in (*state.values(), structure.solve(state, v, 1e-4)):
        assert bool(leaf.isfinite().all())


def test_factored_damping_survives_factors_of_extreme_ratio():
    """tr A / tr S = 1e60 and its inverse: pi alone would leave the range of float32."""
    structure = Kronecker(damping="factored")
    for a, s in ((1e30, 1e-30), (1e-30, 1e30)):
        state = structure.init(SHAPE, initial=0.0, dtype=torch.float32, device="cpu")
        state = structure.refresh(state | {"A": a * torch.eye(4), "S": s * torch.eye(3)})
        v = torch.ones(SHAPE)
        for result in (structure.solve(state, v, 1e-4), structure.sample(state, v, 1e-4)):
            assert bool(result.isfinite().all()) and float(result.abs().max()) <= 1e4


@pytest.mark.parametrize("structure", [Dense(), Dense(negative="retract")])
def test_a_dense_curvature_that_rounding_made_indefinite_is_solved_with_its_rounding(structure):
    """Rank one of size 1e6 plus a shift of 1e-4 in float32: the sum has negative eigenvalues of the order of 0.1."""
    state = observed(structure, Rows(random_rows(SHAPE, seed=0, examples=1).a.float() * 1e3,
                                     random_rows(SHAPE, seed=0, examples=1).g.float()))  # fmt: skip
    dense = structure.to_dense(state, 1e-4).double()
    assert float(torch.linalg.eigvalsh(dense)[0]) < 0
    v = torch.randn((5, *SHAPE), generator=torch.Generator().manual_seed(1))
    solved = structure.solve(state, v, 1e-4)
    assert bool(solved.isfinite().all()) and float(solved.norm()) <= 1.001 * float(v.norm()) / 1e-4
    # in the direction of the evidence, which rounding does not touch, the solution is the exact one up to the 100 eps
    # of the trace that a rescue may add, and the trace is the evidence
    values, vectors = torch.linalg.eigh(dense)
    top = vectors[:, -1].float().reshape(SHAPE)
    torch.testing.assert_close(
        (structure.solve(state, top, 1e-4) * top).sum(), 1 / values[-1].float(), rtol=2e-5, atol=0
    )


def test_without_a_shift_a_singular_dense_curvature_is_not_rescued():
    """Its posterior does not exist: a jitter would invent one."""
    structure = Dense()
    state = {"C": torch.zeros(*SHAPE, *SHAPE)}
    state["C"][0, 0, 0, 0] = 1.0
    with pytest.raises(NotPositiveDefiniteError, match="set weight_decay"):
        structure.solve(state, torch.ones(SHAPE), 0.0)


def test_an_indefinite_dense_curvature_is_still_refused():
    structure = Dense()
    state = {"C": torch.eye(12).reshape(*SHAPE, *SHAPE).clone()}
    state["C"][0, 0, 0, 0] = -0.5
    with pytest.raises(NotPositiveDefiniteError, match="negative='retract'"):
        structure.solve(state, torch.ones(SHAPE), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("structure", [Diagonal(negative="retract"), EigenKronecker(negative="retract", restart=False)])
def test_the_retraction_keeps_the_precision_positive_after_any_number_of_halvings(structure, dtype):
    """Evidence that halves c + shift at every step, until only the rounding of the shift is left."""
    shift, weight = 1e-4, 0.1
    key = "c" if isinstance(structure, Diagonal) else "s"
    state = structure.init(SHAPE, initial=0.0, dtype=dtype, device="cpu")
    for _ in range(120):
        h = state[key] - (state[key] + shift) / weight  # x = -1: the smallest factor, 1/2
        state = structure.update(state, {"probe": h}, decay=1 - weight, weight=weight, shift=shift)
        assert bool((state[key] + shift > 0).all())
    v = torch.ones(SHAPE, dtype=dtype)
    for result in (structure.solve(state, v, shift), structure.sample(state, v, shift)):
        assert bool(result.isfinite().all())
    tensor_shift = torch.full(SHAPE, shift, dtype=dtype)
    new = evidence_module.absorb(
        state[key], -torch.ones(SHAPE, dtype=dtype), decay=0.9, weight=1e-12, shift=tensor_shift, negative="retract"
    )
    assert bool((new + tensor_shift > 0).all())


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize("shift", [1e-3, 1.0])
def test_eigenvalue_bounds_enclose_the_spectrum_of_to_dense(name, shift):
    structure = STRUCTURES[name]
    for shape in (SHAPE, (1, 1), (2, 3, 2)):
        state = observed(structure, random_rows(shape, seed=0, examples=3))
        low, high = (float(bound) for bound in structure.eigenvalue_bounds(state, shift))
        spectrum = torch.linalg.eigvalsh(structure.to_dense(state, shift))
        if isinstance(structure, DiagonalLowRank):
            assert 0 < low <= float(spectrum[0]) * (1 + 1e-12) and float(spectrum[-1]) <= high * (1 + 1e-12)
            assert high <= 2 * float(spectrum[-1])
        else:
            assert low == pytest.approx(float(spectrum[0]), rel=1e-9)
            assert high == pytest.approx(float(spectrum[-1]), rel=1e-9)


def test_the_bounds_of_a_large_dense_curvature_enclose_its_spectrum(monkeypatch):
    structure = Dense()
    state = observed(structure, random_rows(SHAPE, seed=0))
    spectrum = torch.linalg.eigvalsh(structure.to_dense(state, 0.1))
    monkeypatch.setattr("vogn.structures.dense.EXACT_SPECTRUM", 1)
    low, high = structure.eigenvalue_bounds(state, 0.1)
    assert float(spectrum[0]) / len(spectrum) <= float(low) <= float(spectrum[0])
    assert float(spectrum[-1]) <= float(high) <= math.sqrt(len(spectrum)) * float(spectrum[-1]) * (1 + 1e-12)


def test_a_structure_that_does_not_know_its_eigenvalues_says_so():
    with pytest.raises(UnsupportedObservationError, match="Diagonal does not know the eigenvalues"):
        Structure.eigenvalue_bounds(Diagonal(), {}, 0.1)
