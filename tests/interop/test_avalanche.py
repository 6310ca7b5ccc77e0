"""Avalanche's plugin, against a stand-in of the strategies' training and evaluation loops.

The package itself needs torchvision built for the installed torch, so the loops are written here in the order of
``avalanche.training.templates`` (version 0.6).
"""

from types import SimpleNamespace

import pytest
import torch
from continual_cases import classification, network
from torch.utils.data import DataLoader, Dataset

from vogn.continual import CONTINUAL_METHODS, select_head, train_step
from vogn.errors import NonFiniteStatisticsError
from vogn.interop.avalanche import ContinualPlugin
from vogn.likelihoods import Categorical

BATCH = 8


class Examples(Dataset):
    """Inputs, targets and task labels, as Avalanche's data sets have them."""

    def __init__(self, x, y, label):
        self.x, self.y, self.label = x, y, label

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], int(self.y[index]), self.label


class Naive:
    """The strategy's loops; every callback that it knows is called in Avalanche's order."""

    def __init__(self, model, optimizer, plugins):
        self.model, self.optimizer, self.plugins = model, optimizer, plugins
        self.criterion, self.train_mb_size = Categorical(), BATCH
        self.experience = self.mbatch = self.mb_output = None

    mb_x = property(lambda self: self.mbatch[0])
    mb_y = property(lambda self: self.mbatch[1])
    mb_task_id = property(lambda self: self.mbatch[-1])

    def call(self, event):
        for plugin in self.plugins:
            if hasattr(plugin, event):
                getattr(plugin, event)(self)

    def train(self, experience, epochs=2):
        self.model.train()
        self.experience = experience
        self.call("before_training_exp")
        for _ in range(epochs):
            for self.mbatch in DataLoader(experience.dataset, batch_size=BATCH):
                self.optimizer.zero_grad()
                self.call("before_forward")
                self.mb_output = self.model(self.mb_x)
                self.call("after_forward")
                self.loss = self.criterion(self.mb_output, self.mb_y)
                self.call("before_backward")
                self.loss.backward()
                self.call("after_backward")
                self.call("before_update")
                self.optimizer.step()
                self.call("after_update")
        self.call("after_training_exp")

    @torch.no_grad()
    def eval(self, experience):
        self.model.eval()
        self.experience, outputs = experience, []
        for self.mbatch in DataLoader(experience.dataset, batch_size=BATCH):
            self.call("before_eval_forward")
            self.mb_output = self.model(self.mb_x)
            self.call("after_eval_forward")
            outputs.append(self.mb_output)
        return torch.cat(outputs)


def experiences(heads):
    return [
        SimpleNamespace(dataset=Examples(task.x_train, task.y_train, task.head), task_labels=[task.head])
        for task in classification(heads, tasks=3)
    ]


def build(name, heads):
    options = {"samples": 2, "lr": 0.02} if name.startswith("vcl") else {}
    if name in ("replay", "l2", "fromp", "kpriors"):
        options["memory"] = 6
    return CONTINUAL_METHODS[name].build(network(heads), Categorical(), **options)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("name", sorted(CONTINUAL_METHODS))
def test_a_strategy_with_the_plugin_ends_with_the_bits_of_the_own_loop(name, heads):
    """One SGD for all tasks; the variational methods bring an optimizer for each task."""
    method, own = build(name, heads), build(name, heads)
    sgd = [torch.optim.SGD(m.model.parameters(), lr=0.05) for m in (method, own)]
    strategy = Naive(method.model, sgd[0], [ContinualPlugin(method)])
    for task, experience in zip(classification(heads, tasks=3), experiences(heads), strict=True):
        strategy.train(experience)
        assert strategy.optimizer is sgd[0]
        own.model.train()
        select_head(own.model, task.head)
        own.begin_task(len(task.x_train))
        optimizer = own.optimizer() if name.startswith("vcl") else sgd[1]
        for _ in range(2):
            for x, y in zip(task.x_train.split(BATCH), task.y_train.split(BATCH), strict=True):
                train_step(own, optimizer, x, y)
        own.after_task(list(zip(task.x_train.split(BATCH), task.y_train.split(BATCH), strict=True)))
    for p, q in zip(method.model.parameters(), own.model.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("heads", [1, 3])
def test_evaluation_uses_the_heads_and_the_posterior(heads):
    method = build("vcl", heads)
    strategy = Naive(method.model, torch.optim.SGD(method.model.parameters(), lr=0.1), [ContinualPlugin(method)])
    found = experiences(heads)
    strategy.train(found[0])
    strategy.train(found[1])
    scores = strategy.eval(found[0])
    select_head(method.model, 0)
    wanted = torch.cat([method.outputs(x) for x in found[0].dataset.x.split(BATCH)])
    torch.testing.assert_close(scores.exp(), wanted)
    torch.testing.assert_close(wanted.sum(-1), torch.ones(24, dtype=wanted.dtype))
    plain = build("ewc", heads)
    strategy = Naive(plain.model, torch.optim.SGD(plain.model.parameters(), lr=0.1), [ContinualPlugin(plain)])
    scores = strategy.eval(found[-1])
    select_head(plain.model, 2 if heads > 1 else 0)
    torch.testing.assert_close(scores, plain.model(found[-1].dataset.x))


def test_what_does_not_fit_is_refused(monkeypatch):
    method, found = build("ewc", 3), experiences(3)
    plugin = ContinualPlugin(method)
    strategy = Naive(method.model, torch.optim.SGD(method.model.parameters(), lr=0.1), [plugin])
    strategy.model = network(3)
    with pytest.raises(ValueError, match="another model"):
        strategy.train(found[0])
    strategy.model = method.model
    both = SimpleNamespace(dataset=found[0].dataset, task_labels=[0, 2])
    with pytest.raises(ValueError, match=r"one task at a time, these examples are of \[0, 2\]"):
        strategy.train(both)
    part = SimpleNamespace(**vars(found[0]), is_first_subexp=True)
    with pytest.raises(ValueError, match="online stream"):
        strategy.train(part)
    empty = SimpleNamespace(dataset=Examples(torch.empty(0, 4), torch.empty(0), 0), task_labels=[0])
    with pytest.raises(ValueError, match="0 examples"):
        strategy.train(empty)
    with monkeypatch.context() as patch:
        patch.setattr(torch.distributed, "is_initialized", lambda: True)
        patch.setattr(torch.distributed, "get_world_size", lambda: 2)
        with pytest.raises(RuntimeError, match="one process"):
            strategy.train(found[0])
    method.model.heads.append(torch.nn.Linear(5, 3))
    with pytest.raises(ValueError, match="parameters have changed"):
        strategy.train(found[0])
    several = CONTINUAL_METHODS["vcl"].build(network(), Categorical(), mc_samples=2)
    strategy = Naive(several.model, torch.optim.SGD(several.model.parameters(), lr=0.1), [ContinualPlugin(several)])
    with pytest.raises(ValueError, match="mc_samples must be 1"):
        strategy.train(experiences(1)[0])


def test_an_experience_that_was_broken_off_can_be_trained_again():
    method = build("vcl", 1)
    sgd = torch.optim.SGD(method.model.parameters(), lr=0.1)
    strategy = Naive(method.model, sgd, [ContinualPlugin(method)])
    experience = experiences(1)[0]
    right, strategy.criterion = strategy.criterion, lambda outputs, targets: 1 / 0
    before = [p.detach().clone() for p in method.model.parameters()]
    with pytest.raises(ZeroDivisionError):
        strategy.train(experience)
    strategy.criterion = right
    strategy.call("before_training_exp")  # the sample of the broken pass is gone
    for p, q in zip(method.model.parameters(), before, strict=True):
        assert torch.equal(p, q)
    strategy.train(experience)
    assert strategy.optimizer is sgd and method.posterior is not None


def test_a_diverged_loss_is_an_error():
    method = build("ewc", 1)
    strategy = Naive(method.model, torch.optim.SGD(method.model.parameters(), lr=0.1), [ContinualPlugin(method)])
    experience = experiences(1)[0]
    experience.dataset.x[3] = float("nan")
    with pytest.raises(NonFiniteStatisticsError, match="the loss is nan"):
        strategy.train(experience)
