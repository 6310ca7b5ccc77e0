"""A data set that says which examples it yields, through any loader."""

import torch
from torch.utils.data import DataLoader, TensorDataset

from vogn.data import Indexed


def test_places_follow_their_items_through_shuffling_and_batching():
    x = torch.randn(11, 3, generator=torch.Generator().manual_seed(0))
    data = Indexed(TensorDataset(x, torch.arange(11)))
    assert len(data) == 11
    loader = DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1))
    seen = []
    for indices, (inputs, targets) in loader:
        assert indices.dtype == torch.int64 and torch.equal(indices, targets)
        assert torch.equal(inputs, x[indices])
        seen += indices.tolist()
    assert sorted(seen) == list(range(11)) != seen
