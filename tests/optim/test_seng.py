"""SENG against dense solves of every layer, its sketches, and the runs that they allow."""

import pytest
import torch
from per_layer import DAMPING, DECAY, OPTIONS, PerLayer, dense_solve, run

from vogn import SENG
from vogn.errors import NonFiniteStatisticsError, UnsupportedObservationError
from vogn.likelihoods import Categorical


@pytest.mark.parametrize("observe_every", [1, 3])
def test_without_a_sketch_every_step_is_the_dense_solve_of_every_layer(tools, observe_every):
    model = tools.network()
    opt = SENG(model, variational=False, observe_every=observe_every, **OPTIONS)
    run(tools, opt, model, PerLayer(model, dense_solve), 7)


@pytest.mark.parametrize("coordinates", [4, 15])
def test_large_layers_are_sketched_and_small_ones_exact(tools, coordinates):
    """Layers of 16 and 15 parameters."""
    model = tools.network()
    opt = SENG(model, variational=False, observe_every=2, coordinates=coordinates, **OPTIONS)

    def sketched(layer, rows, v):
        omega = tools.curvature(opt)[f"{layer}.weight"]["omega"]
        assert omega.numel() == (coordinates if rows.shape[1] > coordinates else 0)
        if not omega.numel():
            return dense_solve(layer, rows, v)
        s, ratio = DAMPING + DECAY, rows.shape[1] / coordinates
        middle = s * torch.eye(len(rows)).double() + ratio * rows[:, omega] @ rows[:, omega].T
        return (v - rows.T @ torch.linalg.solve(middle, ratio * rows[:, omega] @ v[omega])) / s

    run(tools, opt, model, PerLayer(model, sketched), 5)


IMPLICIT = {"implicit_above": 0, "positions": 1}
"""Both layers hold pairs."""


@pytest.mark.parametrize(
    "options",
    [
        {"coordinates": 5, "variational": False},
        {"rows": 3},
        IMPLICIT | {"window": 10},
        IMPLICIT | {"coordinates": 5, "variational": False},
    ],
)
def test_a_resumed_run_draws_what_the_uninterrupted_one_draws(tools, options):
    options = OPTIONS | {"observe_every": 1, "curvature_decay": 0.5} | options
    model, twin = tools.network(), tools.network()
    opt = SENG(model, **options)
    tools.train(opt, model, 3)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 3, start=3)
    twin.load_state_dict(saved["model"])
    resumed = SENG(twin, **options)
    resumed.load_state_dict(saved["opt"])
    tools.train(resumed, twin, 3, start=3)
    tools.assert_same(tools.everything(opt, model), tools.everything(resumed, twin))


def test_another_seed_draws_something_else(tools):
    results = []
    for seed in (0, 1):
        model = tools.network()
        tools.train(SENG(model, rows=2, variational=False, seed=seed, **OPTIONS), model, 1)
        results.append(torch.cat([p.flatten() for p in tools.weights(model).values()]))
    assert float((results[0] - results[1]).abs().max()) > 1e-6


def test_a_sketch_of_coordinates_becomes_neither_variational_nor_a_posterior(tools):
    model = tools.network()
    opt = SENG(model, coordinates=5, variational=False, **OPTIONS)
    tools.train(opt, model, 2)
    with pytest.raises(UnsupportedObservationError, match="SketchedGram"):
        opt.posterior()
    opt.param_groups[0]["variational"] = True
    before = tools.weights(model)
    with pytest.raises(UnsupportedObservationError, match="SketchedGram cannot sample"), opt.sampled_params():
        pass
    assert all(torch.equal(before[name], weight) for name, weight in tools.weights(model).items())


@pytest.mark.parametrize("rows", [None, 3])
def test_its_posterior_is_the_gaussian_of_the_rows(tools, rows):
    model = tools.network()
    opt = SENG(model, rows=rows, **OPTIONS)
    tools.train(opt, model, 1)
    for block in opt.posterior().blocks:
        u = block.state["U"].flatten(0, -2)
        precision = 50.0 * (u @ u.T + DECAY * torch.eye(len(u)).double())
        torch.testing.assert_close(block.precision_matrix(), precision)
        eye = torch.eye(len(u)).double().reshape(-1, *block.layout.block_shape)
        root = block.root(eye).flatten(1)
        torch.testing.assert_close(root.T @ root, torch.linalg.inv(precision), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("observe_every", [1, 3])
def test_pairs_of_layers_without_shared_weights_are_the_dense_solve(tools, observe_every):
    model = tools.network()
    opt = SENG(model, variational=False, observe_every=observe_every, **IMPLICIT, **OPTIONS)
    run(tools, opt, model, PerLayer(model, dense_solve), 7)
    assert all("U" not in state for state in tools.curvature(opt).values())


def test_sketched_pairs_are_the_solve_with_both_sides_sketched(tools):
    """The layers are 4 x 4 and 3 x 5; two inputs and two outputs of each meet."""
    model = tools.network()
    opt = SENG(model, variational=False, observe_every=2, coordinates=4, **IMPLICIT, **OPTIONS)

    def sketched(layer, rows, v):
        state = tools.curvature(opt)[f"{layer}.weight"]
        d_out, d_in = state["template"].shape[1:]
        place = (state["outputs"][:, None] * d_in + state["inputs"]).flatten()
        assert place.numel() == 4
        s, ratio = DAMPING + DECAY, d_out * d_in / 4
        middle = s * torch.eye(len(rows)).double() + ratio * rows[:, place] @ rows[:, place].T
        return (v - rows.T @ torch.linalg.solve(middle, ratio * rows[:, place] @ v[place])) / s

    run(tools, opt, model, PerLayer(model, sketched), 5)


class Convolutions(torch.nn.Sequential):
    """16 positions of blocks (10, 19), then 4 positions of blocks (12, 91)."""

    def __init__(self):
        first, second = torch.nn.Conv2d(2, 10, 3, stride=2), torch.nn.Conv2d(10, 12, 3)
        super().__init__(first, torch.nn.Tanh(), second, torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(48, 3))


def convolutional_run(tools, steps=4, **options):
    torch.manual_seed(0)
    model = Convolutions().double()
    opt = SENG(model, **(OPTIONS | {"observe_every": 2} | options))
    for step in range(steps):
        source = torch.Generator().manual_seed(step)
        x = torch.randn(5, 2, 9, 9, generator=source, dtype=torch.float64)
        y = torch.randint(0, 3, (5,), generator=source)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    return model, opt


@pytest.mark.parametrize("variational", [True, False])
def test_pairs_of_convolutions_with_enough_positions_are_the_rows(tools, variational):
    """``positions >= T`` loses nothing; weights are drawn through the same roots of the same matrices."""
    whole, _ = convolutional_run(tools, variational=variational)
    pairs, opt = convolutional_run(tools, variational=variational, implicit_above=200, positions=4)
    states = tools.curvature(opt)
    assert states["2.weight"]["a"].shape == (20, 91) and "U" in states["0.weight"] and "U" in states["5.weight"]
    for left, right in zip(whole.parameters(), pairs.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-11)


def test_fewer_positions_give_a_step_near_by_and_a_gaussian(tools):
    whole, _ = convolutional_run(tools, steps=1, variational=False, damping=0.05)
    errors = []
    for positions in (1, 3, 4):
        pairs, opt = convolutional_run(
            tools, steps=1, variational=False, damping=0.05, implicit_above=200, positions=positions
        )
        torch.manual_seed(0)
        start = Convolutions().double()
        moved = [
            torch.cat([(a - b).detach().flatten() for a, b in zip(m.parameters(), start.parameters(), strict=True)])
            for m in (whole, pairs)
        ]
        errors.append(float((moved[0] - moved[1]).norm() / moved[0].norm()))
        for block in opt.posterior().blocks:
            precision = block.precision_matrix()
            torch.testing.assert_close(precision, precision.T)
            assert float(torch.linalg.eigvalsh(precision)[0]) > 0
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-9


def test_nan_in_a_convolution_is_refused_in_the_step_and_nothing_changes(tools):
    model, opt = convolutional_run(tools, variational=False, implicit_above=100, positions=2, observe_every=1)
    before = tools.weights(model)
    x, y = torch.full((5, 2, 9, 9), torch.nan).double(), torch.zeros(5, dtype=torch.int64)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    with pytest.raises(NonFiniteStatisticsError, match="NaN or infinity"):
        opt.step()
    assert all(torch.equal(before[name], weight) for name, weight in tools.weights(model).items())
