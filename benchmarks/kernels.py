"""How near do the kernels come to what the device can do?

For every kernel the bytes that must be moved and the operations that must be done are counted. The roofline time is the
larger of bytes / copy bandwidth and operations / rate of matrix products, both measured on the device, the rate in the
precision of the kernel's arithmetic; the achieved fraction is that time over the measured one. On the CPU the reference
is timed, on CUDA the Triton kernel where triton is installed, and the reference on the same device beside it
(``VOGN_KERNELS`` forces one of them). Where optimizers use a kernel, the code that they run without it is timed too:
a kernel that is slower belongs into ``SLOWER`` of ``vogn/kernels/dispatch.py``.

    python -m benchmarks.kernels                    # on CUDA if there is one, else on the CPU
    python -m benchmarks.kernels --device cpu --rounds 3
    python -m benchmarks.kernels --sizes            # on CUDA: against the structures' own code, at sizes of layers
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cells import environment, write_cell
from vogn import kernels
from vogn.kernels.dispatch import TABLE, VARIABLE, select
from vogn.linalg.each import add_each, lerp_each, subtract_each
from vogn.linalg.patches import Patches
from vogn.linalg.sides import from_basis, second_moment, to_basis
from vogn.structures import Diagonal
from vogn.structures.evidence import blend

RESULTS = Path(__file__).parent / "results" / "kernels"
CALLS = 20
"""Calls between two synchronisations with a GPU."""
FLOAT = 4
"""Bytes of a number: everything is stored in single precision."""


@dataclass(frozen=True)
class Work:
    """One call and the least it can cost.

    Args:
        call: runs the kernel.
        operands: its tensors.
        size: what is reported about its shape.
        bytes: every operand read once and every result written once.
        operations: additions and multiplications, 2 for each multiply-add.
        precision: of the arithmetic.
        own: the same as optimizers compute it where the kernel does not run, if they do.
    """

    call: Callable[[], Any]
    operands: tuple[Tensor, ...]
    size: dict[str, int]
    bytes: int
    operations: int
    precision: torch.dtype = torch.float32
    own: Callable[[], Any] | None = None


def normal(*shape: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def diagonal_step(device: torch.device, scale: int) -> Work:
    """Five tensors are read and four written; noise is computed, not moved. Optimizers draw it elsewhere."""
    count = 1 << (18 + 8 * scale)
    tensors = [normal(count, device=device, seed=seed) for seed in range(5)]
    tensors[1] = tensors[1].square() + 0.1
    options = {"lr": 0.1, "decay": 0.99, "weight": 0.01, "momentum_rate": 0.1, "weight_decay": 1e-3}
    structure = Diagonal(negative="retract")

    def call() -> Any:
        return kernels.diagonal_step(*tensors, retract=True, ess=1e4, seed=1, **options)

    def own() -> Any:
        m, c, u, g, h = tensors
        state = structure.update({"c": c}, {"probe": h}, decay=0.99, weight=0.01, shift=1e-3)
        average = lerp_each([u], [g], [0.1])
        (update,) = add_each(average, [m], [1e-3])
        return average, state, subtract_each([m], [structure.solve(state, update, 1e-3)], [0.1])

    return Work(call, tuple(tensors), {"parameters": count}, 9 * count * FLOAT, 20 * count, own=own)


def squared_gradients(device: torch.device, scale: int) -> Work:
    n, d_out, d_in = 128 << 3 * scale, 128 << 4 * scale, 128 << 4 * scale
    g, a = normal(n, d_out, device=device), normal(n, d_in, device=device, seed=1)
    moved = (n * (d_out + d_in) + d_out * d_in) * FLOAT
    size = {"examples": n, "d_out": d_out, "d_in": d_in}
    return Work(lambda: kernels.squared_gradients(g, a), (g, a), size, moved, 2 * n * d_out * d_in)


def symmetric_update(device: torch.device, scale: int) -> Work:
    """Half of the matrix is read, half of the products are needed, the whole is written."""
    n, d = 256 << 3 * scale, (128 << 4 * scale) + 1
    a = normal(n, d - 1, device=device)
    c = torch.eye(d, device=device)
    moved = (n * (d - 1) + d * (d + 1) // 2 + d * d) * FLOAT

    def call() -> Any:
        return kernels.symmetric_update(c, a, decay=0.95, weight=0.05, ones=True)

    def own() -> Any:
        rows = F.pad(a, (0, 1), value=1.0)
        return blend(c, second_moment(rows, rows, diagonal=False), 0.95, 0.05)

    return Work(call, (c, a), {"rows": n, "size": d}, moved, n * d * (d + 1), own=own)


def woodbury_solve(device: torch.device, scale: int) -> Work:
    """``U`` is read twice; inner products, the projection of the vector, and what is subtracted."""
    size, rank = 1 << (14 + 10 * scale), 16
    d, u = normal(size, device=device).square() + 1.0, normal(size, rank, device=device, seed=1)
    v = normal(1, size, device=device, seed=2)
    moved = (2 * (size * rank + 2 * size) + size) * FLOAT
    operations = 2 * size * rank * (rank + 2)
    shape = {"parameters": size, "rank": rank}
    return Work(lambda: kernels.woodbury_solve(d, u, v), (d, u, v), shape, moved, operations, torch.float64)


def eigenbasis_solve(device: torch.device, scale: int) -> Work:
    d_out, d_in = 128 << 4 * scale, 160 << 4 * scale
    g, values = normal(d_out, d_in, device=device), normal(d_out, d_in, device=device, seed=1).square()
    q_s, q_a = normal(d_out, d_out, device=device, seed=2), normal(d_in, d_in, device=device, seed=3)
    moved = (3 * d_out * d_in + d_out * d_out + d_in * d_in) * FLOAT
    operations = 4 * d_out * d_in * (d_out + d_in)

    def call() -> Any:
        return kernels.eigenbasis_solve(g, q_s, q_a, values, shift=0.1)

    size = {"d_out": d_out, "d_in": d_in}
    return Work(
        call, (g, q_s, q_a, values), size, moved, operations, own=lambda: own_eigenbasis_solve(g, q_s, q_a, values)
    )


def inverse_root(device: torch.device, scale: int) -> Work:
    """Counted for 15 iterations, about what a condition of 1e3 needs."""
    batch, n, root, iterations = 32 << 8 * scale, 16, 4, 15
    wide = normal(batch, n, 2 * n, device=device)
    a = wide @ wide.mT / (2 * n) + 1e-3 * torch.eye(n, device=device)
    moved, operations = 2 * batch * n * n * FLOAT, batch * iterations * 4 * 2 * n**3
    size = {"matrices": batch, "size": n, "root": root}
    return Work(lambda: kernels.inverse_root(a, root), (a,), size, moved, operations)


def patch_factor(device: torch.device, scale: int) -> Work:
    """The images are read once: the patches are not stored."""
    images, channels, side = 4 << 5 * scale, 8 << 3 * scale, 16
    x, features, positions = normal(images, channels, side, side, device=device), 9 * channels, images * side * side
    moved = (x.numel() + features**2) * FLOAT
    size = {"images": images, "channels": channels, "side": side, "kernel": 3}
    operations = positions * features * (features + 1)

    return Work(
        lambda: kernels.patch_factor(x, 3, padding=1), (x,), size, moved, operations, own=lambda: own_patch_factor(x)
    )


def own_patch_factor(x: Tensor) -> Tensor:
    """What structures compute without the kernel; kernels of three by three."""
    patches = Patches(F.pad(x, (1, 1, 1, 1)), (3, 3), (1, 1), (1, 1), 1, bias=False)
    rows = patches.matrix().flatten(0, 1)
    return second_moment(rows, rows, diagonal=False)


def own_eigenbasis_solve(g: Tensor, q_s: Tensor, q_a: Tensor, values: Tensor) -> Tensor:
    """What structures compute without the kernel."""
    return from_basis(to_basis(g, q_s, q_a).mul_((values + 0.1).reciprocal_()), q_s, q_a)


WORKS: dict[str, Callable[[torch.device, int], Work]] = {
    "diagonal_step": diagonal_step,
    "squared_gradients": squared_gradients,
    "symmetric_update": symmetric_update,
    "woodbury_solve": woodbury_solve,
    "eigenbasis_solve": eigenbasis_solve,
    "inverse_root": inverse_root,
    "patch_factor": patch_factor,
}


SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "symmetric_update": (
        (65536, 27),
        (65536, 144),
        (16384, 288),
        (4096, 576),
        (16384, 577),
        (1024, 785),
        (4096, 768),
        (4096, 3072),
        (1024, 4097),
        (8192, 2048),
    ),
    "patch_factor": (
        (64, 3, 32),
        (64, 16, 32),
        (256, 64, 32),
        (64, 32, 16),
        (64, 64, 8),
        (256, 256, 8),
        (32, 128, 28),
    ),
    "eigenbasis_solve": ((16, 144), (64, 576), (256, 1024), (768, 3072), (2048, 2560), (4096, 4097)),
}
"""Rows and size; images, channels and side; outputs and inputs."""


def pair(op: str, size: tuple[int, ...], device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The kernel and the structures' own code on operands of a size."""
    if op == "symmetric_update":
        a = normal(*size, device=device)
        return (
            lambda: kernels.symmetric_update(None, a, decay=1.0, weight=1.0),
            lambda: second_moment(a, a, diagonal=False),
        )
    if op == "patch_factor":
        images, channels, side = size
        x = normal(images, channels, side, side, device=device)
        return lambda: kernels.patch_factor(x, 3, padding=1), lambda: own_patch_factor(x)
    d_out, d_in = size
    g, values = normal(d_out, d_in, device=device), normal(d_out, d_in, device=device, seed=1).square()
    q_s, q_a = normal(d_out, d_out, device=device, seed=2), normal(d_in, d_in, device=device, seed=3)
    return (
        lambda: kernels.eigenbasis_solve(g, q_s, q_a, values, shift=0.1),
        lambda: own_eigenbasis_solve(g, q_s, q_a, values),
    )


def compare_sizes(device: torch.device, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Milliseconds of kernel and own code at every size."""
    found: dict[str, list[dict[str, Any]]] = {op: [] for op in SIZES}
    for op, sizes in SIZES.items():
        for size in sizes:
            kernel, own = pair(op, size, device)
            with forced("triton"):
                fast = 1e3 * seconds(kernel, device, rounds)
            with forced("reference"):
                plain = 1e3 * seconds(own, device, rounds)
            found[op].append({"size": list(size), "triton_ms": fast, "own_ms": plain})
            print(f"{op:18} {size!s:18} {fast:9.3f} ms, own code {plain:9.3f} ms, ratio {fast / plain:.2f}", flush=True)
    return found


def seconds(call: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median time of a call, after one that compiles and tunes; on CUDA of many calls between two synchronisations."""
    calls = CALLS if device.type == "cuda" else 1

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    times = []
    for _ in range(rounds):
        finish()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        finish()
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


@cache
def bandwidth(device: torch.device, scale: int, rounds: int) -> float:
    """Bytes per second of a copy, read and written."""
    source = torch.ones(1 << (22 + 4 * scale), device=device)
    target = torch.empty_like(source)
    return 2 * FLOAT * source.numel() / seconds(lambda: target.copy_(source), device, rounds)


@cache
def matmul_rate(device: torch.device, scale: int, rounds: int, precision: torch.dtype) -> float:
    """Operations per second of a product of square matrices."""
    n = 512 << 3 * scale
    left, right = (normal(n, n, device=device, seed=seed).to(precision) for seed in (0, 1))
    return 2 * n**3 / seconds(lambda: left @ right, device, rounds)


def backend(op: str, work: Work) -> str:
    """Which implementation is timed."""
    taken = select(op, *work.operands)
    return next(name for name, function in TABLE[op].items() if function is taken)


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Inside, :data:`VARIABLE` says so."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def measure(op: str, device: torch.device, scale: int, rounds: int) -> dict[str, Any]:
    """One row of the table."""
    work = WORKS[op](device, scale)
    moving = work.bytes / bandwidth(device, scale, rounds)
    computing = work.operations / matmul_rate(device, scale, rounds, work.precision)
    with_reference = backend(op, work) == "triton" and not os.environ.get(VARIABLE)
    measured, roofline = seconds(work.call, device, rounds), max(moving, computing)
    plain = {}
    with forced("reference"):
        if work.own is not None:
            plain["own_ms"] = 1e3 * seconds(work.own, device, rounds)
        if with_reference:
            plain["reference_ms"] = 1e3 * seconds(work.call, device, rounds)
    return plain | {
        "backend": backend(op, work),
        "size": work.size,
        "bytes": work.bytes,
        "operations": work.operations,
        "precision": str(work.precision).removeprefix("torch."),
        "bound_by": "memory" if moving >= computing else "arithmetic",
        "roofline_ms": 1e3 * roofline,
        "measured_ms": 1e3 * measured,
        "achieved_fraction": roofline / measured,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def triton_version() -> str | None:
    try:
        return version("triton")
    except PackageNotFoundError:
        return None


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--scale", type=int, choices=(0, 1), help="0: small, the CPU's default; 1: large, CUDA's")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sizes", action="store_true", help="kernels against the structures' own code, on CUDA")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    about = {
        "device": device_name(device),
        "rounds": options.rounds,
        "environment": environment() | {"triton": triton_version()},
    }
    if options.sizes:
        if device.type != "cuda":
            parser.error("--sizes needs a CUDA device")
        found = compare_sizes(device, options.rounds)
        record = {"command": "python -m benchmarks.kernels --sizes", **about, "sizes": found}
        write_cell(options.results / "cuda-sizes.json", record)
        return
    scale = options.scale if options.scale is not None else int(device.type == "cuda")
    rows = {}
    for op in WORKS:
        row = rows[op] = measure(op, device, scale, options.rounds)
        print(
            f"{op:18} {row['backend']:9} {row['measured_ms']:9.3f} ms, roofline {row['roofline_ms']:9.3f} ms "
            f"({row['bound_by']}), achieved {row['achieved_fraction']:5.1%}"
            + (f", reference {row['reference_ms']:9.3f} ms" if "reference_ms" in row else "")
            + (f", the optimizers' own code {row['own_ms']:9.3f} ms" if "own_ms" in row else ""),
            flush=True,
        )
    record = {
        "command": "python -m benchmarks.kernels",
        **about,
        "forced": os.environ.get(VARIABLE) or None,
        "scale": scale,
        "ceilings": {
            "copy_bytes_per_second": bandwidth(device, scale, options.rounds),
            "float32_operations_per_second": matmul_rate(device, scale, options.rounds, torch.float32),
            "float64_operations_per_second": matmul_rate(device, scale, options.rounds, torch.float64),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
        },
        "kernels": rows,
    }
    write_cell(options.results / f"{device.type}.json", record)


if __name__ == "__main__":
    main()
