"""What does a step of FNGD cost, while coefficients are measured and when they are kept?

Forward, backward and step of SGD with momentum, FNGD before and after freezing, K-FAC on three schedules: statistics
every 5 steps and inverses every 50; every step and every 20, as Martens and Grosse (2015) have them; the library's
default, 1 and 10. All run in turn, in one process on one thread, and are measured in processor time, so that other
processes do not count. Ratios are medians over the rounds of the ratio to SGD in the same round. A round is ``--steps``
steps, for K-FAC as many as its inverses are apart.

    OMP_NUM_THREADS=1 python -m benchmarks.fngd_step_time

``--parts`` prints where the step of SGD and the frozen steps go instead, and writes nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import environment, write_cell
from vogn.likelihoods import Categorical
from vogn.models import build_model

RESULTS = Path(__file__).parent / "results" / "fngd_step_time" / "summary.json"
SCHEDULES = {"K-FAC, 5 and 50": (5, 50), "K-FAC, 1 and 20": (1, 20), "K-FAC, 1 and 10": (1, 10)}


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)
    )


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-400-400-10, batch 128": (_mlp, (128, 1, 28, 28)),
    "ResNet-8 width 16, 32x32, batch 64": (lambda: build_model("resnet8", in_channels=3, width=16), (64, 3, 32, 32)),
}


class Runner:
    """One optimizer on its own copy of a model; every step sees the same batch.

    Args:
        make: the model.
        shape: of the inputs.
        build: the optimizer for a model.
        share_places: whether the loop tells which examples a batch holds.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        shape: tuple[int, ...],
        build: Callable[[nn.Module], Any],
        share_places: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.x, self.y = torch.randn(shape), torch.randint(0, 10, shape[:1])
        self.optimizer = build(self.model)
        self.options: dict[str, Tensor] = {"indices": torch.arange(shape[0])} if share_places else {}
        self.likelihood = Categorical()

    def step(self) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        natural = isinstance(self.optimizer, vogn.NaturalGradient)
        with self.optimizer.sampled_params(**self.options) if natural else nullcontext():
            self.likelihood(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """Seconds of processor time per step."""
        start = time.process_time()
        for _ in range(steps):
            self.step()
        return (time.process_time() - start) / steps


PARTS = ("zero_grad", "open the context", "forward and loss", "backward", "close the context", "step")


def parts(runner: Runner) -> list[float]:
    """Seconds of processor time of every part of one step."""
    optimizer, times = runner.optimizer, [time.process_time()]
    optimizer.zero_grad()
    times.append(time.process_time())
    context = optimizer.sampled_params(**runner.options) if hasattr(optimizer, "sampled_params") else nullcontext()
    with context:
        times.append(time.process_time())
        loss = runner.likelihood(runner.model(runner.x), runner.y)
        times.append(time.process_time())
        loss.backward()
        times.append(time.process_time())
    times.append(time.process_time())
    optimizer.step()
    times.append(time.process_time())
    return [end - start for start, end in zip(times, times[1:], strict=False)]


def print_parts(name: str, rounds: int, steps: int) -> None:
    """Print milliseconds of every part, medians over all steps."""
    runners = _runners(*CASES[name])
    found: dict[str, list[list[float]]] = {key: [] for key in runners}
    for runner in runners.values():
        runner.seconds(3)
    for _ in range(rounds):
        for key, runner in runners.items():
            found[key] += [parts(runner) for _ in range(steps)]
    print(f"| {name}, ms | {' | '.join(PARTS)} | sum |\n|---|{'---|' * (len(PARTS) + 1)}")
    for key, times in found.items():
        middle = 1e3 * np.median(times, 0)
        print(f"| {key} | {' | '.join(f'{ms:.2f}' for ms in middle)} | {middle.sum():.2f} |")


def _runners(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Runner]:
    """SGD, and FNGD with kept coefficients."""
    return {
        "SGD": Runner(make, shape, lambda m: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)),
        "FNGD, frozen by index": Runner(make, shape, _fngd(freeze_after=1, examples=50000), share_places=True),
        "FNGD, frozen mean": Runner(make, shape, _fngd(freeze_after=1, share="mean")),
    }


def _fngd(**options: Any) -> Callable[[nn.Module], vogn.NaturalGradient]:
    return lambda model: vogn.FNGD(model, lr=1e-4, variational=False, ess=5e4, **options)


def _kfac(observe_every: int, refresh_every: int) -> Callable[[nn.Module], vogn.NaturalGradient]:
    return lambda model: vogn.KFAC(
        model, lr=1e-4, variational=False, ess=5e4, observe_every=observe_every, refresh_every=refresh_every
    )


def measure(name: str, rounds: int, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds per step (median, quartiles) and the median ratio to SGD, of every contender."""
    make, shape = CASES[name]
    few = _runners(make, shape)
    runners = {
        "SGD": few.pop("SGD"),
        "FNGD, measuring": Runner(make, shape, _fngd(), share_places=True),
        **few,
        **{key: Runner(make, shape, _kfac(*schedule)) for key, schedule in SCHEDULES.items()},
    }
    for runner in runners.values():
        runner.seconds(3)
    times: dict[str, list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, runner in runners.items():
            times[key].append(runner.seconds(SCHEDULES[key][1] if key in SCHEDULES else steps))
    base = np.array(times["SGD"])
    lines = {}
    for key, values in times.items():
        low, middle, high = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
        ratio = float(np.median(np.array(values) / base))
        lines[key] = {"ms": float(middle), "lower quartile": float(low), "upper quartile": float(high), "ratio": ratio}
    return lines


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--parts", action="store_true")
    arguments = parser.parse_args()
    if arguments.parts:
        for name in arguments.cases:
            print_parts(name, arguments.rounds, arguments.steps)
        return
    lines = {name: measure(name, arguments.rounds, arguments.steps) for name in arguments.cases}
    write_cell(
        arguments.results,
        {"lines": lines, "rounds": arguments.rounds, "steps": arguments.steps}
        | {"environment": environment(), "command": "python -m benchmarks.fngd_step_time"},
    )
    print("| model | method | ms per step (quartiles) | x SGD |")
    print("|---|---|---|---|")
    for name, contenders in lines.items():
        for key, line in contenders.items():
            print(
                f"| {name} | {key} | {line['ms']:.1f} ({line['lower quartile']:.1f}, {line['upper quartile']:.1f}) "
                f"| {line['ratio']:.2f} |"
            )


if __name__ == "__main__":
    main()
