"""The standard normal numbers from which the draws of a Gaussian posterior are made, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vogn.linalg.quasi_random import MAX_DIMENSION, sobol_normal
from vogn.posterior.block import PosteriorBlock

Noise = Callable[[Sequence[PosteriorBlock], Sequence[Tensor], int, int, int], dict[str, Tensor]]
"""(blocks, a tensor of each block's dtype and device, n, seed, start) to ``{block name: (n, *block_shape)}``."""


def independent(
    blocks: Sequence[PosteriorBlock], like: Sequence[Tensor], n: int, seed: int, start: int
) -> dict[str, Tensor]:
    """Every draw has numbers of its own."""
    return {
        block.name: block.noise(n, seed=seed, start=start, dtype=tensor.dtype, device=tensor.device)
        for block, tensor in zip(blocks, like, strict=True)
    }


def antithetic(
    blocks: Sequence[PosteriorBlock], like: Sequence[Tensor], n: int, seed: int, start: int
) -> dict[str, Tensor]:
    """Draws ``2 j`` and ``2 j + 1`` have the numbers of the independent draw ``j``, and their negatives."""
    first = start // 2
    own = independent(blocks, like, (start + n - 1) // 2 - first + 1, seed, first)
    skipped = start - 2 * first
    return {
        name: torch.stack([noise, -noise], 1).flatten(0, 1)[skipped : skipped + n] for name, noise in own.items()
    }


def sobol(blocks: Sequence[PosteriorBlock], like: Sequence[Tensor], n: int, seed: int, start: int) -> dict[str, Tensor]:
    """The draws are the points of one scrambled Sobol sequence over all parameters.

    Raises:
        ValueError: if there are more parameters than such a sequence can have.
    """
    sizes = [block.numel for block in blocks]
    if not blocks:
        return {}
    if sum(sizes) > MAX_DIMENSION:
        raise ValueError(
            f"noise='sobol' needs at most {MAX_DIMENSION} sampled parameters, this posterior has {sum(sizes)}; use "
            "noise='antithetic', or a posterior over the last layer"
        )
    parts = sobol_normal(n, sum(sizes), seed=seed, start=start).split(sizes, -1)
    return {
        block.name: part.reshape(n, *block.layout.block_shape).to(tensor)
        for block, tensor, part in zip(blocks, like, parts, strict=True)
    }


NOISES: Mapping[str, Noise] = {"independent": independent, "antithetic": antithetic, "sobol": sobol}
"""Value of ``noise=`` to implementation. Draw ``k`` of a seed is one fixed draw under each."""
