"""The study of tasks of images, on a few noisy images."""

import io
import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import continual_images


@pytest.fixture
def folder(tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    y = np.arange(80) % 10
    x = random.integers(0, 40, (80, 4, 4), dtype=np.uint8)
    x[np.arange(80), y // 4, y % 4] = 255
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y.astype(np.uint8), x_test=x, y_test=y.astype(np.uint8))
    pictures = [np.full((32, 32, 3), 20 * label, np.uint8) for label in y]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    arrays = {"jpeg_train": np.concatenate(files), "offset_train": offsets, "y_train": y}
    np.savez(tmp_path / "cifar10_jpegbytes.npz", **arrays, **{k.replace("train", "test"): v for k, v in arrays.items()})
    continual_images.arrays_of.cache_clear()
    return tmp_path


def run(folder, monkeypatch, *words):
    results = folder / "results"
    line = ["continual_images", *words, "--data-dir", str(folder), "--results", str(results), "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", line)
    continual_images.main()
    return json.loads((results / "summary.json").read_text())["benchmarks"]


def test_grids_then_seeds_then_figures(folder, monkeypatch):
    words = ["run", "--benchmarks", "split-mnist-heads", "--methods", "finetune", "ewc"]
    rows = run(folder, monkeypatch, *words)["split-mnist-heads"]
    assert list(rows) == ["finetune", "ewc"]  # the others have no cells
    assert len(rows["ewc"]["validation"]) == len(continual_images.STUDIES["split-mnist-heads"].grids["ewc"])
    best = max(row["average_accuracy"] for row in rows["ewc"]["validation"])
    assert {**rows["ewc"]["options"], "average_accuracy": best} in rows["ewc"]["validation"]
    cells = sorted((folder / "results" / "split-mnist-heads").glob("ewc*seed[12].json"))
    each = [json.loads(path.read_text())["result"]["average_accuracy"] for path in cells]
    assert rows["ewc"]["average_accuracy"][0] == pytest.approx(np.mean(each))
    assert rows["ewc"]["average_accuracy"][1] == pytest.approx(np.std(each, ddof=1) / 2**0.5)
    monkeypatch.setattr(continual_images, "cell", lambda *arguments: pytest.fail("a finished cell was run again"))
    assert run(folder, monkeypatch, *words)["split-mnist-heads"] == rows


def test_jpeg_files_are_decoded(folder):
    x, y, tested, labels = continual_images.arrays_of(folder / "cifar10_jpegbytes.npz", 30, "test")
    assert x.shape == (30, 3, 32, 32) and tested.shape == (40, 3, 32, 32)
    assert torch.equal(y, torch.arange(30) % 10) and torch.equal(labels, torch.arange(0, 80, 2) % 10)
    levels = x.mean((1, 2, 3))[:10]  # one grey level for each class, in equal steps
    torch.testing.assert_close(levels.diff(), levels.diff().mean().expand(9), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("benchmark", list(continual_images.STUDIES))
def test_every_benchmark_makes_its_tasks(folder, benchmark):
    settings = {"benchmark": benchmark, "images": 60, "part": "validation", "tasks": 3, "seed": 1}
    tasks = continual_images.tasks_of(settings, folder)
    assert len(tasks) == (3 if benchmark.startswith("permuted") else 5)
    model = continual_images.network(tasks, continual_images.STUDIES[benchmark].hidden, seed=1)
    assert model(tasks[0].x_train).shape[1] == tasks[0].outputs
