"""The scikit-learn estimators: scikit-learn's own checks, then what they promise beyond them."""

import pickle
import warnings
from unittest import SkipTest

import numpy as np
import pytest
import torch
from joblib import dump, load
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_blobs, make_moons
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

import vogn
from vogn.sklearn import VOGNClassifier, VOGNRegressor
from vogn.sklearn.recipes import RECIPES

QUICK = {"hidden_layer_sizes": (16,), "steps": 15, "batch_size": 32, "samples": 8}


def short(kind, **options):
    return kind(**(QUICK | {"random_state": 0} | options))


@pytest.fixture(scope="module")
def line():
    """A straight line with noise of standard deviation 0.5 and inputs of odd scales."""
    source = np.random.default_rng(0)
    X = source.normal(size=(120, 2)) * [100.0, 0.01] + [1000.0, -5.0]
    y = 3.0 * (X[:, 0] - 1000.0) / 100.0 + 40.0 + 0.5 * source.normal(size=120)
    return X, y


@pytest.fixture(scope="module")
def moons():
    return make_moons(120, noise=0.2, random_state=0)


CHECKS = [
    (estimator, check)
    for kind, steps in ((VOGNClassifier, 15), (VOGNRegressor, 30))
    for estimator, check in estimator_checks_generator(kind(**(QUICK | {"steps": steps})))
]


def name_of(check):
    return check.func.__name__ if hasattr(check, "func") else str(check)


@pytest.mark.parametrize(
    ("estimator", "check"), CHECKS, ids=[f"{type(e).__name__}-{name_of(c)}-{k}" for k, (e, c) in enumerate(CHECKS)]
)
def test_scikit_learns_checks_pass(estimator, check):
    """Nothing is exempt; a check may skip where a variable of SciPy is not set or pandas is not installed."""


    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(estimator)
        except SkipTest as reason:
            assert any(word in str(reason) for word in ("SCIPY_ARRAY_API", "pandas", "polars"))


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("kind", [VOGNClassifier, VOGNRegressor])
def test_equal_seeds_give_equal_fits_to_the_bit_and_others_do_not(kind, variational, moons):
    X, y = moons
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, same, other = (short(kind, variational=variational, random_state=k).fit(X, y) for k in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state())
    for name, weight in first.posterior_.mean().items():
        assert torch.equal(weight, same.posterior_.mean()[name])
    answer = "predict_proba" if kind is VOGNClassifier else "predict"
    assert np.array_equal(getattr(first, answer)(X), getattr(same, answer)(X))
    assert not np.array_equal(getattr(first, answer)(X), getattr(other, answer)(X))


@pytest.mark.parametrize(
    ("options", "bias", "ratio"),
    [({"variational": False, "steps": 600}, 0.03, 0.03), ({"steps": 800}, 0.15, 0.2)],
    ids=["deterministic", "variational"],
)
def test_a_linear_network_is_bayesian_ridge_regression(line, options, bias, ratio):
    """Mean and standard deviation (about 0.5) at inputs far from the data, where the weights matter."""
    X, y = line
    model = VOGNRegressor(hidden_layer_sizes=(), random_state=0, **options).fit(X, y)
    exact = make_pipeline(StandardScaler(), BayesianRidge()).fit(X, y)
    far = X[:20] + np.array([300.0, 0.0])
    mean, std = model.predict(far, return_std=True)
    wanted, wanted_std = exact.predict(far, return_std=True)
    assert np.abs(mean - wanted).max() < bias
    assert np.abs(std / wanted_std - 1.0).max() < ratio
    assert abs(model.noise_ - 0.5) < 0.05


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_targets_does_not_matter(line, scale):
    X, y = line
    one, other = short(VOGNRegressor).fit(X, y), short(VOGNRegressor).fit(X, scale * y)
    for a, b in zip(one.predict(X, return_std=True), other.predict(X, return_std=True), strict=True):
        np.testing.assert_allclose(scale * a, b, rtol=1e-6)
    assert other.noise_ == pytest.approx(scale * one.noise_)


def test_several_targets_are_predicted_in_their_own_units(line):
    X, y = line
    model = short(VOGNRegressor, steps=120).fit(X, np.stack([y, 1000.0 - 10.0 * y], 1))
    mean, std = model.predict(X, return_std=True)
    assert mean.shape == std.shape == (120, 2) and model.noise_.shape == (2,)
    assert np.corrcoef(mean[:, 0], y)[0, 1] > 0.9 and np.corrcoef(mean[:, 1], y)[0, 1] < -0.9
    np.testing.assert_allclose(model.noise_[1], 10.0 * model.noise_[0])
    assert model.sample_y(X, 5).shape == (120, 2, 5)


@pytest.mark.parametrize("variational", [True, False])
def test_draws_have_the_predicted_moments_and_intervals(line, variational):
    X, y = line
    model = short(VOGNRegressor, steps=80, samples=300, variational=variational).fit(X, y)
    mean, std = model.predict(X[:5], return_std=True)
    draws = model.sample_y(X[:5], 2000, random_state=1)
    assert draws.shape == (5, 2000)
    error = 4.0 * std / np.sqrt(2000) + 4.0 * std / np.sqrt(300)
    assert (np.abs(draws.mean(1) - mean) < error).all()
    np.testing.assert_allclose(draws.std(1), std, rtol=0.12)
    low, high = model.predict_interval(X[:5], 0.8)
    np.testing.assert_allclose([low, high], np.quantile(draws, [0.1, 0.9], axis=1), atol=0.15 * std.max())


@pytest.mark.parametrize("variational", [True, False])
def test_drawn_labels_are_as_frequent_as_their_probabilities(variational):
    X, y = load_iris(return_X_y=True)
    labels = np.array(["a", "b", "c"])[y]
    model = short(VOGNClassifier, steps=40, samples=300, variational=variational).fit(X, labels)
    proba, draws = model.predict_proba(X[::30]), model.sample_y(X[::30], 1000, random_state=1)
    assert draws.shape == (5, 1000) and set(np.unique(draws)) <= set(labels)
    frequent = np.stack([(draws == label).mean(1) for label in model.classes_], 1)
    np.testing.assert_allclose(frequent, proba, atol=0.08)
    found = model.uncertainty(X)
    np.testing.assert_allclose(found["total"], found["aleatoric"] + found["epistemic"], atol=1e-12)


def test_it_is_used_in_pipelines_searches_calibration_and_files(moons, tmp_path):
    X, y = moons
    search = GridSearchCV(
        make_pipeline(StandardScaler(), short(VOGNClassifier, steps=60)),
        {"vognclassifier__temperature": [0.1, 1.0]},
        cv=2,
        scoring="neg_log_loss",
    ).fit(X, y)
    assert search.best_estimator_.score(X, y) > 0.8
    calibrated = CalibratedClassifierCV(short(VOGNClassifier), cv=2, method="isotonic").fit(X, y)
    assert calibrated.predict_proba(X).shape == (120, 2)
    model = short(VOGNClassifier).fit(X, y)
    dump(model, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(model)), load(tmp_path / "model.joblib")):
        assert np.array_equal(copy.predict_proba(X), model.predict_proba(X))
        more, again = copy.partial_fit(X, y), pickle.loads(pickle.dumps(model)).partial_fit(X, y)
        assert np.array_equal(more.predict_proba(X), again.predict_proba(X))


@pytest.mark.parametrize("method", sorted(vogn.METHODS))
@pytest.mark.parametrize("variational", [True, False])
def test_every_method_runs(method, variational, moons):
    X, y = moons
    info = vogn.METHODS[method]
    kind = VOGNRegressor if method == "gram_gauss_newton" else VOGNClassifier
    model = short(kind, method=method, variational=variational, steps=2)
    if ("variational" if variational else "deterministic") not in info.modes:
        with pytest.raises(ValueError, match="does not run with variational"):
            model.fit(X, y)
        return
    assert model.fit(X, y).predict(X).shape == y.shape
    assert set(RECIPES) <= set(vogn.METHODS)


def test_a_given_network_is_copied_and_a_function_gets_the_sizes(moons):
    X, y = moons
    network = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 2))
    before = [p.clone() for p in network.parameters()]
    model = short(VOGNClassifier, module=network).fit(X, y)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert next(model.network_.parameters()).dtype == torch.float32 and clone(model).module is not network
    seen = []

    def build(features, outputs):
        seen.append((features, outputs))
        return nn.Sequential(nn.Flatten(), nn.Linear(features, outputs))

    images = np.random.default_rng(0).normal(size=(30, 3, 2))
    short(VOGNRegressor, module=build).fit(images, images[:, :, 0]).predict(images)
    assert seen == [(6, 3)]


def test_new_examples_narrow_the_posterior(line):
    X, y = line
    model = short(VOGNRegressor, method="vogn", prior_precision=1.0, lr=0.01)
    precisions = []
    for part in range(4):
        model.partial_fit(X[30 * part : 30 * part + 30], y[30 * part : 30 * part + 30])
        precisions.append({block.ess for block in model.posterior_.sampled_blocks})
    assert precisions == [{30.0}, {60.0}, {90.0}, {120.0}]
    weights = model.posterior_.sampled_blocks[0]
    assert weights.ess * weights.shift == pytest.approx(1.0)  # the prior stays as it is


def test_a_range_test_chooses_the_rate(moons):
    X, y = moons
    model = short(VOGNClassifier, lr="range_test").fit(X, y)
    assert model.lr_ != short(VOGNClassifier).fit(X, y).lr_ and 1e-4 < model.lr_ <= 10
    assert short(VOGNClassifier, lr=0.02).fit(X, y).lr_ == 0.02


def test_the_prior_comes_from_the_evidence_or_is_given(line):
    X, y = line
    found = VOGNRegressor(steps=100, hidden_layer_sizes=(8,), random_state=0).fit(X, y).prior_precision_
    assert len(set(found.values())) == 2 and all(0.01 <= value <= 1e4 for value in found.values())
    assert short(VOGNRegressor, prior_precision=3.0).fit(X, y).prior_precision_ == pytest.approx(
        {"1.weight": 3.0, "3.weight": 3.0}
    )


def test_progress_is_shown_on_request(moons, capsys):
    X, y = moons
    short(VOGNClassifier, steps=3, verbose=True).fit(X, y)
    shown = capsys.readouterr()
    assert "training" in shown.err and "3/3" in shown.err and not shown.out
    short(VOGNClassifier, steps=3).fit(X, y)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method='adam' is unknown; allowed are vogn"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"samples": 1.5}, "samples=1.5 must be a whole number"),
        ({"temperature": 0.0}, "temperature=0.0 must be a positive"),
        ({"prior_precision": "best"}, "prior_precision='best': give a positive number or one of 'evidence'"),
        ({"prior_precision": -1.0}, "prior_precision=-1.0 must be a positive"),
        ({"lr": "auto"}, "lr='auto': give a positive number or one of 'range_test', None"),
        ({"module": nn.ReLU()}, "module must be a torch.nn.Module with parameters"),
    ],
)
def test_options_out_of_range_are_named(options, message, moons):
    with pytest.raises(ValueError, match=message):
        short(VOGNClassifier, **options).fit(*moons)


def test_data_that_do_not_fit_are_named(moons):
    X, y = moons
    with pytest.raises(ValueError, match="one class"):
        short(VOGNClassifier).fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        short(VOGNClassifier).partial_fit(X, y)
    with pytest.raises(ValueError, match="labels that are not in classes"):
        short(VOGNClassifier).partial_fit(X, y, classes=[0, 2])
    model = short(VOGNClassifier).partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="not the same as on the first call"):
        model.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="labels that are not in classes"):
        model.partial_fit(*make_blobs(30, 2, centers=4, random_state=0))
    with pytest.raises(ValueError, match="y has shape"):
        short(VOGNRegressor).partial_fit(X, y).partial_fit(X, np.stack([y, y], 1))
    with pytest.raises(TypeError):
        short(VOGNClassifier).fit(X, y, sample_weight=np.ones(len(y)))
