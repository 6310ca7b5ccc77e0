"""Every Triton kernel against its reference on a GPU, bfloat16 included, and optimizers with and without them."""

import pytest
import torch

from kernel_cases import CASES, assert_same
from kernel_engine import METHODS, assert_equal_up_to, launches, trained
from vogn.kernels import kernel
from vogn.kernels.dispatch import SLOWER_THAN_OWN

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
    asked_for = SLOWER_THAN_OWN | {"symmetric_update"}  # which is for larger factors
    assert set(launched) == (case.kernels if forced else case.kernels - asked_for)
    assert_equal_up_to(found, expected, case.tolerance)
