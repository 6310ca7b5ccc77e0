"""Every Triton kernel against its reference on a GPU, bfloat16 included, and optimizers with and without them."""

import pytest
import torch

from kernel_cases import CASES, assert_same
from kernel_engine import METHODS, assert_equal_up_to, launches, trained
from vogn.kernels import TABLE, kernel
from vogn.kernels.dispatch import SLOWER_THAN_OWN, fitting
from vogn.linalg import noise
from vogn.optim.functional import weight_noise

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name, dtype):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    case = CASES[name]
    tensors, options = case.make(dtype, torch.device("cuda", torch.cuda.current_device()))
    own = [x.clone() for x in tensors[: case.written]]
    found = kernel(case.op, "triton")(*tensors, **options)
    assert_same(found, kernel(case.op)(*own, *tensors[case.written :], **options), case.tolerance)


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "by themselves"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_with_kernels_equal_steps_without(name, forced, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the convolutions of the model itself
    monkeypatch.setattr(noise, "fitting", lambda *operands: None)  # the noise of both ways is PyTorch's
    case, device = METHODS[name], torch.device("cuda", torch.cuda.current_device())
    with launches(monkeypatch) as launched:
        monkeypatch.setenv("VOGN_KERNELS", "reference")
        expected = trained(case, device)
        assert not launched
        monkeypatch.setenv("VOGN_KERNELS", "triton") if forced else monkeypatch.delenv("VOGN_KERNELS")
        found = trained(case, device)
    asked_for = SLOWER_THAN_OWN | {"symmetric_update"}  # which is for larger factors
    assert set(launched) == (case.kernels if forced else case.kernels - asked_for)
    assert_equal_up_to(found, expected, case.tolerance)


def test_steps_with_the_noise_of_the_kernel(monkeypatch):
    """Those with the same numbers from PyTorch's integers; nothing else differs."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    case, device = METHODS["IVON, two samples, without rescaling"], torch.device("cuda", torch.cuda.current_device())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    with launches(monkeypatch) as launched:
        found = trained(case, device)
    assert launched["fill_normal"]
    monkeypatch.setattr(noise, "fitting", lambda op, *operands: TABLE[op]["reference"])
    assert_equal_up_to(found, trained(case, device), case.tolerance)


def test_noise_of_blocks_is_that_of_each_on_every_stream_of_the_device(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    shapes = {f"block {k}": (k, 1 + 37 * k) for k in range(40)} | {"long": (3_000_001,)}
    device = torch.device("cuda", torch.cuda.current_device())
    here = {"seed": 3, "step": 4, "dtype": torch.float32, "device": device}
    assert fitting("fill_normal", torch.empty(1, device=device)) is TABLE["fill_normal"]["triton"]
    first = weight_noise(shapes, sample=2, antithetic=False, **here)
    side = torch.cuda.Stream(device)
    with torch.cuda.stream(side):
        second = weight_noise(shapes, sample=2, antithetic=False, **here)
    side.synchronize()
    for (name, shape), x, y in zip(shapes.items(), first, second, strict=True):
        assert torch.equal(x, y)
        assert torch.equal(x, noise.normal(shape, stream="weights", sample=2, name=name, **here))
    expected = torch.empty(3_000_001)
    TABLE["fill_normal"]["reference"](expected, [3_000_001], [noise.key(3, "weights", 4, 2, "long", 0)])
    assert torch.equal(first[-1].cpu(), expected)


def test_nobody_waits_for_noise(monkeypatch):
    """Once the kernel is compiled and the sizes are known, a draw does not synchronise with the device."""
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    monkeypatch.setenv("VOGN_KERNELS", "triton")
    device = torch.device("cuda", torch.cuda.current_device())
    room = torch.empty(1000, device=device)
    for seeds in ([1, 2], [3, 4]):
        torch.cuda.set_sync_debug_mode("error" if seeds == [3, 4] else "default")
        try:
            noise.fill_normals(room, [300, 700], seeds)
        finally:
            torch.cuda.set_sync_debug_mode("default")
