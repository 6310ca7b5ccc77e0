"""Layers inside networks: tracked curvature against the dense oracle."""

import pytest
import torch
from torch import nn


class Upsampling(nn.Module):
    """Transposed convolutions, one of them grouped and called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.ConvTranspose2d(1, 2, 2, stride=2, output_padding=1)
        self.twice = nn.ConvTranspose2d(2, 2, 2, groups=2, padding=1, dilation=2)
        self.head = nn.Linear(18, 3)

    def forward(self, x):
        x = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x, output_size=[5, 5]))))))
        return self.head(x.flatten(1)[:, :18])


class Pairing(nn.Module):
    """A bilinear layer whose second input is a keyword, another with both by name and in reverse."""

    def __init__(self):
        super().__init__()
        self.left, self.pair, self.head = nn.Linear(3, 2), nn.Bilinear(2, 3, 2), nn.Bilinear(2, 2, 3, bias=False)

    def forward(self, x):
        left = torch.tanh(self.left(x))
        return self.head(input2=left, input1=torch.tanh(self.pair(left, input2=x)))


class Bags(nn.Module):
    """Bags of different lengths: an entry -1 is absent. Learned weights per entry for the summed bag."""

    def __init__(self, mode):
        super().__init__()
        self.bag = nn.EmbeddingBag(6, 4, mode=mode, padding_idx=2)
        self.weigh = nn.EmbeddingBag(6, 4, mode="sum")
        self.importance = nn.Embedding(6, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, index):
        present = index >= 0
        starts = torch.cat([torch.zeros(1, dtype=torch.long), present.sum(1).cumsum(0)[:-1]])
        entries = index.clamp_min(0)
        weights = torch.tanh(self.importance(entries).squeeze(-1)) * present
        return self.head(torch.tanh(self.bag(index[present], starts) + self.weigh(entries, per_sample_weights=weights)))


class Table(nn.Module):
    """Frequency scaling divides by 1 where no entry occurs twice."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 2, scale_grad_by_freq=True), nn.Linear(4, 3)

    def forward(self, index):
        return self.head(torch.tanh(self.table(index)).flatten(1))


class Synchronised(nn.Module):
    """Synchronised batch normalisation in evaluation mode treats examples independently."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4).eval(), nn.Linear(4, 3))

    def forward(self, x):
        return self.body(x)


def test_transposed_convolutions(check_network, normal):
    check_network(Upsampling(), normal(3, 1, 2, 2))


def test_bilinear_layers(check_network, normal):
    check_network(Pairing(), normal(4, 3))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(check_network, mode):
    check_network(Bags(mode), torch.tensor([[0, 1, 1], [-1, 2, 5], [-1, -1, -1], [4, -1, 3]]))


def test_a_table_scaled_by_frequency(check_network):
    check_network(Table(), torch.tensor([[0, 1], [2, 3], [4, 8]]))


def test_synchronised_batch_norm(check_network, normal):
    check_network(Synchronised(), normal(4, 3))
