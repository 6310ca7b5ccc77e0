"""TONGA against the dense recursion of its matrix, truncations included."""

import pytest
import torch

from vogn import TONGA
from window_oracle import network, replay

DIMENSIONS = 31
EYE = torch.eye(DIMENSIONS, dtype=torch.float64)
LR, LAMBDA, DT, GAMMA, ESS = 0.02, 0.05, 0.01, 0.9, 60.0


def tonga(model, **options):
    defaults = {"lr": LR, "ess": ESS, "damping": LAMBDA, "weight_decay": DT, "curvature_decay": GAMMA, "seed": 3}
    return TONGA(model, **(defaults | {"rank": 3, "truncate_every": 2, "partition": "model"} | options))


class Recursion:
    """C_t = gamma C_{t-1} + g g^T, cut to its best ``rank`` directions where ``rank + every`` columns are full."""

    def __init__(self, rank, every, *, normalise):
        self.rank, self.columns, self.normalise = rank, rank + every, normalise
        self.c, self.held, self.truncations = torch.zeros(DIMENSIONS, DIMENSIONS, dtype=torch.float64), 0, 0

    def __call__(self, seen, gradient, mean):
        if self.held == self.columns:
            values, vectors = torch.linalg.eigh(self.c)
            self.c = (vectors[:, -self.rank :] * values[-self.rank :]) @ vectors[:, -self.rank :].T
            self.held, self.truncations = self.rank, self.truncations + 1
        self.c, self.held = GAMMA * self.c + torch.outer(gradient, gradient), self.held + 1
        self.mass = (1 - GAMMA ** len(seen)) / (1 - GAMMA)
        c = self.c / self.mass if self.normalise else self.c
        return torch.linalg.solve(c + (LAMBDA + DT) * EYE, gradient + DT * mean)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("variational", [True, False])
def test_it_is_the_dense_recursion_with_truncations(normalise, variational):
    model, dense = network(), Recursion(3, 2, normalise=normalise)
    replay(tonga(model, normalise=normalise, variational=variational), model, dense, steps=12, lr=LR)
    assert dense.truncations == 4


def test_with_room_for_all_gradients_nothing_is_lost():
    model, dense = network(), Recursion(12, 2, normalise=True)
    replay(tonga(model, rank=12), model, dense, steps=12, lr=LR)
    assert dense.truncations == 0


@pytest.mark.parametrize("normalise", [True, False])
def test_the_posterior_is_normalised_in_any_case(normalise):
    model, dense = network(), Recursion(3, 2, normalise=normalise)
    opt = tonga(model, normalise=normalise, variational=False)
    replay(opt, model, dense, steps=9, lr=LR)
    (precision,) = opt.posterior().precision_matrices().values()
    torch.testing.assert_close(precision, ESS * (dense.c / dense.mass + DT * EYE), rtol=1e-9, atol=1e-10)


def test_a_layer_has_a_block_of_its_own(tools):
    """Its curvature is the diagonal block of the one over the model as long as nothing is cut, at the same weights."""
    states = {}
    for partition in ("layer", "model"):
        model = network()
        opt = tonga(model, partition=partition, rank=20, lr=0.0, variational=False)
        tools.train(opt, model, 6)
        states[partition] = list(opt.posterior().precision_matrices().values())
    assert [len(matrix) for matrix in states["layer"]] == [16, 15]
    (whole,) = states["model"]
    torch.testing.assert_close(states["layer"][0], whole[:16, :16], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(states["layer"][1], whole[16:, 16:], rtol=1e-11, atol=1e-11)
