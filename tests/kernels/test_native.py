"""Kernels in C: the bits of their oracle, the arithmetic of the reference, and how the library is made."""

import ctypes
import platform
import subprocess
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from vogn.kernels import kernel, native
from vogn.kernels.native import build
from vogn.kernels.native.build import library
from vogn.kernels.native.oracle import normal_numbers
from vogn.kernels.reference import LinearBlock
from vogn.linalg.noise import normal

needs_compiler = pytest.mark.skipif(isinstance(library(), str), reason=f"no library: {library()}")


def filled(count, seed):
    out = torch.full((count,), torch.nan)
    native.fill_normal(out, seed=seed)
    return out


@needs_compiler
class TestNumbers:
    def test_there_is_nothing_against_them(self):
        assert native.why_not() == ""

    @pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 + 12345, 2**64 - 1])
    @pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
    def test_they_are_the_bits_of_the_oracle(self, seed, count):
        assert torch.equal(filled(count, seed), normal_numbers(count, seed=seed))

    @pytest.mark.parametrize("flag", ["-mno-avx512f", "-mno-avx2"])
    def test_other_instruction_sets_draw_the_same_bits(self, flag, tmp_path):
        if platform.machine() not in ("x86_64", "AMD64"):
            pytest.skip("flags of another processor")
        made = tmp_path / "numbers.so"
        source = build.FOLDER / "normal.c"
        subprocess.run(["cc", *build.FLAGS, build.TUNED, flag, str(source), "-o", str(made), "-lm"], check=True)
        fill = ctypes.CDLL(str(made)).vogn_fill_normal
        fill.argtypes = native._functions().vogn_fill_normal.argtypes
        out = torch.full((1003,), torch.nan)
        fill(out.data_ptr(), len(out), 2**63 + 5, 0)
        assert torch.equal(out, normal_numbers(1003, seed=2**63 + 5))

    @pytest.mark.parametrize("threads", [2, 3])
    def test_threads_do_not_change_them(self, threads, monkeypatch):
        whole = filled(5000, 7)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(native, "PART", 300)
        assert torch.equal(filled(5000, 7), whole)

    @pytest.mark.parametrize("shared", [True, False])
    def test_parts_cover_everything_and_run_in_threads_that_torch_has_too(self, shared, monkeypatch):
        if shared and not native.shares_threads():
            pytest.skip("the library's threads would be others than torch's here")
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(native, "shares_threads", lambda: shared)
        everybody, ranges, threads = threading.Barrier(3 if shared else 1), [], set()

        def part(first, last):
            everybody.wait(timeout=20)  # one thread alone would not get past it
            ranges.append((first, last))
            threads.add(threading.get_ident())

        native.in_parts(1000, part, least=10)
        assert sorted(ranges) == ([(0, 256), (256, 512), (512, 1000)] if shared else [(0, 1000)])
        assert len(threads) == (3 if shared else 1)

    def test_an_error_in_a_part_is_raised(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

        def part(first, last):
            if last == 1000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            native.in_parts(1000, part, least=10)

    @pytest.mark.parametrize("seed", [3, 2**40])
    def test_they_are_normal(self, seed):
        numbers = filled(400_000, seed).double().numpy()
        assert stats.kstest(numbers, "norm").pvalue > 1e-3
        for power, expected, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
            assert abs(np.mean(numbers**power) - expected) < 4 * (variance / len(numbers)) ** 0.5
        assert 4.2 < np.abs(numbers).max() < 6.8

    @pytest.mark.parametrize("lag", [1, 2, 64, 128, 256])
    def test_they_are_independent_of_those_before(self, lag):
        numbers = filled(200_000, 11).double().numpy()
        for function in (lambda x: x, np.square):
            values = function(numbers)
            assert abs(np.corrcoef(values[lag:], values[:-lag])[0, 1]) < 4 / len(numbers) ** 0.5

    def test_streams_are_independent(self):
        a, b = (filled(100_000, seed).double().numpy() for seed in (5, 6))
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / len(a) ** 0.5

    def test_weights_are_drawn_with_them(self):
        here = {"seed": 1, "stream": "weights", "step": 2, "sample": 3, "name": "layer"}
        drawn = normal((7, 9), **here)
        assert torch.equal(drawn.flatten(), normal((63,), **here))
        assert not torch.equal(drawn, normal((7, 9), **(here | {"step": 3})))
        wide = normal((7, 9), **here, dtype=torch.float64)  # drawn by PyTorch
        assert wide.dtype == torch.float64 and not torch.allclose(wide.float(), drawn)


NUMBERS = {
    "lr": 0.1, "decay": 0.97, "weight": 0.02, "momentum_rate": 0.3, "weight_decay": 0.01, "damping": 0.002,
    "correction": 1.3, "ess": None, "clip_radius": 0.7, "seed": 0, "offset": 0,
}  # fmt: skip


def in_columns(shape, bias):
    """A block vector, a curvature, and the weight and bias whose columns the block is made of."""
    rows, columns = shape
    source = torch.Generator().manual_seed(1)
    block, c = (torch.rand(rows, columns + bias, generator=source) for _ in range(2))
    return block, c, (block[:, :columns].clone(), block[:, columns].clone() if bias else None)


def operands(count=1003, seed=0):
    source = torch.Generator().manual_seed(seed)
    mean, momentum, gradient = (torch.randn(count, generator=source) for _ in range(3))
    return [mean, torch.rand(count, generator=source), momentum, gradient, torch.randn(count, generator=source)]


@needs_compiler
class TestDiagonal:
    @pytest.mark.parametrize("retract", [False, True])
    @pytest.mark.parametrize("prior_in_momentum", [False, True])
    @pytest.mark.parametrize("root", [False, True])
    def test_a_step_is_that_of_the_reference(self, retract, prior_in_momentum, root):
        kind = {"retract": retract, "prior_in_momentum": prior_in_momentum, "root": root}
        found = native.diagonal_step(*operands(), **NUMBERS, **kind)
        expected = kernel("diagonal_step", "reference")(*operands(), **NUMBERS, **kind)
        assert found.finite is True and found.sample is None
        assert torch.equal(found.clipped, expected.clipped) and 0 < found.clipped < 1003
        assert torch.equal(found.curvature, expected.curvature) and torch.equal(found.momentum, expected.momentum)
        # PyTorch's root is not always the nearest number
        torch.testing.assert_close(found.mean, expected.mean, rtol=3e-7 if root else 0, atol=3e-7 if root else 0)

    @pytest.mark.parametrize("place", range(5))
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_is_seen(self, place, bad):
        tensors = operands()
        tensors[place][517] = bad
        kind = {"retract": False, "prior_in_momentum": False, "root": False}
        found = native.diagonal_step(*tensors, **NUMBERS, **kind)
        assert found.finite is False
        assert torch.equal(found.clipped, kernel("diagonal_step", "reference")(*tensors, **NUMBERS, **kind).clipped)

    @pytest.mark.parametrize("count", [0, 1, 17, 1003, 70_001])
    @pytest.mark.parametrize("radius", [1e-9, 0.3, 1e9, torch.inf])
    @pytest.mark.parametrize("kind", range(8))
    def test_what_the_radius_cuts_is_counted(self, count, radius, kind, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(native, "PART", 500)
        given = {name: bool(kind & 1 << k) for k, name in enumerate(("retract", "prior_in_momentum", "root"))}
        options = NUMBERS | {"clip_radius": radius} | given
        expected = kernel("diagonal_step", "reference")(*operands(count), **options)
        if radius == torch.inf:
            assert expected.clipped is None
        elif radius != 0.3:
            assert int(expected.clipped) == (count if radius < 1.0 else 0)
        whole = operands(count)
        for found in (native.diagonal_step(*operands(count), **options),
                      native.diagonal_step(*whole, later=True, **options)):  # fmt: skip
            assert found.finite is True
            assert (found.clipped is None) if radius == torch.inf else torch.equal(found.clipped, expected.clipped)
            if found.write is not None:
                found.write()
            tolerance = 3e-7 if given["root"] else 0
            torch.testing.assert_close(found.mean, expected.mean, rtol=tolerance, atol=tolerance)

    def test_threads_do_not_change_it(self, monkeypatch):
        kind = {"retract": True, "prior_in_momentum": False, "root": False}
        whole = native.diagonal_step(*operands(), **NUMBERS, **kind)
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(native, "PART", 400)
        parts = native.diagonal_step(*operands(), **NUMBERS, **kind)
        assert all(torch.equal(a, b) for a, b in zip(whole[:3], parts[:3], strict=True)) and parts.finite is True
        assert torch.equal(whole.clipped, parts.clipped)

    def test_it_draws_no_sample(self):
        with pytest.raises(ValueError, match="draws no sample"):
            native.diagonal_step(*operands(), **(NUMBERS | {"ess": 1.0}), retract=True, prior_in_momentum=False,
                                 root=False)  # fmt: skip

    def test_displacements_and_evidence(self):
        noise, c, response = operands()[0], operands()[1], operands()[3]
        wide = [x.double() for x in (noise, c, response)]
        found = native.price(noise, c, response, shift=0.1, ess=50.0)
        torch.testing.assert_close(found.double(), wide[0] * 50.0 * (wide[1] + 0.1) * wide[2], rtol=5e-7, atol=0)
        expected = wide[0] / (50.0 * (wide[1] + 0.1)).sqrt()
        torch.testing.assert_close(native.displace(noise, c, shift=0.1, ess=50.0).double(), expected, rtol=5e-7, atol=0)

    @pytest.mark.parametrize(("retract", "prior_in_momentum", "root"), [(True, False, False), (False, True, True)])
    def test_a_step_in_place_writes_the_same_numbers_and_only_when_it_is_told(self, retract, prior_in_momentum, root):
        kind = {"retract": retract, "prior_in_momentum": prior_in_momentum, "root": root}
        tensors, expected = operands(), native.diagonal_step(*operands(), **NUMBERS, **kind)
        found = native.diagonal_step(*tensors, later=True, **NUMBERS, **kind)
        assert all(torch.equal(a, b) for a, b in zip(tensors, operands(), strict=True))
        versions = [x._version for x in tensors]
        assert found.finite is True and found.mean is tensors[0]
        found.write()
        assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))
        assert [x._version > v for x, v in zip(tensors, versions, strict=True)] == [True] * 3 + [False] * 2
        assert all(torch.equal(a, b) for a, b in zip(tensors[3:], operands()[3:], strict=True))

    @pytest.mark.parametrize("place", range(5))
    def test_a_step_in_place_that_is_not_finite_is_computed_elsewhere(self, place):
        tensors = operands()
        tensors[place][1002] = torch.nan
        kept = [x.clone() for x in tensors]
        kind = {"retract": False, "prior_in_momentum": False, "root": False}
        found = native.diagonal_step(*tensors, later=True, **NUMBERS, **kind)
        assert found.finite is False and found.write is None
        assert not all(x.isfinite().all() for x in found[:3])
        assert all(torch.equal(a, b) or torch.isnan(b).any() for a, b in zip(tensors, kept, strict=True))

    @pytest.mark.parametrize("kind", range(8))
    @pytest.mark.parametrize("shape", [(5, 7), (1, 1), (40, 300)])
    def test_a_step_in_columns_is_that_of_the_packed_block(self, kind, shape, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setattr(native, "PART", 300)
        names = ("retract", "prior_in_momentum", "root")
        given = {name: bool(kind & 1 << place) for place, name in enumerate(names)}
        rows, columns = shape
        packed = [x.view(rows, columns + 1) for x in operands(rows * (columns + 1))]
        expected = native.diagonal_step(*packed[:4], packed[4] * 0.37, **NUMBERS, **given)
        apart = [(packed[k][:, :columns].clone(), packed[k][:, columns].clone()) for k in (0, 3)]
        write, clipped = native.diagonal_step_in_columns(
            apart[0], packed[1], packed[2], apart[1], packed[4], factor=0.37, **NUMBERS, **given
        )
        assert torch.equal(clipped, expected.clipped)
        assert all(torch.equal(x, y.view_as(x)) for x, y in zip(packed, operands(packed[0].numel()), strict=True))
        write()
        assert torch.equal(torch.cat([apart[0][0], apart[0][1].unsqueeze(-1)], -1), expected.mean)
        assert torch.equal(packed[1], expected.curvature) and torch.equal(packed[2], expected.momentum)
        assert torch.equal(apart[1][0], packed[3][:, :columns]) and torch.equal(apart[1][1], packed[3][:, columns])
        assert apart[0][0]._version and apart[0][1]._version and packed[1]._version and packed[2]._version

    @pytest.mark.parametrize("place", range(5))
    @pytest.mark.parametrize("column", [0, 7])
    def test_what_is_not_finite_in_columns_is_seen(self, place, column):
        packed = [x.view(5, 8) for x in operands(40)]
        packed[place][4, column] = torch.inf
        apart = [(packed[k][:, :7].clone(), packed[k][:, 7].clone()) for k in (0, 3)]
        kind = {"retract": False, "prior_in_momentum": False, "root": False}
        assert native.diagonal_step_in_columns(
            apart[0], packed[1], packed[2], apart[1], packed[4], **NUMBERS, **kind
        ) is None  # fmt: skip

    @pytest.mark.parametrize("shape", [(5, 7), (3, 600), (300, 2), (1, 1), (2, 1027)])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_draw_is_noise_displacement_and_sum(self, shape, bias, threads, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(native, "PART", 300)
        columns = shape[1]
        block, c, (weight, offset) = in_columns(shape, bias)
        displacement, kept = torch.empty_like(c), torch.empty_like(c)
        versions = [x._version for x in (weight, offset) if x is not None]
        native.draw((weight, offset), c, displacement, kept, seed=9, shift=0.1, scale=-0.03)
        noise = normal_numbers(c.numel(), seed=9).view_as(c)
        expected = noise * (1.0 / (c + 0.1).double().sqrt().float()) * -0.03
        assert torch.equal(displacement, expected) and torch.equal(kept, block)
        assert torch.equal(weight, (block + expected)[:, :columns])
        assert offset is None or torch.equal(offset, (block + expected)[:, columns])
        assert [x._version for x in (weight, offset) if x is not None] > versions

    @pytest.mark.parametrize("shape", [(5, 7), (3, 600), (300, 2), (1, 1), (2, 1027)])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("threads", [1, 2])
    def test_a_sample_is_the_mean_moved_by_a_draw(self, shape, bias, threads, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(native, "PART", 300)
        block, c, mean = in_columns(shape, bias)
        _, _, moved = in_columns(shape, bias)
        out = tuple(None if x is None else torch.full_like(x, torch.nan) for x in mean)
        native.sample(mean, c, out, seed=9, shift=0.1, scale=0.03)
        native.draw(moved, c, torch.empty_like(c), torch.empty_like(c), seed=9, shift=0.1, scale=0.03)
        assert torch.equal(out[0], moved[0]) and (not bias or torch.equal(out[1], moved[1]))
        assert torch.equal(mean[0], block[:, : shape[1]]) and not torch.equal(out[0], mean[0])

    def test_evidence_may_take_the_place_of_the_displacement(self):
        noise, c, response = operands()[0], operands()[1], operands()[3]
        expected = native.price(noise, c, response, shift=0.1, ess=50.0)
        assert native.price(noise, c, response, shift=0.1, ess=50.0, out=noise) is noise
        assert torch.equal(noise, expected)

    @pytest.mark.parametrize(
        "change", [lambda x: x.double(), lambda x: x[::2], lambda x: x.to("meta"), lambda x: x.requires_grad_()]
    )
    def test_other_tensors_do_not_fit(self, change):
        tensors = operands()
        assert native.fit(*tensors)
        tensors[2] = change(tensors[2])
        assert not native.fit(*tensors)


BLOCKS = {
    "linear": (((5, 7), (5,)), (5, 8), ((0, 5, 8), (7, 5, 8))),
    "weight": (((5, 7),), (5, 7), ((0, 1, 35),)),
    "large": (((400, 301),), (400, 301), ((0, 1, 400 * 301),)),
    "norm": (((6,), (6,)), (6, 2, 1), ((0, 6, 2), (1, 6, 2))),
    "scalar": (((),), (1, 1, 1), ((0, 1, 1),)),
}


@needs_compiler
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS.keys())
class TestLinear:
    def operands(self, block):
        shapes, shape, places = block
        source = torch.Generator().manual_seed(0)
        means, gradients = ([torch.randn(s, generator=source) for s in shapes] for _ in range(2))
        return means, gradients, torch.randn(shape, generator=source), places

    @pytest.mark.parametrize("rate", [0.1, 0.499, 0.5, 1.0, None])
    def test_a_step_is_that_of_the_reference_in_double_precision(self, block, rate):
        means, gradients, momentum, places = self.operands(block)
        numbers = {"lr": 0.3, "momentum_rate": rate or 1.0, "entering": (0.7, 0.02), "leaving": (1.5, 0.3)}
        average = None if rate is None else momentum
        wide = [x.double() for x in means], [x.double() for x in gradients]
        double = LinearBlock(*wide, None if rate is None else momentum.double(), places, **numbers)
        ((expected, expected_average),) = kernel("linear_step")([double]).blocks
        versions = [x._version for x in means]
        found = native.linear_step([LinearBlock(means, gradients, average, places, **numbers)])
        assert found.finite is True
        found.write()
        ((new_means, new_average),) = found.blocks
        for new, own, old, version in zip(new_means, expected, means, versions, strict=True):
            assert new is old and new._version > version
            torch.testing.assert_close(new.double(), own, rtol=3e-6, atol=1e-6)
        if rate is None:
            assert new_average is expected_average is None
        else:
            torch.testing.assert_close(new_average.double(), expected_average, rtol=3e-6, atol=1e-6)

    @pytest.mark.parametrize("bad", [None, torch.nan])
    def test_nothing_is_written_before_it_is_asked_for(self, block, bad):
        means, gradients, momentum, places = self.operands(block)
        if bad is not None:
            gradients[0].view(-1)[0] = bad
        olds = [x.nan_to_num(7.0) for x in (*means, *gradients, momentum)]
        numbers = {"lr": 0.3, "momentum_rate": 0.1, "entering": (1.0, 0.02), "leaving": (1.0, 0.0)}
        found = native.linear_step([LinearBlock(means, gradients, momentum, places, **numbers)])
        assert (found.write is None) == (bad is not None)
        for x in gradients:
            x.nan_to_num_(7.0)
        assert all(torch.equal(a, b) for a, b in zip(olds, (*means, *gradients, momentum), strict=True))

    @pytest.mark.parametrize("kind", range(3))
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("lr", [0.3, 0.0])
    def test_what_is_not_finite_is_seen(self, block, kind, bad, lr):
        means, gradients, momentum, places = self.operands(block)
        (means[-1], gradients[-1], momentum)[kind].view(-1)[-1] = bad
        numbers = {"lr": lr, "momentum_rate": 0.1, "entering": (1.0, 0.02), "leaving": (1.0, 0.0)}
        found = native.linear_step([LinearBlock(means, gradients, momentum, places, **numbers)])
        assert found.finite is False
        ((new_means, average),) = found.blocks
        assert not all(x.isfinite().all() for x in (*new_means, average))

    def test_neither_threads_nor_other_blocks_change_it(self, block, monkeypatch):
        numbers = {"lr": 0.3, "momentum_rate": 0.1, "entering": (1.0, 0.02), "leaving": (1.0, 0.0)}
        alone, *together = [LinearBlock(*self.operands(block), **numbers) for _ in range(4)]
        together[0] = together[0]._replace(momentum_rate=0.7, lr=0.01)
        together[2] = together[2]._replace(momentum=None)
        native.linear_step([alone]).write()
        monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
        monkeypatch.setattr(native, "PART", 10)
        found = native.linear_step(together)
        found.write()
        assert found.finite is True
        assert torch.equal(together[1].momentum, alone.momentum)
        assert all(torch.equal(a, b) for a, b in zip(alone.means, together[1].means, strict=True))
        assert not torch.equal(alone.means[0], together[0].means[0])


@needs_compiler
def test_of_several_blocks_all_or_none_are_written():
    numbers = {"lr": 0.3, "momentum_rate": 0.1, "entering": (1.0, 0.02), "leaving": (1.0, 0.0)}
    make = TestLinear().operands
    blocks = [LinearBlock(*make(block), **numbers) for block in BLOCKS.values()]
    olds = [[x.clone() for x in (*block.means, block.momentum)] for block in blocks]
    blocks[-2].gradients[-1].view(-1)[-1] = torch.nan
    found = native.linear_step(blocks)
    assert found.finite is False and found.write is None
    for k, (block, old) in enumerate(zip(blocks, olds, strict=True)):
        assert all(torch.equal(x, y) for x, y in zip((*block.means, block.momentum), old, strict=True))
        means, average = found.blocks[k]
        assert all(x.isfinite().all() for x in (*means, average)) == (k != len(blocks) - 2)


@needs_compiler
def test_tensors_without_numbers_are_left_to_pytorch():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert normal((4, 5), seed=0, stream="weights", step=0, sample=0).shape == (4, 5)


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [("no-such-compiler", "no C compiler was found"), ("false", "false did not make a library")],
)
def test_without_a_compiler_there_is_a_reason(compiler, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("VOGN_CACHE_DIR", str(tmp_path))
    assert reason in library.__wrapped__()


@needs_compiler
def test_the_library_is_kept_and_made_again_where_it_is_damaged(monkeypatch, tmp_path):
    monkeypatch.setenv("VOGN_CACHE_DIR", str(tmp_path))
    made = build.compiled(["cc"])
    number = made.stat().st_ino
    assert build.compiled(["cc"]) == made and made.stat().st_ino == number
    made.unlink()
    made.write_bytes(b"not a library")
    monkeypatch.setenv("CC", "cc")
    assert not isinstance(library.__wrapped__(), str) and made.stat().st_size > 1000


@needs_compiler
def test_a_library_that_draws_other_numbers_is_not_used(monkeypatch):
    monkeypatch.setattr("vogn.kernels.native.oracle.normal_numbers", lambda count, seed: torch.zeros(count))
    assert "other numbers than it should" in native.why_not.__wrapped__()
