"""Networks, one step and what it subtracted: for the tests of FNGD."""

import pytest
import torch
from torch import nn

from tiny_models import fill
from vogn import FNGD
from vogn.likelihoods import Categorical
from vogn.optim import NaturalGradient
from vogn.optim.steps import Momentum, Prior
from vogn.structures import Identity

DETERMINISTIC = {"variational": False, "ess": 100.0}


def network():
    """Linear layers with pairs and one whose rows are written out."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2, bias=False), nn.Tanh(), nn.Linear(2, 3))
    return fill(model.double())


class Convolutional(nn.Module):
    """Convolution, norm, linear map over positions, embedding of the position, a bare scale."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, stride=2, padding=1)
        self.group, self.norm = nn.GroupNorm(2, 4), nn.LayerNorm(4)
        self.mix, self.table = nn.Linear(4, 4), nn.Embedding(5, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 3, batch_first=True)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        tokens = self.group(self.conv(x.repeat(1, 2).unsqueeze(1))).transpose(1, 2)
        words = self.table((x.abs() * 10).long() % 5)
        tokens = self.norm(self.mix(tokens) + words)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.head(self.recurrent(tokens)[0].mean(1))


def convolutional():
    return fill(Convolutional().double(), vectors=0.2)


NETWORKS = {"linear": network, "every kind of layer": convolutional}
every_network = pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())


def per_example(model, x, y):
    """Gradient of every example's loss: name to ``(N, *shape)``."""
    rows = []
    for one, label in zip(x, y, strict=True):
        loss = Categorical()(model(one.unsqueeze(0)), label.unsqueeze(0))
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return {name: torch.stack([row[k] for row in rows]) for k, (name, _) in enumerate(model.named_parameters())}


def blocks_of(opt):
    """Block name to the names of its parameters."""
    found = {}
    for row in opt.coverage():
        found.setdefault(row["block"], []).append(row["parameter"])
    return found


def coefficients(opt):
    """Block name to its table."""
    return {block.name: opt._build()[0].state(block)["memory"]["coefficients"] for block in opt._build()[0].blocks}


def run(opt, model, x, y, indices=None, *, parts=1, contexts=1):
    """One step in micro-batches."""
    opt.zero_grad()
    for _ in range(contexts):
        with opt.sampled_params(indices):
            for inputs, targets in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (Categorical()(model(inputs), targets) * len(inputs) / len(x)).backward()
    opt.step()


def directions(opt, model, before):
    """What a step of rate 1 without momentum has subtracted."""
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def build(model, **options):
    return FNGD(model, **({"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "damping": 0.1} | DETERMINISTIC | options))


def sgd_twin(model, **options):
    """Gradient descent with the same prior and momentum."""
    return NaturalGradient(
        model, Identity(), "gradient", steps=(Prior(), Momentum()), lr=1.0, **(DETERMINISTIC | options)
    )


def frozen(model, x, y, **options):
    """An optimizer with coefficients of the examples ``0 ... len(x) - 1``."""
    opt = build(model, **({"lr": 0.0, "freeze_after": 1} | options))
    rate = opt.param_groups[0]["lr"]
    run(opt, model, x, y, torch.arange(len(x)))
    opt.param_groups[0]["lr"] = rate or 0.3
    return opt
