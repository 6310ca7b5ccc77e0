"""The study of shifted and strange images: cells are read rightly, and its images are what they should be."""

import copy
import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.shift_and_ood import images, report
from benchmarks.shift_and_ood.one_run import METHODS, classification_cell, tuned_configuration, tuned_methods


def way(nll, auroc):
    quality = {"accuracy": 0.9, "nll": nll, "ece": 0.1}
    levels = [{"nll": nll + k, "ece": 0.1 * k} for k in range(4)]
    entry = {"entropy": {"auroc": auroc}, "mutual_information": {"auroc": auroc + 0.3}, "quality": quality}
    return {
        "test": quality,
        "outside": {"notMNIST": entry, "USPS": entry},
        "corruptions": {"blur": levels, "rotation": levels},
    }


@pytest.fixture
def results(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for seed in range(5):
        base = {"n": {"train": 10}, "epochs": 1, "mean": way(0.5 + 0.1 * seed, 0.7)}
        (folder / f"adamw-{seed}.json").write_text(json.dumps(base))
        (folder / f"kfac-{seed}.json").write_text(json.dumps(base | {"posterior": way(0.3 + 0.11 * seed, 0.6)}))
    return tmp_path


def test_differences_are_paired_by_seed_with_students_interval(results):
    found = report.differences("mnist", report.read(results, "mnist"))
    gaps = np.array([0.3 + 0.11 * seed - 0.5 - 0.1 * seed for seed in range(5)])
    expected = ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert found["kfac", "AdamW"]["NLL"] == pytest.approx((gaps.mean(), expected.low, expected.high))
    assert found["kfac", "AdamW"]["AUROC notMNIST"] == pytest.approx((-0.1, -0.1, -0.1))
    assert found["kfac", "AdamW"]["AUROC notMNIST (MI)"] == pytest.approx((0.2, 0.2, 0.2))  # AdamW has its entropy


def test_figures_under_corruption_leave_the_clean_images_out(results):
    record = report.read(results, "mnist")["adamw"][0]
    assert report.corrupted(record["mean"], "ece") == pytest.approx(0.2)


def test_better_is_bold_and_worse_is_italic(results):
    line = next(row for row in report.text_of(results).splitlines() if row.startswith("| noisy K-FAC | AdamW"))
    assert "**-0.180 [" in line and "| *-0.100 [" in line


def test_the_tables_go_between_the_marks_of_a_page(results, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.FIRST}\nold\n{report.LAST}\nafter\n")
    report.report(results, page=page, figure=tmp_path / "curves.svg")
    text = page.read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "### MNIST" in text and (tmp_path / "curves.svg").read_bytes().startswith(b"<?xml")


def test_configurations_are_those_that_the_classification_study_chose():
    for data in ("mnist", "cifar10", "mnist-full", "cifar10-full"):
        methods = tuned_methods(data)
        assert set(METHODS) - set(methods) <= {"ekfac-factored"} and methods[0] == "adamw"
        for method in methods:
            assert "lr" in tuned_configuration(method, data, 0)


def test_kept_networks_have_the_figures_of_all_test_images():
    """Those of the classification study's cell, where it is of the same network; else the study's own."""
    cell = json.loads(classification_cell("ivon", "mnist-full", 3).read_text())
    record = {"method": "ivon", "seed": 3, "configuration": cell["configuration"], "n": {"train": 12000, "test": 2000}}
    ways = {"mean": way(0.5, 0.7), "posterior": way(0.5, 0.7)}
    kept = record | {"training_cpu_seconds": None} | copy.deepcopy(ways)
    report.on_all_images(kept, "mnist-full")
    assert kept["posterior"]["test"] == cell["posterior"] and kept["mean"]["test"]["nll"] == cell["mean"]["nll"]
    assert kept["n"] == {"beside strange ones": 2000, "train": 12000, "test": 10000}
    assert kept["posterior"]["outside"] == ways["posterior"]["outside"]
    for other in ({"training_cpu_seconds": 9.0}, {"training_cpu_seconds": None, "configuration": {}}):
        own = record | copy.deepcopy(ways) | other
        report.on_all_images(own, "mnist-full")
        assert own["posterior"] == ways["posterior"] and own["n"] == record["n"]


def test_missing_files_are_named(tmp_path):
    (tmp_path / "mnist.npz").touch()
    assert "mnist.npz" not in images.missing_files(tmp_path) and "usps.npz" in images.missing_files(tmp_path)
    with pytest.raises(SystemExit, match="notmnist_test.npz, usps.npz"):
        images.require_files(tmp_path)
    with pytest.raises(SystemExit, match="mnist.npz"):
        images.require_files(None)


def test_the_open_task_shows_no_unknown_class_in_training(tmp_path):
    import io

    from PIL import Image

    generator = np.random.default_rng(0)
    parts = {}
    for part in ("train", "test"):
        pictures = []
        for _ in range(1400):
            stream = io.BytesIO()
            Image.fromarray(generator.integers(0, 255, (4, 4, 3)).astype(np.uint8)).resize((32, 32)).save(
                stream, "JPEG", quality=20
            )
            pictures.append(stream.getvalue())
        parts[f"jpeg_{part}"] = np.frombuffer(b"".join(pictures), np.uint8)
        parts[f"offset_{part}"] = np.cumsum([0, *map(len, pictures)])
        parts[f"y_{part}"] = np.arange(1400) % 10
    np.savez(tmp_path / "cifar10_jpegbytes.npz", **parts)
    found = images.images_of(images.TASKS["cifar10-open"], tmp_path)
    for _, labels in (found.train, found.validation, found.test):
        assert set(labels.tolist()) == set(images.KNOWN)
    strange, labels = found.outside["unknown classes"]
    assert len(strange) == 240 and set(labels.tolist()) == {-1} and len(found.test[1]) == 360
