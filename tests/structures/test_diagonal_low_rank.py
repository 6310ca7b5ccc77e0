from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.rows import JoinedRows
from vogn.structures import DiagonalLowRank
from vogn.testing.structure_cases import random_rows

MEMBERS = ((2, 3), (1, 4))
SIZE = 10


def rows_of(seed: int, examples: int = 4) -> JoinedRows:
    return JoinedRows(
        tuple(random_rows(shape, seed=10 * seed + j, examples=examples) for j, shape in enumerate(MEMBERS))
    )


def recursion(structure: DiagonalLowRank, steps: int, decay: float = 0.9) -> tuple[dict[str, Tensor], Tensor]:
    """The structure's state and the matrix ``C <- decay C + (1 - decay) mean J^T J``, side by side."""
    state = structure.init((SIZE, 1), initial=0.5, dtype=torch.float64, device="cpu")
    full = 0.5 * torch.eye(SIZE, dtype=torch.float64)
    for seed in range(steps):
        rows = rows_of(seed)
        flat = rows.dense().reshape(-1, SIZE)
        full = decay * full + (1 - decay) * flat.T @ flat / 4
        seen = {key: leaf / 4**0.5 for key, leaf in structure.observe(state, rows).items()}
        state = structure.update(state, seen, decay=decay, weight=1 - decay, shift=0.1)
    return state, full


def test_full_rank_is_the_full_recursion():
    structure = DiagonalLowRank(rank=SIZE)
    state, full = recursion(structure, 30)
    torch.testing.assert_close(structure.to_dense(state), full, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_the_diagonal_is_exact_at_any_rank(rank):
    structure = DiagonalLowRank(rank=rank)
    state, full = recursion(structure, 30)
    torch.testing.assert_close(structure.to_dense(state).diagonal(), full.diagonal(), rtol=1e-12, atol=1e-13)
    assert state["U"].shape == (SIZE, 1, rank)


def test_the_diagonal_part_never_falls_below_its_decayed_start():
    state, _ = recursion(DiagonalLowRank(rank=2), 30)
    assert (state["d"] >= 0.9**30 * 0.5 * (1 - 1e-12)).all()


def test_a_rank_above_the_true_rank_keeps_everything():
    structure = DiagonalLowRank(rank=8)
    state, full = recursion(structure, 2)  # 2 batches of 4 rows: rank 8
    torch.testing.assert_close(structure.to_dense(state), full, rtol=1e-12, atol=1e-13)


def test_the_kept_directions_are_the_best_ones():
    structure = DiagonalLowRank(rank=2)
    state, full = recursion(structure, 1)
    values, vectors = torch.linalg.eigh(full - 0.45 * torch.eye(SIZE, dtype=torch.float64))
    best = (vectors[:, -2:] * values[-2:]) @ vectors[:, -2:].T
    u = state["U"].reshape(SIZE, 2)
    torch.testing.assert_close(u @ u.T, best)


def test_columns_never_exceed_the_number_of_parameters():
    state = DiagonalLowRank(rank=50).init((2, 3), initial=0.0, dtype=torch.float64, device="cpu")
    assert state["U"].shape == (2, 3, 6)


def test_sampling_survives_a_duplicated_column():
    structure = DiagonalLowRank(rank=4)
    state, _ = recursion(structure, 3)
    u = state["U"].clone()
    u[..., 1] = u[..., 0]
    u[..., 2] = 0.0
    state = state | {"U": u}
    root = structure.sample(state, torch.eye(SIZE, dtype=torch.float64).unsqueeze(-1), 0.1).squeeze(-1)
    inverse = torch.linalg.inv(structure.to_dense(state, 0.1))
    torch.testing.assert_close(root.T @ root, inverse, rtol=1e-12, atol=1e-13)


def test_no_curvature_and_no_shift_raises_with_the_remedy():
    structure = DiagonalLowRank(rank=2)
    state = structure.init((SIZE, 1), initial=0.0, dtype=torch.float64, device="cpu")
    v = torch.ones(SIZE, 1, dtype=torch.float64)
    for call in (
        lambda: structure.solve(state, v, 0.0),
        lambda: structure.sample(state, v, 0.0),
        lambda: structure.logdet(state, 0.0),
        lambda: structure.inverse_diagonal(state, 0.0),
    ):
        with pytest.raises(NotPositiveDefiniteError, match="weight_decay"):
            call()


def test_nan_rows_are_named():
    structure = DiagonalLowRank(rank=2)
    state = structure.init((SIZE, 1), initial=0.5, dtype=torch.float64, device="cpu")
    seen = {"J": torch.full((3, SIZE), float("nan"), dtype=torch.float64)}
    with pytest.raises(NonFiniteStatisticsError, match="NaN"):
        structure.update(state, seen, decay=0.9, weight=0.1, shift=0.1)


def test_rank_must_be_positive():
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        DiagonalLowRank(rank=0)
