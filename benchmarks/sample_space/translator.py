"""A small Transformer that translates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.sample_space.text import BEGIN, END, PAD, UNKNOWN


class Translator(nn.Module):
    """Two encoder and two decoder layers, normalised first; one embedding for both languages, its own output layer.

    Args:
        vocabulary: number of words.
        width: of the embedding; feed-forward layers have twice that.
        positions: longest sequence.
        heads, layers: of encoder and decoder.
    """

    def __init__(self, vocabulary: int, width: int, positions: int, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        options = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, **options)
        encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.embed = nn.Embedding(vocabulary, width)
        self.transformer = nn.Transformer(
            width, heads, layers, layers, 2 * width, custom_encoder=encoder, **options
        )
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("places", sinusoids(positions, width), persistent=False)
        nn.init.normal_(self.embed.weight, std=width**-0.5)

    def _embedded(self, tokens: Tensor) -> Tensor:
        """``(N, T, width)``."""
        return self.embed(tokens) * math.sqrt(self.embed.embedding_dim) + self.places[: tokens.shape[1]]

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Logits ``(N, T, vocabulary)`` of the word that follows each of the target's.

        Padding of the target stands behind all words, so the causal mask keeps it out; its own logits mean nothing.
        """
        length = target.shape[1]
        hidden = self.transformer(
            self._embedded(source),
            self._embedded(target),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            src_key_padding_mask=source == PAD,
            memory_key_padding_mask=source == PAD,
        )
        return self.head(hidden)

    @torch.no_grad()
    def translate(self, source: Tensor, longest: int) -> Tensor:
        """The most likely word each time, ``(N, longest)``; never padding, begin mark or unknown word."""
        found = torch.full((len(source), 1), BEGIN)
        for _ in range(longest):
            logits = self(source, found)[:, -1]
            logits[:, [PAD, BEGIN, UNKNOWN]] = -math.inf
            found = torch.cat([found, logits.argmax(-1, keepdim=True)], 1)
            if bool((found == END).any(1).all()):
                break
        return found[:, 1:]


def sinusoids(positions: int, width: int) -> Tensor:
    """``(positions, width)``, sines and cosines of geometric wavelengths."""
    rates = torch.exp(-math.log(1e4) * torch.arange(0, width, 2) / width)
    angles = torch.arange(positions).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
