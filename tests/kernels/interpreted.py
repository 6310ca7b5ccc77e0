"""Every Triton kernel against its reference on the CPU, in Triton's interpreter.

Not collected by itself: Triton decides whether it interprets when it is first imported, and ``import vogn`` may import
it, so ``test_interpreter.py`` runs this file in a process that has ``TRITON_INTERPRET=1`` from the start. Known limits
of the interpreter: its bfloat16 is wrong (bfloat16 is left to ``test_gpu.py``), every number of a program is a numpy
array (slow: small shapes), nothing is timed (the first entry of every autotuning space is taken).
"""

import pytest
import torch

from kernel_cases import CASES, assert_same, normal
from vogn import kernels
from vogn.kernels import TABLE, kernel, philox
from vogn.kernels.gpu import language, woodbury_solve
from vogn.kernels.gpu.tiles import lower_tile, lower_tiles

ADAM = {"prior_in_momentum": False, "root": False, "correction": 1.0}


def test_the_interpreter_runs():
    assert language.interpreted()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, dtype):
    case = CASES[name]
    tensors, options = case.make(dtype, torch.device("cpu"))
    before = [x if x is None else x.clone() for x in tensors]
    found = kernel(case.op, "triton")(*tensors, **options)
    own = [None if x is None else x.clone() for x in before[: case.written]]
    assert_same(found, kernel(case.op)(*own, *tensors[case.written :], **options), case.tolerance)
    for x, y in zip(tensors[case.written :], before[case.written :], strict=True):
        assert x is y or torch.equal(x, y)  # operands are read only


def test_every_kernel_has_a_case():
    assert {case.op for case in CASES.values()} == {op for op, table in TABLE.items() if "triton" in table}


def test_noise_equals_the_reference_element_by_element():
    """From mean 0 without a step the sample is the noise itself: the same normal numbers, at 2000 counters."""
    zero, one = torch.zeros(2000), torch.ones(2000)
    options = {"lr": 0.0, "decay": 1.0, "weight": 0.0, "momentum_rate": 1.0, "weight_decay": 0.0, "damping": 0.0}
    found = kernel("diagonal_step", "triton")(
        zero, one, zero, zero, zero, ess=1.0, retract=False, clip_radius=1.0, seed=11, offset=100, **ADAM, **options
    )
    torch.testing.assert_close(found.sample, philox.normal(2000, seed=11, offset=100), rtol=1e-6, atol=1e-6)


def test_draws_equal_those_of_triton_itself():
    import triton
    import triton.language as tl

    @triton.jit
    def draw(out, seed, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        tl.store(out + index, tl.randn(seed, index))

    out = torch.empty(64)
    draw[(1,)](out, 42, SIZE=64)
    torch.testing.assert_close(philox.normal(64, seed=42), out, rtol=1e-6, atol=1e-6)


def test_evidence_of_nan_stays_visible():
    (mean, *others), options = CASES["diagonal step, retracted"].make(torch.float32, torch.device("cpu"))
    others[-1][0, 0] = float("nan")
    options.pop("clip_radius")
    result = kernel("diagonal_step", "triton")(mean, *others, clip_radius=0.5, **options)
    for x in (result.curvature, result.mean, result.sample):
        assert x.isnan().nonzero().tolist() == [[0, 0]]
    assert result.momentum.isfinite().all()


def test_the_public_functions_take_the_kernels(monkeypatch):
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    taken = []
    monkeypatch.setitem(TABLE["squared_gradients"], "triton", lambda g, a: taken.append("triton") or g.T @ a)
    kernels.squared_gradients(normal(4, 3, seed=0), normal(4, 2, seed=1))
    assert taken == ["triton"]
    with pytest.raises(ValueError, match="it takes float16, bfloat16 and float32, not float64; unset VOGN_KERNELS"):
        kernels.squared_gradients(normal(4, 3, seed=0).double(), normal(4, 2, seed=1).double())
    with pytest.raises(ValueError, match="the rank is 33, it takes 1 to 32"):
        kernels.woodbury_solve(torch.ones(40), normal(40, 33, seed=0), torch.ones(1, 40))


def test_tiles_enumerate_the_lower_half():
    """The rounded root is corrected: the first 4096 tiles, and 64 around the start of row 40000."""
    import triton
    import triton.language as tl

    @triton.jit
    def enumerate_tiles(rows, columns, first, SIZE: tl.constexpr):
        t = tl.arange(0, SIZE)
        row, column = lower_tile(first + t)
        tl.store(rows + t, row)
        tl.store(columns + t, column)

    for first, size, start in ((0, 4096, (0, 0)), (lower_tiles(40000) - 32, 64, (39999, 40000 - 32))):
        rows, columns = torch.empty(size, dtype=torch.int32), torch.empty(size, dtype=torch.int32)
        enumerate_tiles[(1,)](rows, columns, first, SIZE=size)
        row, column = start
        for found in zip(rows.tolist(), columns.tolist(), strict=True):
            assert found == (row, column)
            row, column = (row, column + 1) if column < row else (row + 1, 0)


def test_woodbury_with_several_pieces_in_each_part(monkeypatch):
    monkeypatch.setattr(woodbury_solve, "MOST_PARTS", 2)
    d, u, v = normal(600, seed=0).square() + 0.5, normal(600, 3, seed=1), normal(2, 600, seed=2)
    assert_same(
        kernel("woodbury_solve", "triton")(d, u, v, wide=True), kernel("woodbury_solve")(d, u, v, wide=True), 2e-6
    )


def test_the_newton_iteration_of_a_hard_matrix_stops_in_both():
    """Condition 1e5 in single precision: both end where the error no longer falls."""
    q = torch.linalg.qr(normal(8, 8, seed=0)).Q
    hard = (q * torch.logspace(-5, 0, 8)) @ q.T
    expected = (q.double() * torch.logspace(-5, 0, 8).double().rsqrt()) @ q.double().T
    for backend in ("triton", "reference"):
        found, error = kernel("inverse_root", backend)(0.5 * (hard + hard.T), 2)
        assert float(error) < 1e-2
        assert float((found - expected).norm() / expected.norm()) < 1e-2


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:All-NaN:RuntimeWarning")
def test_the_error_tells_of_matrices_without_a_root():
    """Indefinite, zero, and NaN in one element: maxima skip NaN, so the kernel has to look for it."""
    matrices = torch.stack([torch.diag(torch.tensor([1.0, -1.0, 2.0])), torch.zeros(3, 3), torch.eye(3)])
    matrices[2, 0, 1] = float("nan")
    _, error = kernel("inverse_root", "triton")(matrices, 2)
    assert not (error < 0.1).any()
