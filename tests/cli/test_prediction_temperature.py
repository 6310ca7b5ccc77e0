"""The temperature of prediction: chosen once on the validation part, kept in the run folder, or given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vogn.posterior import GaussianPosterior

RUN = ["train", "--method", "kfac", "--model", "mlp", "--epochs", 2, "--samples", 4, "--output", "run"]


def variances(folder: Path) -> torch.Tensor:
    posterior = GaussianPosterior.load(folder / "posterior.safetensors")
    return torch.cat([tensor.flatten() for tensor in posterior.variance().values()])


def test_the_validation_part_chooses_and_the_choice_is_kept(vogn, tiny):
    assert vogn(*RUN, "--data", tiny).code == 0
    stored = json.loads(Path("run/prediction.json").read_text())
    losses = {float(t): value for t, value in stored["validation_nll"].items()}
    assert stored["temperature"] == min(losses, key=lambda t: losses[t]) and len(losses) == 4

    tables = []
    for temperature in (0.3, 10.0, 0.3):  # a choice that is there is used, and not made again
        stored["temperature"] = temperature
        Path("run/prediction.json").write_text(json.dumps(stored))
        outcome = vogn("evaluate", "run")
        assert outcome.code == 0
        assert json.loads(Path("run/prediction.json").read_text()) == stored
        tables.append(outcome.out)
    assert tables[0] == tables[2] != tables[1]


def test_the_posterior_file_is_at_the_temperature_that_was_asked_for(vogn, tiny):
    found = []
    for temperature in (1.0, 4.0):
        given = ["--data", tiny, "--prediction-temperature", temperature]
        assert vogn(*RUN[:-1], f"run-{temperature}", *given).code == 0
        assert not Path(f"run-{temperature}/prediction.json").exists()
        found.append(variances(Path(f"run-{temperature}")))
    torch.testing.assert_close(found[1], 4.0 * found[0])


def test_a_temperature_without_finite_predictions_is_not_chosen(vogn, tiny, monkeypatch):
    monkeypatch.setattr("vogn.cli.evaluation.TEMPERATURES", (1e300, 1.0))
    assert vogn(*RUN, "--data", tiny).code == 0
    stored = json.loads(Path("run/prediction.json").read_text())
    assert stored["temperature"] == 1.0 and stored["validation_nll"]["1e+300"] is None
    assert stored["validation_nll"]["1.0"] > 0
    Path("run/prediction.json").unlink()
    monkeypatch.setattr("vogn.cli.evaluation.TEMPERATURES", (1e300, 1e301))
    outcome = vogn("evaluate", "run")
    assert outcome.code == 1 and "are not finite" in outcome.err and not Path("run/prediction.json").exists()


def test_a_damaged_choice_is_named(vogn, tiny):
    assert vogn(*RUN, "--data", tiny).code == 0
    Path("run/prediction.json").write_text("{}")
    outcome = vogn("evaluate", "run")
    assert outcome.code == 2 and "prediction.json is damaged" in outcome.err + outcome.out


@pytest.mark.parametrize("value", ["0", "-1", "nan"])
def test_a_temperature_is_positive(vogn, tiny, value):
    outcome = vogn(*RUN, "--data", tiny, f"--prediction-temperature={value}")
    assert outcome.code == 2 and "--prediction-temperature" in outcome.err + outcome.out
