"""Tasks hold what they say, and refuse what cannot be learnt."""

import pytest
import torch
from torch import nn

from tiny_models import normal
from vogn.continual import MultiHead, Task, permuted_tasks, select_head, split_tasks
from vogn.continual.tasks import check_tasks
from vogn.data import DataError

X, Y = normal(30, 2, 3, seed=1), torch.arange(30) % 6


def test_permuted_tasks_reorder_features_alike_in_all_examples():
    tasks = permuted_tasks(X, Y, X[:7], Y[:7], tasks=3, seed=4)
    assert torch.equal(tasks[0].x_train, X.flatten(1))
    assert [task.outputs for task in tasks] == [6, 6, 6] and [task.head for task in tasks] == [0, 0, 0]
    for task in tasks[1:]:
        assert not torch.equal(task.x_train, X.flatten(1))
        # column j of the task is column order[j] of the data, in training and test part
        order = [int((X.flatten(1) == column[:, None]).all(0).nonzero()) for column in task.x_train.T]
        assert sorted(order) == list(range(6))
        assert torch.equal(task.x_test, X[:7].flatten(1)[:, order])
        assert torch.equal(task.y_train, Y)
    again = permuted_tasks(X, Y, X[:7], Y[:7], tasks=2, seed=4)
    assert torch.equal(again[1].x_train, tasks[1].x_train)
    other = permuted_tasks(X, Y, X[:7], Y[:7], tasks=2, seed=5)
    assert not torch.equal(other[1].x_train, tasks[1].x_train)
    assert [task.head for task in permuted_tasks(X, Y, X, Y, tasks=3, scenario="task")] == [0, 1, 2]


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_split_tasks_hold_their_classes(scenario):
    tasks = split_tasks(X, Y, X[:12], Y[:12], classes=[(4, 1), (0, 5)], scenario=scenario)
    for k, (task, group) in enumerate(zip(tasks, [(4, 1), (0, 5)], strict=True)):
        rows = [n for n in range(30) if int(Y[n]) in group]
        assert torch.equal(task.x_train, X[rows])
        wanted = [int(Y[n]) if scenario == "class" else group.index(int(Y[n])) for n in rows]
        assert task.y_train.tolist() == wanted
        assert task.outputs == (6 if scenario == "class" else 2)
        assert task.head == (k if scenario == "task" else 0)
    assert len(split_tasks(X, Y, X, Y)) == 3
    assert [len(t.y_train) for t in split_tasks(X, Y, X, Y, per_task=4)] == [20]


def made(**changes):
    x, y = normal(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    return Task(**{"name": "odd", "x_train": x, "y_train": y, "x_test": x, "y_test": y, "outputs": 3} | changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"x_train": normal(6, 4)[:0], "y_train": torch.tensor([], dtype=torch.long)}, "no training examples"),
        ({"x_test": normal(6, 4)[:0], "y_test": torch.tensor([], dtype=torch.long)}, "no test examples"),
        ({"y_train": torch.zeros(6, dtype=torch.long)}, "a single class"),
        ({"y_train": torch.tensor([0, 1, 3, 0, 1, 2])}, "do not fit a head with 3 outputs"),
        ({"y_test": torch.tensor([0, -1, 2, 0, 1, 2])}, "labels -1 to 2 do not fit"),
        ({"y_train": torch.tensor([0, 1])}, "give one label each"),
        ({"y_train": torch.rand(6)}, "give whole numbers"),
        ({"x_train": torch.zeros(6, 4, dtype=torch.long)}, "floating point"),
        ({"x_train": torch.full((6, 4), float("nan"))}, "NaN or infinity"),
        ({"outputs": 1}, "at least 2"),
    ],
)
def test_a_task_that_cannot_be_learnt(changes, match):
    with pytest.raises(DataError, match=f"task 'odd'.*{match}"):
        made(**changes)


def test_sequences_that_do_not_fit():
    with pytest.raises(DataError, match="no tasks"):
        check_tasks([])
    with pytest.raises(DataError, match="inputs of shape"):
        check_tasks([made(), made(x_train=normal(6, 5), x_test=normal(6, 5))])
    with pytest.raises(DataError, match="head 0 has 3 outputs"):
        check_tasks([made(), made(outputs=4)])
    with pytest.raises(DataError, match="single class"):
        split_tasks(X, Y.clamp_max(2), X, Y, classes=[(0, 1), (3, 2)])
    with pytest.raises(DataError, match="no training examples"):
        split_tasks(X, Y, X, Y, classes=[(0, 1), (7, 8)])
    with pytest.raises(ValueError, match="in two places"):
        split_tasks(X, Y, X, Y, classes=[(0, 1), (1, 2)])
    with pytest.raises(ValueError, match="scenario='all'"):
        split_tasks(X, Y, X, Y, scenario="all")
    with pytest.raises(ValueError, match="share their classes"):
        permuted_tasks(X, Y, X, Y, scenario="class")
    with pytest.raises(ValueError, match="tasks=0"):
        permuted_tasks(X, Y, X, Y, tasks=0)


def test_heads():
    model = MultiHead(nn.Linear(4, 5), 5, [2, 3])
    x = torch.randn(7, 4)
    for head in (0, 1):
        select_head(model, head)
        assert torch.equal(model(x), model.heads[head](model.body(x)))
    with pytest.raises(ValueError, match="no head 2: the model has 2"):
        select_head(model, 2)
    with pytest.raises(ValueError, match="asks for head 1"):
        select_head(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="at least 1"):
        MultiHead(nn.Linear(4, 5), 5, [])
