"""What does a posterior prediction with 32 weight samples cost, beside 32 plain forward passes?

Two rows are parts of it: the draws of the diagonal posterior alone, and as many normal numbers alone. Time in turn, in
one process; memory in a process for each: the most that it held, minus what it held before the prediction. Outputs are
softmaxed and averaged in both.

    python -m benchmarks.speed.predictive
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import vogn
from benchmarks.speed.cases import Case
from benchmarks.speed.measuring import (
    arguments_of,
    call_seconds,
    in_child,
    in_turn,
    limit_memory,
    lines_of,
    peak,
    reset_peak,
    resident,
    short,
)
from benchmarks.speed.questions import over_cases
from benchmarks.speed.report import table
from vogn.likelihoods import Categorical
from vogn.linalg.noise import fill_normal

PLAIN = "32 forward passes"
SAMPLES = 32
METHODS = {"vogn": "predict, diagonal", "kfac": "predict, Kronecker"}
Work = Callable[[], Any]


def plain(case: Case) -> Work:
    """The average of 32 softmaxed outputs of one network."""
    model, (x, y) = case.model(), case.batch()
    Categorical()(model(x), y).backward()  # as before the others: what is made at the first pass is there
    model.zero_grad()
    model.eval()

    def work() -> torch.Tensor:
        with torch.no_grad():
            total = torch.softmax(model(x), -1)
            for _ in range(SAMPLES - 1):
                total += torch.softmax(model(x), -1)
            return total / SAMPLES

    return work


def posterior_of(case: Case, method: str) -> tuple[Any, vogn.posterior.GaussianPosterior]:
    """The model, and the posterior of a method after one step."""
    model, (x, y) = case.model(), case.batch()
    opt = vogn.METHODS[method].build(model, lr=1e-5, ess=5e6, variational=False)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    posterior = opt.posterior()
    opt.close()
    opt.zero_grad()
    return model, posterior


def ours(case: Case, method: str) -> Work:
    """:func:`vogn.predict` with the posterior of a method."""
    (model, posterior), (x, _) = posterior_of(case, method), case.batch()

    def work() -> vogn.Predictive:
        return vogn.predict(
            model, posterior, x, samples=SAMPLES, likelihood=Categorical(), batchnorm="mean", keep_samples=False
        )

    return work


def draws(case: Case) -> Work:
    """The weight samples alone, one after the other."""
    posterior = posterior_of(case, "vogn")[1]

    def work() -> None:
        for k in range(SAMPLES):
            posterior.sample(1, start=k)

    return work


def numbers(case: Case) -> Work:
    """As many normal numbers, into the same memory."""
    room = torch.empty(sum(parameter.numel() for parameter in case.model().parameters()))

    def work() -> None:
        for k in range(SAMPLES):
            fill_normal(room, seed=0, stream="weights", step=0, sample=k)

    return work


def builders_of(case: Case) -> dict[str, Callable[[], Work]]:
    """Row to what prepares its work."""
    return {
        PLAIN: lambda: plain(case),
        **{title: (lambda method=method: ours(case, method)) for method, title in METHODS.items()},
        "draws, diagonal": lambda: draws(case),
        "normal numbers": lambda: numbers(case),
    }


def held(build: Callable[[], Work]) -> Mapping[str, float]:
    """Bytes that the work needs beyond what was there before."""
    work = build()
    reset_peak()
    before = resident()
    work()
    return {"bytes": peak() - before}


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The lines of a network, and their baseline."""
    builders = builders_of(case)
    memory = {name: in_child(lambda build=build: held(build), 120.0) for name, build in builders.items()}
    works = {name: build() for name, build in builders.items()}
    for work in works.values():
        work()
    timers = {name: (lambda work=work: call_seconds(work)) for name, work in works.items()}
    times = in_turn(timers, arguments.rounds, dict.fromkeys(timers, 3.0 * arguments.row_seconds))
    lines = lines_of(times, [PLAIN])
    for name, line in lines.items():
        line["MB"] = short(memory[name]["bytes"] / 1e6)
    return {"lines": lines, "baseline": PLAIN}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("predictive", __doc__, argv, "rounds", "cases")
    limit_memory()
    return over_cases("predictive", arguments, measure, lambda content: table(content["lines"], PLAIN, ("MB",)))


if __name__ == "__main__":
    main()
