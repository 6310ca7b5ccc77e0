"""Optimizers of other packages, each imported when it is built; one that is not installed says so in its row."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from torch import nn


class NotInstalledError(Exception):
    """A package is missing."""


def load(module: str, distribution: str) -> Any:
    """A module of a package that may be missing.

    Raises:
        NotInstalledError: if the package is not installed.
    """
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise NotInstalledError(f"{distribution} is not installed") from None
    return importlib.import_module(module)


@dataclass(frozen=True)
class Peer:
    """An optimizer of another package.

    Args:
        build: makes it for a model.
        package: the distribution.
        period: steps after which its schedule repeats; a round covers a whole period.
        context: what forward and backward run inside.
    """

    build: Callable[[nn.Module], Any]
    package: str
    period: int = 1
    context: Callable[[Any], AbstractContextManager[Any]] = lambda optimizer: nullcontext()


def _ivon(model: nn.Module) -> Any:
    return load("ivon", "ivon-opt").IVON(model.parameters(), lr=1e-5, ess=5e6)


def _heavyball(name: str, **options: Any) -> Callable[[nn.Module], Any]:
    def build(model: nn.Module) -> Any:
        package = load("heavyball", "heavyball")
        package.utils.compile_mode = None  # compiling takes longer than all that is measured here
        return getattr(package, name)(model.parameters(), lr=1e-5, **options)

    return build


def _pytorch_optimizer(name: str, **options: Any) -> Callable[[nn.Module], Any]:
    return lambda model: getattr(load("pytorch_optimizer", "pytorch-optimizer"), name)(
        model.parameters(), lr=1e-5, **options
    )


def _singd(structure: str) -> Callable[[nn.Module], Any]:
    def build(model: nn.Module) -> Any:
        made = load("singd.optim.optimizer", "singd").SINGD
        known = [p for m in model.modules() if isinstance(m, made.SUPPORTED_MODULES) for p in m.parameters()]
        others = [p for p in model.parameters() if not any(p is other for other in known)]
        groups = [{"params": known}] + ([{"params": others, "lr_cov": 0.0}] if others else [])
        return made(
            model, groups, lr=1e-5, T=10, structures=(structure, structure), warn_unsupported=False, lr_cov=1e-4
        )

    return build


PEERS: dict[str, Peer] = {
    "ivon-opt": Peer(_ivon, "ivon-opt", context=lambda optimizer: optimizer.sampled_params(train=True)),
    "heavyball SOAP, every 10": Peer(_heavyball("SOAP", precondition_frequency=10), "heavyball", 10),
    "heavyball Muon": Peer(_heavyball("Muon"), "heavyball"),
    "pytorch-optimizer SOAP, every 10": Peer(
        _pytorch_optimizer("SOAP", precondition_frequency=10), "pytorch-optimizer", 10
    ),
    "pytorch-optimizer Shampoo, every 10": Peer(
        _pytorch_optimizer("ScalableShampoo", preconditioning_compute_steps=10, start_preconditioning_step=1),
        "pytorch-optimizer",
        10,
    ),
    "singd dense, every 10": Peer(_singd("dense"), "singd", 10),
    "singd diagonal, every 10": Peer(_singd("diagonal"), "singd", 10),
}
"""Name of the row to the optimizer."""

OTHER_PACKAGES = ("backpack-for-pytorch", "opacus", "curvlinops-for-pytorch")
"""Peers of the other questions."""


def peer_versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {}
    for package in sorted({peer.package for peer in PEERS.values()} | set(OTHER_PACKAGES)):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
