"""Pools of unlabelled examples: read piece by piece, so that they need not fit in memory."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from vogn.active.errors import PoolError


@runtime_checkable
class Pool(Protocol):
    """Examples that can be read by number."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def inputs(self, indices: Tensor) -> Tensor:
        """The inputs ``(n, ...)`` of the examples with these numbers, ``(n,)``, in their order."""
        ...


class ArrayPool:
    """Rows of a tensor or of an array, which may be memory-mapped (``numpy.load(path, mmap_mode="r")``).

    Args:
        rows: ``(N, ...)``, numbers. Real ones of an array become float32.
    """

    def __init__(self, rows: Tensor | np.ndarray) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows) if self.rows.ndim else 0

    def inputs(self, indices: Tensor) -> Tensor:
        """See :meth:`Pool.inputs`."""
        if isinstance(self.rows, Tensor):
            return self.rows[indices.to(self.rows.device)]
        found = torch.from_numpy(np.ascontiguousarray(self.rows[indices.cpu().numpy()]))
        return found.float() if found.is_floating_point() else found


class DatasetPool:
    """A map-style data set, such as a ``torchvision`` one; labels that it may hold are not looked at.

    Args:
        dataset: with ``__len__`` and ``__getitem__``; an item is the inputs, or a tuple that begins with them.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def inputs(self, indices: Tensor) -> Tensor:
        """See :meth:`Pool.inputs`."""
        items = (self.dataset[int(index)] for index in indices)
        return torch.stack([torch.as_tensor(item[0] if isinstance(item, tuple | list) else item) for item in items])


def as_pool(pool: Any) -> Pool:
    """A pool as it is; a tensor, an array or a data set as one.

    Raises:
        PoolError: if it is empty.
        TypeError: if it is nothing of these.
    """
    if isinstance(pool, Tensor | np.ndarray):
        found: Pool = ArrayPool(pool)
    elif isinstance(pool, Pool):
        found = pool
    elif hasattr(pool, "__len__") and hasattr(pool, "__getitem__"):
        found = DatasetPool(pool)
    else:
        kind = type(pool).__name__
        raise TypeError(f"a pool is a tensor, an array, a map-style data set or a vogn.active.Pool, not {kind}")
    if len(found) == 0:
        raise PoolError("the pool is empty: there is nothing to ask for")
    return found


def checked_inputs(pool: Pool, indices: Tensor) -> Tensor:
    """The inputs of some examples.

    Raises:
        PoolError: naming examples whose inputs hold NaN or infinity.
    """
    x = pool.inputs(indices)
    if len(x) != len(indices):
        raise PoolError(f"the pool gave {len(x)} inputs for {len(indices)} numbers")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        bad = indices[~x.flatten(1).isfinite().all(1).cpu()] if x.ndim > 1 else indices[~x.isfinite().cpu()]
        named = ", ".join(str(int(i)) for i in bad[:5])
        raise PoolError(
            f"{len(bad)} examples of the pool hold NaN or infinity, among them number {named}; mend them or leave "
            "them out of the pool"
        )
    return x
