from __future__ import annotations

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError, UnsupportedObservationError
from vogn.structures import Dense
from vogn.testing.structure_cases import random_rows

SHAPE = (2, 3)


def fresh(structure: Dense, initial: float = 0.5) -> dict[str, torch.Tensor]:
    return structure.init(SHAPE, initial=initial, dtype=torch.float64, device="cpu")


def symmetric(seed: int, scale: float) -> torch.Tensor:
    matrix = scale * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def test_rows_follow_the_full_recursion():
    structure, decay = Dense(), 0.8
    state, full = fresh(structure), 0.5 * torch.eye(6, dtype=torch.float64)
    for seed in range(5):
        rows = random_rows(SHAPE, seed=seed, columns=2, positions=3)
        expected = torch.zeros(6, 6, dtype=torch.float64)
        for row in rows.dense().reshape(-1, 6):
            expected += torch.outer(row, row)
        full = decay * full + (1 - decay) * expected
        state = structure.update(state, structure.observe(state, rows), decay=decay, weight=1 - decay, shift=0.0)
    torch.testing.assert_close(structure.to_dense(state), full, rtol=1e-13, atol=1e-13)


def test_a_probe_is_the_symmetric_part_of_the_outer_product():
    structure = Dense()
    v, h = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outer = torch.outer(v.flatten(), h.flatten())
    leaf = structure.observe_probe(fresh(structure), v, h)["probe"].reshape(6, 6)
    torch.testing.assert_close(leaf, (outer + outer.T) / 2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e4])
def test_the_retraction_keeps_any_symmetric_evidence_positive_definite(scale):
    structure, shift = Dense(negative="retract"), 0.1
    state = fresh(structure)
    for seed in range(20):
        before = torch.linalg.eigvalsh(structure.to_dense(state, shift))[0]
        evidence = {"probe": symmetric(seed, scale).reshape(*SHAPE, *SHAPE)}
        state = structure.update(state, evidence, decay=0.9, weight=0.1, shift=shift)
        # P' = P^1/2 (I + X + X^2 / 2) P^1/2 >= P / 2; the tolerance is a rounding error of the largest eigenvalue
        spectrum = torch.linalg.eigvalsh(structure.to_dense(state, shift))
        assert spectrum[0] >= 0.5 * before - 1e-13 * spectrum[-1]
        scale /= 3


def test_the_retraction_is_its_formula():
    structure, shift, weight = Dense(negative="retract"), 0.1, 0.3
    eye = torch.eye(6, dtype=torch.float64)
    c, h = 0.5 * eye, symmetric(0, 2.0)
    state = structure.update(
        fresh(structure), {"probe": h.reshape(*SHAPE, *SHAPE)}, decay=1 - weight, weight=weight, shift=shift
    )
    inverse = torch.linalg.inv(c + shift * eye)
    expected = (1 - weight) * c + weight * h + 0.5 * weight**2 * (h - c) @ inverse @ (h - c)
    torch.testing.assert_close(structure.to_dense(state), expected)


def test_indefinite_evidence_without_a_policy_raises_with_the_remedy():
    structure = Dense()
    evidence = {"probe": (-10 * torch.eye(6, dtype=torch.float64)).reshape(*SHAPE, *SHAPE)}
    state = structure.update(fresh(structure), evidence, decay=0.5, weight=0.5, shift=0.1)
    with pytest.raises(NotPositiveDefiniteError, match="negative='retract'"):
        structure.solve(state, torch.ones(SHAPE, dtype=torch.float64), 0.1)


def test_nan_is_named():
    structure = Dense()
    state = {"C": fresh(structure)["C"] * float("nan")}
    with pytest.raises(NonFiniteStatisticsError, match="NaN"):
        structure.logdet(state, 0.1)


def test_where_both_channels_speak_the_probe_is_the_evidence():
    structure = Dense()
    state = fresh(structure)
    seen = structure.observe(state, random_rows(SHAPE, seed=0))
    probe = structure.observe_probe(state, torch.ones(SHAPE).double(), torch.ones(SHAPE).double())
    both = structure.update(state, seen | probe, decay=0.5, weight=0.5, shift=0.1)
    alone = structure.update(state, probe, decay=0.5, weight=0.5, shift=0.1)
    torch.testing.assert_close(both["C"], alone["C"])


def test_size_and_options_are_checked():
    assert Dense(max_dim=6).fits((2, 3)) and not Dense(max_dim=6).fits((7, 1))
    with pytest.raises(ValueError, match="negative='abs' is unknown; allowed: 'raise', 'retract'"):
        Dense(negative="abs")
    with pytest.raises(UnsupportedObservationError, match="exponent=0.5"):
        Dense().solve(fresh(Dense()), torch.ones(SHAPE), 0.1, exponent=0.5)
