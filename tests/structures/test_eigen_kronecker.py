from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import EigenKronecker, Kronecker
from vogn.testing.structure_cases import random_rows

SHAPE = (3, 4)
BASES = ["kfac", "contraction"]


def curvature(rows: Rows) -> Tensor:
    flat = rows.dense().flatten(2).flatten(0, 1)
    return flat.T @ flat / rows.count


def step(structure: EigenKronecker, state: dict[str, Tensor], rows, decay: float = 0.0) -> dict[str, Tensor]:
    seen = {key: leaf / rows.count for key, leaf in structure.observe(state, rows).items()}
    return structure.update(state, seen, decay=decay, weight=1 - decay, shift=0.0)


def with_fresh_basis(structure: EigenKronecker, rows: Rows) -> dict[str, Tensor]:
    """The basis of these rows, and their second moment in it."""
    state = structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    return step(structure, structure.refresh(step(structure, state, rows)), rows)


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("basis", BASES)
def test_the_second_moment_is_the_diagonal_of_the_curvature_in_the_basis(basis, positions):
    structure, rows = EigenKronecker(basis=basis), random_rows(SHAPE, seed=0, columns=2, positions=positions)
    state = with_fresh_basis(structure, rows)
    q = torch.kron(state["QS"], state["QA"])
    torch.testing.assert_close(state["s"].flatten(), (q.T @ curvature(rows) @ q).diagonal())


@pytest.mark.parametrize("basis", BASES)
def test_the_trace_is_exact(basis):
    structure, rows = EigenKronecker(basis=basis), random_rows(SHAPE, seed=0, columns=2, positions=3)
    dense = structure.to_dense(with_fresh_basis(structure, rows))
    torch.testing.assert_close(dense.trace(), curvature(rows).trace(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_the_frobenius_error_is_at_most_that_of_kfac(seed):
    rows = random_rows(SHAPE, seed=seed, examples=8)
    kfac = Kronecker()
    state = kfac.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    seen = {key: leaf / 8 for key, leaf in kfac.observe(state, rows).items()}
    state = kfac.refresh(kfac.update(state, seen, decay=0.0, weight=1.0, shift=0.0))
    eigen = EigenKronecker()
    norm = torch.linalg.matrix_norm
    error = norm(curvature(rows) - eigen.to_dense(with_fresh_basis(eigen, rows)))
    assert error < norm(curvature(rows) - kfac.to_dense(state))


def test_restarting_gives_kfac_with_exact_damping():
    rows, kfac, eigen = random_rows(SHAPE, seed=0), Kronecker(damping="exact"), EigenKronecker()
    state = eigen.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    state = eigen.refresh(step(eigen, state, rows))
    twin = kfac.refresh({"A": state["A"], "S": state["S"]})
    torch.testing.assert_close(eigen.to_dense(state, 0.1), kfac.to_dense(twin, 0.1))


def test_factored_damping_after_a_restart_is_that_of_kfac():
    rows, eigen = random_rows(SHAPE, seed=0), EigenKronecker(damping="factored")
    state = eigen.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    state = eigen.refresh(step(eigen, state, rows))
    kfac = Kronecker(damping="factored")
    twin = kfac.refresh({"A": state["A"], "S": state["S"]})
    torch.testing.assert_close(eigen.to_dense(state, 0.1), kfac.to_dense(twin, 0.1))
    torch.testing.assert_close(eigen.to_dense(state), eigen.to_dense(state, 1e-30), atol=1e-12, rtol=1e-12)


def test_factored_damping_of_a_free_spectrum_by_a_plain_loop():
    rows, eigen = random_rows(SHAPE, seed=0, columns=2), EigenKronecker(damping="factored")
    state = with_fresh_basis(eigen, rows)
    s, shift = state["s"], 0.1
    damped = torch.empty_like(s)
    for j in range(SHAPE[0]):
        for i in range(SHAPE[1]):
            damped[j, i] = s[j, i] + (shift / s.mean()) ** 0.5 * (s[j].mean() + s[:, i].mean()) + shift
    q = torch.kron(state["QS"], state["QA"])
    torch.testing.assert_close(eigen.to_dense(state, shift), q @ damped.flatten().diag() @ q.T)


def test_factored_damping_of_a_vanishing_curvature_is_the_shift():
    structure = EigenKronecker(damping="factored")
    state = structure.init(SHAPE, initial=1e-40, dtype=torch.float32, device="cpu")
    torch.testing.assert_close(structure.to_dense(state, 0.1), 0.1 * torch.eye(12))


def test_factored_damping_without_curvature_is_the_shift():
    structure = EigenKronecker(damping="factored")
    state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    torch.testing.assert_close(structure.to_dense(state, 0.1), 0.1 * torch.eye(12, dtype=torch.float64))


def test_restarting_on_contractions_keeps_the_trace_of_the_curvature():
    rows, structure = random_rows(SHAPE, seed=0, positions=2), EigenKronecker(basis="contraction")
    state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    state = structure.refresh(step(structure, state, rows))
    torch.testing.assert_close(state["s"].sum(), curvature(rows).trace())


@pytest.mark.parametrize("basis", BASES)
def test_carrying_over_keeps_the_diagonal_of_the_curvature_in_the_new_basis(basis):
    structure = EigenKronecker(basis=basis, restart=False)
    state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    for seed in range(3):
        state = structure.refresh(step(structure, state, random_rows(SHAPE, seed=seed), decay=0.5))
    state = step(structure, state, random_rows(SHAPE, seed=3), decay=0.5)
    new = structure.refresh(state)
    q = torch.kron(new["QS"], new["QA"])
    torch.testing.assert_close(new["s"].flatten(), (q.T @ structure.to_dense(state) @ q).diagonal())
    torch.testing.assert_close(new["s"].sum(), state["s"].sum())


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("basis", BASES)
def test_refreshing_the_initial_state_keeps_the_initial_curvature(basis, restart):
    structure = EigenKronecker(basis=basis, restart=restart)
    state = structure.refresh(structure.init((2, 3, 4), initial=0.3, dtype=torch.float64, device="cpu"))
    torch.testing.assert_close(structure.to_dense(state), 0.3 * torch.eye(24, dtype=torch.float64))


@pytest.mark.parametrize("rows", ["one position", "several positions", "groups", "look-up", "gradient", "joined"])
def test_contractions_are_those_of_the_explicit_rows(rows):
    several = random_rows(SHAPE, seed=0, columns=2, positions=3)
    index = torch.randint(4, (6, 3), generator=torch.Generator().manual_seed(0))
    kinds = {
        "one position": random_rows(SHAPE, seed=0, columns=2),
        "several positions": several,
        "groups": random_rows((2, *SHAPE), seed=0, columns=2, positions=3),
        "look-up": IndexedRows(index, several.g, 4),
        "gradient": GradientRow(several.dense().sum((0, 1))),
        "joined": JoinedRows((several, random_rows((2, 1), seed=1, columns=2))),
    }
    chosen = kinds[rows]
    structure = EigenKronecker(basis="contraction")
    state = structure.init(chosen.shape, initial=1.0, dtype=torch.float64, device="cpu")
    seen = structure.observe(state, chosen)
    dense = chosen.dense().flatten(0, 1)
    torch.testing.assert_close(seen["right"], (dense.mT @ dense).sum(0))
    torch.testing.assert_close(seen["S"], (dense @ dense.mT).sum(0))
    torch.testing.assert_close(seen["rows"], dense.square().sum(0))


def test_a_probe_is_read_in_the_basis_and_never_moves_it():
    structure = EigenKronecker(negative="retract")
    state = with_fresh_basis(structure, random_rows(SHAPE, seed=0))
    h = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = h + h.T
    total = torch.zeros(SHAPE, dtype=torch.float64)
    for probe, response in zip(torch.eye(12, dtype=torch.float64), h, strict=True):
        total += structure.observe_probe(state, probe.reshape(SHAPE), response.reshape(SHAPE))["probe"]
    q = torch.kron(state["QS"], state["QA"])
    torch.testing.assert_close(total.flatten(), (q.T @ h @ q).diagonal())
    new = structure.update(state, {"probe": total}, decay=0.9, weight=0.1, shift=0.1)
    assert all(torch.equal(new[key], state[key]) for key in ("A", "S", "QA", "QS"))
    x = 0.1 * (total - state["s"]) / (state["s"] + 0.1)
    torch.testing.assert_close(new["s"] + 0.1, (state["s"] + 0.1) * (1 + x + x**2 / 2))


def test_where_both_channels_speak_rows_move_the_basis_and_the_probe_is_the_evidence():
    structure = EigenKronecker(basis="contraction", restart=False)
    state = structure.init(SHAPE, initial=0.5, dtype=torch.float64, device="cpu")
    seen = structure.observe(state, GradientRow(torch.ones(SHAPE, dtype=torch.float64)))
    probe = {"probe": torch.full(SHAPE, 2.0, dtype=torch.float64)}
    new = structure.update(state, seen | probe, decay=0.5, weight=0.5, shift=0.1)
    torch.testing.assert_close(new["s"], torch.full(SHAPE, 1.25, dtype=torch.float64))
    torch.testing.assert_close(new["S"], 0.5 * state["S"] + 0.5 * 4 * torch.ones(3, 3, dtype=torch.float64))


def test_the_basis_can_forget_at_its_own_rate():
    structure = EigenKronecker(basis_decay=0.25)
    state = structure.init(SHAPE, initial=0.5, dtype=torch.float64, device="cpu")
    rows = random_rows(SHAPE, seed=0)
    seen = structure.observe(state, rows)
    new = structure.update(state, seen, decay=0.9, weight=0.1, shift=0.0)
    torch.testing.assert_close(new["A"], 0.25 * state["A"] + 0.75 * seen["inputs"] / rows.count)
    torch.testing.assert_close(new["s"], 0.9 * state["s"] + 0.1 * seen["rows"])
    with pytest.raises(ValueError, match=r"basis_decay=1.5 must lie in \[0, 1\]"):
        EigenKronecker(basis_decay=1.5)


def test_negative_evidence_without_a_policy_raises():
    structure = EigenKronecker()
    state = structure.init(SHAPE, initial=0.1, dtype=torch.float64, device="cpu")
    evidence = {"probe": torch.full(SHAPE, -9.0, dtype=torch.float64)}
    with pytest.raises(NotPositiveDefiniteError, match="indefinite"):
        structure.update(state, evidence, decay=0.5, weight=0.5, shift=0.1)


def test_gradient_rows_need_the_contraction_basis():
    structure = EigenKronecker()
    state = structure.init(SHAPE, initial=0.1, dtype=torch.float64, device="cpu")
    with pytest.raises(UnsupportedObservationError, match="GradientRow"):
        structure.observe(state, GradientRow(torch.ones(SHAPE, dtype=torch.float64)))


def one_sided(rows: Rows, **options) -> EigenKronecker:
    """Rows of shape (3, 4) with the input side too large for a matrix."""
    assert rows.shape == SHAPE
    return EigenKronecker(max_dim=3, **options)


@pytest.mark.parametrize("basis", BASES)
def test_a_side_above_the_limit_keeps_the_axes_as_its_basis(basis):
    rows = random_rows(SHAPE, seed=0, columns=2, positions=3)
    state = with_fresh_basis(one_sided(rows, basis=basis), rows)
    free = with_fresh_basis(EigenKronecker(basis=basis), rows)
    assert {state[key].shape for key in ("A", "QA")} == {(1, 4)} and state["QA"].eq(1).all()
    torch.testing.assert_close(state["A"][0], free["A"].diagonal())
    torch.testing.assert_close(state["S"], free["S"])
    q = torch.kron(state["QS"].contiguous(), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(state["s"].flatten(), (q.T @ curvature(rows) @ q).diagonal())


def test_without_any_basis_the_curvature_is_the_exact_diagonal():
    rows, structure = random_rows(SHAPE, seed=0, columns=2, positions=3), EigenKronecker(max_dim=0)
    dense = structure.to_dense(with_fresh_basis(structure, rows))
    torch.testing.assert_close(dense, curvature(rows).diagonal().diag())


def test_reduce_turns_the_basis_to_averaged_inputs():
    rows = random_rows(SHAPE, seed=0, positions=3)
    state = step(
        EigenKronecker(sharing="reduce"),
        EigenKronecker().init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu"),
        rows,
    )
    mean, total = rows.a.mean(1), rows.g[0].sum(1)
    torch.testing.assert_close(state["A"], mean.T @ mean / rows.count)
    torch.testing.assert_close(state["S"], total.T @ total / rows.count)


def test_options_are_checked():
    with pytest.raises(ValueError, match="sharing='mean' is unknown"):
        EigenKronecker(sharing="mean")
    with pytest.raises(ValueError, match="max_dim=-1 must be at least 0"):
        EigenKronecker(max_dim=-1)
    with pytest.raises(ValueError, match="basis='soap' is unknown"):
        EigenKronecker(basis="soap")
