"""Floor 0: the arithmetic that is worth a hand-written kernel, behind one dispatch table.

``reference`` is the meaning of every operation in plain PyTorch; kernels in Triton stand beside it in the table and are
tested against it. The public functions check their operands and take Triton's kernel on CUDA where triton is installed,
the reference everywhere else; ``VOGN_KERNELS=triton`` or ``VOGN_KERNELS=reference`` forces one of them. Structures and
optimizers have code of their own, and ask :func:`vogn.kernels.dispatch.fitting` whether a kernel takes its place.
"""

from vogn.kernels.dispatch import TABLE, kernel
from vogn.kernels.operations import (
    diagonal_step,
    eigenbasis_solve,
    inverse_root,
    patch_factor,
    squared_gradients,
    symmetric_update,
    woodbury_solve,
)
from vogn.kernels.reference import DiagonalStep

__all__ = [
    "TABLE",
    "DiagonalStep",
    "diagonal_step",
    "eigenbasis_solve",
    "inverse_root",
    "kernel",
    "patch_factor",
    "squared_gradients",
    "symmetric_update",
    "woodbury_solve",
]
