"""Real targets: their scale, their split, and what is refused."""

import numpy as np
import pytest
import torch

from vogn.data import DataError, TargetScale, load_data, load_real_data, load_task_data

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3))
Y = RNG.normal(size=50) * 7 + 1e6


def test_diabetes_is_split_and_standardised_with_the_training_moments():
    data = load_real_data("diabetes")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [309, 45, 88]
    assert data.train.y.dtype == torch.float32 and data.train.y.shape == (309, 1)
    assert abs(float(data.train.y.mean())) < 1e-6
    assert float(data.train.y.std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert abs(float(data.test.y.mean())) > 1e-3
    every = torch.cat([data.targets.undo(part.y) for part in (data.train, data.validation, data.test)])
    from sklearn.datasets import load_diabetes

    torch.testing.assert_close(
        every.flatten().sort().values, torch.tensor(np.sort(load_diabetes().target)), atol=1e-4, rtol=0
    )
    with pytest.raises(DataError, match="class"):
        load_data("diabetes")


def test_the_scale_can_be_undone_beside_a_large_offset(save):
    data = load_real_data(save(x_train=X, y_train=Y, x_test=X, y_test=Y), validation_fraction=0.0)
    np.testing.assert_allclose(data.targets.undo(data.test.y).flatten().numpy(), Y, atol=1e-5)
    assert data.targets.mean == pytest.approx(Y.mean()) and data.targets.std == pytest.approx(Y.std())
    assert TargetScale.from_dict(data.targets.to_dict()) == data.targets
    assert len(data.validation) == 0


def test_a_given_scale_is_used_and_wants_the_same_kind_of_number(save):
    scale = TargetScale(1.0, 2.0)
    data = load_real_data(save(x_train=X, y_train=Y - 1e6), targets=scale)
    assert data.targets is scale
    whole = save(x_train=X, y_train=np.arange(50))
    with pytest.raises(DataError, match="such as class labels are"):
        load_real_data(whole, targets=scale)
    assert load_real_data(whole, targets=TargetScale(1.0, 2.0, whole=True)).targets.whole


@pytest.mark.parametrize("part", ["validation", "test"])
def test_every_part_has_the_kind_of_number_of_the_training_part(save, part):
    """Beside floating-point targets, or a scale that was fitted to such, whole numbers look like labels."""
    content = {"x_train": X, "y_train": Y, f"x_{part}": X}
    with pytest.raises(DataError, match=rf"\[{part}\] holds whole numbers \(int64\), .* use the same kind"):
        load_real_data(save(**content, **{f"y_{part}": np.arange(50)}))
    with pytest.raises(DataError, match=rf"\[{part}\] holds whole numbers"):
        load_real_data(save(**content, **{f"y_{part}": np.arange(50)}), targets=TargetScale(1.0, 2.0))
    assert load_real_data(save(**content, **{f"y_{part}": np.arange(50.0)})).targets.whole is False
    whole = content | {"y_train": np.arange(50), f"y_{part}": np.arange(50)}
    assert load_real_data(save(**whole)).targets.whole


def test_data_know_whether_their_classes_have_names(save):
    assert load_data("digits").named
    assert not load_data(save(x_train=X, y_train=np.arange(50) % 4)).named


@pytest.mark.parametrize(
    ("y", "task"),
    [
        (Y, "RealData"),
        (np.arange(50) % 4, "Data"),
        ((np.arange(50) % 4).astype(np.float32), "Data"),
        (np.arange(50) % 4 * 0.5, "RealData"),
        ((np.arange(50) % 4 + 1).astype(np.float64), "RealData"),
        (((np.arange(50) % 4) * 1.0)[:, None], "Data"),
        (np.zeros(50), None),
    ],
)
def test_the_targets_choose_the_task(save, y, task):
    spec = save(x_train=X, y_train=y)
    if task is None:
        with pytest.raises(DataError, match="constant"):
            load_task_data(spec, "auto")
        return
    found = load_task_data(spec, "auto")
    assert type(found).__name__ == task
    assert bool(found.remark) == (task == "Data" and y.dtype.kind == "f")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.full(50, 0.1), "all 35 targets are 0.1; there is nothing to learn"),
        (np.where(np.arange(50) == 3, np.nan, Y), r"1 of 50 targets are NaN or infinite"),
        (np.full((50, 2), 0.5), r"targets of shape \(50, 2\); wanted is one number per input"),
        (np.array([True, False] * 25), "targets hold bool values"),
        (1e5 + 1e-12 * np.arange(50), "nothing to learn"),
    ],
)
def test_targets_that_cannot_be_learned(save, y, words):
    with pytest.raises(DataError, match=words):
        load_real_data(save(x_train=X, y_train=y))


def test_rows_and_names():
    with pytest.raises(DataError, match="digits has classes with names"):
        load_real_data("digits")
    with pytest.raises(DataError, match="unknown task 'x'"):
        load_task_data("digits", "x")
