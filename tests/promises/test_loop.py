"""The training loop: groups, schedulers, scalers, accumulation, closures."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from vogn.likelihoods import Categorical

SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 2], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, 1.0, 3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.7),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 4, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=5, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5, 1), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], optimizer=o
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=0.01, anneal_epochs=2),
}


def rates_of(opt, make):
    """The rates that a scheduler sets, without any step of the optimizer in between."""
    scheduler = make(opt)
    rates = []
    for _ in range(4):
        rates.append(opt.param_groups[0]["lr"])
        opt._opt_called = True  # what torch's wrapper notes; keeps the scheduler from warning
        scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
    return rates


def test_every_scheduler_of_torch_is_listed():
    known = {name for name in lr_scheduler.__all__ if not name.startswith("_")} - {"LRScheduler"}
    assert SCHEDULERS.keys() - {"SWALR"} == known


@pytest.mark.promise("every `torch.optim.lr_scheduler`")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_is_the_same_rates_by_hand(tools, case, name):
    rates = rates_of(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05, momentum=0.9), SCHEDULERS[name])
    assert len(set(rates)) > 1
    by_hand = tools.network()
    by_hand_opt = case.build(by_hand)
    for step, rate in enumerate(rates):
        for group in by_hand_opt.param_groups:
            group["lr"] = rate
        case.train(by_hand_opt, by_hand, 1, start=step)
    model = tools.network()
    opt = case.build(model)
    scheduler = SCHEDULERS[name](opt)
    for step, rate in enumerate(rates):
        assert opt.param_groups[0]["lr"] == rate
        case.train(opt, model, 1, start=step)
        scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
    tools.assert_identical(tools.everything(opt, model), tools.everything(by_hand_opt, by_hand))


@pytest.mark.promise("param groups and per-group settings")
def test_groups_with_equal_settings_are_one_group(tools, case):
    model, twin = tools.network(), tools.network()
    opt = case.build(model)
    head = list(twin[3].parameters())
    other = case.build(twin, groups=[{"params": head}])
    assert len(other.param_groups) == len(opt.param_groups) + 1
    case.train(opt, model, 3)
    case.train(other, twin, 3)
    if opt.partition == "model":  # one block per group: another covariance
        assert len({row["block"] for row in other.coverage()}) > len({row["block"] for row in opt.coverage()})
        return
    # the groups are visited in another order, so sums over blocks may round differently
    tools.assert_near(tools.everything(opt, model), tools.everything(other, twin), 1e-12)


@pytest.mark.promise("param groups and per-group settings")
def test_a_group_of_rate_zero_stays(tools, case):
    model = tools.network()
    opt = case.build(model, groups=[{"params": list(model[3].parameters()), "lr": 0.0}])
    before = [p.detach().clone() for p in model.parameters()]
    case.train(opt, model, 2)
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved == [True] * 4 + [False] * 2


@pytest.mark.promise("GradScaler, with `unscale_` and clipping, overflow skipped")
@pytest.mark.parametrize("unscale", [False, True])
def test_a_grad_scaler_changes_nothing(tools, case, unscale):
    model, twin = tools.network(), tools.network()
    opt = case.build(model)
    other = case.build(twin)
    scaler = other.grad_scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        x, y = case.batch(step)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        if unscale:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        opt.step()
        for overflow in (True, False) if step == 2 else (False,):
            other.zero_grad()
            with other.sampled_params():
                loss = scaler.scale(Categorical()(twin(x), y))
                (loss * float("inf") if overflow else loss).backward()
            if unscale:
                scaler.unscale_(other)
                torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
            scaler.step(other)
            scaler.update()
    assert scaler.get_scale() == 512.0
    # scaling by a power of two rounds nothing
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("autocast, bfloat16 and float16")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_near_single_precision(tools, case, half):
    model, twin = tools.network(torch.float32), tools.network(torch.float32)
    opt, other = case.build(model), case.build(twin)
    scaler = other.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=half is torch.float16)
    for step in range(3):
        x, y = case.batch(step, torch.float32)
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        other.zero_grad()
        with other.sampled_params():
            with torch.autocast("cpu", dtype=half):
                loss = Categorical()(twin(x), y)
            scaler.scale(loss).backward()
        scaler.step(other)
        scaler.update()
    for name, tensor in tools.everything(other, twin).items():
        assert tensor.dtype == tools.everything(opt, model)[name].dtype, name
        assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), name
    first, second, start = tools.flat(model), tools.flat(twin), tools.flat(tools.network(torch.float32))
    # Rounding of 1 / 256 (bfloat16) and 1 / 2048 (float16) in outputs and gradients. Relative to the way that the
    # weights have gone, methods of averages are off by at most 4.2 of these units; those whose directions turn with
    # the gradients of a batch (eigenvectors, rows) by at most 8.7, SLANG and SMW by 12.7. About twice that:
    averages = {"vogn", "von", "vadam", "ivon", "evon", "kfac", "skfac", "mfac", "ggt"}
    units = 8 if case.method in averages else 26 if case.method in {"slang", "smw"} else 16
    error = float((first - second).norm() / (first - start).norm())
    assert 0 < error < units * torch.finfo(half).eps / 2


@pytest.mark.promise("gradient accumulation, exact")
def test_micro_batches_inside_one_context_are_one_batch(tools, case):
    network = tools.square_network if case.method == "evon" else tools.network
    model, twin = network(), network()
    opt, other = case.build(model), case.build(twin)
    for step in range(3):
        x, y = case.batch(step)
        for target, optimizer, parts in ((model, opt, 8), (twin, other, 4)):
            optimizer.zero_grad()
            with optimizer.sampled_params():
                for inputs, labels in zip(x.split(parts), y.split(parts), strict=True):
                    (case.likelihood(target(inputs), labels) * parts / 8).backward()
            optimizer.step()
    state = tools.meaning if opt.structure.REDUCE == "concat" else tools.everything
    tools.assert_near(state(opt, model), state(other, twin), 1e-9)


@pytest.mark.promise("`zero_grad(set_to_none=...)`, both ways")
def test_zeroed_gradients_are_absent_gradients(tools, case):
    models = []
    for set_to_none in (True, False):
        model = tools.network()
        opt = case.build(model)
        for step in range(3):
            opt.zero_grad(set_to_none=set_to_none)
            with opt.sampled_params():
                case.backward(model, step)
            opt.step()
        models.append(tools.everything(opt, model))
    tools.assert_identical(*models)


@pytest.mark.promise("closures, several weight samples")
@pytest.mark.parametrize("samples", [1, 2])
def test_a_closure_is_the_loop(tools, case, samples):
    model, twin = tools.network(), tools.network()
    opt, other = case.build(model, mc_samples=samples), case.build(twin, mc_samples=samples)
    for step in range(3):
        opt.zero_grad()
        for _ in range(samples):
            with opt.sampled_params():
                case.backward(model, step)
        opt.step()

        def closure(step=step):
            other.zero_grad()
            return case.backward(twin, step)

        assert other.step(closure).ndim == 0
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("closures, several weight samples")
def test_a_closure_after_contexts_of_ones_own_only_finishes_the_step(tools, case):
    """Lightning's manual optimisation always passes a closure, and an empty one."""
    model, twin = tools.network(), tools.network()
    opt, other = case.build(model), case.build(twin)
    for step in range(3):
        for optimizer, target in ((opt, model), (other, twin)):
            optimizer.zero_grad()
            with optimizer.sampled_params():
                case.backward(target, step)
        opt.step()
        assert other.step(lambda: "done") == "done"
    tools.assert_identical(tools.everything(opt, model), tools.everything(other, twin))


@pytest.mark.promise("a step without statistics or gradients is harmless")
def test_a_step_without_gradients_changes_nothing(tools, case):
    model = tools.network()
    opt = case.build(model)
    opt.step()
    case.train(opt, model, 2)
    before = [p.detach().clone() for p in model.parameters()]
    opt.zero_grad()
    opt.step()
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
