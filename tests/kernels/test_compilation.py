"""Every Triton kernel compiles to machine code of a GPU that need not exist: the interpreter checks no types."""

from functools import partial
from importlib import import_module

import pytest
import torch

from kernel_cases import CASES
from kernel_compilation import compile_launches

CAPABILITY = 80
SHARED_BYTES = 99 * 1024
"""Shared memory that a program may use on every GPU since compute capability 8.0."""
FIRST = {case.op: case for case in reversed(CASES.values())}


ENGINE = {
    "diagonal step, as in Adam",
    "diagonal step, clipped in more than one block",
    "symmetric update, of nothing",
    "normal numbers, one stream",
}
"""What optimizers ask of a kernel beside the first case of each."""


@pytest.mark.parametrize("name", [case for case in CASES if CASES[case] in FIRST.values() or case in ENGINE])
def test_kernels_compile(name, monkeypatch, tmp_path):
    triton = pytest.importorskip("triton", reason="triton is not installed: pip install 'vogn[gpu]'")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    case, op = CASES[name], CASES[name].op
    module = import_module(f"vogn.kernels.gpu.{op}")
    # the largest tile in single precision, the smallest in bfloat16, which the interpreter cannot check
    for dtype, largest in ((torch.float32, True), (torch.bfloat16, False)):
        tensors, options = case.make(dtype, torch.device("cpu"))
        call = partial(getattr(module, op), *tensors, **options)
        compiled = compile_launches(module, call, CAPABILITY, largest=largest)
        assert compiled
        for binary in compiled:
            assert len(binary.asm["cubin"]) > 0
            assert binary.metadata.shared <= SHARED_BYTES
            if op == "fill_normal":  # its bits are those of the code in C: single operations, rounded to nearest
                assert "fma" not in binary.asm["ptx"] and ".approx" not in binary.asm["ptx"]
