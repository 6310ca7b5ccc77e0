"""The conformance suite catches structures that break a promise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker
from vogn.testing import StructureConformance


class WrongRoot(Diagonal):
    def sample(self, state, noise, shift):
        return noise / (state["c"] + shift)


class WrongDeterminant(Diagonal):
    def logdet(self, state, shift):
        return (state["c"] + shift).log().mean()


class WrongVariance(Diagonal):
    def inverse_diagonal(self, state, shift):
        return 1 / (state["c"] + 1.001 * shift)


class WrongSolve(Diagonal):
    def solve(self, state, v, shift, *, exponent=1.0):
        return v / (state["c"] ** exponent + shift + 1e-8)


class WrongProduct(Diagonal):
    def apply(self, state, v, shift):
        return v * state["c"]


class WrongDegree(Diagonal):
    DEGREE: ClassVar[dict[str, int]] = {"rows": 1, "probe": 1}


class CountsColumns(Kronecker):
    def observe(self, state, rows):
        seen = super().observe(state, rows)
        return seen | {"A": seen["A"] * rows.columns}


class WrongMerge(Diagonal):
    def observe(self, state, rows):
        return {"rows": rows.squares() / rows.count}


class Mutates(Diagonal):
    def update(self, state, observation, *, decay, weight, shift):
        state["c"].mul_(decay)
        return {"c": state["c"]}


class Raw(Kronecker):
    """Eigenvectors times noise: the right covariance, but discontinuous."""

    def sample(self, state, noise, shift):
        return state["QS"] @ (noise * self._eigenvalues(state, shift).rsqrt()) @ state["QA"].mT


class IgnoresExponent(Dense):
    def _only_linear(self, exponent):
        pass


class LosesBatch(Dense):
    def solve(self, state, v, shift, *, exponent=1.0):
        shape = state["C"].shape[: state["C"].ndim // 2]
        return super().solve(state, v.reshape(-1, *shape)[0].expand(v.shape), shift)


class Doubles(Diagonal):
    def solve(self, state, v, shift, *, exponent=1.0):
        return super().solve(state, v, shift, exponent=exponent).double()


class Undeclared(Kronecker):
    REFRESHED: ClassVar[tuple[str, ...]] = ("QA", "QS")


@dataclass(frozen=True)
class ClaimsTooLittle(DiagonalLowRank):
    """Declares less than it can do: harmless for users, but not honest."""

    SUPPORTS: ClassVar[frozenset[str]] = frozenset({"shift", "apply", "sample", "logdet", "inverse_diagonal"})


class KeepsItsBasisSecret(EigenKronecker):
    READ_BY_OBSERVE: ClassVar[tuple[str, ...]] = ()


class NotElementwise(Diagonal):
    def update(self, state, observation, *, decay, weight, shift):
        new = super().update(state, observation, decay=decay, weight=weight, shift=shift)
        return {"c": new["c"].mean().expand_as(new["c"]).clone()}


BROKEN = [
    (WrongRoot(), "test_sample_is_an_inverse_root_of_to_dense"),
    (WrongDeterminant(), "test_logdet_is_that_of_to_dense"),
    (WrongVariance(), "test_inverse_diagonal_is_that_of_the_inverse_of_to_dense"),
    (WrongSolve(), "test_solve_inverts_to_dense"),
    (WrongSolve(), "test_solve_with_exponent_inverts_the_power_of_c_plus_shift"),
    (WrongProduct(), "test_apply_multiplies_by_to_dense"),
    (WrongDegree(), "test_degree_tells_how_leaves_scale_with_the_loss"),
    (CountsColumns(), "test_columns_are_not_examples"),
    (WrongMerge(), "test_reduce_merges_micro_batches"),
    (Mutates(), "test_nothing_mutates_its_inputs"),
    (Raw(), "test_sample_is_continuous_in_the_curvature"),
    (IgnoresExponent(), "test_solve_with_exponent_inverts_the_power_of_c_plus_shift"),
    (LosesBatch(), "test_batch_dimensions_are_carried_along"),
    (Doubles(), "test_single_precision_stays_single"),
    (Undeclared(), "test_refresh_writes_only_what_it_declares"),
    (KeepsItsBasisSecret(), "test_observe_reads_no_other_numbers_than_it_declares"),
    (NotElementwise(), "test_parts_of_an_elementwise_block_are_blocks"),
    (ClaimsTooLittle(), "test_features_that_are_not_declared_raise"),
]


@pytest.mark.parametrize(("structure", "test"), BROKEN, ids=[type(s).__name__ + "-" + t[5:20] for s, t in BROKEN])
def test_a_broken_structure_is_caught(structure, test):
    suite = type("Suite", (StructureConformance,), {"structure": structure})()
    with pytest.raises(AssertionError):
        getattr(suite, test)()


def test_the_raw_root_has_the_right_covariance_and_fails_only_by_continuity():
    suite = type("Suite", (StructureConformance,), {"structure": Raw()})()
    suite.test_sample_is_an_inverse_root_of_to_dense()


def test_a_structure_that_is_not_registered_can_run_the_suite():
    @dataclass(frozen=True)
    class Mine(Diagonal):
        pass

    suite = type("Suite", (StructureConformance,), {"structure": Mine(), "shapes": ((2, 2),)})()
    for name in dir(suite):
        if name.startswith("test_"):
            getattr(suite, name)()
    assert torch.is_tensor(suite.fresh((2, 2))["c"])
