"""The networks and batches that costs are measured on; data are random, for no cost depends on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vogn.models import build_model


class Block(nn.Module):
    """Causal attention and a feed-forward part, both after a layer norm and added to their input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` of ``(N, T, width)``."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1)
        )
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_feed_forward(x))))


class SmallGPT(nn.Module):
    """A decoder-only Transformer over bytes, with an output layer of its own.

    Args:
        width: of the residual stream.
        layers: number of blocks.
        heads: of the attention.
        length: most positions.
        vocabulary: number of tokens.
    """

    def __init__(self, width: int, layers: int, heads: int, length: int, vocabulary: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, T, vocabulary)`` of tokens ``(N, T)``."""
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape)
        return self.head(self.norm(self.blocks(self.tokens(x) + self.positions(places))))


@dataclass(frozen=True)
class Case:
    """A network and a batch.

    Args:
        title: for tables.
        make: the network.
        shape: of the inputs.
        classes: number of classes.
        tokens: whether inputs are tokens, each with a label, rather than numbers with a label per example.
    """

    title: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    classes: int = 10
    tokens: bool = False

    def model(self) -> nn.Module:
        """The network, always with the same weights."""
        torch.manual_seed(0)
        return self.make()

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels, always the same."""
        torch.manual_seed(1)
        if self.tokens:
            return torch.randint(0, self.classes, self.shape), torch.randint(0, self.classes, self.shape)
        return torch.randn(self.shape), torch.randint(0, self.classes, self.shape[:1])


CASES: dict[str, Case] = {
    "mlp": Case("MLP 784-1024-1024-10, batch 128", lambda: build_model("mlp", sizes=(784, 1024, 1024, 10)), (128, 784)),
    "resnet20": Case(
        "ResNet-20 width 16, 32x32, batch 64",
        lambda: build_model("resnet20", in_channels=3, width=16),
        (64, 3, 32, 32),
    ),
    "gpt": Case(
        "GPT, 4 layers of width 256, 8 x 128 tokens", lambda: SmallGPT(256, 4, 4, 128, 256), (8, 128), 256, tokens=True
    ),
}
"""The measured networks."""

LARGE: dict[str, Case] = {
    "mlp": Case(
        "MLP 784-4096-4096-10, batch 1024", lambda: build_model("mlp", sizes=(784, 4096, 4096, 10)), (1024, 784)
    ),
    "resnet20": Case(
        "ResNet-20 width 64, 32x32, batch 256",
        lambda: build_model("resnet20", in_channels=3, width=64),
        (256, 3, 32, 32),
    ),
    "gpt": Case(
        "GPT, 6 layers of width 768, 16 x 256 tokens",
        lambda: SmallGPT(768, 6, 12, 256, 256),
        (16, 256),
        256,
        tokens=True,
    ),
}
"""The same kinds of networks, large enough to keep a GPU busy."""

TINY: dict[str, Case] = {
    "mlp": Case("MLP 6-5-3, batch 4", lambda: build_model("mlp", sizes=(6, 5, 3)), (4, 6), 3),
    "resnet20": Case(
        "ResNet-8 width 2, 8x8, batch 4", lambda: build_model("resnet8", in_channels=3, width=2), (4, 3, 8, 8)
    ),
    "gpt": Case("GPT, 1 layer of width 8, 2 x 3 tokens", lambda: SmallGPT(8, 1, 2, 3, 5), (2, 3), 5, tokens=True),
}
"""The same kinds of networks, as small as tests want them."""
