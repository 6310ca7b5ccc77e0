"""Posterior files are complete or refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import vogn
from vogn.errors import CheckpointError
from vogn.linalg.layout import JoinedLayout, MatrixLayout, StackLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock, files
from vogn.structures import Dense, Diagonal


@pytest.fixture
def posterior():
    """Every kind of layout, two dtypes, a point mass and a parameter without a block."""
    source = torch.Generator().manual_seed(0)
    joined = JoinedLayout((MatrixLayout(("a.weight",), ((2, 2),), (2, 2)), StackLayout(("b",), ((3,),))))
    norm = StackLayout(("n.weight", "n.bias"), ((4,), (4,)))
    means = {
        "a.weight": torch.randn(2, 2, generator=source, dtype=torch.float64),
        "b": torch.randn(3, generator=source, dtype=torch.float64),
        "n.weight": torch.randn(4, generator=source),
        "n.bias": torch.randn(4, generator=source),
        "extra": torch.zeros(()),
    }
    dense, diagonal = Dense(max_dim=77), Diagonal()
    blocks = [
        PosteriorBlock(
            "joined", joined, dense, dense.init((7, 1), initial=0.3, dtype=torch.float64, device="cpu"), 1 / 3, 1e5 / 7
        ),
        PosteriorBlock(
            "norm",
            norm,
            diagonal,
            diagonal.init((4, 2, 1), initial=0.0, dtype=torch.float32, device="cpu"),
            0.0,
            math.inf,
            sampled=False,
        ),
    ]
    return GaussianPosterior(blocks, means, likelihood={"kind": "gaussian", "noise": 0.1}, method="VOGN")


@pytest.fixture
def path(posterior, tmp_path):
    posterior.save(tmp_path / "q.safetensors")
    return tmp_path / "q.safetensors"


def rewrite(path, *, drop=(), **metadata):
    """The file with other metadata, without some tensors."""
    with safe_open(path, framework="pt") as file:
        header = {**file.metadata(), **metadata}
        tensors = {key: file.get_tensor(key) for key in file.keys() if key not in drop}  # noqa: SIM118
    save_file(tensors, path, header)


def description(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["description"])


def test_round_trip_keeps_blocks_dtypes_and_point_masses(posterior, path):
    loaded = GaussianPosterior.load(path)
    for block, copy in zip(posterior.blocks, loaded.blocks, strict=True):
        assert (copy.layout, copy.structure, copy.sampled) == (block.layout, block.structure, block.sampled)
        assert (copy.shift, copy.ess) == (block.shift, block.ess)
    assert loaded.names == posterior.names
    for name, mean in posterior.mean().items():
        assert loaded.mean()[name].equal(mean) and loaded.mean()[name].dtype == mean.dtype
    assert loaded.likelihood == {"kind": "gaussian", "noise": 0.1} and loaded.method == "VOGN"


def test_a_posterior_without_likelihood_survives(posterior, tmp_path):
    GaussianPosterior(posterior.blocks, posterior.mean()).save(tmp_path / "q")
    assert GaussianPosterior.load(tmp_path / "q").likelihood is None


def test_saving_again_replaces_the_file_and_leaves_nothing_else(posterior, path):
    posterior.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["q.safetensors"]


def test_a_failed_save_keeps_the_old_file(posterior, path, monkeypatch):
    old = path.read_bytes()

    def torn(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(files, "save_file", torn)
    with pytest.raises(OSError, match="disk full"):
        posterior.save(path)
    assert path.read_bytes() == old
    assert [entry.name for entry in path.parent.iterdir()] == ["q.safetensors"]


def test_the_file_appears_by_one_rename(posterior, path, monkeypatch):
    """Until the rename the destination is untouched."""
    old = path.read_bytes()

    def refuse(source, target):
        assert source.stat().st_size == len(old)
        raise OSError("no rename")

    monkeypatch.setattr(files.os, "replace", refuse)
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="no rename"):
        posterior.save(path)
    assert path.read_bytes() == b"old"


def test_a_likelihood_that_is_not_plain_data_raises(posterior, tmp_path):
    with pytest.raises(ValueError, match="plain data"):
        GaussianPosterior(posterior.blocks, posterior.mean(), likelihood={"noise": torch.ones(())}).save(tmp_path / "q")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a file of ours" * 9])
def test_damaged_files_raise(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        GaussianPosterior.load(path)


def test_a_foreign_safetensors_file_raises(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a posterior file: its format is None"):
        GaussianPosterior.load(tmp_path / "model.safetensors")


def test_a_newer_schema_raises(path):
    rewrite(path, schema_version=str(files.SCHEMA_VERSION + 1))
    with pytest.raises(CheckpointError, match="schema version 2.*update the library"):
        GaussianPosterior.load(path)


@pytest.mark.parametrize("metadata", [{"schema_version": "x"}, {"description": "{"}, {"description": "{}"}])
def test_unreadable_metadata_raises(path, metadata):
    rewrite(path, **metadata)
    with pytest.raises(CheckpointError, match="is damaged"):
        GaussianPosterior.load(path)


@pytest.mark.parametrize("key", ["mean/b", "state/0/"])
def test_a_missing_tensor_raises(path, key):
    with safe_open(path, framework="pt") as file:
        drop = [name for name in file.keys() if name.startswith(key)]  # noqa: SIM118
    assert drop
    rewrite(path, drop=drop)
    with pytest.raises(CheckpointError, match=f"is damaged.*{key}"):
        GaussianPosterior.load(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda block: block["structure"].update(name="unheard"), "unknown structure 'unheard'"),
        (lambda block: block["structure"].update(colour="red"), "colour"),
        (lambda block: block["layout"]["members"][1].update(kind="spiral"), "unknown layout kind 'spiral'"),
        (lambda block: block.update(ess=-1.0), "ess=-1.0"),
        (lambda block: block["layout"]["members"][1].update(shapes=[[5]]), r"the mean of 'b' has shape \(3,\)"),
    ],
)
def test_a_description_that_makes_no_sense_raises(path, change, message):
    content = description(path)
    change(content["blocks"][0])
    rewrite(path, description=json.dumps(content))
    with pytest.raises(CheckpointError, match=f"is damaged.*{message}"):
        GaussianPosterior.load(path)


def test_a_missing_file_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no posterior file"):
        GaussianPosterior.load(tmp_path / "nothing")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere; make it first"):
        vogn.Point({"w": torch.zeros(2)}).save(tmp_path / "nowhere" / "p.safetensors")


def test_precisions_and_temperatures_that_are_tensors_are_saved_as_numbers(tmp_path):
    model = torch.nn.Linear(2, 1)
    posterior = vogn.laplace(model, vogn.likelihoods.Gaussian(0.5), [(torch.randn(8, 2), torch.randn(8, 1))])
    precision = torch.tensor(1.5, requires_grad=True).exp()
    found = vogn.with_prior_precision(posterior, precision).tempered(torch.tensor(2.0))
    found.save(tmp_path / "p.safetensors")
    loaded = vogn.load_posterior(tmp_path / "p.safetensors")
    expected = vogn.with_prior_precision(posterior, float(precision)).tempered(2.0)
    for name, variance in loaded.variance().items():
        torch.testing.assert_close(variance, expected.variance()[name])
