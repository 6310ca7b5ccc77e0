"""FNGD: coefficients of examples, while they are measured and after they are kept."""

import io

import pytest
import torch
from torch import nn

from fngd_cases import (
    blocks_of,
    build,
    coefficients,
    directions,
    every_network,
    frozen,
    network,
    per_example,
    run,
    sgd_twin,
    weights,
)
from tiny_models import batch, fill
from vogn.likelihoods import Categorical

# ---------------------------------------------------------------------- while coefficients are measured


@every_network
@pytest.mark.parametrize("damping", [1e-2, 1.0])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_the_direction_is_the_dense_block_solve(make, damping, weight_decay):
    """``s (C + s)^-1 (g + weight_decay m)`` of every block, from per-example gradients of a loop."""
    model = make()
    x, y = batch(8)
    opt = build(model, damping=damping, weight_decay=weight_decay)
    blocks, rows, before = blocks_of(opt), per_example(model, x, y), weights(model)
    run(opt, model, x, y)
    found = directions(opt, model, before)
    for names in blocks.values():
        j = torch.cat([rows[name].flatten(1) for name in names], 1)
        v = j.mean(0) + weight_decay * torch.cat([before[name].flatten() for name in names])
        shift = damping + weight_decay
        expected = shift * torch.linalg.solve(j.T @ j / 8 + shift * torch.eye(j.shape[1], dtype=j.dtype), v)
        actual = torch.cat([found[name].flatten() for name in names])
        assert float((actual - expected).norm()) < 1e-10 * float(expected.norm()), names


@every_network
def test_the_direction_is_the_weighted_mean_of_the_examples(make):
    model = make()
    x, y = batch(8)
    opt = build(model, freeze_after=1)
    blocks, rows, before = blocks_of(opt), per_example(model, x, y), weights(model)
    run(opt, model, x, y, torch.arange(8))
    found = directions(opt, model, before)
    for block, names in blocks.items():
        c = coefficients(opt)[block]
        assert float(c.std()) > 1e-3
        for name in names:
            expected = torch.einsum("n,n...->...", c, rows[name]) / 8
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)


@every_network
def test_growing_damping_tends_to_gradient_descent_at_the_same_rate(make):
    model, twin = make(), make()
    options = {"momentum": 0.9, "weight_decay": 0.05}
    opt, other = build(model, damping=1e12, **options), sgd_twin(twin, **options)
    for step in range(3):
        x, y = batch(8, step)
        run(opt, model, x, y)
        run(other, twin, x, y)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, weights(twin)[name], rtol=1e-9, atol=1e-9)


def test_a_clipped_gradient_has_the_natural_direction_of_what_is_left():
    x, y = batch(8)
    found, norms = [], []
    for largest in (1e9, 1e-3):
        model = network()
        opt = build(model)
        before = weights(model)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), largest)))
        opt.step()
        found.append(directions(opt, model, before))
    for name, direction in found[0].items():
        torch.testing.assert_close(found[1][name], direction * 1e-3 / norms[0], rtol=1e-4, atol=1e-12)


def test_the_posterior_is_that_of_the_last_batch():
    model = network()
    opt = build(model, weight_decay=0.05, lr=0.0)
    run(opt, model, *batch(8, 1))
    x, y = batch(8, 2)
    run(opt, model, x, y)
    rows = per_example(model, x, y)
    precision = opt.posterior().precision_matrices()
    for block, names in blocks_of(opt).items():
        j = torch.cat([rows[name].flatten(1) for name in names], 1)
        order = torch.arange(j.shape[1])
        if len(names) == 2:  # the bias is the last column of the weight
            o = rows[names[1]].shape[1]
            order = torch.cat([order[:-o].view(o, -1), order[-o:].view(o, 1)], 1).flatten()
        j = j[:, order]
        expected = 100.0 * (j.T @ j / 8 + 0.05 * torch.eye(j.shape[1], dtype=j.dtype))
        torch.testing.assert_close(precision[block], expected)


# ---------------------------------------------------------------------- after they are kept


@every_network
def test_with_rate_zero_the_second_epoch_repeats_the_first(make):
    """The same examples in the same order at the same weights: the same directions, to rounding."""
    model = make()
    x, y = batch(16)
    opt = build(model, lr=0.0, freeze_after=2, momentum=0.0)
    for part in (slice(0, 8), slice(8, 16)):
        run(opt, model, x[part], y[part], torch.arange(16)[part])
    twin = make()
    measured = build(twin)
    for part in (slice(0, 8), slice(8, 16)):
        for p, start in zip(model.parameters(), make().parameters(), strict=True):
            p.data.copy_(start)
        for p, start in zip(twin.parameters(), make().parameters(), strict=True):
            p.data.copy_(start)
        opt.param_groups[0]["lr"] = 1.0
        before = weights(model)
        run(opt, model, x[part], y[part], torch.arange(16)[part])
        run(measured, twin, x[part], y[part])
        first, second = directions(measured, twin, before), directions(opt, model, before)
        for name in first:
            torch.testing.assert_close(second[name], first[name], rtol=1e-11, atol=1e-13)


def test_with_rate_zero_the_second_epoch_repeats_the_first_bit_for_bit():
    """Where both form the same products: no bias, and a batch whose normalisation is a power of two."""
    make = lambda: fill(nn.Sequential(nn.Linear(3, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False)).double())  # noqa: E731
    x, y = batch(16)
    found = []
    for epoch in range(2):
        model = make()
        opt = build(model, freeze_after=1)
        for _ in range(epoch + 1):
            opt.param_groups[0]["lr"] = float(_ == epoch)
            before = weights(model)
            run(opt, model, x, y, torch.arange(16))
        found.append(directions(opt, model, before))
    for name, direction in found[0].items():
        assert torch.equal(found[1][name], direction), name


@every_network
def test_coefficients_follow_their_examples_through_shuffling(make):
    model = make()
    x, y = batch(24)
    opt = build(model, lr=0.0, freeze_after=3)
    for chunk in torch.randperm(24, generator=torch.Generator().manual_seed(1)).split(8):
        run(opt, model, x[chunk], y[chunk], chunk)
    tables = {name: table.clone() for name, table in coefficients(opt).items()}
    assert all(table.shape == (24,) and bool(table.isfinite().all()) for table in tables.values())
    opt.param_groups[0]["lr"] = 1.0
    for chunk in torch.randperm(24, generator=torch.Generator().manual_seed(2)).split(6):
        before, rows, blocks = weights(model), per_example(model, x[chunk], y[chunk]), blocks_of(opt)
        run(opt, model, x[chunk], y[chunk], chunk)
        for block, names in blocks.items():
            for name in names:
                expected = torch.einsum("n,n...->...", tables[block][chunk], rows[name]) / 6
                actual = directions(opt, model, before)[name]
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for name, table in coefficients(opt).items():
        assert torch.equal(table, tables[name])


@every_network
@pytest.mark.parametrize("options", [{"parts": 2}, {"parts": 4}], ids=str)
def test_micro_batches_are_one_batch(make, options):
    x, y = batch(8)
    models = make(), make()
    for model, how in zip(models, ({}, options), strict=True):
        opt = frozen(model, x, y, momentum=0.9)
        for order in (torch.arange(8), torch.arange(7, -1, -1)):
            run(opt, model, x[order], y[order], order, **how)
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-11, atol=1e-12)


@every_network
def test_several_contexts_are_one(make):
    x, y = batch(8)
    models = make(), make()
    for model, contexts in zip(models, (1, 2), strict=True):
        opt = build(model, lr=0.1, freeze_after=2, mc_samples=contexts)
        for _ in range(4):
            run(opt, model, x, y, torch.arange(8), contexts=contexts)
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-10, atol=1e-11)


def test_a_summed_loss_is_a_mean_loss():
    x, y = batch(8)
    models = network(), network()
    for model, reduction in zip(models, ("mean", "sum"), strict=True):
        opt = build(model, lr=0.1, freeze_after=2, loss_reduction=reduction)
        for _ in range(4):
            opt.zero_grad()
            with opt.sampled_params(torch.arange(8)):
                (Categorical()(model(x), y) * (8 if reduction == "sum" else 1)).backward()
            opt.step()
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("unscale", [False, True])
@every_network
def test_a_grad_scaler_changes_nothing(make, unscale):
    x, y = batch(8)
    models = make(), make()
    for model, scale in zip(models, (False, True), strict=True):
        opt = build(model, lr=0.1, freeze_after=2)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scale)
        opt.grad_scaler = scaler if scale else None
        for _ in range(4):
            opt.zero_grad()
            with opt.sampled_params(torch.arange(8)):
                scaler.scale(Categorical()(model(x), y)).backward()
            if unscale:
                scaler.unscale_(opt)
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(opt)
            scaler.update()
    for name, weight in weights(models[0]).items():
        assert torch.equal(weights(models[1])[name], weight), name


@every_network
def test_a_checkpoint_in_the_second_epoch_resumes_exactly(make):
    x, y = batch(24)
    orders = [torch.randperm(24, generator=torch.Generator().manual_seed(epoch)) for epoch in range(3)]
    chunks = [chunk for order in orders for chunk in order.split(8)]
    model = make()
    opt = build(model, lr=0.1, momentum=0.9, weight_decay=0.01, freeze_after=3)
    stream = io.BytesIO()
    for step, chunk in enumerate(chunks):
        if step == 4:
            torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, stream)
        run(opt, model, x[chunk], y[chunk], chunk)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    twin = make()
    other = build(twin, freeze_after=7)
    twin.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    for chunk in chunks[4:]:
        run(other, twin, x[chunk], y[chunk], chunk)
    for name, weight in weights(model).items():
        assert torch.equal(weights(twin)[name], weight), name
    for name, table in coefficients(opt).items():
        assert torch.equal(coefficients(other)[name], table), name


def test_a_frozen_state_round_trips_through_distributed_checkpoint(tmp_path):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    x, y = batch(8)
    model, twin = network(), network()
    opt, other = frozen(model, x, y, examples=8), build(twin, freeze_after=1, examples=8)
    weights_, state = get_state_dict(model, opt)
    dcp.save({"model": weights_, "opt": state}, checkpoint_id=tmp_path, no_dist=True)
    weights_, state = get_state_dict(twin, other)
    loaded = {"model": weights_, "opt": state}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_state_dict(twin, other, model_state_dict=loaded["model"], optim_state_dict=loaded["opt"])
    for target, optimizer in ((model, opt), (twin, other)):
        run(optimizer, target, x, y, torch.arange(8))
    for name, weight in weights(model).items():
        assert torch.equal(weights(twin)[name], weight), name


def test_by_batch_every_position_of_the_epoch_keeps_its_own():
    """Three batches of unequal size, never shuffled: as by index."""
    x, y = batch(11)
    models = network(), network()
    for model, share in zip(models, ("index", "batch"), strict=True):
        opt = build(model, lr=0.1, freeze_after=3, share=share)
        for _ in range(3):
            for chunk in torch.arange(11).split(4):
                run(opt, model, x[chunk], y[chunk], chunk if share == "index" else None)
    for name, weight in weights(models[0]).items():
        assert torch.equal(weights(models[1])[name], weight), name


def test_by_mean_a_layer_has_a_rate_of_its_own():
    x, y = batch(8)
    model = network()
    opt = build(model, lr=0.0, freeze_after=2, share="mean")
    for step in range(2):
        run(opt, model, *batch(8, step))
    opt.param_groups[0]["lr"] = 1.0
    found = torch.autograd.grad(Categorical()(model(x), y), list(model.parameters()))
    gradients = dict(zip(weights(model), found, strict=True))
    before = weights(model)
    run(opt, model, x, y)
    for block, names in blocks_of(opt).items():
        memory = opt.state[model.get_parameter(block)]["memory"]
        mean = float(memory["coefficient_sum"] / memory["coefficient_count"])
        assert int(memory["coefficient_count"]) == 16 and 0 < mean < 1
        for name in names:
            torch.testing.assert_close(directions(opt, model, before)[name], mean * gradients[name])


@pytest.mark.parametrize("examples", [None, 100])
def test_an_example_that_was_not_measured_has_the_mean(examples):
    x, y = batch(8)
    model = network()
    opt = build(model, lr=0.0, freeze_after=1, examples=examples)
    run(opt, model, x[:6], y[:6], torch.tensor([0, 1, 2, 3, 4, 6]))
    tables = coefficients(opt)
    opt.param_groups[0]["lr"] = 1.0
    before, rows = weights(model), per_example(model, x, y)
    run(opt, model, x, y, torch.tensor([0, 1, 2, 3, 4, 5, 6, 90]))
    for block, names in blocks_of(opt).items():
        memory = opt.state[model.get_parameter(block)]["memory"]
        mean = float(memory["coefficient_sum"] / memory["coefficient_count"])
        t = tables[block]
        c = torch.tensor([*t[:5], mean, t[6], mean], dtype=t.dtype)
        for name in names:
            expected = torch.einsum("n,n...->...", c, rows[name]) / 8
            torch.testing.assert_close(directions(opt, model, before)[name], expected)


def test_an_example_that_comes_twice_keeps_the_mean_of_its_coefficients():
    x, y = batch(4)
    model = network()
    opt = build(model, freeze_after=1)
    run(opt, model, x[[0, 1, 0, 2]], y[[0, 1, 1, 2]], torch.tensor([0, 1, 0, 2]))
    twin = network()
    other = build(twin, freeze_after=1)
    run(other, twin, x[[0, 1, 0, 2]], y[[0, 1, 1, 2]], torch.arange(4))
    for name, table in coefficients(opt).items():
        apart = coefficients(other)[name]
        torch.testing.assert_close(table, torch.stack([(apart[0] + apart[2]) / 2, apart[1], apart[3]]))
