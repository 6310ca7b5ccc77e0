"""HyLo against dense solves of every layer, in each of its compressions."""

import pytest
import torch
from per_layer import DECAY, OPTIONS, PerLayer, dense_solve, run

from vogn import HyLo
from vogn.errors import UnsupportedObservationError
from vogn.likelihoods import Categorical

COMMON = OPTIONS | {"kl_clip": None}


@pytest.mark.parametrize("observe_every", [1, 3])
@pytest.mark.parametrize("compression", ["nystrom", "kid"])
def test_with_all_rows_every_step_is_the_dense_solve_of_every_layer(tools, compression, observe_every):
    model = tools.network()
    opt = HyLo(model, rank=1.0, compression=compression, variational=False, observe_every=observe_every, **COMMON)
    run(tools, opt, model, PerLayer(model, dense_solve), 7)


@pytest.mark.parametrize("compression", ["nystrom", "kid", "kis"])
def test_few_rows_give_another_step_that_is_the_solve_with_its_own_curvature(tools, compression):
    model = tools.network()
    opt = HyLo(model, rank=0.4, compression=compression, variational=False, observe_every=2, **COMMON)

    def own_solve(layer, rows, v):
        ((block, _),) = [(b, g) for b, g in opt._build()[0] if b.name == f"{layer}.weight"]
        state = tools.curvature(opt)[block.name]
        shift = COMMON["damping"] + DECAY
        dense = block.structure.to_dense(state, shift)
        exact = rows.T @ rows + shift * torch.eye(len(v)).double()
        assert not torch.allclose(dense, exact, rtol=1e-3), "something is left out"
        return torch.linalg.solve(dense, v)

    run(tools, opt, model, PerLayer(model, own_solve), 5)


def test_the_clip_shortens_the_step(tools):
    """``lr^2 <update, gradient> <= kappa`` at the first step."""
    lengths = []
    for clip in (None, 1e-4):
        model = tools.network()
        before = tools.weights(model)
        tools.train(HyLo(model, rank=1.0, variational=False, **(COMMON | {"kl_clip": clip, "lr": 1.0})), model, 1)
        moved = [(before[name] - weight).flatten() for name, weight in tools.weights(model).items()]
        lengths.append(torch.cat(moved))
    ratio = float(lengths[1].norm() / lengths[0].norm())
    assert 0.0 < ratio < 0.5
    torch.testing.assert_close(lengths[1], ratio * lengths[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("compression", ["nystrom", "kis", "hybrid"])
def test_its_posterior_is_the_gaussian_of_its_curvature(tools, compression):
    model = tools.network()
    options = {"observe_every": 1, "curvature_decay": 0.5, "switch_every": 1, "threshold": 9.0}
    opt = HyLo(model, rank=0.4, compression=compression, **options, **COMMON)
    tools.train(opt, model, 4)  # a hybrid draws from the third step on
    for block in opt.posterior().blocks:
        precision = 50.0 * block.structure.to_dense(block.state, DECAY)
        eye = torch.eye(len(precision)).double().reshape(-1, *block.layout.block_shape)
        root = block.root(eye).flatten(1)
        torch.testing.assert_close(root.T @ root, torch.linalg.inv(precision), rtol=1e-9, atol=1e-12)


def test_interpolation_becomes_neither_variational_nor_a_posterior(tools):
    model = tools.network()
    opt = HyLo(model, compression="kid", variational=False, **COMMON)
    tools.train(opt, model, 2)
    with pytest.raises(UnsupportedObservationError, match="InterpolativeGram"):
        opt.posterior()
    opt.param_groups[0]["variational"] = True
    with pytest.raises(UnsupportedObservationError, match="InterpolativeGram cannot sample"), opt.sampled_params():
        pass


@pytest.mark.parametrize("compression", ["nystrom", "kis", "hybrid"])
def test_a_resumed_run_is_the_uninterrupted_one(tools, compression):
    options = COMMON | {"observe_every": 1, "curvature_decay": 0.5, "compression": compression, "rank": 0.4}
    options |= {"switch_every": 2}
    model, twin = tools.network(), tools.network()
    opt = HyLo(model, **options)
    tools.train(opt, model, 3)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    tools.train(opt, model, 3, start=3)
    twin.load_state_dict(saved["model"])
    resumed = HyLo(twin, **options)
    resumed.load_state_dict(saved["opt"])
    tools.train(resumed, twin, 3, start=3)
    tools.assert_same(tools.everything(opt, model), tools.everything(resumed, twin))


@pytest.mark.parametrize("compression", ["hybrid", "kid_kis"])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 5.0])
def test_phases_are_told_by_the_norm_of_the_accumulated_gradient(tools, compression, threshold):
    """A plain loop over the gradients of the whole model; the count of draws says what every update was."""
    every, model = 2, tools.network()
    options = {"observe_every": 1, "switch_every": every, "threshold": threshold, "variational": False}
    opt = HyLo(model, rank=0.4, compression=compression, **options, **COMMON)
    critical, norms, draws, seen, share = True, [], 0, [], []
    total = None
    for step in range(12):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            (Categorical()(model(x), y) * (1.0 + step % 5)).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        total = gradient if total is None else total + gradient
        opt.step()
        share.append(critical)
        draws += not critical
        assert [int(state["draws"]) for state in tools.curvature(opt).values()] == [draws] * 2, step
        if (step + 1) % every == 0:
            norms, total = [*norms, float(total.norm())], None
            critical = len(norms) < 2 or abs(norms[-1] - norms[-2]) >= threshold * norms[-2]
            seen.append(critical)
    assert opt.diagnostics()["critical"] == pytest.approx(sum(share) / len(share))
    assert all(seen) == (threshold == 0.0) and any(seen[1:]) == (threshold < 5.0)


def test_layers_with_another_structure_count_in_the_norm_and_are_left_alone(tools):
    model = tools.network()
    options = {"observe_every": 1, "switch_every": 1, "threshold": 9.0, "structure": {"2.*": "diagonal"}}
    opt = HyLo(model, rank=0.4, compression="hybrid", **options, **COMMON)
    tools.train(opt, model, 4)
    assert "draws" not in tools.curvature(opt)["2.weight"] and int(tools.curvature(opt)["0.weight"]["draws"]) == 2
