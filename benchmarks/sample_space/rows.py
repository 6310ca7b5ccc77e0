"""The methods of the study, each with its grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.classification.rows import grid
from vogn.structures import EigenKronecker, Gram, Kronecker

EVERY = 10
"""Steps between two measurements, and between two factorisations, of the methods that do this on a schedule."""
PAPER = 1, 20
"""The same of K-FAC's paper (Martens, Grosse 2015)."""
WEIGHT_DECAY = 1e-4
LARGEST_OUTPUT = 1024
"""K-FAC and EK-FAC keep the diagonal alone of an output factor that is larger (a vocabulary)."""

Configuration = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What an optimizer may know about a run.

    Args:
        examples: of the training part.
        batch: examples per step.
        steps: of an epoch.
    """

    examples: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Row:
    """A method.

    Args:
        build: from model, run, seed and configuration to the optimizer.
        grid: the configurations, for each task where it has its own, else those of ``"all"``; without these, the row is
            of the other tasks alone. A configuration may name ``epochs``, where they are others than the study's.
        method: its name in ``vogn.METHODS``; empty for an optimizer of torch.
        indexed: whether it is told which examples are in the batch.
        period: steps after which the work of a step repeats itself.
        timed: name to further options, for every form of the step whose time differs.
    """

    build: Callable[..., torch.optim.Optimizer]
    grid: Mapping[str, tuple[dict[str, Any], ...]]
    method: str = ""
    indexed: bool = False
    period: int = 1
    timed: Mapping[str, Configuration] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether this version of the library has the method."""
        return not self.method or self.method in vogn.METHODS

    def configurations(self, task: str) -> tuple[dict[str, Any], ...]:
        """The grid of that task."""
        return self.grid.get(task, self.grid.get("all", ()))

    def context(self, optimizer: Any, indices: Tensor) -> AbstractContextManager[Any]:
        """The context in which forward and backward run."""
        if not self.method:
            return nullcontext()
        context: AbstractContextManager[Any] = (
            optimizer.sampled_params(indices=indices) if self.indexed else optimizer.sampled_params()
        )
        return context


def _natural(method: str, **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    """Builds a method of ours in deterministic mode."""

    def build(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
        common = {"ess": run.examples, "weight_decay": WEIGHT_DECAY, "variational": False, "seed": seed}
        return vogn.METHODS[method].build(model, **(common | fixed | options))

    return build


def _fngd(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
    """Coefficients are measured in the first epoch, as in the paper."""
    kept = {"freeze_after": run.steps, "examples": run.examples}
    return _natural("fngd")(model, run, seed=seed, **(kept | options))


def _kronecker(
    method: str,
    structure: type[Kronecker] | type[EigenKronecker],
    every: tuple[int, int] = (EVERY, EVERY),
    **fixed: Any,
) -> Callable[..., Any]:
    """K-FAC or EK-FAC with a measurement and a factorisation every so many steps."""

    def build(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
        large = {
            name: structure(max_dim=LARGEST_OUTPUT, **fixed)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and module.out_features > LARGEST_OUTPUT
        }
        schedule = dict(zip(("observe_every", "refresh_every"), every, strict=True))
        return _natural(method, **schedule)(model, run, seed=seed, structure=large or None, **options)

    return build


def _smw(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
    """The present batch alone, over the whole network, as in the paper."""
    return _natural("smw", curvature_decay=0.0, window=run.batch)(model, run, seed=seed, **options)


def _seng(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
    """No sketch: inner products of one batch are cheap."""
    rows = Gram(run.batch)
    return _natural("seng", observe_every=EVERY)(model, run, seed=seed, structure=rows, **options)


def _adamw(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **options)


def _sgd(model: nn.Module, run: Run, *, seed: int, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=WEIGHT_DECAY, **options)


def _pairs(*pairs: tuple[float, float]) -> tuple[dict[str, Any], ...]:
    """Configurations of (learning rate, damping)."""
    return tuple({"lr": lr, "damping": damping} for lr, damping in pairs)


_KFAC = _kronecker("kfac", Kronecker, damping="factored")
_KRON = _pairs((0.1, 1e-3), (0.3, 1e-3), (0.3, 1e-2), (0.3, 1e-1))
_FNGD = {
    "all": _pairs((0.3, 10.0), (0.3, 100.0), (1.0, 10.0), (1.0, 100.0)),
    "multi30k": _pairs((1.0, 10.0), (3.0, 10.0), (3.0, 100.0), (10.0, 100.0)),
}
"""Around the rates of SGD, ten times as large because momentum here averages instead of adding up."""
_RATES = {
    "all": grid({}, {"lr": 0.01}, {"lr": 0.03}, {"lr": 0.1}, {"lr": 0.3}),
    "multi30k": grid({}, {"lr": 0.03}, {"lr": 0.1}, {"lr": 0.3}, {"lr": 1.0}),
}


def _long(configurations: tuple[dict[str, Any], ...], *lengths: int) -> dict[str, tuple[dict[str, Any], ...]]:
    """The grid on CIFAR-10 with each of these numbers of epochs."""
    return {"cifar10": tuple(options | {"epochs": epochs} for epochs in lengths for options in configurations)}


LENGTHS = 8, 16, 24
"""Epochs among which the rows of "own length" choose on validation data; 4 are those of the study."""
ROWS: dict[str, Row] = {
    "fngd": Row(
        _fngd,
        _FNGD,
        "fngd",
        indexed=True,
        timed={"coefficients measured": {"freeze_after": None}, "coefficients kept": {"freeze_after": 1}},
    ),
    "fngd-measured": Row(_natural("fngd", freeze_after=None), _FNGD, "fngd", indexed=True),
    "kfac": Row(_KFAC, {"all": _KRON}, "kfac", period=EVERY),
    "adamw": Row(_adamw, {"all": grid({"weight_decay": 1e-2}, *({"lr": lr} for lr in (1e-3, 3e-3, 1e-2, 3e-2)))}),
    "sgd": Row(_sgd, _RATES),
    "smw": Row(_smw, {"all": _pairs((0.3, 0.1), (1.0, 1.0), (3.0, 1.0), (3.0, 10.0))}, "smw"),
    "seng": Row(_seng, {"all": _pairs((0.1, 0.3), (1.0, 0.5), (1.0, 2.0), (3.0, 2.0))}, "seng", period=EVERY),
    "sngd": Row(
        _natural("sngd", refresh_every=EVERY, momentum=0.9),
        {"all": _pairs((0.1, 0.01), (0.1, 0.1), (0.1, 1.0), (0.3, 0.1))},
        "sngd",
        period=EVERY,
    ),
    "ekfac": Row(_kronecker("ekfac", EigenKronecker), {"all": _KRON}, "ekfac", period=EVERY),
    "mfac": Row(
        _natural("mfac", momentum=0.9), {"all": _pairs((0.1, 1e-3), (0.1, 1e-2), (0.1, 1e-1), (0.3, 1e-1))}, "mfac"
    ),
    "kfac-paper": Row(
        _kronecker("kfac", Kronecker, PAPER, damping="factored"), {"cifar10": _KRON}, "kfac", period=PAPER[1]
    ),
    "fngd-kfac-time": Row(_fngd, _long(_FNGD["all"], 9), "fngd", indexed=True),
    "sgd-kfac-time": Row(_sgd, _long(_RATES["all"], 13)),
    "kfac-own-length": Row(_KFAC, _long(_KRON, *LENGTHS), "kfac", period=EVERY),
    "fngd-own-length": Row(_fngd, _long(_FNGD["all"], *LENGTHS), "fngd", indexed=True),
    "sgd-own-length": Row(_sgd, _long(_RATES["all"], *LENGTHS)),
}
"""Rows in ``kfac-time`` have as many epochs as fit into the processor time of ``kfac-paper``; those of "own length"
train for as long as helps them."""
FIRST = ("fngd", "kfac", "adamw", "sgd")
"""Rows whose cells are run before those of the others."""
