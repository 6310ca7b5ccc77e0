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


UNITS = [slice(4 * k, 4 * k + 4) for k in range(4)] + [slice(16 + 5 * k, 21 + 5 * k) for k in range(3)]
"""The parameters of each of 4 + 3 neurons, ``[weights, bias]``."""


class PerUnit:
    """The recursion in every neuron, with the neuron's parts of gradients and mean."""

    def __init__(self, *arguments, normalise):
        self.arguments, self.normalise = arguments, normalise
        self.c = [torch.zeros(u.stop - u.start, u.stop - u.start).double() for u in UNITS]
        self.held, self.truncations, self.mass = 0, 0, 0.0

    def __call__(self, seen, gradient, mean):
        rank, every = self.arguments
        if self.held == rank + every:
            for k, c in enumerate(self.c):
                values, vectors = torch.linalg.eigh(c)
                self.c[k] = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
            self.held, self.truncations = rank, self.truncations + 1
        self.held, self.mass = self.held + 1, (1 - GAMMA ** len(seen)) / (1 - GAMMA)
        out = torch.zeros_like(mean)
        for k, u in enumerate(UNITS):
            self.c[k] = GAMMA * self.c[k] + torch.outer(gradient[u], gradient[u])
            c = self.c[k] / self.mass if self.normalise else self.c[k]
            out[u] = torch.linalg.solve(c + (LAMBDA + DT) * torch.eye(len(c)).double(), gradient[u] + DT * mean[u])
        return out


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("variational", [True, False])
def test_a_block_for_every_neuron_is_the_dense_recursion_of_every_neuron(normalise, variational):
    model, dense = network(), PerUnit(2, 1, normalise=normalise)
    opt = tonga(model, partition="unit", rank=2, truncate_every=1, normalise=normalise, variational=variational)
    replay(opt, model, dense, steps=12, lr=LR)
    assert dense.truncations == 9
    precision = torch.block_diag(*opt.posterior().precision_matrices().values())
    expected = torch.block_diag(*[c / dense.mass for c in dense.c]) + DT * EYE
    torch.testing.assert_close(precision, ESS * expected, rtol=1e-9, atol=1e-10)


def test_the_block_of_a_neuron_is_that_of_the_layer_without_the_others(tools):
    """As long as nothing is cut, at the same weights."""
    states = {}
    for partition in ("unit", "model"):
        model = network()
        opt = tonga(model, partition=partition, rank=20, lr=0.0, variational=False)
        tools.train(opt, model, 6)
        states[partition] = torch.block_diag(*opt.posterior().precision_matrices().values())
    for u in UNITS:
        torch.testing.assert_close(states["unit"][u, u], states["model"][u, u], rtol=1e-11, atol=1e-11)
    assert float(states["unit"][UNITS[0], UNITS[1]].abs().max()) == 0.0 < float(states["model"][:4, 4:8].abs().max())


def test_a_resumed_run_of_neurons_is_the_uninterrupted_one(tools):
    model, twin = network(), network()
    opt = tonga(model, partition="unit")
    tools.train(opt, model, 7)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 4, start=7)
    twin.load_state_dict(saved["model"])
    resumed = tonga(twin, partition="unit")
    resumed.load_state_dict(saved["opt"])
    tools.train(resumed, twin, 4, start=7)
    tools.assert_same(tools.everything(opt, model), tools.everything(resumed, twin))
