"""Every Triton kernel against its reference on a GPU, bfloat16 included, and optimizers with and without them."""

import pytest
import torch

from kernel_cases import CASES, assert_same
from kernel_engine import METHODS, assert_equal_up_to, launches, trained
from tiny_models import normal
from vogn.kernels import kernel
from vogn.linalg.sides import second_moment

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
    found = kernel(case.op, "triton")(*tensors, **options)
    assert_same(found, kernel(case.op)(*tensors, **options), case.tolerance)


@pytest.mark.parametrize("forced", [True, False], ids=["forced", "by themselves"])
@pytest.mark.parametrize("name", METHODS)
def test_steps_with_kernels_equal_steps_without(name, forced, monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # the convolutions of the model itself
    case, device = METHODS[name], torch.device("cuda", torch.cuda.current_device())
    with launches(monkeypatch) as launched:
        monkeypatch.setenv("VOGN_KERNELS", "reference")
        expected = trained(case, device)
        assert not launched
        monkeypatch.setenv("VOGN_KERNELS", "triton") if forced else monkeypatch.delenv("VOGN_KERNELS")
        found = trained(case, device)
    small = frozenset() if forced else {"symmetric_update"}  # factors as small as these are PyTorch's
    assert set(launched) == case.kernels - small
    assert_equal_up_to(found, expected, case.tolerance)


def test_large_factors_take_the_kernel_by_themselves(monkeypatch):
    pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    monkeypatch.delenv("VOGN_KERNELS", raising=False)
    for size, expected in ((500, {}), (600, {"symmetric_update": 1})):
        x = normal(700, size, dtype=torch.float32).cuda()
        with launches(monkeypatch) as launched:
            found = second_moment(x, x, diagonal=False)
        assert launched == expected
        torch.testing.assert_close(found.double(), x.double().mT @ x.double(), rtol=1e-5, atol=1e-4)
