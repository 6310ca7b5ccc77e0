"""What is fixed while one weight sample is in the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from vogn.capture.places import Places
from vogn.capture.reweighting import ExampleWeights
from vogn.linalg.noise import generator


@dataclass(frozen=True)
class SampleContext:
    """What is fixed while one weight sample is in the model.

    Args:
        seed, step, sample: coordinates of the noise.
        displacement: block name to ``theta - m`` as a block vector, as far as this process holds the block; empty in
            deterministic mode.
        ess, shift: block name to effective sample size and prior shift.
        rank: a further coordinate of the noise where processes draw their own.
        places: where the context's examples stand in the data set; ``None`` if nobody asks.
        weights: block name to the weights of the examples in the user's gradients; empty where all count alike.
        elsewhere: names of displaced blocks of which this process holds nothing.
        shared: names of displaced blocks whose displacement is in memory that the next context writes over.
    """

    seed: int
    step: int
    sample: int
    displacement: Mapping[str, Tensor]
    ess: Mapping[str, float]
    shift: Mapping[str, float]
    rank: int = 0
    places: Places | None = None
    weights: Mapping[str, ExampleWeights] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()

    @cached_property
    def displaced(self) -> frozenset[str]:
        """Names of all blocks that a sample was drawn for."""
        return self.elsewhere | self.displacement.keys()

    def generator(self, stream: str, device: torch.device) -> torch.Generator:
        """A new generator at the start of a named stream of random numbers."""
        return generator(
            seed=self.seed, stream=stream, step=self.step, sample=self.sample, rank=self.rank, device=device
        )
