from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import EigenKronecker, Kronecker, kronecker
from vogn.testing.structure_cases import random_rows

SHAPE = (2, 3)


def curvature(rows: Rows) -> Tensor:
    """The matrix that K-FAC approximates: the mean over examples of the sum of outer products of rows."""
    flat = rows.dense().flatten(2).flatten(0, 1)
    return flat.T @ flat / rows.count


def observed(structure: Kronecker, rows: Rows) -> dict[str, Tensor]:
    state = structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = {key: leaf / rows.count for key, leaf in structure.observe(state, rows).items()}
    return structure.refresh(structure.update(state, seen, decay=0.0, weight=1.0, shift=0.0))


def identity_columns(a: Tensor, outputs: int) -> Rows:
    """Gauss-Newton rows of a linear layer under squared loss with one term per position: ``g[k, n, t] = e_k``."""
    n, t, _ = a.shape
    g = torch.zeros(outputs * t, n, t, outputs, dtype=a.dtype)
    for position in range(t):
        for output in range(outputs):
            g[position * outputs + output, :, position, output] = 1.0
    return Rows(a, g)


def inputs(positions: int, examples: int = 5) -> Tensor:
    return random_rows(SHAPE, seed=0, examples=examples, positions=positions).a


def test_squared_loss_of_a_linear_layer_is_exact():
    rows = identity_columns(inputs(1), 2)
    torch.testing.assert_close(Kronecker().to_dense(observed(Kronecker(), rows)), curvature(rows))


def test_one_example_with_one_column_is_exact():
    rows = random_rows(SHAPE, seed=0, examples=1, columns=1)
    torch.testing.assert_close(Kronecker().to_dense(observed(Kronecker(), rows)), curvature(rows))


def test_one_example_with_several_columns_is_exact():
    rows = random_rows(SHAPE, seed=0, examples=1, columns=3)
    torch.testing.assert_close(Kronecker().to_dense(observed(Kronecker(), rows)), curvature(rows))


def test_expand_is_exact_when_every_position_has_its_own_loss_term():
    rows = identity_columns(inputs(4), 2)
    expand = Kronecker(sharing="expand")
    torch.testing.assert_close(expand.to_dense(observed(expand, rows)), curvature(rows))


def test_reduce_is_exact_when_positions_are_averaged_before_the_loss():
    a = inputs(4)
    g = torch.eye(2, dtype=torch.float64)[:, None, None, :].expand(2, 5, 4, 2) / 4
    rows = Rows(a, g)
    reduce, expand = Kronecker(sharing="reduce"), Kronecker(sharing="expand")
    torch.testing.assert_close(reduce.to_dense(observed(reduce, rows)), curvature(rows))
    error = torch.linalg.matrix_norm(expand.to_dense(observed(expand, rows)) - curvature(rows))
    assert error > 0.1 * torch.linalg.matrix_norm(curvature(rows))


def test_expand_and_reduce_agree_with_one_position():
    rows = random_rows(SHAPE, seed=0, columns=2)
    expand, reduce = (observed(Kronecker(sharing=sharing), rows) for sharing in ("expand", "reduce"))
    torch.testing.assert_close(expand["A"], reduce["A"])
    torch.testing.assert_close(expand["S"], reduce["S"])


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_masked_positions_do_not_count(sharing):
    rows = random_rows(SHAPE, seed=0, positions=5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 1]).unsqueeze(1)
    masked = Rows(rows.a, rows.g * mask.unsqueeze(-1), mask)
    state = observed(Kronecker(sharing=sharing), masked)
    a, s = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)
    for n in range(6):
        used = rows.a[n][mask[n]]
        g = rows.g[0, n][mask[n]]
        if sharing == "expand":  # positions are further examples: all count alike, in long and short sequences
            a += used.T @ used * 6 / mask.sum()
            s += g.T @ g
        else:
            a += torch.outer(used.mean(0), used.mean(0))
            s += torch.outer(g.sum(0), g.sum(0))
    torch.testing.assert_close(state["A"], a / 6)
    torch.testing.assert_close(state["S"], s / 6)


def test_expand_is_exact_for_sequences_of_different_lengths():
    a = inputs(4)
    mask = torch.arange(4) < torch.tensor([4, 1, 3, 2, 1]).unsqueeze(1)
    rows = identity_columns(a, 2)
    rows = Rows(a, rows.g * mask.unsqueeze(-1), mask)
    structure, terms = Kronecker(), int(mask.sum())
    state = structure.init(rows.shape, initial=0.0, dtype=torch.float64, device="cpu")
    seen = structure.observe(state, rows)
    seen |= {"S": seen["S"] / terms, "A": seen["A"] / 5, "positions": seen["positions"] / 5}  # as the collector does
    state = structure.refresh(structure.update(state, seen, decay=0.0, weight=1.0, shift=0.0))
    torch.testing.assert_close(structure.to_dense(state), curvature(rows) * rows.count / terms)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("max_dim", "kept"), [(2, "S"), (0, "")])
def test_a_factor_above_the_limit_keeps_its_diagonal(sharing, max_dim, kept):
    rows = random_rows(SHAPE, seed=0, positions=3, columns=2)
    small = observed(Kronecker(sharing=sharing), rows)
    large = observed(Kronecker(sharing=sharing, max_dim=max_dim), rows)
    a, s = small["A"].diagonal().diag(), small["S"] if kept else small["S"].diagonal().diag()
    torch.testing.assert_close(Kronecker(max_dim=max_dim).to_dense(large), torch.kron(s, a))
    assert large["A"].shape == large["QA"].shape == (1, 3)


def test_an_embedding_above_the_limit_loses_nothing():
    index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 1, 2]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    g = random_rows((2, 1), seed=1, examples=4, positions=3).g * mask.unsqueeze(-1)
    rows = IndexedRows(index, g, 5, mask)
    one_sided, whole = Kronecker(max_dim=4), Kronecker()
    torch.testing.assert_close(one_sided.to_dense(observed(one_sided, rows)), whole.to_dense(observed(whole, rows)))


def test_large_tables_are_never_made_dense():
    rows = IndexedRows(torch.tensor([[0, 299_999]]), torch.ones(1, 1, 2, 3), 300_000)
    for structure in (Kronecker(), Kronecker(sharing="reduce"), EigenKronecker(), EigenKronecker(sharing="reduce")):
        state = structure.init(rows.shape, initial=0.1, dtype=torch.float32, device="cpu")
        state = structure.refresh(
            structure.update(state, structure.observe(state, rows), decay=0.5, weight=0.5, shift=0.0)
        )
        assert state["A"].shape == (1, 300_000) and state["S"].shape == (3, 3)
        v = structure.solve(state, torch.ones(rows.shape), 0.1)
        assert v.shape == rows.shape and bool(v.isfinite().all())


def test_the_limit_and_its_option_are_named():
    note = Kronecker(max_dim=10).restriction((50, 4, 11))
    assert note == "diagonal input factor (11): larger than max_dim=10; Kronecker(max_dim=...) sets the limit"
    assert "output factor (11) and input factor (12)" in EigenKronecker(max_dim=10).restriction((11, 12))
    assert Kronecker().restriction((8192, 8192)) == "" != Kronecker().restriction((8193, 2))


def test_factored_damping_does_not_depend_on_the_scale_of_a_factor():
    structure, v = Kronecker(damping="factored"), torch.ones(SHAPE, dtype=torch.float64)
    state = observed(structure, random_rows(SHAPE, seed=0))
    scaled = structure.refresh(state | {"A": state["A"] * 37.0, "S": state["S"] / 37.0})
    torch.testing.assert_close(structure.solve(state, v, 0.1), structure.solve(scaled, v, 0.1), rtol=1e-12, atol=0)


def test_factored_damping_is_its_formula():
    structure, shift = Kronecker(damping="factored"), 0.1
    state = observed(structure, random_rows(SHAPE, seed=0))
    a, s = state["A"], state["S"]
    pi = ((a.trace() / 3) / (s.trace() / 2)).sqrt()
    a, s = a + pi * shift**0.5 * torch.eye(3).double(), s + shift**0.5 / pi * torch.eye(2).double()
    torch.testing.assert_close(structure.to_dense(state, shift), torch.kron(s, a))


def test_factored_damping_survives_a_zero_factor_in_one_group():
    structure = Kronecker(damping="factored")
    rows = random_rows((2, 2, 3), seed=0)
    state = observed(structure, Rows(rows.a, torch.stack([rows.g[0], torch.zeros_like(rows.g[1])])))
    dense = structure.to_dense(state, 0.04)
    assert dense.isfinite().all() and torch.linalg.eigvalsh(dense)[0] > 0


def test_groups_are_independent_blocks():
    rows = random_rows((2, 2, 3), seed=0)
    structure = Kronecker()
    parts = [structure.to_dense(observed(structure, Rows(rows.a[j], rows.g[j]))) for j in range(2)]
    torch.testing.assert_close(structure.to_dense(observed(structure, rows)), torch.block_diag(*parts))


def test_the_curvature_in_use_is_that_of_the_last_refresh():
    structure = Kronecker()
    state = observed(structure, random_rows(SHAPE, seed=0))
    seen = structure.observe(state, random_rows(SHAPE, seed=1))
    new = structure.update(state, seen, decay=0.5, weight=0.5, shift=0.0)
    torch.testing.assert_close(structure.to_dense(new), structure.to_dense(state))
    torch.testing.assert_close(
        structure.to_dense(structure.refresh(new)), torch.kron(new["S"], new["A"]), rtol=1e-12, atol=1e-12
    )


def test_rows_without_layer_inputs_are_refused_with_the_remedy():
    structure = Kronecker()
    rows = random_rows(SHAPE, seed=0)
    for other in (JoinedRows((rows,)), GradientRow(rows.dense().sum((0, 1)))):
        state = structure.init(other.shape, initial=0.0, dtype=torch.float64, device="cpu")
        with pytest.raises(UnsupportedObservationError, match="partition='layer'"):
            structure.observe(state, other)


def test_nan_and_singular_curvature_are_named():
    structure = Kronecker()
    state = structure.init(SHAPE, initial=0.0, dtype=torch.float64, device="cpu")
    with pytest.raises(NotPositiveDefiniteError, match="above 0"):
        structure.solve(state, torch.ones(SHAPE, dtype=torch.float64), 0.0)
    with pytest.raises(NonFiniteStatisticsError, match="NaN or infinity"):
        structure.refresh(state | {"A": state["A"] * float("nan")})


def test_options_are_checked():
    with pytest.raises(ValueError, match="max_dim=-1 must be at least 0"):
        Kronecker(max_dim=-1)
    with pytest.raises(ValueError, match="damping='pi' is unknown"):
        Kronecker(damping="pi")
    with pytest.raises(ValueError, match="sharing='mean' is unknown"):
        Kronecker(sharing="mean")


def test_kept_powers_follow_shift_state_and_refresh() -> None:
    """Factored damping keeps the powers of its factors; whatever they depend on makes new ones."""
    structure = Kronecker(damping="factored")
    state = observed(structure, random_rows(SHAPE, seed=1))
    v = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = [state | {key: 2.0 * state[key]} for key in ("x", "y")]  # the same bases
    turned = state | {"QS": state["QS"].flip(-1)}
    fresh = observed(structure, random_rows(SHAPE, seed=2))
    for _ in range(2):
        for case in (state, *scaled, turned, fresh):
            for shift in (0.1, 2.0, 0.3):
                inverse = torch.linalg.inv(structure.to_dense(case, shift))
                solved = structure.solve(case, v, shift)
                torch.testing.assert_close(solved.flatten(1), v.flatten(1) @ inverse)
                noise = torch.eye(6, dtype=torch.float64).view(6, *SHAPE)
                root = structure.sample(case, noise, shift).flatten(1)
                torch.testing.assert_close(root, root.T)
                torch.testing.assert_close(root @ root, inverse)


def test_kept_powers_are_few_and_go_with_the_state() -> None:
    structure = Kronecker(damping="factored")
    state = observed(structure, random_rows(SHAPE, seed=1))
    before, v = len(kronecker._POWERS), torch.ones(SHAPE, dtype=torch.float64)
    for shift in (0.1, 0.2, 0.3, 0.4):
        structure.solve(state, v, shift)
        structure.sample(state, v, shift)
    assert len(kronecker._POWERS[state["QA"]]) == 2
    assert structure.solve(state, v, 0.4).equal(structure.solve({k: t.clone() for k, t in state.items()}, v, 0.4))
    del state
    gc.collect()
    assert len(kronecker._POWERS) <= before
