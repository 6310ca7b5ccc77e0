"""Captured graphs die with their context, without the garbage collector's help; rows stay pairs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import vogn
from vogn.likelihoods import Categorical, Gaussian


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("name", list(vogn.METHODS))
def test_activations_are_freed_when_the_context_ends(name: str, variational: bool) -> None:
    torch.manual_seed(0)
    seen: list[weakref.ref[torch.Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            seen.append(weakref.ref(y))
            return y

    model = nn.Sequential(nn.Linear(3, 4), Spy(), nn.Linear(4, 2))
    opt = vogn.METHODS[name].build(model, ess=10.0, variational=variational)
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
        assert len(seen) == 3
        assert all(reference() is None for reference in seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [name for name, info in vogn.METHODS.items() if info.needs_model])
def test_a_micro_batch_is_freed_when_its_backward_ends(name: str) -> None:
    torch.manual_seed(0)
    seen: list[weakref.ref[torch.Tensor]] = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    opt = vogn.METHODS[name].build(model, ess=10.0)
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    gc.collect()
    gc.disable()
    try:
        with opt.sampled_params():
            for _ in range(3):
                (Categorical()(model(x), y) / 3).backward()
                assert seen[-1]() is None
        opt.step()
    finally:
        gc.enable()


def most_bytes(run: Callable[[], None]) -> int:
    """The most that all tensors hold together during a call, above what they hold before it."""
    gc.collect()  # what other tests have left would be freed within the call, and be missing from what it holds
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    assert record.profiler is not None and record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.cumsum(0).max())


NETWORKS: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "linear layers": (lambda: [nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 300)], (200,)),
    "positions": (lambda: [nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300)], (3, 300)),
    "convolutions": (lambda: [nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.Conv2d(96, 96, 3)], (96, 3, 3)),
}


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("partition", ["model", "layer"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_compression_to_few_columns_holds_no_batch_times_parameters(
    network: str, partition: str, micro_batches: int
) -> None:
    """60 more examples cost less than the rows of 3 of them would take."""
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model = nn.Sequential(*build())
    opt = vogn.SLANG(model, ess=100.0, rank=2, partition=partition)

    def step(examples: int) -> None:
        opt.zero_grad()
        with opt.sampled_params():
            for _ in range(micro_batches):
                outputs = model(torch.randn(examples // micro_batches, *shape))
                loss = Gaussian()(outputs, torch.zeros_like(outputs)) / micro_batches
                loss.backward()
        opt.step()

    step(4)
    few, many = most_bytes(lambda: step(4)), most_bytes(lambda: step(64))
    parameters = sum(p.numel() for p in model.parameters())
    assert few > 4 * 4 * parameters, "what is measured are at least the columns"
    assert many - few < 3 * 4 * parameters
