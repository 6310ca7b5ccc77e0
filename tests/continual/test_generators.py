"""Random number generators of a run, those of GPUs included."""

import pytest
import torch
from continual_cases import classification
from torch import nn

from vogn.continual import online_ewc, run_tasks
from vogn.continual.generators import cuda_devices, generator_states, restore_generators
from vogn.likelihoods import Categorical


def test_the_generator_of_the_cpu_comes_back():
    model = nn.Linear(2, 2)
    assert cuda_devices(model) == []
    states = generator_states(model)
    drawn = torch.rand(3)
    restore_generators(states)
    assert torch.equal(torch.rand(3), drawn)


def test_states_of_gpus_are_taken_and_given_back_by_number(monkeypatch):
    """A stand-in for two GPUs; the third, of another machine, is left alone."""
    given = {}
    monkeypatch.setattr("vogn.continual.generators.cuda_devices", lambda model: [0, 2])
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda number: torch.tensor([10 + number]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, number: given.update({number: state.tolist()}))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    states = generator_states(nn.Linear(2, 2))
    assert {number: state.tolist() for number, state in states["cuda"].items()} == {0: [10], 2: [12]}
    restore_generators(states)
    assert given == {0: [10]}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_dropout_on_a_gpu_goes_on_with_the_same_noise(tmp_path):
    class Killed(Exception):
        pass

    class KillAfter:
        def __init__(self, batches):
            self.batches = batches

        def batch_done(self, number, task, done, total, loss):
            self.batches -= 1
            if self.batches == 0:
                raise Killed

        def task_done(self, number, task, accuracies):
            pass

    def run(batches=10**9, **options):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double().cuda()
        tasks = [
            type(task)(*(value.cuda() if isinstance(value, torch.Tensor) else value for value in vars(task).values()))
            for task in classification()
        ]
        options |= {"epochs": 2, "batch_size": 12, "checkpoint_every": 3, "watcher": KillAfter(batches)}
        found = run_tasks(online_ewc(model, Categorical()), tasks, **options)
        return found, [p.detach().cpu() for p in model.parameters()]

    torch.manual_seed(3)  # as every run begins, in front of which the state is put back
    before = torch.cuda.get_rng_state()
    wanted, weights = run()
    assert torch.equal(torch.cuda.get_rng_state(), before)
    with pytest.raises(Killed):
        run(6, folder=tmp_path)
    torch.cuda.manual_seed(99)
    found, again = run(folder=tmp_path)
    assert found == wanted and all(torch.equal(a, b) for a, b in zip(weights, again, strict=True))
