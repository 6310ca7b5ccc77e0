"""Every Triton kernel against its reference on a GPU, bfloat16 included."""

import pytest
import torch

from kernel_cases import CASES, assert_same
from vogn.kernels import kernel

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
