"""A layer-wise preconditioned run, with the inverse given as a function of the per-example gradients."""

from __future__ import annotations

import torch

from vogn.capture import oracle
from vogn.likelihoods import Categorical

LR, DAMPING, DECAY, BETA = 0.3, 0.4, 0.02, 0.9
OPTIONS = {"lr": LR, "damping": DAMPING, "weight_decay": DECAY, "momentum": BETA, "ess": 50.0}


def summed(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="sum")


def packed(named, layer):
    """``[W, bias]`` of a layer, flat, also of per-example gradients."""
    return torch.cat([named[f"{layer}.weight"], named[f"{layer}.bias"].unsqueeze(-1)], -1).flatten(-2)


class PerLayer:
    """``m <- m - lr average((C + s I)^-1 (gradient + weight_decay m))`` with the inverse as a function of the rows."""

    def __init__(self, model, invert):
        self.means = {layer: packed(dict(model.named_parameters()), layer).detach() for layer in ("0", "2")}
        self.average = {layer: torch.zeros_like(mean) for layer, mean in self.means.items()}
        self.invert, self.kept, self.steps = invert, {}, 0

    def step(self, gradients, observe):
        self.steps += 1
        for layer, mean in self.means.items():
            rows = packed(gradients, layer)
            if observe:
                self.kept[layer] = rows / len(rows) ** 0.5
            update = self.invert(layer, self.kept[layer], rows.mean(0) + DECAY * mean)
            self.average[layer] = BETA * self.average[layer] + (1 - BETA) * update
            self.means[layer] = mean - LR * self.average[layer] / (1 - BETA**self.steps)


def dense_solve(layer, rows, v):
    return torch.linalg.solve(rows.T @ rows + (DAMPING + DECAY) * torch.eye(rows.shape[1]).double(), v)


def run(tools, opt, model, other, steps):
    for step in range(steps):
        x, y = tools.batch(seed=step)
        gradients = oracle.per_example_gradients(tools.twin(model), x, y, summed)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        other.step(gradients, observe=step % opt.param_groups[0]["observe_every"] == 0)
        for layer, mean in other.means.items():
            found = packed(tools.weights(model), layer)
            torch.testing.assert_close(found, mean, rtol=1e-10, atol=1e-12)
