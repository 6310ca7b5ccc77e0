"""Noise and priors of regressions from the command line: learned, fixed, and by the evidence."""

import math

import numpy as np
import pytest
import torch

from real_tables import TINY, refused, results
from vogn.cli import observation, training
from vogn.cli.observation import RealObservation
from vogn.data import load_real_data
from vogn.likelihoods import Gaussian
from vogn.posterior import GaussianPosterior


def test_the_prior_follows_the_evidence_unless_it_is_given(vogn, table, tmp_path):
    found = {}
    for name, options in (("evidence", []), ("given", ["--prior-precision", "3"])):
        assert vogn("train", "--data", table, *TINY, *options, "--output", name).code == 0
        groups = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["optimizer_state"]["param_groups"]
        found[name] = [group["weight_decay"] * group["ess"] for group in groups]
    assert found["given"] == [pytest.approx(3.0)]
    assert len(set(found["evidence"])) == 2 and 1.0 not in found["evidence"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ([], 58),
        (["--augmentation-factor", "5"], 290),
        (["--ess", "200"], 200),
        (["--temperature", "0.5"], 58),
        (["--method", "vadam"], 58),
        (["--method", "vadam", "--ess", "200"], 20),
        (["--deterministic", "--augmentation-factor", "5"], 290),
    ],
)
def test_evidence_counts_examples_as_the_effective_sample_size_does(vogn, table, monkeypatch, options, size):
    """58 training examples; VAdam's recipe has temperature 0.1."""
    original, sizes = observation.tune_by_evidence, []

    def tune_by_evidence(*arguments, **named):
        sizes.append(named["size"])
        return original(*arguments, **named)

    monkeypatch.setattr(observation, "tune_by_evidence", tune_by_evidence)
    assert vogn("train", "--data", table, *TINY, *options, "--output", "run").code == 0
    assert sizes == pytest.approx([size] * len(sizes), rel=1e-12) and len(sizes) >= 2


def test_fixed_noise_is_in_the_unit_of_the_targets(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--noise", "12", "--output", "run").code == 0
    np.savez("x.npz", x=np.zeros((2, 3)))
    assert vogn("predict", "run", "--input", "x.npz", "--output", "p.npz").code == 0
    with np.load("p.npz") as archive:
        np.testing.assert_allclose(archive["aleatoric"], 144.0, rtol=1e-6)


NEAR = np.random.default_rng(0).normal(size=(120, 2))
"""Inputs of a table whose noise is 1 beside targets of standard deviation 30."""


@pytest.fixture
def near(tmp_path):
    y = 10 * (3 * NEAR[:, 0] + np.sin(NEAR[:, 1])) + np.random.default_rng(1).normal(size=len(NEAR))
    np.savez(tmp_path / "near.npz", x_train=NEAR, y_train=y)
    return f"npz:{tmp_path / 'near.npz'}"


@pytest.mark.parametrize("noise", ["1", "3"])
def test_a_fixed_noise_far_below_the_first_residuals_trains(vogn, near, tmp_path, noise):
    outcome = vogn("train", "--data", near, "--epochs", "60", "--noise", noise, "--device", "cpu", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / "run")[-1]["rmse"] < 10  # of targets with standard deviation 30
    std = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["targets"]["std"]
    stored = GaussianPosterior.load(tmp_path / "run" / "posterior.safetensors").likelihood
    assert stored == {"kind": "gaussian", "noise": float(noise) / std}
    np.savez("x.npz", x=NEAR[:2])
    assert vogn("predict", "run", "--input", "x.npz", "--output", "p.npz").code == 0
    with np.load("p.npz") as archive:
        np.testing.assert_allclose(archive["aleatoric"], float(noise) ** 2, rtol=1e-6)


def test_training_uses_the_fixed_noise_once_the_residuals_have_come_down_to_it(vogn, near, tmp_path, monkeypatch):
    """Against the average of squared residuals, written down anew; the loss that is told is that of the fixed noise."""
    seen, told, original = [], [], training.Training._step

    def step(self, x, y, indices):
        before = self.session.observation.training.noise
        value, outputs = original(self, x, y, indices)
        seen.append((before, float((outputs - y).square().mean())))
        told.append((value, float((0.5 * ((y - outputs) / fixed) ** 2).mean() + math.log(fixed))))
        return value, outputs

    monkeypatch.setattr(training.Training, "_step", step)
    noise = 25.0
    fixed = noise / load_real_data(near).targets.std
    arguments = ["--data", near, "--epochs", "100", "--noise", noise, "--device", "cpu", "--output", "run"]
    assert vogn("train", *arguments).code == 0
    expected, average, reached = [], None, False
    for number, (_, square) in enumerate(seen):
        late = number > 0.1 * len(seen)  # the step before was the first that may write
        expected.append(fixed if reached or (late and average**0.5 <= fixed) else average**0.5 if late else 1.0)
        reached = reached or expected[-1] == fixed
        average = square if average is None else 0.98 * average + 0.02 * square
    assert [used for used, _ in seen] == pytest.approx(expected, rel=1e-6)
    assert reached and fixed < expected[len(seen) // 8] != 1.0 and seen[-1][0] == fixed
    for value, by_hand in told:
        assert value == pytest.approx(by_hand + 0.5 * math.log(2 * math.pi), rel=1e-4, abs=1e-5)


def test_a_noise_that_has_become_the_fixed_one_stays_so_through_a_checkpoint():
    found = RealObservation(Gaussian(0.5))
    small, large, zero = torch.full((4, 1), 0.3), torch.full((4, 1), 20.0), torch.zeros(4, 1)
    assert found.training.noise == 1.0
    found.after_step(large, zero, 0, 100)
    assert found.training.noise == 1.0  # it follows after a tenth of the run
    found.after_step(large, zero, 10, 100)
    again = RealObservation(Gaussian(0.5))
    again.load_state_dict(found.state_dict())
    assert again.training.noise == found.training.noise == pytest.approx(20.0)
    for step in range(11, 1000):
        again.after_step(small, zero, step, 100)
        if again.training is again.likelihood:
            break
    assert again.noise.average <= 0.25 and again.training.noise == 0.5
    third = RealObservation(Gaussian(0.5))
    third.load_state_dict(again.state_dict())
    third.after_step(large, zero, 60, 100)
    assert third.noise.average > 0.25 and third.training is third.likelihood


def test_a_fixed_noise_is_named_where_training_diverges(vogn, near):
    outcome = vogn("train", "--data", near, "--epochs", "60", "--noise", "1", "--lr", "1e6", "--output", "run")
    assert outcome.code != 0 and "lower --lr" in outcome.err and "raise --noise" in outcome.err
    outcome = vogn("train", "--data", near, "--epochs", "60", "--lr", "1e6", "--output", "learned")
    assert outcome.code != 0 and "lower --lr" in outcome.err and "--noise" not in outcome.err


def test_damaged_noise_is_refused(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--epochs", "1", "--output", "run").code == 0
    path = tmp_path / "run" / "checkpoint.pt"
    sound = torch.load(path, weights_only=True)
    fixed = sound["noise"] | {"likelihood": {"kind": "gaussian", "noise": 0.5}}
    for noise in ({}, fixed, sound["noise"] | {"average": "x"}):
        torch.save(sound | {"noise": noise}, path)
        refused(vogn("evaluate", "run"), "does not fit this model")
    torch.save({key: value for key, value in sound.items() if key != "noise"}, path)
    refused(vogn("train", "--resume", "run"), "does not fit this model")
