"""Every Triton kernel against its reference on the CPU, in Triton's interpreter.

Not collected by itself: Triton decides whether it interprets when it is first imported, and ``import vogn`` may import
it, so ``test_interpreter.py`` runs this file in a process that has ``TRITON_INTERPRET=1`` from the start. Known limits
of the interpreter: its bfloat16 is wrong (bfloat16 is left to ``test_gpu.py``), every number of a program is a numpy
array (slow: small shapes), nothing is timed (the first entry of every autotuning space is taken).
"""

import math

import pytest
import torch

from kernel_cases import CASES, assert_same, normal
from kernel_engine import launches
from vogn import kernels
from vogn.kernels import TABLE, kernel, philox
from vogn.kernels.gpu import language, woodbury_solve
from vogn.kernels.gpu.tiles import lower_tile, lower_tiles
from vogn.kernels.native.oracle import normal_numbers
from vogn.linalg import noise
from vogn.optim.functional import weight_noise

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


def drawn(sizes, seeds):
    out = torch.full((sum(sizes),), torch.nan)
    return kernel("fill_normal", "triton")(out, sizes, seeds).split(list(sizes))


def test_a_stream_is_the_same_alone_and_in_any_company():
    sizes, seeds = [3, 1025, 64, 1, 2500], [5, (1 << 64) - 1, 7, 1 << 33, 11]
    together = drawn(sizes, seeds)
    for part, size, seed in zip(together, sizes, seeds, strict=True):
        assert torch.equal(drawn([size], [seed])[0], part)
        assert torch.equal(drawn([7, size, 300], [1, seed, 2])[1], part)
        assert torch.equal(part, normal_numbers(size, seed=seed))
    for part, again in zip(together[::-1], drawn(sizes[::-1], seeds[::-1]), strict=True):
        assert torch.equal(part, again)


def test_numbers_outside_of_the_vector_are_not_touched():
    room = torch.zeros(1000)
    kernel("fill_normal", "triton")(room[101:505], [400, 4], [1, 2])
    assert (room[101:505] != 0.0).all() and not room[:101].any() and not room[505:].any()


def test_every_bit_of_a_seed_counts_alone_and_in_a_bundle():
    seeds = [0, *(1 << bit for bit in range(64))]
    together = torch.stack(drawn([4] * 65, seeds))
    alone = torch.stack([drawn([4], [seed])[0] for seed in seeds])
    assert torch.equal(together, alone)
    assert together.unique(dim=0).shape == (65, 4)


@pytest.mark.parametrize("counter", [2**31 - 128, 2**32 - 128], ids=["31 bits", "32 bits"])
def test_counters_beyond_32_bits_go_on(counter):
    """The last programs of a segment that is too long to be here: its start lies before its vector."""
    from vogn.kernels.gpu import fill_normal

    first, seed = counter // fill_normal.BLOCK, 77
    size, out = 4 * counter + 900, torch.full((2048,), torch.nan)
    tables = torch.zeros(3, dtype=torch.int32), torch.tensor([[512 - 4 * counter, size, -first]]), torch.tensor([seed])
    fill_normal._kernel[(2,)](out, 0, 0, *tables, ALONE=False, BLOCK=fill_normal.BLOCK, enable_fp_fusion=False)
    counters = torch.arange(counter - 128, counter + 384)
    assert counter % fill_normal.BLOCK == 128 and out[:1412].isfinite().all() and out[1412:].isnan().all()
    words = philox.philox((counters & philox.MASK, counters >> 32, counters * 0, counters * 0), (seed, 0))
    radius = ((words[0] >> 1).double() * 2.0**-31 + 2.0**-33).log().mul(-2.0).sqrt()
    cosines = radius * (2.0 * math.pi * 2.0**-32 * words[1].double()).cos()
    found = out.view(-1, 4, 64)[:, 0].flatten()[:320]
    torch.testing.assert_close(found.double(), cosines[:320], rtol=1e-6, atol=1e-6)


def test_the_numbers_are_normal_and_independent():
    """Means of powers, and of products at distances within and between tiles and programs: 4 standard errors."""
    x, y = (part.double() for part in drawn([100_000, 100_000], [1, 2]))
    for z in (x, y):
        for power, mean, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
            assert abs(float((z**power).mean()) - mean) < 4.0 * math.sqrt(variance / len(z))
        for function in (lambda z: z, lambda z: (z.square() - 1.0) / math.sqrt(2.0)):
            values = function(z)
            for lag in (1, 64, 128, 192, 256, 1024):
                assert abs(float((values[lag:] * values[:-lag]).mean())) < 4.0 / math.sqrt(len(z) - lag)
        assert 4.0 < z.abs().max() < 6.8
    assert abs(float((x * y).mean())) < 4.0 / math.sqrt(len(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_noise_of_blocks_is_drawn_in_one_launch(dtype, monkeypatch):
    shapes = {"first": (5, 7), "second": (3,), "empty": (0, 2), "third": (2, 3, 211)}
    here = {"seed": 3, "step": 4, "dtype": dtype, "device": torch.device("cpu")}
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    with launches(monkeypatch) as launched:
        together = weight_noise(shapes, sample=2, antithetic=False, **here)
        assert launched == ({} if dtype == torch.float64 else {"fill_normal": 1})
        mirrored = weight_noise(shapes, sample=5, antithetic=True, **here)
        alone = [noise.normal(shape, stream="weights", sample=2, name=name, **here) for name, shape in shapes.items()]
    for (name, shape), x, y, z in zip(shapes.items(), together, mirrored, alone, strict=True):
        assert x.shape == shape and torch.equal(x, z) and torch.equal(x, -y)
        own = normal_numbers(x.numel(), seed=noise.key(3, "weights", 4, 2, name, 0)).view(shape)
        assert torch.equal(x, own.to(dtype)) or dtype == torch.float64
    assert noise.source([torch.device("cpu")]) >= 2
    monkeypatch.setenv("VOGN_KERNELS", "reference")
    assert noise.source([torch.device("cpu")]) == 0


def test_tables_are_made_once_for_sizes():
    from vogn.kernels.gpu import fill_normal

    drawn([3, 4], [1, 2])
    before = fill_normal._tables.cache_info()
    drawn([3, 4], [5, 6])
    drawn([9], [5])
    after = fill_normal._tables.cache_info()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)
