"""Compiles what a kernel's host function would launch, along Triton's own path, for a GPU that need not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

DEVICE = 1000
"""Number of the device that is not there: Triton keeps what it compiles by device."""


class Driver:
    """What Triton asks a driver before it compiles."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return DEVICE

    def get_current_stream(self, device: int) -> int:
        return 0


class Launches:
    """Stands in for a kernel: keeps the arguments of every launch instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **options: self.arguments.append((args, options))

    def compile(self, largest: bool) -> Iterator[Any]:
        """Every launch, in the last or the first configuration of the kernel's space."""
        function, choice = self.kernel, {}
        if hasattr(self.kernel, "configs"):
            function, choice = self.kernel.fn, self.kernel.configs[-1 if largest else 0].all_kwargs()
        for args, options in self.arguments:
            yield function.warmup(*args, grid=(1,), **options, **choice)


def compile_launches(module: ModuleType, call: Callable[[], Any], capability: int, *, largest: bool) -> list[Any]:
    """The compiled kernels of a module that a call launches."""
    kernels = {k: x for k, x in vars(module).items() if type(x).__name__ in ("JITFunction", "Autotuner")}
    launches = {name: Launches(kernel) for name, kernel in kernels.items()}
    with mock.patch.multiple(module, **launches):
        call()
    with mock.patch("triton.runtime.jit.driver", SimpleNamespace(active=Driver(capability))):
        return [binary for launch in launches.values() for binary in launch.compile(largest)]
