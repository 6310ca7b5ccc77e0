"""Training with the kernels in C: steps and samples are those without them, and a refused step changes nothing."""

import copy

import pytest
import torch

import vogn
from vogn.errors import NonFiniteStatisticsError
from vogn.kernels import native
from vogn.kernels.native.build import library
from vogn.likelihoods import Categorical
from vogn.linalg.noise import generator, normal
from vogn.optim import plan
from vogn.structures import Diagonal

needs_compiler = pytest.mark.skipif(isinstance(library(), str), reason=f"no library: {library()}")


COMMON = {"ess": 100.0, "weight_decay": 0.01, "seed": 3}


def with_head(model, options):
    """``head`` in the options is what makes the last layer a group of its own."""
    groups = [{"params": list(model[2].parameters()), **options["head"]}] if "head" in options else None
    return {key: value for key, value in options.items() if key != "head"} | ({"groups": groups} if groups else {})


def trained(method, steps=4, **options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    x = torch.randn(24, 6)
    optimizer = vogn.METHODS[method].build(model, **COMMON, **with_head(model, options))
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(options.get("mc_samples", 1)):
            with optimizer.sampled_params():
                Categorical()(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
    return model, optimizer


CASES = [
    ("ivon", {}), ("ivon", {"mc_samples": 1, "curvature_decay": 0.9}), ("ivon", {"clip_radius": 0.01}), ("vogn", {}),
    ("vogn", {"momentum": 0.0}), ("vadam", {}), ("vadam", {"initial_curvature": 0.01}), ("von", {"variational": False}),
    ("vogn", {"variational": False}), ("vadam", {"variational": False}),
]  # fmt: skip


@needs_compiler
@pytest.mark.parametrize(("method", "options"), CASES)
def test_steps_are_those_without_them(method, options, monkeypatch):
    calls = []
    table = vogn.kernels.TABLE["diagonal_step"]
    step = table["native"]
    monkeypatch.setitem(table, "native", lambda *args, **named: calls.append(1) or step(*args, **named))
    with_kernels, optimizer = trained(method, **options)
    monkeypatch.setattr(native, "fit", lambda *tensors: False)  # the noise stays that of the kernels
    without, other = trained(method, **options)
    assert calls
    for (name, a), b in zip(with_kernels.named_parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}")
    if options.get("variational", True):
        variances = [found.posterior().variance() for found in (optimizer, other)]
        for name, value in variances[0].items():
            torch.testing.assert_close(value, variances[1][name], rtol=2e-5, atol=0)


def clipped_share(optimizer):
    return optimizer.diagnostics()["elements_clipped_share"]


CLIPPED = {
    "blocks together": ("ivon", {"clip_radius": 0.01}),
    "without rescaling": ("ivon", {"clip_radius": 0.01, "rescale_lr": False, "momentum": 0.0}),
    "everything": ("vogn", {"clip_radius": 1e-6}),
    "nothing": ("vogn", {"clip_radius": 1e6}),
    "a layer by the chain": ("vogn", {"clip_radius": 0.1, "structure": {"2": "kronecker"}}),
    "not observed in every step": ("ivon", {"clip_radius": 0.01, "observe_every": 2}),
    "two groups": ("vogn", {"clip_radius": 0.1, "head": {"lr": 0.5, "weight_decay": 0.3, "damping": 0.1}}),
    "without noise": ("vogn", {"clip_radius": 0.1, "variational": False}),
}


@needs_compiler
@pytest.mark.parametrize(("method", "options"), CLIPPED.values(), ids=CLIPPED.keys())
@pytest.mark.parametrize("make", ["trained", "trained_wide"])
def test_the_share_of_clipped_elements_is_that_of_the_chain(method, options, make, monkeypatch):
    optimizer = globals()[make](method, **options)[1]
    monkeypatch.setattr(native, "fit", lambda *tensors: False)
    other = globals()[make](method, **options)[1]
    assert clipped_share(optimizer) == clipped_share(other)
    edge = {1e-6: 1.0, 1e6: 0.0}.get(options["clip_radius"])
    assert clipped_share(optimizer) == edge if edge is not None else 0.01 < clipped_share(optimizer) < 0.99
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):  # nothing is kept of it
        assert mine.keys() == theirs.keys()
        assert all(mine.get(kind, {}).keys() == theirs.get(kind, {}).keys() for kind in ("curvature", "memory"))


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["gradient", "updated momentum"])
@pytest.mark.parametrize("method", ["ivon", "vogn"])
@pytest.mark.parametrize("make", ["trained", "trained_wide"])
def test_a_clip_hides_nothing_that_is_not_finite_and_counts_no_refused_step(bad, where, method, make):
    """An infinite direction is cut to a finite one; the momentum becomes infinite where the change is."""
    model, optimizer = globals()[make](method, clip_radius=0.1)[:2]
    share = clipped_share(optimizer)
    x = torch.randn(8, model[0].in_features)
    optimizer.zero_grad()
    with optimizer.sampled_params():
        Categorical()(model(x), torch.zeros(8, dtype=torch.long)).backward()
    if where == "gradient":
        model[2].weight.grad[1, 2] = bad
    else:
        momentum = optimizer.state[model[2].weight]["memory"]["momentum"]
        momentum.fill_(-3e38 if bad == torch.inf else bad)
        model[2].weight.grad.fill_(3e38)
    before = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(NonFiniteStatisticsError, match=f"block '2.*the {where if bad == torch.inf else ''}"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0, equal_nan=True)
    numbers = optimizer.diagnostics()
    assert clipped_share(optimizer) == share and numbers["refused_share"] > 0.0


@needs_compiler
@pytest.mark.parametrize("method", ["ivon", "vogn", "vadam"])
def test_a_refused_step_changes_nothing_and_names_the_block(method):
    model, optimizer = trained(method)
    before = [p.detach().clone() for p in model.parameters()]
    state = optimizer.posterior().variance()
    optimizer.zero_grad()
    with optimizer.sampled_params():
        Categorical()(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
    model[2].weight.grad[1, 2] = torch.nan
    with pytest.raises(NonFiniteStatisticsError, match=r"block '2"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    after = optimizer.posterior().variance()
    assert all(torch.equal(state[name], after[name]) for name in state)


def trained_wide(method, **options):
    """Blocks that are long enough to stay alone."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(200, 100), torch.nn.Tanh(), torch.nn.Linear(100, 3))
    x = torch.randn(24, 200)
    optimizer = vogn.METHODS[method].build(model, **COMMON, **with_head(model, options))
    for _ in range(3):
        optimizer.zero_grad()
        with optimizer.sampled_params():
            Categorical()(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
    return model, optimizer, x


@needs_compiler
@pytest.mark.parametrize("method", ["ivon", "vogn", "vadam"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"loss_reduction": "sum"}, {"variational": False}])
def test_steps_in_columns_and_in_place_are_those_elsewhere(method, options, monkeypatch):
    calls = []
    step = native.diagonal_step_in_columns
    monkeypatch.setattr(native, "diagonal_step_in_columns", lambda *a, **named: calls.append(1) or step(*a, **named))
    model, optimizer, _ = trained_wide(method, **options)
    assert bool(calls) == (method == "vogn" and "momentum" not in options and "loss_reduction" not in options)
    monkeypatch.setattr(plan, "_columns", lambda block, tensors: None)
    monkeypatch.setitem(vogn.kernels.TABLE["diagonal_step"], "native", elsewhere)
    other, second, _ = trained_wide(method, **options)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    states = [list(found.state.values()) for found in (optimizer, second)]
    for mine, theirs in zip(*states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_with_a_bias_step_in_columns(groups, monkeypatch):
    calls = []
    step = native.diagonal_step_in_columns
    monkeypatch.setattr(native, "diagonal_step_in_columns", lambda *a, **named: calls.append(1) or step(*a, **named))

    def trained_convolution():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(16, 160, 3, groups=groups), torch.nn.Flatten())
        x = torch.randn(8, 16, 3, 3)
        optimizer = vogn.METHODS["vogn"].build(model, ess=100.0, weight_decay=0.01, seed=3)
        for _ in range(3):
            optimizer.zero_grad()
            with optimizer.sampled_params():
                Categorical()(model(x), torch.arange(8)).backward()
            optimizer.step()
        return model

    monkeypatch.setattr("vogn.capture.bundles.LARGE", 1)
    found = trained_convolution()
    assert len(calls) == 3
    monkeypatch.setattr(plan, "_columns", lambda block, tensors: None)
    monkeypatch.setitem(vogn.kernels.TABLE["diagonal_step"], "native", elsewhere)
    other = trained_convolution()
    assert len(calls) == 3
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), other.parameters(), strict=True))


def elsewhere(*tensors, later=False, **options):
    return native.diagonal_step(*tensors, **options)


@needs_compiler
@pytest.mark.parametrize("where", ["weight", "bias"])
def test_a_refused_step_in_columns_changes_nothing_and_names_the_block(where):
    model, optimizer, x = trained_wide("vogn")
    before = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.zero_grad()
    with optimizer.sampled_params():
        Categorical()(model(x), torch.zeros(24, dtype=torch.long)).backward()
    getattr(model[0], where).grad.flatten()[-1] = torch.nan
    with pytest.raises(NonFiniteStatisticsError, match=r"block '0.*gradient"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(optimizer.state_dict()["state"], state, rtol=0, atol=0)


@needs_compiler
def test_what_is_written_into_weights_between_context_and_step_counts():
    found = []
    for through in (lambda p: p.data, lambda p: p.detach()):
        model, optimizer, x = trained_wide("vogn")
        optimizer.zero_grad()
        with optimizer.sampled_params():
            Categorical()(model(x), torch.zeros(24, dtype=torch.long)).backward()
        for parameter in model.parameters():
            through(parameter).mul_(0.5)
        halves = model[0].weight.detach().clone()
        optimizer.step()
        assert (model[0].weight - halves).abs().max() < 0.5 * halves.abs().max()
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)


@needs_compiler
@pytest.mark.parametrize("method", ["ivon", "vogn", "vadam"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_samples_are_means_and_displacements_whatever_draws_them(method, antithetic, monkeypatch):
    samples = []
    for in_one_pass in (True, False):
        model, optimizer = trained(method, antithetic=antithetic, mc_samples=2)
        means = [p.detach().clone() for p in model.parameters()]
        if not in_one_pass:
            monkeypatch.setattr(Diagonal, "plain_diagonal", lambda self, state, shift: None)
        for _ in range(2):
            with optimizer.sampled_params():
                samples.append([p.detach().clone() for p in model.parameters()])
            assert all(torch.equal(a, b) for a, b in zip(means, model.parameters(), strict=True))
            assert not torch.equal(samples[-1][0], means[0])
    for one, other in zip(samples[:2], samples[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@needs_compiler
@pytest.mark.parametrize("method", ["ivon", "vogn", "vadam"])
def test_a_posterior_is_its_own_although_steps_are_written_in_place(method):
    model, optimizer = trained(method)
    posterior = optimizer.posterior()
    before = {name: value.clone() for name, value in posterior.variance().items()}
    weights = [p for p in model.parameters()]
    versions = [p._version for p in weights]
    optimizer.zero_grad()
    with optimizer.sampled_params():
        Categorical()(model(torch.randn(8, 6)), torch.zeros(8, dtype=torch.long)).backward()
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in posterior.variance().items())
    assert not torch.equal(before["0.weight"], optimizer.posterior().variance()["0.weight"])
    assert all(p._version > version for p, version in zip(weights, versions, strict=True))


@pytest.mark.parametrize("way", ["no library", "switched off"])
def test_without_a_library_pytorch_draws_and_trains(way, monkeypatch):
    if way == "switched off":
        monkeypatch.setenv("VOGN_KERNELS", "reference")
    else:
        monkeypatch.setattr(native, "why_not", lambda: "no C compiler was found")
    here = {"seed": 1, "stream": "weights", "step": 2, "sample": 3}
    assert torch.equal(normal((50,), **here), torch.randn(50, generator=generator(**here)))
    model, _ = trained("ivon")
    assert all(p.isfinite().all() for p in model.parameters())
