"""Sizes of tuning runs, and of the studies that take the networks of another."""

import argparse

import pytest

from benchmarks.classification import one_run
from benchmarks.classification.rows import ROWS
from benchmarks.classification.sizes import FULL
from benchmarks.shift_and_ood import images


class Seen(Exception):
    """Carries the sizes with which images are asked for."""


@pytest.mark.parametrize(("method", "train"), [("kfac", 6000), ("kfac-at-size", 12000)])
def test_a_row_is_tuned_at_its_size(method, train, monkeypatch):
    def parts(data, directory, study, seed, *, tuning):
        raise Seen(study.tune_train, study.tune_validation)

    monkeypatch.setattr(one_run, "parts", parts)
    words = {"data": "cifar10", "full": True, "horizon": 0, "seeds": 0, "method": method, "configuration": 0}
    with pytest.raises(Seen) as found:
        one_run.run_cell(argparse.Namespace(**words, tuning=True, seed=0, data_dir=None))
    assert found.value.args == (train, 2000)


def test_the_full_form_has_grids_of_its_own_where_it_needs_them():
    assert ROWS["ivon"].configurations("cifar10-full") != ROWS["ivon"].configurations("cifar10")
    assert ROWS["adamw"].configurations("cifar10-full") == ROWS["adamw"].configurations("cifar10")
    assert ROWS["adamw"].configurations("digits") == ROWS["adamw"].grids["default"]


def test_strange_images_are_shown_to_networks_that_saw_the_same_training_images():
    for task in images.FULL.values():
        study = FULL[task.data]
        assert (task.train, task.validation, task.epochs) == (study.train, study.validation, study.epochs)
