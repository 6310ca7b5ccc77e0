"""The methods of the comparison, each with its configurations: four, and eight of AdamW and SGD on CIFAR-10."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import vogn

EVERY = {"observe_every": 5}


def _natural(name: str, variational: bool, **fixed: Any) -> Callable[..., torch.optim.Optimizer]:
    def build(model: nn.Module, n: int, *, lr: float, prior: float, temperature: float, seed: int, **rest: Any) -> Any:
        ess = n / temperature
        options = fixed | rest
        return vogn.METHODS[name].build(
            model, lr=lr, ess=ess, weight_decay=prior / ess, variational=variational, seed=seed, **options
        )

    return build


def _adamw(model: nn.Module, n: int, *, lr: float, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def _sgd(model: nn.Module, n: int, *, lr: float, weight_decay: float, seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)


def _ivon_opt(
    model: nn.Module,
    n: int,
    *,
    lr: float,
    prior: float,
    temperature: float,
    initial_curvature: float,
    curvature_decay: float = 0.99999,
    clip_radius: float = math.inf,
    rescale_lr: bool = True,
    seed: int,
) -> Any:
    try:
        import ivon
    except ImportError:
        sys.exit("the ivon-opt row needs the bench extra: pip install 'vogn[bench]'")
    ess = n / temperature
    return ivon.IVON(
        model.parameters(), lr=lr, ess=ess, weight_decay=prior / ess, hess_init=initial_curvature,
        beta2=curvature_decay, clip_radius=clip_radius, rescale_lr=rescale_lr,
    )  # fmt: skip


def grid(base: Mapping[str, Any], *changes: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The base configuration with each of the changes."""
    return tuple(dict(base) | dict(change) for change in changes)


def _rates(*rates: float, **values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({"lr": lr} | values for lr in rates)


@dataclass(frozen=True)
class Row:
    """A method: how it is built and its configurations."""

    build: Callable[..., Any]
    grids: Mapping[str, tuple[dict[str, Any], ...]]
    samples: bool = False
    """Whether weights are sampled, so that the posterior predictive is what counts."""
    epochs_of: str = ""
    """Train for the wall time of this other row instead of the same number of epochs."""
    at_size: bool = False
    """Tune with as many images as the final runs have: a temperature tuned with fewer is colder with more."""

    def configurations(self, study: str) -> tuple[dict[str, Any], ...]:
        """The configurations for a study: its own, those of its reduced form, or those that the others share."""
        names = (study, study.removesuffix("-full"), "default")
        return next(self.grids[name] for name in names if name in self.grids)


_VOGN = {
    "default": grid(
        {"lr": 0.05, "damping": 0.03, "prior": 1000.0, "temperature": 0.001},
        {},
        {"lr": 0.1, "damping": 0.1},
        {"lr": 0.005, "damping": 0.001},
        {"temperature": 0.003},
    ),
    "mnist": grid(
        {"lr": 0.5, "damping": 1e-4, "clip_radius": 0.01, "prior": 1000.0, "temperature": 0.001},
        {},
        {"lr": 1.0},
        {"lr": 0.3, "damping": 3e-4, "clip_radius": 0.03},
        {"damping": 1e-3},
    ),
    "cifar10": (
        *grid(
            {"lr": 0.2, "damping": 1e-3, "clip_radius": 0.01, "prior": 1000.0, "temperature": 0.001},
            {},
            {"damping": 1e-4},
            {"lr": 0.5, "damping": 1e-4},
        ),
        {"lr": 0.01, "damping": 0.001, "prior": 10000.0, "temperature": 0.0001},
    ),
    "mnist-full": grid(
        {"lr": 0.5, "damping": 1e-3, "clip_radius": 0.01, "prior": 1000.0, "temperature": 0.001},
        {},
        {"lr": 1.0},
        {"lr": 1.0, "damping": 3e-4},
        {"prior": 5000.0},
    ),
    "cifar10-full": grid(
        {"lr": 0.2, "damping": 1e-3, "clip_radius": 0.01, "prior": 5000.0, "temperature": 0.001},
        {},
        {"prior": 1000.0},
        {"prior": 15000.0},
        {"temperature": 0.003},
    ),
}
_PRIORS = grid(
    {"lr": 0.1, "prior": 100.0, "temperature": 0.01},
    {},
    {"temperature": 0.003},
    {"prior": 300.0, "temperature": 0.003},
    {"prior": 1000.0, "temperature": 0.003},
)
_WARMER = grid(
    {"lr": 0.1, "prior": 100.0, "temperature": 0.01},
    {},
    {"temperature": 0.03},
    {"temperature": 0.1, "prior": 30.0},
    {"temperature": 0.003, "prior": 300.0},
)
_COLDER = grid({"lr": 0.1}, {"prior": 1000.0, "temperature": 0.003}, {"prior": 3000.0, "temperature": 0.001})
_KRON = {
    "default": grid(
        {"lr": 0.1, "prior": 100.0, "temperature": 0.01}, {}, {"temperature": 0.003}, {"temperature": 0.03}, {"lr": 0.3}
    ),
    "mnist": _PRIORS,
    "cifar10": _PRIORS,
    "mnist-full": (*_WARMER, *_COLDER),
    "cifar10-full": _WARMER,
}
_BOUNDED = {
    "prior": 1000.0, "temperature": 0.001, "initial_curvature": 0.003, "curvature_decay": 0.99, "clip_radius": 0.01,
    "rescale_lr": False,
}  # fmt: skip
"""IVON with a small start of the curvature, and a bound on the elements of its step that makes that safe."""
_IVON = {
    "default": grid(
        {"lr": 2.0, "prior": 10.0, "temperature": 0.1, "initial_curvature": 0.3},
        {},
        {"lr": 1.0},
        {"temperature": 0.01, "initial_curvature": 0.1},
        {"lr": 1.0, "temperature": 0.01, "initial_curvature": 0.1},
    ),
    "mnist": grid(
        _BOUNDED | {"lr": 0.5},
        {},
        {"lr": 1.0},
        {"curvature_decay": 0.998},
        {"prior": 100.0, "temperature": 0.01},
    ),
    "cifar10": (
        *grid(_BOUNDED | {"lr": 0.3}, {}, {"lr": 0.1}, {"lr": 0.1, "prior": 10000.0, "temperature": 0.0001}),
        {"lr": 1.0, "prior": 10.0, "temperature": 0.1, "initial_curvature": 0.3, "curvature_decay": 0.998},
    ),
    "cifar10-full": grid(
        {"lr": 2.0, "prior": 10.0, "temperature": 0.3, "initial_curvature": 0.3},
        {},
        {"temperature": 0.1},
        {"prior": 100.0, "temperature": 0.03, "initial_curvature": 0.1, "curvature_decay": 0.999},
        _BOUNDED | {"lr": 0.3, "temperature": 0.01},
    ),
}
_SGD = {
    "default": grid({"weight_decay": 5e-4}, {"lr": 0.1}, {"lr": 0.03}, {"lr": 0.1, "weight_decay": 5e-3}, {"lr": 0.3}),
    "mnist": grid(
        {"lr": 0.3, "weight_decay": 5e-4},
        {},
        {"lr": 0.1},
        {"lr": 0.5},
        {"lr": 1.0},
        {"weight_decay": 5e-3},
        {"weight_decay": 5e-5},
    ),
    "cifar10": grid(
        {"lr": 0.03, "weight_decay": 5e-4},
        {"lr": 0.3},
        {"lr": 0.1},
        {"lr": 0.1, "weight_decay": 5e-3},
        {},
        {"weight_decay": 5e-3},
        {"weight_decay": 2e-2},
        {"lr": 0.01},
        {"lr": 0.01, "weight_decay": 5e-3},
    ),
}
_ADAMW = {
    "default": grid(
        {"weight_decay": 1e-2}, {"lr": 1e-3}, {"lr": 3e-3}, {"lr": 1e-2}, {"lr": 3e-3, "weight_decay": 1e-1}
    ),
    "mnist": grid(
        {"lr": 1e-2, "weight_decay": 1e-2},
        {},
        {"lr": 3e-3},
        {"lr": 2e-2},
        {"lr": 3e-2},
        {"weight_decay": 1e-1},
        {"weight_decay": 3e-1},
    ),
    "cifar10": grid(
        {"lr": 3e-3, "weight_decay": 1e-2},
        {"weight_decay": 1.0},
        {"weight_decay": 3e-1},
        {"weight_decay": 1e-1},
        {},
        {"lr": 1e-2},
        {"lr": 1e-2, "weight_decay": 1e-1},
        {"lr": 1e-2, "weight_decay": 3e-1},
        {"lr": 1e-3},
    ),
}
ROWS: dict[str, Row] = {
    "vogn": Row(_natural("vogn", True, **EVERY), _VOGN, samples=True),
    "vogn-det": Row(_natural("vogn", False, **EVERY), _VOGN),
    "ivon": Row(_natural("ivon", True), _IVON, samples=True),
    "ivon-det": Row(_natural("ivon", False, **EVERY), _IVON),
    "kfac": Row(_natural("kfac", True, **EVERY), _KRON, samples=True),
    "kfac-det": Row(_natural("kfac", False, **EVERY), _KRON),
    "ekfac": Row(_natural("ekfac", True, **EVERY), _KRON, samples=True),
    "ekfac-det": Row(_natural("ekfac", False, **EVERY), _KRON),
    "kfac-at-size": Row(_natural("kfac", True, **EVERY), _KRON, samples=True, at_size=True),
    "ekfac-factored": Row(_natural("ekfac", True, factored=True, **EVERY), _KRON, samples=True),
    "kfac-exact": Row(_natural("kfac", True, factored=False, **EVERY), _KRON, samples=True),
    "adamw": Row(_adamw, _ADAMW),
    "sgd": Row(_sgd, _SGD),
    "ivon-opt": Row(_ivon_opt, _IVON, samples=True),
    "adamw-time": Row(_adamw, _ADAMW, epochs_of="vogn"),
    "sgd-time": Row(_sgd, _SGD, epochs_of="vogn"),
    "adamw-kfac-time": Row(_adamw, _ADAMW, epochs_of="kfac"),
}


def base_of(method: str) -> str:
    """The row that a timed row takes its configuration from; any other row itself."""
    return method.split("-")[0] if ROWS[method].epochs_of else method
