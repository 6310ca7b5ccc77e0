"""The rows of tables about training steps: every method of the registry in its modes, torch's optimizers, peers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import vogn
from benchmarks.speed.cases import Case
from benchmarks.speed.measuring import UnaffordableError, call_seconds
from benchmarks.speed.peers import PEERS
from vogn.capture.statistics import Price
from vogn.likelihoods import Categorical

SGD, ADAMW = "SGD, momentum, fused", "AdamW, fused"
STATE_LIMIT = {"cpu": 2**29, "cuda": 2**33}
"""Bytes of optimizer state that a row may need, by type of device."""
NEVER = 10**9
"""An interval that does not end."""


@dataclass(frozen=True)
class Row:
    """An optimizer in a table.

    Args:
        build: makes it for a model.
        period: steps that repeat, for optimizers with a schedule of their own.
        context: what forward and backward run inside.
        method: its name in the registry; ``""`` for torch's and peers'.
    """

    build: Callable[[nn.Module], Any]
    period: int = 1
    context: Callable[[Any], AbstractContextManager[Any]] = lambda optimizer: nullcontext()
    method: str = ""


def _sampled(optimizer: vogn.NaturalGradient, variational: bool, places: torch.Tensor | None) -> ExitStack:
    """The context of a sample; second derivatives need attention that has them."""
    stack = ExitStack()
    if not variational and any(isinstance(statistic, Price) for statistic in optimizer.statistics):
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
    stack.enter_context(optimizer.sampled_params(**({} if places is None else {"indices": places})))
    return stack


def our_row(method: str, variational: bool, *, examples: int = 0, **options: Any) -> Row:
    """A method of the registry; ``examples``: tell it where the examples of the batch stand, as many as these."""
    places = torch.arange(examples) if examples else None
    return Row(
        lambda model: vogn.METHODS[method].build(model, lr=1e-5, ess=5e6, variational=variational, **options),
        context=lambda optimizer: _sampled(optimizer, variational, places),
        method=method,
    )


QUARTER = "kfac 10/100, a quarter (deterministic)"
"""Statistics on the first quarter of the batch."""


def mode_name(method: str, mode: str) -> str:
    """Name of a registry row."""
    return f"{method} ({mode})"


def registry_rows(case: Case) -> dict[str, Row]:
    """One row for every method and mode of the registry."""
    rows = {}
    for method, info in vogn.METHODS.items():
        for mode in info.modes:
            examples = case.shape[0] if method == "fngd" else 0
            rows[mode_name(method, mode)] = our_row(method, mode == "variational", examples=examples)
    return rows


def rows_of(case: Case) -> dict[str, Row]:
    """All rows: torch's, the registry's, schedules and sizes that users choose, peers'."""
    schedule = {"observe_every": 10, "refresh_every": 100}
    return {
        SGD: Row(lambda m: torch.optim.SGD(m.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4, fused=True)),
        ADAMW: Row(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True)),
        **registry_rows(case),
        "clipped vogn (variational)": our_row("vogn", True, clip_radius=0.01),
        "clipped ivon (variational)": our_row("ivon", True, clip_radius=0.01),
        "kfac 10/100 (variational)": our_row("kfac", True, **schedule),
        "kfac 10/100 (deterministic)": our_row("kfac", False, **schedule),
        QUARTER: our_row("kfac", False, curvature_examples=case.shape[0] // 4, **schedule),
        "ekfac 10/100 (variational)": our_row("ekfac", True, **schedule),
        "slang rank 8 (variational)": our_row("slang", True, rank=8),
        "fngd frozen (deterministic)": our_row("fngd", False, examples=case.shape[0], freeze_after=1),
        **{name: Row(peer.build, peer.period, peer.context) for name, peer in PEERS.items()},
    }


FOCUS = (
    SGD,
    ADAMW,
    "ivon (variational)",
    "vadam (variational)",
    "vogn (variational)",
    "vogn (deterministic)",
    "kfac 10/100 (variational)",
    "kfac 10/100 (deterministic)",
    "slang rank 8 (variational)",
    "ivon-opt",
)
"""The rows of the short form."""


@dataclass
class Runner:
    """An optimizer on its own copy of a network; every step sees the same batch.

    The kinds of steps of a schedule are measured one by one and charged by how often they occur.

    Args:
        case: network and batch.
        row: the optimizer.
        device: where both are; on the CPU steps are measured in processor time, else in elapsed time.
    """

    case: Case
    row: Row
    device: torch.device = torch.device("cpu")
    kinds: dict[str, tuple[float, dict[str, int]]] = field(init=False)
    """Kind of a step to its share of the steps and to the group entries that make it."""
    first_seconds: float = field(default=0.0, init=False)
    """Time of the longest kind of step, when warming up."""

    def __post_init__(self) -> None:
        self.model = self.case.model().to(self.device)
        self.x, self.y = (tensor.to(self.device) for tensor in self.case.batch())
        self.likelihood = Categorical()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.optimizer = self.row.build(self.model)
            if isinstance(self.optimizer, vogn.NaturalGradient):
                require_affordable(self.optimizer, STATE_LIMIT[self.device.type])
        self.kinds = self._kinds()

    def _kinds(self) -> dict[str, tuple[float, dict[str, int]]]:
        if not isinstance(self.optimizer, vogn.NaturalGradient):
            return {"step": (1.0, {})}
        group = self.optimizer.param_groups[0]
        observe, refresh = int(group["observe_every"]), int(group["refresh_every"])
        if observe == refresh == 1:
            return {"step": (1.0, {})}
        shares = {
            "plain": (1.0 - 1.0 / observe, {"observe_every": NEVER, "refresh_every": NEVER}),
            "observing": (1.0 / observe - 1.0 / refresh, {"observe_every": 1, "refresh_every": NEVER}),
            "refreshing": (1.0 / refresh, {"observe_every": 1, "refresh_every": 1}),
        }
        return {kind: (share, entries) for kind, (share, entries) in shares.items() if share > 1e-12}

    def step(self) -> None:
        """Forward, backward and update."""
        self.optimizer.zero_grad()
        with self.row.context(self.optimizer):
            self.likelihood(self.model(self.x), self.y).backward()
        self.optimizer.step()

    def warm_up(self) -> None:
        """A step of every kind, and one more; after them nothing happens for the first time."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.step()
            self.first_seconds = max(self.seconds_of(kind, 1) for kind in self.kinds)

    def seconds_of(self, kind: str, steps: int) -> float:
        """Time of a step of a kind."""
        if isinstance(self.optimizer, vogn.NaturalGradient):
            for group in self.optimizer.param_groups:
                group.update(self.kinds[kind][1])
        return call_seconds(self.step, steps, None if self.device.type == "cpu" else torch.cuda.synchronize)

    def seconds(self, steps: int) -> float:
        """Time of a step, averaged over the schedule."""
        whole = -(-steps // self.row.period) * self.row.period
        found = sum(share * self.seconds_of(kind, whole) for kind, (share, _) in self.kinds.items())
        self.optimizer.zero_grad()  # all rows share one limit on memory
        return found


def require_affordable(optimizer: vogn.NaturalGradient, limit: int = STATE_LIMIT["cpu"]) -> None:
    """The method keeps what it is named after, within the limit on its state.

    Raises:
        UnaffordableError: if all its blocks got a fallback structure, or its state is too large.
    """
    rows = [row for row in optimizer.coverage() if row["block"] == row["parameter"]]
    wanted = type(optimizer.structure).__name__
    if all(row["structure"] != wanted for row in rows):
        raise UnaffordableError(f"{wanted} is not affordable: {rows[0]['note']}")
    size = sum(row["bytes"] for row in rows)
    if size > limit:
        raise UnaffordableError(f"its state is {size / 2**20:.0f} MiB; the limit here is {limit / 2**20:.0f} MiB")


def chosen(rows: Mapping[str, Row], beginnings: list[str] | None, short: bool) -> dict[str, Row]:
    """The rows that are asked for; SGD and AdamW are always there."""
    if beginnings is not None:
        return {n: row for n, row in rows.items() if n in (SGD, ADAMW) or n.startswith(tuple(beginnings))}
    return {n: row for n, row in rows.items() if not short or n in FOCUS}


__all__ = ["ADAMW", "FOCUS", "SGD", "Row", "Runner", "UnaffordableError", "chosen", "rows_of"]
