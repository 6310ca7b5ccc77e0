"""Operators of a structure against ``to_dense``."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from vogn.testing.structure_cases import StructureCases, assert_close, raises
from vogn.types import Shape, State

MODERATE = 1e5
"""Largest condition number at which solutions are compared directly; beyond it, residuals are."""


class OperatorConformance(StructureCases):
    """Every operator means what ``to_dense`` says."""

    def test_to_dense_without_shift_of_a_fresh_state_is_initial_times_identity(self) -> None:
        """``C_0 = initial * I`` (structures that ignore ``initial`` give the identity)."""
        for shape in self.shapes:
            dense = self.structure.to_dense(self.structure.refresh(self.fresh(shape, 0.5)))
            eye = torch.eye(math.prod(shape), dtype=torch.float64)
            assert any(torch.allclose(dense, scale * eye, rtol=1e-12) for scale in (0.5, 1.0)), f"{shape}: {dense}"

    def test_solve_inverts_to_dense(self) -> None:
        """Forward error up to a moderate condition number, relative residual beyond."""
        for name, shape, state, shift, dense, condition in self.systems():
            v = _vectors(dense, shape)
            x = self.structure.solve(state, v, shift)
            assert x.shape == v.shape, f"{name}: solve returns {tuple(x.shape)}"
            _assert_solves(dense, _flat(x, shape), _flat(v, shape), condition, name)

    def test_solve_with_exponent_inverts_the_power_of_c_plus_shift(self) -> None:
        """``(C^exponent + shift I)^-1 v``, or an error where it is not supported."""
        for name, shape, state in self.states():
            v = _vectors(torch.eye(math.prod(shape), dtype=torch.float64), shape)
            if "exponent" not in self.structure.SUPPORTS:
                half = partial(self.structure.solve, state, v, self.shift, exponent=0.5)
                assert raises(half), f"{name}: the exponent is ignored"
                continue
            values, vectors = torch.linalg.eigh(self.structure.to_dense(state))
            for exponent in (0.5, 0.25):
                dense = (vectors * (values.clamp_min(0) ** exponent + self.shift)) @ vectors.T
                x = self.structure.solve(state, v, self.shift, exponent=exponent)
                # zero eigenvalues are known to 1e-16 only, so their fourth root to 1e-4
                tolerance = 1e-10 if values[0] > 1e-6 else 10 * 1e-16**exponent / self.shift
                expected = torch.linalg.solve(dense, _flat(v, shape).T).T
                assert_close(_flat(x, shape), expected, tolerance, f"{name}, exponent {exponent}")

    def test_pseudo_solve_inverts_the_eigenvalues_above_the_cut(self) -> None:
        """``C^-exponent`` on eigenvalues of at least ``cut``, zero on the others."""
        if "pseudo_inverse" not in self.structure.SUPPORTS:
            return
        for name, shape, state in self.states():
            values, vectors = torch.linalg.eigh(self.structure.to_dense(state))
            v = _vectors(torch.eye(math.prod(shape), dtype=torch.float64), shape)
            gaps = [float(high / low) if low > 0 else math.inf for low, high in pairwise(values.clamp_min(1e-12))]
            cut = float(values[-1]) / 2
            for low, high, gap in zip(values[:-1], values[1:], gaps, strict=True):
                if gap == max(gaps) and high > 0:
                    cut = float((low.clamp_min(1e-12) * high).sqrt())  # no eigenvalue is near
            inverse = torch.where(values >= cut, values.clamp_min(cut), math.inf)
            for exponent in (1.0, 0.5):
                dense = (vectors * inverse.pow(-exponent)) @ vectors.T
                x = self.structure.pseudo_solve(state, v, cut, exponent=exponent)
                assert_close(_flat(x, shape), _flat(v, shape) @ dense, 1e-10, f"{name}, exponent {exponent}")

    def test_apply_multiplies_by_to_dense(self) -> None:
        """``apply(v) = to_dense v``."""
        if "apply" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, _ in self.systems():
            v = _vectors(dense, shape)
            product = self.structure.apply(state, v, shift)
            assert product.shape == v.shape, f"{name}: apply returns {tuple(product.shape)}"
            assert_close(_flat(product, shape), _flat(v, shape) @ dense, 1e-12, name)

    def test_solve_apply_and_sample_are_differentiable_in_the_vector(self) -> None:
        """They are linear: ``d (w . L v) / d v = L^T w``, so ``v . gradient`` is the value; for one vector."""
        operators = {"solve": self.structure.solve}
        operators |= {n: getattr(self.structure, n) for n in ("apply", "sample") if n in self.structure.SUPPORTS}
        source = torch.Generator().manual_seed(0)
        for name, shape, state, shift, _, _ in self.systems():
            for operator, call in operators.items():
                v, w = torch.randn((2, *shape), generator=source, dtype=torch.float64)
                plain = (w * call(state, v.clone(), shift)).sum()
                value = (w * call(state, v.requires_grad_(), shift)).sum()
                (gradient,) = torch.autograd.grad(value, v)
                scale = float((v.detach() * gradient).abs().sum())
                assert_close((v.detach() * gradient).sum() / scale, plain / scale, 1e-9, f"{name}: {operator}")

    def test_sample_is_an_inverse_root_of_to_dense(self) -> None:
        """``S S^T = to_dense^-1``, with ``S`` read off from unit vectors: no Monte Carlo."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, condition in self.systems():
            covariance = self._covariance(state, shape, shift)
            eye = torch.eye(len(dense), dtype=torch.float64)
            _assert_solves(dense, covariance, eye, condition, name)

    def test_sample_is_linear_in_the_noise(self) -> None:
        """``S (2 x - 3 y) = 2 S x - 3 S y``."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, _, _ in self.systems():
            x, y = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            draw = self.structure.sample
            both = 2 * draw(state, x, shift) - 3 * draw(state, y, shift)
            assert_close(draw(state, 2 * x - 3 * y, shift), both, 1e-11, name)

    def test_logdet_is_that_of_to_dense(self) -> None:
        """``logdet = log det to_dense``, a scalar."""
        if "logdet" not in self.structure.SUPPORTS:
            return
        for name, _, state, shift, dense, condition in self.systems():
            value = self.structure.logdet(state, shift)
            assert value.ndim == 0, f"{name}: logdet is not a scalar"
            # the oracle knows its smallest eigenvalue to one rounding error of the largest
            error = abs(float(value - torch.logdet(dense)))
            assert error < 1e-10 + 1e-15 * condition * len(dense), f"{name}: logdet is off by {error:.3g}"

    def test_inverse_diagonal_is_that_of_the_inverse_of_to_dense(self) -> None:
        """``inverse_diagonal = diag(to_dense^-1)`` as a block vector."""
        if "inverse_diagonal" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, condition in self.systems():
            value = self.structure.inverse_diagonal(state, shift)
            assert value.shape == shape, f"{name}: inverse_diagonal is {tuple(value.shape)}"
            assert bool((value > 0).all()), f"{name}: inverse_diagonal is not positive"
            expected = torch.linalg.inv(dense).diagonal()
            assert_close(value.flatten(), expected, 1e-10 + 1e-15 * condition * len(dense), name)

    def test_input_variance_is_that_of_a_matrix_times_an_input(self) -> None:
        """``(I (x) a)^T to_dense^-1 (I (x) a)``, for blocks that are one matrix."""
        for name, shape, state, shift, dense, condition in self.systems():
            if len(shape) != 2:
                continue
            o, i = shape
            a = torch.randn(3, i, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            covariance = torch.linalg.inv(dense).reshape(o, i, o, i)
            expected = torch.einsum("bi,oipj,bj->bop", a, covariance, a)
            tolerance = 1e-10 + 1e-15 * condition * len(dense)
            assert_close(self.structure.input_variance(state, shape, a, shift), expected, tolerance, name)
            variances = self.structure.input_variance(state, shape, a, shift, diagonal=True)
            assert_close(variances, expected.diagonal(dim1=1, dim2=2), tolerance, name)

    def test_eigenvalue_bounds_enclose_the_spectrum_of_to_dense(self) -> None:
        """``low <= eigenvalues <= high``, to the rounding of the largest."""
        if "eigenvalue_bounds" not in self.structure.SUPPORTS:
            return
        for name, _, state, shift, dense, _ in self.systems():
            low, high = self.structure.eigenvalue_bounds(state, shift)
            spectrum = torch.linalg.eigvalsh(dense)
            rounding = 1e-13 * float(spectrum[-1])
            assert low.ndim == high.ndim == 0, f"{name}: the bounds are not scalars"
            assert float(low) <= float(spectrum[0]) + rounding, f"{name}: an eigenvalue lies below the bound"
            assert float(high) >= float(spectrum[-1]) - rounding, f"{name}: an eigenvalue lies above the bound"

    def test_batch_dimensions_are_carried_along(self) -> None:
        """Operators act on every element of ``(2, 2, *shape)`` as on a single block vector.

        To rounding, which a sample takes times the root of curvature over shift: some processors sum the products of
        one vector and of four in another order (up to 5.8e-12 was measured where the shift is 1e-9 of the curvature).
        """
        for name, shape, state, shift, dense, _ in self.systems():
            smallest = float(shift.min()) if isinstance(shift, Tensor) else shift
            ratio = float(torch.linalg.matrix_norm(dense, 2)) / smallest if smallest > 0 else 1.0
            tolerance = max(1e-12, 4 * torch.finfo(dense.dtype).eps * math.sqrt(ratio))
            v = torch.randn((2, 2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            for feature, operator in self.operators().items():
                whole = operator(state, v, shift)
                parts = torch.stack([torch.stack([operator(state, x, shift) for x in row]) for row in v])
                assert_close(whole, parts, tolerance, f"{name}, {feature}")

    def test_sample_is_continuous_in_the_curvature(self) -> None:
        """A change of 1e-13 moves no sample by more than 1e-9, also where eigenvalues nearly coincide."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for shape in self.shapes:
            for name, state in (("degenerate", self.fresh(shape, 1.0)), ("trained", self.trained(shape))):
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                draws = []
                for seed in (1, 2):
                    moved = self.structure.refresh(self.perturbed(state, 1e-13, seed))
                    draws.append(self.structure.sample(moved, noise, self.shift))
                distance = float((draws[0] - draws[1]).abs().max())
                assert distance < 1e-9, f"{name} {shape}: a change of 1e-13 in C moves the sample by {distance:.3g}"

    def perturbed(self, state: State, size: float, seed: int) -> State:
        """The state with random changes in what ``refresh`` reads; symmetric ones in square trailing dimensions."""
        source = torch.Generator().manual_seed(seed)
        moved = dict(state)
        for key, tensor in state.items():
            if key in self.structure.REFRESHED or not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
            side = math.isqrt(tensor.numel())
            if tensor.ndim % 2 == 0 and tensor.shape[: tensor.ndim // 2] == tensor.shape[tensor.ndim // 2 :]:
                matrix = noise.reshape(side, side)
                noise = (matrix + matrix.T).reshape(tensor.shape)
            elif tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]:
                noise = noise + noise.mT
            moved[key] = tensor + size * noise
        return moved

    def _covariance(self, state: State, shape: Shape, shift: float | Tensor) -> Tensor:
        eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        root = self.structure.sample(state, eye, shift).reshape(len(eye), -1)  # row j is S e_j
        return root.T @ root


def _vectors(dense: Tensor, shape: Shape) -> Tensor:
    """Block vectors: some random, some in the range of the curvature, where gradients lie."""
    source = torch.Generator().manual_seed(3)
    v = torch.randn((3, len(dense)), generator=source, dtype=torch.float64)
    return torch.cat([v, v @ dense]).reshape(-1, *shape)


def _flat(v: Tensor, shape: Shape) -> Tensor:
    return v.reshape(-1, math.prod(shape))


def _assert_solves(dense: Tensor, x: Tensor, v: Tensor, condition: float, name: str) -> None:
    """Rows of ``x`` solve ``dense x = v``."""
    if condition <= MODERATE:
        assert_close(x, torch.linalg.solve(dense, v.T).T, 1e-10, f"{name}, condition {condition:.1g}")
        return
    residual = torch.linalg.vector_norm(x @ dense - v, dim=-1)
    largest = torch.linalg.matrix_norm(dense, 2)
    scale = largest * torch.linalg.vector_norm(x, dim=-1) + torch.linalg.vector_norm(v, dim=-1)
    worst = float((residual / scale).max())
    assert worst < 1e-12, f"{name}, condition {condition:.1g}: relative residual {worst:.3g}"
