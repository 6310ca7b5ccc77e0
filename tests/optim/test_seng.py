"""SENG against dense solves of every layer, its sketches, and the runs that they allow."""

import pytest
import torch
from per_layer import DAMPING, DECAY, OPTIONS, PerLayer, dense_solve, run

from vogn import SENG
from vogn.errors import UnsupportedObservationError


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


@pytest.mark.parametrize("options", [{"coordinates": 5, "variational": False}, {"rows": 3}])
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
