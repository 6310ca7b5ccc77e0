"""A data set that says which examples it yields."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset


class Indexed(Dataset[tuple[int, Any]]):
    """``(place, item)`` instead of ``item``, for ``opt.sampled_params(indices=...)``; any loader batches both.

    Args:
        data: a data set with ``len`` and items by number. Its transforms may be random: a place is an example, not a
            view of it.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(Indexed(["a", "b", "c"]), batch_size=2)
        >>> [(indices.tolist(), items) for indices, items in loader]
        [([0, 1], ('a', 'b')), ([2], ('c',))]
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[int, Any]:
        return place, self.data[place]
