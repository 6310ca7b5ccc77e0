"""What must not change anything: how a batch is cut, how its loss is reduced or scaled, how often it is repeated."""

import pytest
import torch
import torch.nn.functional as F

from vogn import METHODS, NaturalGradient
from vogn.capture.statistics import GGN, Empirical, Gradient, Hutchinson, MonteCarlo, Price
from vogn.likelihoods import Categorical
from vogn.structures import Dense, Diagonal, DiagonalLowRank, EigenKronecker, Kronecker

METHOD_NAMES = sorted(METHODS)
ENGINES = {
    "diagonal ggn": (Diagonal(), GGN(), "layer"),
    "diagonal mc": (Diagonal(), MonteCarlo(), "layer"),
    "diagonal two draws": (Diagonal(), MonteCarlo(draws=2), "layer"),
    "diagonal hutchinson": (Diagonal(negative="retract"), Hutchinson(), "layer"),
    "diagonal gradient": (Diagonal(), Gradient(), "layer"),
    "dense empirical": (Dense(), Empirical(), "model"),
    "dense price": (Dense(negative="retract"), Price(), "model"),
    "kronecker ggn": (Kronecker(damping="factored"), GGN(), "layer"),
    "kronecker reduce": (Kronecker(sharing="reduce"), Empirical(), "layer"),
    "eigen empirical": (EigenKronecker(), Empirical(), "layer"),
    "low rank ggn": (DiagonalLowRank(rank=40), GGN(), "model"),
    "low rank per layer": (DiagonalLowRank(rank=20), Empirical(), "layer"),
}


def make(tools, which, model, **options):
    if which in METHODS:
        return tools.build(which, model, **options)
    structure, statistic, partition = ENGINES[which]
    common = {"lr": 0.05, "ess": 100.0, "weight_decay": 0.05, "damping": 0.05, "initial_curvature": 1.0}
    return NaturalGradient(model, structure, statistic, partition=partition, **(common | options))


LEFT_OUT = ("QA", "QS", "U", "UA", "US", "P", "R", "columns")
"""Eigenbases may differ by signs, rows by order and number: they are left to the weights."""


def results(tools, opt, model):
    """Weights and all curvature, flat."""
    parts = [p.flatten() for p in tools.weights(model).values()]
    for state in tools.curvature(opt).values():
        ambiguous = {*LEFT_OUT, *opt.structure.GROWS}
        parts += [leaf.flatten() for key, leaf in state.items() if key not in ambiguous]
    return torch.cat(parts)


def run(tools, which, body, steps=3, **options):
    """``body(opt, model, x, y)`` is the inside of a context, backward included."""
    model = tools.square_network() if which == "evon" else tools.network()
    opt = make(tools, which, model, **options)
    for step in range(steps):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        for _ in range(options.get("mc_samples", 1)):
            with opt.sampled_params():
                body(opt, model, x, y)
        opt.step()
    return results(tools, opt, model)


def whole(opt, model, x, y):
    Categorical()(model(x), y).backward()


def micro(opt, model, x, y):
    for part in range(4):
        chunk = slice(2 * part, 2 * part + 2)
        (Categorical()(model(x[chunk]), y[chunk]) / 4).backward()


def summed(opt, model, x, y):
    (Categorical()(model(x), y) * len(x)).backward()


def doubled(opt, model, x, y):
    Categorical()(model(torch.cat([x, x])), torch.cat([y, y])).backward()


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("which", [*METHOD_NAMES, *ENGINES])
def test_equal_micro_batches_inside_one_context_are_one_large_batch(tools, monkeypatch, which, samples):
    """Sampled labels come from one stream per context, which the micro-batches continue in turn."""
    if which == "diagonal two draws":
        # draw by draw over the whole batch is another order than draw by draw over each micro-batch
        monkeypatch.setattr(Categorical, "sample", lambda self, outputs, generator=None: outputs.argmin(-1))
    assert_same(run(tools, which, whole, mc_samples=samples), run(tools, which, micro, mc_samples=samples))


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("which", [*METHOD_NAMES, *ENGINES])
def test_a_summed_loss_is_the_mean_loss(tools, which, samples):
    a = run(tools, which, whole, mc_samples=samples)
    assert_same(a, run(tools, which, summed, loss_reduction="sum", mc_samples=samples))


@pytest.mark.parametrize("which", ["vogn", "slang"])
def test_a_plain_summed_loss_counts_its_rows(tools, which):
    """No likelihood announces anything: the layers' rows are the loss terms."""

    def plain(opt, model, x, y):
        F.cross_entropy(model(x), y, reduction="sum").backward()

    assert_same(run(tools, which, whole), run(tools, which, plain, loss_reduction="sum"))


@pytest.mark.parametrize("which", ["ivon", "vadam", "evon"])
def test_a_plain_summed_loss_without_rows_is_refused(tools, which):
    def plain(opt, model, x, y):
        F.cross_entropy(model(x), y, reduction="sum").backward()

    with pytest.raises(RuntimeError, match="loss_reduction='sum' needs to know the number of loss terms"):
        run(tools, which, plain, loss_reduction="sum")


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("which", [*METHOD_NAMES, *ENGINES])
def test_a_loss_scale_of_1024_changes_nothing(tools, which, samples):
    """The scaler unscales ``.grad`` before the step; what the taps saw was scaled."""
    model = tools.square_network() if which == "evon" else tools.network()
    opt = make(tools, which, model, mc_samples=samples)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt.grad_scaler = scaler
    for step in range(3):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        for _ in range(samples):
            with opt.sampled_params():
                scaler.scale(Categorical()(model(x), y)).backward()
        scaler.step(opt)
        scaler.update()
    assert_same(results(tools, opt, model), run(tools, which, whole, mc_samples=samples))


@pytest.mark.parametrize("which", ["vogn", "ivon"])
def test_a_loss_scale_without_a_likelihood_changes_nothing(tools, which):
    def plain(opt, model, x, y):
        F.cross_entropy(model(x), y).backward()

    model = tools.network()
    opt = make(tools, which, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt.grad_scaler = scaler
    for step in range(3):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        with opt.sampled_params():
            scaler.scale(F.cross_entropy(model(x), y)).backward()
        scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
    assert_same(results(tools, opt, model), run(tools, which, plain))


def test_an_overflow_skips_the_step_and_leaves_everything_as_it_was(tools):
    model = tools.network()
    opt = make(tools, "vogn", model)
    tools.train(opt, model, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    opt.grad_scaler = scaler
    before = results(tools, opt, model)
    x, y = tools.batch()
    opt.zero_grad()
    with opt.sampled_params():
        (scaler.scale(Categorical()(model(x), y)) * float("inf")).backward()
    scaler.step(opt)
    scaler.update()
    assert torch.equal(before, results(tools, opt, model)) and scaler.get_scale() == 512.0
    opt.zero_grad()
    with opt.sampled_params():
        scaler.scale(Categorical()(model(x), y)).backward()
    scaler.step(opt)
    assert bool(results(tools, opt, model).isfinite().all()) and not torch.equal(before, results(tools, opt, model))


@pytest.mark.parametrize("which", [*(name for name in METHOD_NAMES if not METHODS[name].sets_groups), *ENGINES])
def test_a_repeated_batch_has_the_same_curvature(tools, monkeypatch, which):
    """C is a mean per example. Labels are fixed: other draws would be other evidence."""
    monkeypatch.setattr(Categorical, "sample", lambda self, outputs, generator=None: outputs.argmin(-1))
    assert_same(run(tools, which, whole), run(tools, which, doubled))


@pytest.mark.parametrize("which", ["vogn", "kfac", "slang", "vadam"])
def test_contexts_accumulate_like_micro_batches_when_they_are_no_samples(tools, which):
    """mc_samples=1 and two contexts on half batches with half the loss: one deterministic batch."""
    model = tools.network()
    options = {"fisher": "empirical"} if which == "kfac" else {}
    opt = make(tools, which, model, variational=False, **options)
    for step in range(3):
        x, y = tools.batch(seed=step)
        opt.zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            with opt.sampled_params():
                (Categorical()(model(x[half]), y[half]) / 2).backward()
        opt.step()
    assert_same(results(tools, opt, model), run(tools, which, whole, variational=False, **options))
