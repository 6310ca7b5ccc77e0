"""Floor 0: the arithmetic that is worth a hand-written kernel, behind one dispatch table.

``reference`` is the meaning of every operation in plain PyTorch. Faster backends register beside it and are
tested against it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vogn.kernels import reference

TABLE: dict[str, dict[str, Callable[..., Any]]] = {
    "row_dense": {"reference": reference.row_dense},
    "row_squares": {"reference": reference.row_squares},
    "row_matvec": {"reference": reference.row_matvec},
    "row_rmatvec": {"reference": reference.row_rmatvec},
    "row_gram": {"reference": reference.row_gram},
}


def kernel(op: str, backend: str = "reference") -> Callable[..., Any]:
    """The implementation of ``op`` in ``backend``.

    Raises:
        KeyError: if the operation or the backend is unknown.
    """
    return TABLE[op][backend]
