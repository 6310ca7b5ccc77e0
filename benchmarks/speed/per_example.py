"""What do sums of squared per-example gradients cost, beside a plain forward and backward?

Ours are those of VOGN: a context with its forward and backward, without the update. Peers as far as they are installed
and know the network: BackPACK (``SumGradSquared``), Opacus (per-example gradients, then squared), ``torch.func`` (vmap
of a gradient, then squared). Per-example gradients of a network with batch norm are not defined through the batch's
statistics; ours take a batch norm's own parameters by row, the peers refuse.

    python -m benchmarks.speed.per_example
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vogn
from benchmarks.speed.cases import Case
from benchmarks.speed.measuring import (
    arguments_of,
    call_seconds,
    in_turn,
    limit_memory,
    lines_of,
)
from benchmarks.speed.peers import load
from benchmarks.speed.questions import over_cases, ready
from benchmarks.speed.report import table
from vogn.likelihoods import Categorical

PLAIN = "forward and backward"
Sums = Callable[[], list[Tensor] | None]


def mean_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over all labels."""
    return F.cross_entropy(outputs.flatten(0, -2), labels.flatten())


def plain(model: nn.Module, x: Tensor, y: Tensor) -> Sums:
    """A gradient and nothing else."""

    def body() -> None:
        model.zero_grad()
        mean_loss(model(x), y).backward()

    return body


def ours(model: nn.Module, x: Tensor, y: Tensor) -> Sums:
    """A context of VOGN, without its step."""
    opt = vogn.VOGN(model, lr=0.0, ess=5e6, variational=False, curvature_decay=0.0)
    likelihood = Categorical()

    def body() -> None:
        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x), y).backward()

    return body


def backpack(model: nn.Module, x: Tensor, y: Tensor) -> Sums:
    """BackPACK; it has no rule for the parts of Transformers and for batch norm in training."""
    package = load("backpack", "backpack-for-pytorch")
    extensions = load("backpack.extensions", "backpack-for-pytorch")
    extended, loss = package.extend(model, use_converter=False), package.extend(nn.CrossEntropyLoss())

    def body() -> list[Tensor]:
        extended.zero_grad()
        with package.backpack(extensions.SumGradSquared()):
            loss(extended(x).flatten(0, -2), y.flatten()).backward()
        return [p.sum_grad_squared for p in extended.parameters()]

    return body


def opacus(model: nn.Module, x: Tensor, y: Tensor) -> Sums:
    """Opacus: gradients of all examples are stored, then squared and summed."""
    wrapped = load("opacus.grad_sample", "opacus").GradSampleModule(model, loss_reduction="mean")

    def body() -> list[Tensor]:
        wrapped.zero_grad()
        mean_loss(wrapped(x), y).backward()
        found = [p.grad_sample.square().sum(0) for p in wrapped.parameters()]
        for p in wrapped.parameters():
            p.grad_sample = None
        return found

    return body


def vmapped(model: nn.Module, x: Tensor, y: Tensor) -> Sums:
    """``torch.func``: gradients of all examples, then squared and summed; the gradient is their mean."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise RuntimeError("vmap does not go through batch norm in training")

    def loss(values: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, values, (one.unsqueeze(0),))
        return mean_loss(outputs, label.unsqueeze(0))

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def body() -> list[Tensor]:
        found = gradients(parameters, x, y)
        for name, parameter in model.named_parameters():
            parameter.grad = found[name].mean(0)
        return [g.square().sum(0) for g in found.values()]

    return body


ROWS: dict[str, Callable[[nn.Module, Tensor, Tensor], Sums]] = {
    PLAIN: plain,
    "vogn": ours,
    "BackPACK": backpack,
    "Opacus": opacus,
    "torch.func vmap": vmapped,
}


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The lines of a network, and their baseline."""
    bodies, refused = ready(
        {name: lambda build=build: build(case.model(), *case.batch()) for name, build in ROWS.items()}, 30.0
    )
    steps = 1 if arguments.tiny else max(1, round(0.1 / call_seconds(bodies[PLAIN])))
    timers = {name: (lambda body=body: call_seconds(body, steps)) for name, body in bodies.items()}
    times = in_turn(timers, arguments.rounds, dict.fromkeys(timers, 3.0 * arguments.row_seconds))
    lines = lines_of(times, list(timers))
    return {
        "lines": {name: lines[name] if name in lines else {"skipped": refused[name]} for name in ROWS},
        "baseline": PLAIN,
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("per_example", __doc__, argv, "rounds", "cases")
    limit_memory()
    return over_cases("per_example", arguments, measure, lambda content: table(content["lines"], PLAIN))


if __name__ == "__main__":
    main()
