"""Failing factorisations: the last good factors are kept for a while, then the error names the block."""

import copy
import warnings

import pytest
import torch

from vogn import SLANG, NaturalGradient
from vogn.errors import FactorisationError, NotPositiveDefiniteError
from vogn.likelihoods import Categorical
from vogn.optim.evidence import TOLERATED_FAILURES
from vogn.structures import Kronecker


class Flaky:
    """Makes ``torch.linalg.eigh`` fail while ``failing``."""

    def __init__(self, monkeypatch):
        self.failing, self.real = False, torch.linalg.eigh
        monkeypatch.setattr(torch.linalg, "eigh", self)

    def __call__(self, matrix):
        if self.failing:
            raise torch.linalg.LinAlgError("linalg.eigh: did not converge")
        return self.real(matrix)


FACTORISED = ["kfac", "ekfac", "evon", "slang", "skfac", "sngd"]


def bad_steps(tools, flaky, opt, model, count, *, start):
    flaky.failing = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(start, start + count):
            x, y = tools.batch(seed=step)
            # without noise: SLANG's own draws need the decomposition too
            for group in opt.param_groups:
                group["variational"] = False
            tools.backward(opt, lambda x=x, y=y: Categorical()(model(x), y))
            opt.step()
    flaky.failing = False
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("method", FACTORISED)
def test_failed_factorisations_keep_the_last_good_factors_count_and_warn_once_per_block(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model = tools.square_network() if method == "evon" else tools.network()
    opt = tools.build(method, model, refresh_every=1)
    tools.train(opt, model, 2)
    blocks = [block.name for block in opt._build()[0].blocks]
    factors = {
        "kfac": ("QA", "QS", "x", "y"),
        "ekfac": ("QA", "QS"),
        "evon": ("QA", "QS"),
        "slang": ("U", "d"),
        "skfac": ("QA", "QS", "x", "y", "UA", "US"),
        "sngd": ("F", "x"),
    }[method]

    def used():
        # from the state dictionary, so that the test does not depend on how states are kept
        states = [entry["curvature"] for entry in opt.state_dict()["state"].values() if "curvature" in entry]
        return [state[key].clone() for state in states for key in factors]

    before, weights = used(), tools.weights(model)
    messages = bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=2)
    assert all(torch.equal(a, b) for a, b in zip(before, used(), strict=True))
    assert not all(torch.equal(weights[n], w) for n, w in tools.weights(model).items()), "training goes on"
    for block in blocks:
        assert sum(f"block {block!r}" in m and "last good factors are kept" in m for m in messages) == 1
    numbers = opt.diagnostics(per_block=True)
    assert numbers["kept_factors"] == TOLERATED_FAILURES * len(blocks)
    assert all(numbers[f"block/{block}/kept_factors"] == TOLERATED_FAILURES for block in blocks)

    state = tools.everything(opt, model)
    with pytest.raises(NotPositiveDefiniteError, match=f"block '{blocks[0]}': .*{TOLERATED_FAILURES} factorisations"):
        bad_steps(tools, flaky, opt, model, 1, start=8)
    flaky.failing = False
    for group, saved in zip(opt.param_groups, state["opt"]["param_groups"], strict=True):
        group["variational"] = saved["variational"]
    tools.assert_same(state, tools.everything(opt, model))
    # a success forgives the failures in a row, not their number
    tools.train(opt, model, 1, start=9)
    assert not all(torch.equal(a, b) for a, b in zip(before, used(), strict=True))
    assert bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=10) == []
    assert opt.diagnostics()["kept_factors"] == 2 * TOLERATED_FAILURES * len(blocks)


@pytest.mark.parametrize("method", FACTORISED)
def test_the_counts_of_kept_factors_are_in_the_checkpoint(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model, opt = tools.trained(method, 2, refresh_every=1)
    bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=2)
    other = tools.network()
    resumed = tools.build(method, other, refresh_every=1)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert resumed.diagnostics()["kept_factors"] == opt.diagnostics()["kept_factors"] > 0
    with pytest.raises(NotPositiveDefiniteError, match="in a row have failed before"):
        bad_steps(tools, flaky, resumed, other, 1, start=8)


@pytest.mark.parametrize("method", ["kfac", "ekfac", "slang"])
def test_without_an_earlier_factor_a_failure_is_an_error_that_names_the_block(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build(method, model)
    with pytest.raises(NotPositiveDefiniteError, match="block '0.weight': .* has no earlier factors to keep"):
        bad_steps(tools, flaky, opt, model, 1, start=0)
    flaky.failing = False
    tools.train(opt, model, 2)
    tools.assert_finite(opt, model)


def test_a_start_of_the_curvature_counts_as_an_earlier_factor(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build("kfac", model, initial_curvature=1.0)
    bad_steps(tools, flaky, opt, model, 1, start=0)
    assert opt.diagnostics()["kept_factors"] == 2


def test_a_third_partys_cholesky_failure_in_refresh_is_tolerated_too(tools):
    class Fails(Kronecker):
        bad = False

        def refresh(self, state):
            if Fails.bad:
                raise NotPositiveDefiniteError("no")
            return super().refresh(state)

    model = tools.network()
    opt = NaturalGradient(model, Fails(), "empirical", lr=0.05, ess=10.0, weight_decay=0.1)
    tools.train(opt, model, 1)
    Fails.bad = True
    with pytest.warns(UserWarning, match="block '.*': no. Its last good factors are kept"):
        tools.train(opt, model, 1, start=1)


def test_a_refused_update_of_the_evidence_does_not_count_as_an_observation(tools, monkeypatch):
    """SLANG decomposes in the update itself: the batch is dropped, the curvature stays."""
    flaky = Flaky(monkeypatch)
    model, opt = tools.trained("slang", 2)
    bad_steps(tools, flaky, opt, model, 2, start=2)
    assert opt.diagnostics()["observations"] == 2 and opt.diagnostics()["steps"] == 4


def test_errors_of_the_sampler_name_the_block(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = SLANG(model, ess=100.0)
    tools.train(opt, model, 1)
    mean = tools.weights(model)
    flaky.failing = True
    with pytest.raises(FactorisationError, match="block '0.weight': the eigendecomp"), opt.sampled_params():
        pass
    assert all(torch.equal(mean[name], weight) for name, weight in tools.weights(model).items())


def test_errors_of_the_posterior_name_the_block(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = SLANG(model, ess=100.0)
    tools.train(opt, model, 1)
    posterior = opt.posterior()
    flaky.failing = True
    with pytest.raises(FactorisationError, match="block '0.weight': the eigendecomposition"):
        posterior.sample(1)
