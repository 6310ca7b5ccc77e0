"""Compiles what a kernel's host function would launch, for a GPU that need not exist."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest import mock

import torch

POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}


class Launches:
    """Stands in for a kernel: keeps the arguments of every launch instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            names = self.function.arg_names
            self.arguments.append(dict(zip(names, args, strict=False)) | options)

        return launch

    @property
    def tuned(self) -> bool:
        return hasattr(self.kernel, "configs")

    @property
    def function(self) -> Any:
        return self.kernel.fn if self.tuned else self.kernel


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(1 << 31) <= value < 1 << 31 else "i64"


def is_constant(parameter: Any, value: Any) -> bool:
    """Declared so, or an integer 1, which a launch turns into a constant."""
    return parameter.is_constexpr or (type(value) is int and value == 1 and not parameter.do_not_specialize)


def compile_launches(module: ModuleType, call: Callable[[], Any], capability: int, largest: bool) -> list[Any]:
    """Every kernel of a module that a call launches, in the last or the first configuration of its space."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [name for name, x in vars(module).items() if type(x).__name__ in ("JITFunction", "Autotuner")]
    launches = {name: Launches(getattr(module, name)) for name in names}
    with mock.patch.multiple(module, **launches):
        call()
    compiled = []
    for launch in launches.values():
        parameters = {p.name: p for p in launch.function.params}
        configuration = launch.kernel.configs[-1 if largest else 0] if launch.tuned else triton.Config({})
        for arguments in launch.arguments:
            values = arguments | configuration.kwargs
            constants = {k for k, x in values.items() if is_constant(parameters[k], x)}
            signature = {k: "constexpr" if k in constants else type_of(x) for k, x in values.items()}
            source = ASTSource(launch.function, signature, {k: x for k, x in values.items() if k in constants})
            options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
            compiled.append(triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options))
    return compiled
