from __future__ import annotations

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.structures import Diagonal
from vogn.testing.structure_cases import random_rows

SHAPE = (2, 3)


def state_of(value: float | torch.Tensor) -> dict[str, torch.Tensor]:
    return {"c": torch.as_tensor(value, dtype=torch.float64).expand(SHAPE).clone()}


def test_rows_enter_as_squares_of_per_example_gradients():
    structure = Diagonal()
    rows = random_rows(SHAPE, seed=0, columns=2, positions=3)
    expected = torch.zeros(SHAPE, dtype=torch.float64)
    for k in range(2):
        for n in range(6):
            gradient = sum(torch.outer(rows.g[k, n, t], rows.a[n, t]) for t in range(3))
            expected += gradient**2
    new = structure.update(state_of(0.5), structure.observe(state_of(0.5), rows), decay=0.9, weight=0.1, shift=0.0)
    torch.testing.assert_close(new["c"], 0.9 * 0.5 + 0.1 * expected)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1e6])
def test_retraction_multiplies_the_precision_by_one_plus_x_plus_half_x_squared(scale):
    structure, shift, weight = Diagonal(negative="retract"), 0.01, 0.2
    source = torch.Generator().manual_seed(0)
    c = torch.rand(SHAPE, generator=source, dtype=torch.float64)
    h = scale * torch.randn(SHAPE, generator=source, dtype=torch.float64)
    new = structure.update({"c": c}, {"probe": h}, decay=1 - weight, weight=weight, shift=shift)["c"]
    x = weight * (h - c) / (c + shift)
    torch.testing.assert_close(new + shift, (c + shift) * (1 + x + x**2 / 2), rtol=1e-12, atol=0)
    assert (new + shift >= 0.5 * (c + shift) * (1 - 1e-9)).all()


@pytest.mark.parametrize(("decay", "weight"), [(0.9, 0.1), (0.0, 1.0), (0.9, 0.5), (0.5, 0.1), (1.0, 1.0)])
def test_retraction_keeps_the_precision_positive_for_any_decay_and_weight(decay, weight):
    structure, shift = Diagonal(negative="retract"), 0.1
    for c in (-0.099, 0.0, 3.0):
        for h in torch.linspace(-200, 200, 2001, dtype=torch.float64):
            new = structure.update(state_of(c), {"probe": h.expand(SHAPE)}, decay=decay, weight=weight, shift=shift)
            assert (new["c"] + shift > 0).all()


def test_retraction_leaves_a_curvature_that_agrees_with_the_evidence_unchanged():
    structure = Diagonal(negative="retract")
    new = structure.update(state_of(0.7), {"probe": state_of(0.7)["c"]}, decay=0.9, weight=0.1, shift=0.1)
    torch.testing.assert_close(new["c"], state_of(0.7)["c"])


@pytest.mark.parametrize(("negative", "expected"), [("clamp", 0.45), ("abs", 0.45 + 0.1 * 2.0), ("raise", 0.25)])
def test_negative_evidence_follows_the_policy(negative, expected):
    structure = Diagonal(negative=negative)
    new = structure.update(state_of(0.5), {"probe": state_of(-2.0)["c"]}, decay=0.9, weight=0.1, shift=0.1)
    torch.testing.assert_close(new["c"], state_of(expected)["c"])


def test_a_precision_that_would_become_negative_raises_with_the_remedy():
    with pytest.raises(NotPositiveDefiniteError, match="-0.45.*negative='retract'"):
        Diagonal().update(state_of(0.5), {"probe": state_of(-10.0)["c"]}, decay=0.9, weight=0.1, shift=0.1)


def test_nan_evidence_is_named():
    with pytest.raises(NonFiniteStatisticsError, match="NaN"):
        Diagonal().update(state_of(0.5), {"probe": state_of(float("nan"))["c"]}, decay=0.9, weight=0.1, shift=0.1)


@pytest.mark.parametrize("call", ["solve", "sample", "logdet", "inverse_diagonal", "retract"])
def test_no_curvature_and_no_shift_raises_instead_of_dividing_by_zero(call):
    structure, state, v = Diagonal(negative="retract"), state_of(0.0), torch.ones(SHAPE, dtype=torch.float64)
    calls = {
        "solve": lambda: structure.solve(state, v, 0.0),
        "sample": lambda: structure.sample(state, v, 0.0),
        "logdet": lambda: structure.logdet(state, 0.0),
        "inverse_diagonal": lambda: structure.inverse_diagonal(state, 0.0),
        "retract": lambda: structure.update(state, {"probe": v}, decay=0.9, weight=0.1, shift=0.0),
    }
    with pytest.raises(NotPositiveDefiniteError, match="set weight_decay, damping or initial_curvature above 0"):
        calls[call]()


def test_a_root_of_negative_curvature_counts_it_as_zero():
    v = torch.ones(SHAPE, dtype=torch.float64)
    torch.testing.assert_close(Diagonal().solve(state_of(-0.05), v, 0.1, exponent=0.5), v / 0.1)


def test_where_both_channels_speak_the_probe_is_the_evidence():
    structure, leaf = Diagonal(), state_of(2.0)["c"]
    new = structure.update(state_of(0.5), {"rows": 9 * leaf, "probe": leaf}, decay=0.5, weight=0.5, shift=0.0)
    torch.testing.assert_close(new["c"], state_of(1.25)["c"])


def test_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="negative='keep' is unknown; allowed: 'raise', 'retract', 'clamp', 'abs'"):
        Diagonal(negative="keep")
