"""Files of every kind are complete or refused, by the one function that reads them all."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vogn
from vogn.errors import CheckpointError
from vogn.posterior.files import SCHEMA_VERSION
from vogn.posterior.loading import KINDS


def weights(seed):
    source = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(2, 3, generator=source), "bias": torch.randn(2, generator=source)}


def swag():
    posterior = vogn.SWAG(2)
    for seed in range(3):
        posterior.collect(weights(seed))
    return posterior


MAKERS = {
    "vogn.posterior.gaussian": lambda: vogn.GaussianPosterior([], weights(0)),
    "vogn.posterior.ensemble": lambda: vogn.Ensemble([weights(0), weights(1)]),
    "vogn.posterior.point": lambda: vogn.Point(weights(0)),
    "vogn.posterior.mc_dropout": lambda: vogn.MCDropout(weights(0)),
    "vogn.posterior.swag": swag,
    "vogn.posterior.mixture": lambda: vogn.Mixture([swag(), swag()]),
}


@pytest.fixture(params=sorted(KINDS))
def path(request, tmp_path):
    MAKERS[request.param]().save(tmp_path / "q.safetensors")
    return tmp_path / "q.safetensors"


def rewrite(path, tensors=None, **metadata):
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **metadata}
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(found if tensors is None else tensors, path, header)


@pytest.mark.parametrize("kept", [0, 7, 200])
def test_a_truncated_file_is_refused(path, kept):
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match="is not a complete safetensors file"):
        vogn.load_posterior(path)


def test_a_newer_schema_is_refused(path):
    rewrite(path, schema_version=str(SCHEMA_VERSION + 1))
    with pytest.raises(CheckpointError, match=f"has schema version {SCHEMA_VERSION + 1}.*update the library"):
        vogn.load_posterior(path)


def test_a_lost_tensor_is_damage(path):
    with safe_open(path, framework="pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    for lost in found:
        rewrite(path, tensors={key: tensor for key, tensor in found.items() if key != lost})
        with pytest.raises(CheckpointError, match="is damaged"):
            vogn.load_posterior(path)


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a posterior file: its format is None"):
        vogn.load_posterior(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="no posterior file at"):
        vogn.load_posterior(tmp_path / "missing")


def test_a_mixture_with_an_unknown_component_is_damaged(tmp_path):
    vogn.Mixture([vogn.Point(weights(0))]).save(tmp_path / "q")
    with safe_open(tmp_path / "q", framework="pt") as file:
        description = json.loads(file.metadata()["description"])
    description["components"][0]["format"] = "someone.elses"
    rewrite(tmp_path / "q", description=json.dumps(description))
    with pytest.raises(CheckpointError, match="is damaged: KeyError: 'someone.elses'"):
        vogn.load_posterior(tmp_path / "q")
