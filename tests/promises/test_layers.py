"""Every method trains every layer: each parameter follows the data, stays finite and has a block, in both modes.

That the rows of a layer are exact is proved for each rule in ``tests/layers``; here it is the pairing of every method
with every layer.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vogn.errors import UnsupportedObservationError


class Tokens(nn.Module):
    """Embeds indices made of the inputs, then one layer over positions, then a linear head."""

    def __init__(self, layer: nn.Module, width: int = 4, embedding: nn.Module | None = None) -> None:
        super().__init__()
        self.embedding = embedding or nn.Embedding(7, width)
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x):
        index = (x.abs() * 10).long() % 7
        found = self.layer(self.embedding(index))
        found = found[0] if isinstance(found, tuple) else found
        return self.head(found.mean(1) if found.ndim == 3 else found)


class Attention(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(4, 2, batch_first=True, **options)

    def forward(self, x):
        return self.inner(x, x, x)[0]


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerDecoderLayer(4, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.inner(x, x.flip(1))


class Cell(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state[0] if isinstance(state, tuple) else state


class Pair(nn.Module):
    """A bilinear layer of the inputs with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Bilinear(3, 3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(x, x)))


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.scale = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.scale + self.offset


class Reshaped(nn.Module):
    """The 3 inputs, mapped to 8 numbers, as an image or signal for a layer."""

    def __init__(self, shape: tuple[int, ...], layer: nn.Module, out: int) -> None:
        super().__init__()
        self.shape, self.first, self.layer, self.head = shape, nn.Linear(3, 8), layer, nn.Linear(out, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.layer(self.first(x).unflatten(1, self.shape))).flatten(1))


def features(layer: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4, bias=bias), layer, nn.Tanh(), nn.Linear(4, 3))


LAYERS = {
    "Linear": lambda: features(nn.Linear(4, 4)),
    "Bilinear": Pair,
    "Conv1d": lambda: Reshaped((2, 4), nn.Conv1d(2, 3, 3, padding="same", padding_mode="circular"), 12),
    "Conv2d": lambda: Reshaped((2, 2, 2), nn.Conv2d(2, 4, 2, padding=1, groups=2), 36),
    "Conv3d": lambda: Reshaped((1, 2, 2, 2), nn.Conv3d(1, 2, 2, dilation=1), 2),
    "ConvTranspose1d": lambda: Reshaped((2, 4), nn.ConvTranspose1d(2, 2, 2, stride=2, output_padding=1), 18),
    "ConvTranspose2d": lambda: Reshaped((2, 2, 2), nn.ConvTranspose2d(2, 2, 2, groups=2), 18),
    "ConvTranspose3d": lambda: Reshaped((1, 2, 2, 2), nn.ConvTranspose3d(1, 1, 2), 27),
    "Embedding": lambda: Tokens(nn.Identity()),
    "EmbeddingBag": lambda: Tokens(nn.Identity(), embedding=nn.EmbeddingBag(7, 4, mode="sum")),
    "BatchNorm1d": lambda: features(nn.BatchNorm1d(4), bias=False),  # the norm takes a bias before it away
    "BatchNorm2d": lambda: Reshaped((2, 2, 2), nn.BatchNorm2d(2), 8),
    "BatchNorm3d": lambda: Reshaped((2, 1, 2, 2), nn.BatchNorm3d(2), 8),
    "LayerNorm": lambda: features(nn.LayerNorm(4)),
    "GroupNorm": lambda: features(nn.GroupNorm(2, 4)),
    "InstanceNorm": lambda: Reshaped((2, 4), nn.InstanceNorm1d(2, affine=True), 8),
    "RMSNorm": lambda: features(nn.RMSNorm(4)),
    "PReLU": lambda: features(nn.PReLU(4)),
    "bare parameters": lambda: features(Shift()),
    "MultiheadAttention": lambda: Tokens(Attention()),
    "TransformerEncoderLayer": lambda: Tokens(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)),
    "TransformerDecoderLayer": lambda: Tokens(Decoder()),
    "RNN": lambda: Tokens(nn.RNN(4, 4, batch_first=True)),
    "LSTM": lambda: Tokens(nn.LSTM(4, 4, batch_first=True)),
    "GRU": lambda: Tokens(nn.GRU(4, 4, batch_first=True)),
    "RNNCell": lambda: Tokens(Cell(nn.RNNCell(4, 4))),
    "LSTMCell": lambda: Tokens(Cell(nn.LSTMCell(4, 4))),
    "GRUCell": lambda: Tokens(Cell(nn.GRUCell(4, 4))),
}


ONCE = {"EmbeddingBag"}
"""Layers that PyTorch differentiates once only."""
FUSED = {"TransformerEncoderLayer", "TransformerDecoderLayer"}


@pytest.mark.promise("layer")
@pytest.mark.filterwarnings("ignore:no layer rule")
@pytest.mark.parametrize("layer", LAYERS)
def test_a_method_trains_a_layer(tools, case, layer):
    """Trained on two data sets from one start with one noise, every parameter ends at two places."""
    probes = case.method in {"ivon", "evon"} and not case.variational
    if probes and layer in ONCE | FUSED:
        model = LAYERS[layer]().double()
        with pytest.raises(UnsupportedObservationError, match="differentiate twice"):
            case.train(case.build(model), model, 1)
        if layer in ONCE:
            pytest.skip("Hessian probes need a second derivative, which PyTorch does not have")
    ends = []
    for first in (0, 50):
        torch.manual_seed(0)
        model = LAYERS[layer]().double()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        opt = case.build(model)
        with sdpa_kernel(SDPBackend.MATH) if probes and layer in FUSED else nullcontext():
            case.train(opt, model, 2, start=first)
        ends.append({name: p.detach().clone() for name, p in model.named_parameters()})
    for name, start in before.items():
        one, two = (end[name] for end in ends)
        assert bool(one.isfinite().all() and two.isfinite().all()), name
        # far above rounding: a parameter that no gradient reaches would decay to the same place
        assert float((one - two).abs().max()) > 1e-4 * float((one - start).abs().max()) > 1e-9, name
    rows = {row["parameter"]: row for row in opt.coverage()}
    assert rows.keys() == before.keys() and all(row["block"] for row in rows.values())
    if case.variational:
        sample = opt.posterior().sample(1)
        assert sample.keys() == before.keys()
        assert all(bool(tensor.isfinite().all()) for tensor in sample.values())
