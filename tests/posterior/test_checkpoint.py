"""Checkpoints of runs: whole or not there, and posteriors of every kind inside them."""

import pytest
import torch
from torch import nn

import vogn
from vogn.errors import CheckpointError
from vogn.posterior import Ensemble
from vogn.posterior.checkpoint import read_checkpoint, write_checkpoint
from vogn.posterior.state import posterior_from_state, posterior_state


def test_what_is_written_is_read_and_nothing_lies_about(tmp_path):
    path = tmp_path / "folder" / "state.pt"
    assert read_checkpoint(path, "cpu", schema=3, run="a test") is None
    write_checkpoint(path, {"tensor": torch.arange(3), "text": "a"}, schema=3)
    write_checkpoint(path, {"tensor": torch.arange(4), "text": "b"}, schema=3)
    found = read_checkpoint(path, "cpu", schema=3, run="a test")
    assert found["text"] == "b" and torch.equal(found["tensor"], torch.arange(4))
    assert [file.name for file in path.parent.iterdir()] == ["state.pt"]


def test_a_failed_write_leaves_the_file_before(tmp_path):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"number": 1}, schema=1)
    with pytest.raises((TypeError, AttributeError, RuntimeError)):
        write_checkpoint(path, {"number": (k for k in range(3))}, schema=1)
    assert read_checkpoint(path, "cpu", schema=1, run="a test")["number"] == 1
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("place", [0.02, 0.5, 0.9])
def test_a_damaged_file_is_named(tmp_path, place):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {"tensor": torch.randn(2000)}, schema=1)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content if place != 0.9 else content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        read_checkpoint(path, "cpu", schema=1, run="a test")


def test_another_schema_is_named(tmp_path):
    path = tmp_path / "state.pt"
    write_checkpoint(path, {}, schema=1)
    with pytest.raises(CheckpointError, match=r"schema 2\) of a test"):
        read_checkpoint(path, "cpu", schema=2, run="a test")


def test_posteriors_pass_through_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(2, (8,))
    kinds = [
        vogn.laplace(model, vogn.likelihoods.Categorical(), [(x, y)], prior_precision=1.0),
        vogn.Point(model),
        Ensemble([nn.Linear(3, 2), nn.Linear(3, 2)]),
    ]
    for posterior in kinds:
        write_checkpoint(tmp_path / "state.pt", {"posterior": posterior_state(posterior)}, schema=1)
        saved = read_checkpoint(tmp_path / "state.pt", "cpu", schema=1, run="a test")
        found = posterior_from_state(saved["posterior"])
        assert type(found) is type(posterior)
        one, other = posterior.sample(2, seed=1), found.sample(2, seed=1)
        assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(TypeError, match="Linear cannot be written"):
        posterior_state(model)
