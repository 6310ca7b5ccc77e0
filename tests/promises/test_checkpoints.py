"""Checkpoints: bit-exact, safe to load, resumable between any two calls of a loop."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch


def through_a_file(state, **options):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, **options)


@pytest.mark.promise("state_dict round trip, bit for bit, `weights_only=True`")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_state_round_trips_through_a_file(tools, case, dtype):
    model = tools.network(dtype)
    opt = case.build(model)
    case.train(opt, model, 2, dtype=dtype)
    twin = tools.network(dtype)
    twin.load_state_dict(through_a_file(model.state_dict(), weights_only=True))
    other = case.build(twin)
    other.load_state_dict(through_a_file(opt.state_dict(), weights_only=True))
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))
    if dtype == torch.bfloat16:  # curvature stays in single precision
        curvature = [t for name, t in tools.everything(other, twin).items() if " curvature " in name]
        assert curvature and all(t.dtype == torch.float32 for t in curvature if t.is_floating_point())


@pytest.mark.promise("resume equals the uninterrupted run")
def test_a_resumed_run_is_the_uninterrupted_run(tools, case):
    model = tools.network()
    opt = case.build(model)
    case.train(opt, model, 2)
    twin = tools.network()
    twin.load_state_dict(model.state_dict())
    other = case.build(twin, seed=9, lr=1.0)
    other.load_state_dict(through_a_file(opt.state_dict(), weights_only=True))
    case.train(opt, model, 3, start=2)
    case.train(other, twin, 3, start=2)
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("resume equals the uninterrupted run")
def test_a_checkpoint_in_the_middle_of_an_accumulation_resumes_at_the_begin_of_its_step(tools, case):
    """Gradients and pending observations are no part of a state, as in PyTorch: the step is run again."""
    model = tools.network()
    opt = case.build(model, mc_samples=2)
    saved = None
    for step in range(3):
        opt.zero_grad()
        for part in range(2):
            with opt.sampled_params():
                case.backward(model, 2 * step + part)
            if step == part + 1 == 1:
                saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()}, weights_only=True)
        opt.step()
    twin = tools.network()
    other = case.build(twin, mc_samples=2)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    for step in range(1, 3):
        other.zero_grad()
        for part in range(2):
            with other.sampled_params():
                case.backward(twin, 2 * step + part)
        other.step()
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("`torch.distributed.checkpoint` round trip")
def test_a_state_round_trips_through_distributed_checkpoint(tools, case, tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model = tools.network()
    opt = case.build(model)
    case.train(opt, model, 2)
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "opt": state}, checkpoint_id=tmp_path, no_dist=True)
    twin = tools.network()
    other = case.build(twin)
    weights, state = get_state_dict(twin, other)  # steps on zero gradients to make a state
    loaded = {"model": weights, "opt": state}
    if opt.structure.GROWS:  # rows of a batch: there is no place for them before the first one
        with pytest.raises(dcp.api.CheckpointException, match="Size mismatch"):
            dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        return
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(twin, other, model_state_dict=loaded["model"], optim_state_dict=loaded["opt"])
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))
    case.train(opt, model, 2, start=2)
    case.train(other, twin, 2, start=2)
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("deepcopy and pickle of model and optimizer")
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_alone(tools, case, clone):
    model = tools.network()
    opt = case.build(model)
    case.train(opt, model, 2)
    twin, other = clone((model, opt))
    before = tools.everything(opt, model)
    case.train(other, twin, 2, start=2)
    tools.assert_identical(tools.everything(opt, model), before)
    case.train(opt, model, 2, start=2)
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("EMA and SWA wrappers")
def test_averaged_models_see_means_and_never_samples(tools, case):
    model = tools.network()
    opt = case.build(model)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    expected = None
    for step in range(4):
        case.train(opt, model, 1, start=step)
        averaged.update_parameters(model)
        mean = opt.posterior().mean()
        weights = torch.cat([mean[name].flatten() for name, _ in model.named_parameters()])
        expected = weights if expected is None else 0.5 * expected + 0.5 * weights
    torch.testing.assert_close(tools.flat(averaged.module), expected, rtol=1e-14, atol=1e-14)
