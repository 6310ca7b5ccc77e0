"""Exact posteriors pass, wrong ones are found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vogn
from tiny_models import normal
from vogn.check.simulation import histogram
from vogn.likelihoods import Bernoulli
from vogn.posterior import Prior

SIMULATIONS = 300


def calibrate(case, *, scale=1.0, shift=0.0, **options):
    """The exact posterior of linear regression, widened and shifted."""

    def fit(model, x, y):
        case.y = y
        return case.exact(scale=scale, shift=shift)

    settings = {"prior": case.prior, "simulations": SIMULATIONS} | options
    return vogn.simulation_based_calibration(case.model, case.likelihood, case.x, fit, **settings)


@pytest.mark.parametrize("options", [{}, {"at": normal(3, 2, seed=8)}])
def test_the_exact_posterior_passes(regression, options):
    found = calibrate(regression, **options)
    assert found.ranks.shape == (SIMULATIONS, 3) and int(found.ranks.min()) >= 0 and int(found.ranks.max()) <= 99
    assert found.p_value > 0.05 and found.shape == "flat" and "the ranks are uniform" in str(found)
    assert found.names == (("output[0]", "output[1]", "output[2]") if options else ("weight[0]", "weight[1]", "bias"))


@pytest.mark.parametrize(
    ("scale", "shift", "shape", "word"),
    [(0.5, 0.0, "narrow", "too narrow"), (2.0, 0.0, "wide", "too wide"), (1.0, 0.2, "shifted", "shifted")],
)
def test_a_wrong_posterior_is_found(regression, scale, shift, shape, word):
    """Half the standard deviation is detected, as is twice, and a shift."""
    found = calibrate(regression, scale=scale, shift=shift)
    assert found.p_value < 1e-3 and found.shape == shape and word in str(found)


def test_the_wrong_prior_is_found(regression):
    wrong = calibrate(regression, prior=Prior(2.0, regression.prior.precision))
    assert wrong.p_value < 1e-3


class Grid:
    """The exact posterior of one logistic weight: draws by the inverse of the distribution function on a grid."""

    POINTS = torch.linspace(-8, 8, 4001, dtype=torch.float64)

    def __init__(self, x, y, scale):
        outputs = x * self.POINTS  # (N, points)
        log = (y * nn.functional.logsigmoid(outputs) + (1 - y) * nn.functional.logsigmoid(-outputs)).sum(0)
        self.cumulative = (log - 0.5 * self.POINTS.square()).softmax(0).cumsum(0)
        self.centre = float(self.POINTS[int(torch.searchsorted(self.cumulative, 0.5))])
        self.scale = scale

    def sample(self, n, *, seed=0, start=0):
        uniform = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w = self.POINTS[torch.searchsorted(self.cumulative, uniform).clamp_max(4000)]
        return {"weight": (self.centre + self.scale * (w - self.centre)).view(n, 1, 1)}


@pytest.mark.parametrize(("scale", "passes"), [(1.0, True), (0.4, False)])
def test_logistic_regression(scale, passes):
    model, x = nn.Linear(1, 1, bias=False).double(), normal(12, 1)
    found = vogn.simulation_based_calibration(
        model, Bernoulli(), x, lambda model, x, y: Grid(x, y, scale), simulations=SIMULATIONS
    )
    assert (found.p_value > 0.05) is passes and (found.p_value < 1e-3) is not passes


def test_ranks_count_the_draws_below_and_fill_equal_bins(regression):
    assert histogram(torch.tensor([0, 4, 5, 9, 9]), 9, 2).tolist() == [2, 3]
    assert histogram(torch.tensor([0, 4, 5, 9, 9]), 9, 5).tolist() == [1, 0, 2, 0, 2]
    low = calibrate(regression, shift=-100.0, simulations=20, draws=9, bins=2)
    assert bool((low.ranks == 9).all())  # all draws lie below the truth


def test_seeds_fix_everything(regression, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA generators were seeded"))
    before = torch.get_rng_state()
    one, two, other = (calibrate(regression, simulations=20, seed=seed).ranks for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_the_plot_has_a_histogram_and_a_band_for_every_quantity(regression, tmp_path):
    found = calibrate(regression, simulations=40)
    figure = found.plot(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000
    assert [axis.get_title() for axis in figure.axes] == list(found.names)
    with pytest.raises(ValueError, match="level=1.0 must lie between 0 and 1"):
        found.plot(level=1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"simulations": 5}, "simulations=5 is out of range: it must be at least 20"),
        ({"draws": 0}, "draws=0 is out of range"),
        ({"bins": 1}, "bins=1 is out of range"),
        ({"draws": 100}, r"bins=20 does not divide draws \+ 1 = 101"),
    ],
)
def test_numbers_out_of_range_are_refused(regression, options, message):
    with pytest.raises(ValueError, match=message):
        calibrate(regression, **options)


def test_the_posterior_covers_the_whole_model(regression):
    def fit(model, x, y):
        return vogn.Point({"weight": torch.zeros(1, 2)})

    with pytest.raises(ValueError, match="the posterior of fit has no parameter 'bias'"):
        vogn.simulation_based_calibration(regression.model, regression.likelihood, regression.x, fit)


def test_a_fit_that_seeds_torch_does_not_correlate_the_draws():
    """Else every simulation draws with the same noise, and the exact posterior fails."""
    x = torch.ones(5, 1, dtype=torch.float64)
    likelihood = vogn.likelihoods.Gaussian(1.0)

    def fit(model, inputs, targets):
        torch.manual_seed(0)
        with torch.no_grad():
            model.weight.fill_(float(targets.sum()) / 6)
        return vogn.laplace(model, likelihood, [(inputs, targets)], structure="dense", prior_precision=1.0)

    model = nn.Linear(1, 1, bias=False).double()
    found = vogn.simulation_based_calibration(model, likelihood, x, fit, simulations=200, seed=1)
    assert found.shape == "flat" and found.p_value > 0.05
