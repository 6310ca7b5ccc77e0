"""The order in which a run sees its data: a pure function of (seed, epoch), independent of any global generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ORDER_STREAM = 0x0DE4


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of ``0 .. n - 1``.

    Args:
        n: number of training examples.
        seed: seed of the run, at least 0.
        epoch: number of the epoch, from 0.

    Returns:
        Indices, int64, shape ``(n,)``; the same for the same arguments on every machine.
    """
    generator = np.random.default_rng([_ORDER_STREAM, seed, epoch])
    return torch.from_numpy(generator.permutation(n).astype(np.int64))


def epoch_batches(n: int, batch_size: int, seed: int, epoch: int) -> list[Tensor]:
    """The batches of one epoch, every example once.

    A last batch of a single example joins the batch before it: batch normalisation has no variance for one example.

    Args:
        n: number of training examples.
        batch_size: examples per batch, at least 1.
        seed: seed of the run.
        epoch: number of the epoch, from 0.

    Returns:
        Index tensors, int64.
    """
    batches = list(epoch_order(n, seed, epoch).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    return batches
