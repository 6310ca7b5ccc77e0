"""What an integration is compared with: a network, its data, and the loop that the integration stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from vogn.likelihoods import Categorical

METHODS = {"vogn": vogn.VOGN, "kfac": vogn.KFAC, "ivon": vogn.IVON}
OPTIONS: dict[str, Any] = {"lr": 0.05, "ess": 100.0, "weight_decay": 0.01, "damping": 0.01}
BATCH = 4


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def loader(dtype: torch.dtype = torch.float64) -> DataLoader:
    """Four batches, always in the same order."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(4 * BATCH, 3, generator=source, dtype=torch.float64).to(dtype)
    return DataLoader(TensorDataset(x, torch.randint(0, 3, (len(x),), generator=source)), batch_size=BATCH)


def plain_loop(
    method: str,
    *,
    accumulate: int = 1,
    clip: float | None = None,
    epochs: int = 2,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> nn.Sequential:
    model = network(dtype)
    opt = METHODS[method](model, **(OPTIONS | options))
    for _ in range(epochs):
        batches = list(loader(dtype))
        for start in range(0, len(batches), accumulate):
            opt.zero_grad()
            for x, y in batches[start : start + accumulate]:
                with opt.sampled_params():
                    (Categorical()(model(x), y) / accumulate).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            opt.step()
    return model
