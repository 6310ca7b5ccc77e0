"""What must be the same for a checkpoint to fit a new agent."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from vogn.likelihoods import Likelihood


def description_of(agent: Any, **more: Any) -> str:
    """Settings of a new agent, as JSON: its plain attributes, those of its settings and of its optimizers' groups.

    Args:
        agent: that has not acted yet, so that its counters are zero.
        **more: further plain data.
    """
    found: dict[str, Any] = {"agent": type(agent).__name__, **more}
    for name, value in vars(agent).items():
        if name.startswith("_") or name in ("rounds", "updates"):
            continue
        if isinstance(value, (bool, int, float, str)):
            found[name] = value
        elif is_dataclass(value) and not isinstance(value, type):
            found[name] = {key: str(entry) for key, entry in asdict(value).items()}
        elif isinstance(value, torch.optim.Optimizer):
            found[name] = [
                {key: str(entry) for key, entry in group.items() if isinstance(entry, (bool, int, float, str))}
                for group in value.param_groups
            ]
        elif isinstance(value, Likelihood):
            found[name] = value.to_dict()
        elif name == "bonus" and value is not None:
            found[name] = json.loads(description_of(value))
        elif isinstance(value, torch.nn.Module):
            found[name] = {key: list(p.shape) for key, p in value.named_parameters()}
    return json.dumps(found)
