"""The collector: observations of one optimizer between two steps.

It listens to taps and likelihoods while a sampled context is open, lets the statistics turn what it hears into
observations, and normalises them once for all structures (:mod:`vogn.capture.ledger`): structures never see batch size,
loss scale or reduction.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall, start_listening, stop_listening
from vogn.capture.gather import check_examples, gather, without_padding
from vogn.capture.ledger import Announcement, Ledger, Source, normalise
from vogn.capture.own_pass import own_pass, stack_columns
from vogn.capture.partition import Block, Member
from vogn.capture.pooling import Agreement, pool
from vogn.capture.replication import check_noise, check_not_sharded, check_own_pass, sharded_block
from vogn.capture.statistics.base import Statistic
from vogn.capture.taps import Call, Taps, is_muted, join_calls, muted
from vogn.distributed import LocalGradients, Replicas, is_sharded
from vogn.errors import MissingCurvatureError, UnsupportedObservationError
from vogn.linalg.noise import generator
from vogn.linalg.rows import AnyRows, IndexedRows, Rows
from vogn.types import Observation, State


@dataclass(frozen=True)
class SampleContext:
    """What is fixed while one weight sample is in the model.

    Args:
        seed, step, sample: coordinates of the noise.
        displacement: block name to ``theta - m`` as a block vector; empty in deterministic mode.
        ess, shift: block name to effective sample size and prior shift.
        rank: a further coordinate of the noise where processes draw their own.
    """

    seed: int
    step: int
    sample: int
    displacement: Mapping[str, Tensor]
    ess: Mapping[str, float]
    shift: Mapping[str, float]
    rank: int = 0


SUM_TOLERANCE = 0.05
"""Relative difference between a gradient and the sum of its rows above which :class:`Collector` warns: far above the
rounding of half precision."""


class Collector:
    """Observations of a list of blocks.

    Args:
        blocks: the optimizer's blocks.
        statistics: what is measured.
        state_of: block to its curvature state.
        gradient_of: block to its packed ``.grad`` (zeros where a parameter has none).
        loss_reduction: ``"mean"`` or ``"sum"`` over the loss terms.
        loss_scale: returns the factor on the loss during backward (gradient scaling), 1 if there is none.
        replicas: the processes that train copies of the model.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        statistics: Sequence[Statistic],
        *,
        state_of: Callable[[Block], State],
        gradient_of: Callable[[Block], Tensor],
        loss_reduction: str,
        loss_scale: Callable[[], float],
        replicas: Replicas | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self.statistics = tuple(statistics)
        self.state_of = state_of
        self.gradient_of = gradient_of
        self.loss_reduction = loss_reduction
        self.loss_scale = loss_scale
        self.replicas = replicas or Replicas(process_group=None)
        self.context: SampleContext | None = None
        members = [member for block in blocks for member in block.members if member.rule is not None]
        self._block_of = {member: block for block in blocks for member in block.members}
        pairs = any(statistic.NEEDS_PAIRS for statistic in statistics)
        user = any("backward" in statistic.WHEN for statistic in statistics)
        self._taps = Taps(members if pairs else [], self._on_gradient if user else None)
        self._waiting: list[Call] = []
        self._active = self._fresh = False
        self._row_counts: dict[Member, int] = {}
        self._queued = False
        self._spent: list[weakref.ref[Tensor]] = []
        self._sums: dict[str, Tensor] = {}
        self._unchecked = {block.name for block in blocks}
        self.seen: set[Member] = set()
        """Members whose rows have ever been observed."""
        self._streams: dict[str, torch.Generator] = {}
        self._ledger = Ledger()
        self._pooled = 1
        self._local: LocalGradients | None = None
        self.likelihood: Any = None
        """The likelihood that was heard last."""
        self.clear()

    # ------------------------------------------------------------------ life of the observations

    def clear(self) -> None:
        """Forget all observations; called with ``zero_grad``.

        A likelihood call inside the open context whose backward has not begun is kept: its gradients are yet to come.
        """
        self._before = Ledger()
        self._pooled = 1
        self.scale_seen = 1.0
        self.entry_gradients: dict[str, Tensor] = {}
        self._waiting.clear()
        if self._local is not None:
            self._local.reset()
        if self.context is not None and self._ledger.open:
            self._ledger = self._ledger.only_open()
        else:
            self._ledger = Ledger()
            self._taps.calls.clear()

    def begin(self, context: SampleContext, *, active: bool = True) -> None:
        """Open a sampled context: attach the taps and listen to likelihoods.

        ``active=False`` only counts loss terms (steps between two observations).
        """
        check_noise(self.blocks, context.displacement, self.replicas)
        if self._pooled > 1:
            self.clear()  # left by a step that failed: it is not this process's alone
        self.context = context
        self._streams.clear()
        self._active = active
        self._before = self._ledger.copy()
        self._sums.clear()
        if active:
            self._fresh = all(parameter.grad is None for block in self.blocks for parameter in block.parameters)
            for statistic in self.statistics:
                statistic.on_entry(self)
            self._taps.attach()
            self._watch_local_gradients()
        start_listening(self.on_likelihood)

    def end(self, *, completed: bool) -> None:
        """Close the context; ``completed=False`` (an exception) drops everything that it has observed."""
        stop_listening(self.on_likelihood)
        kept = self._before
        try:
            if completed:
                self.scale_seen = self.loss_scale()
                self._end_of_backward()
                self._ledger.open = []  # evaluated, but no backward came: logging
                self._check_sums()
                if self._active:
                    for statistic in self.statistics:
                        statistic.on_exit(self)
                kept = self._ledger
        finally:
            self._ledger = kept
            self._waiting.clear()
            self._row_counts.clear()
            self._spent.clear()
            self._queued = False
            self._taps.detach()
            if self._local is not None:
                self._local.detach()
            self._local = None
            self.entry_gradients.clear()
            self.context = None

    # ------------------------------------------------------------------ events

    def on_likelihood(self, call: LikelihoodCall) -> None:
        """A likelihood has been evaluated inside the context."""
        if not (torch.is_grad_enabled() and call.outputs.requires_grad):
            return
        if any(spent() is call.outputs for spent in self._spent):
            return  # its backward is over: the call is for logging
        announcement = self._ledger.announce(call.count, call.outputs.shape[0], call.mask)
        self.likelihood = call.likelihood
        outputs = weakref.ref(call.outputs)
        call.outputs.register_hook(lambda grad: self._reached(announcement, outputs))
        if self._active:
            for statistic in self.statistics:
                statistic.on_likelihood(self, call)

    def _reached(self, announcement: Announcement, outputs: weakref.ref[Tensor]) -> None:
        """The user's backward begins at the outputs of a likelihood call."""
        if not is_muted():
            self._spent.append(outputs)
            self._ledger.reach(announcement)
            self._in_backward()

    def _in_backward(self) -> None:
        """Note the loss scale, and be called when this backward ends."""
        self.scale_seen = self.loss_scale()
        if not self._queued:
            self._queued = True
            torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)

    def _on_gradient(self, call: Call) -> None:
        """The user's backward has reached a layer."""
        block = self._block_of[call.member]
        if not self.observes_user_backward(block):
            return
        self._in_backward()
        open_calls = [other for other in self._taps.calls if other.member is call.member]
        if len(open_calls) == 1 and call.key is None and not block.joined:
            self._taps.calls.remove(call)
            self._deliver(block, {call.member: [call]})
            return
        self._waiting.append(call)

    def observes_user_backward(self, block: Block) -> bool:
        """Blocks with bare parameters are measured in a pass of our own instead."""
        return not block.has_bare

    def _end_of_backward(self) -> None:
        """Deliver the layers that were called several times and the joined blocks, then count the loss terms."""
        self._queued = False
        calls, self._waiting = self._waiting, []
        by_block: dict[Block, dict[Member, list[Call]]] = {}
        for call in calls:
            if call in self._taps.calls:
                self._taps.calls.remove(call)
            by_block.setdefault(self._block_of[call.member], {}).setdefault(call.member, []).append(call)
        repeated = [m for by_member in by_block.values() for m, found in by_member.items() if len(found) > 1]
        if repeated and len(self._ledger.reached) > 1:
            raise UnsupportedObservationError(
                f"one backward covers {len(self._ledger.reached)} losses and several calls of layer "
                f"{repeated[0].layout.names[0]!r}: their examples cannot be told apart. Call backward once per "
                "micro-batch, inside the same context"
            )
        for block, by_member in by_block.items():
            self._deliver(block, by_member)
        counts, self._row_counts = self._row_counts, {}
        check_examples(counts, max((a.examples for a in self._ledger.reached), default=None))
        if self._taps.on_gradient is None:
            self._taps.release(set().union(*(announcement.touched for announcement in self._ledger.reached)))
        self._ledger.settle()

    def _deliver(self, block: Block, by_member: Mapping[Member, Sequence[Call]]) -> None:
        with torch.no_grad():
            reached = self._ledger.reached
            mask = reached[0].mask if len(reached) == 1 else None
            rows_of = {
                member: [without_padding(rows, mask) for rows in join_calls(calls)]
                for member, calls in by_member.items()
            }
            for calls in by_member.values():
                for call in calls:
                    call.forget()
            for member, found in rows_of.items():
                self._row_counts[member] = max(rows.count for rows in found)
                self.seen.add(member)
            for rows in gather(block, rows_of):
                for statistic in self.statistics:
                    statistic.on_rows(self, block, rows)

    def note_sum(self, block: Block, rows: AnyRows) -> None:
        """Keep the sum of the rows of a block's first context: it must be the block's gradient."""
        if self._fresh and block.name in self._unchecked:
            ones = torch.ones(rows.columns, rows.count, dtype=self.dtype_of(block), device=block.parameters[0].device)
            total = rows.rmatvec(ones)
            self._sums[block.name] = self._sums[block.name] + total if block.name in self._sums else total

    def _check_sums(self) -> None:
        """Warn about weights whose gradient comes only in part through their layer; once per block."""
        for block in self.blocks:
            if block.name not in self._sums:
                continue
            self._unchecked.discard(block.name)
            if self.replicas.size > 1 and sharded_block([block]):
                continue  # its gradient is an average over processes, its rows are not
            gradient, total = self.context_gradient(block), self._sums[block.name]
            if gradient is None or not bool(total.isfinite().all()):
                continue
            if not bool((gradient - total).norm() <= SUM_TOLERANCE * gradient.norm()):
                warnings.warn(
                    f"block {block.name!r}: part of its gradient does not come through its layer's forward (a weight "
                    "used elsewhere too, or a penalty in the loss): its curvature covers only the part that does",
                    stacklevel=2,
                )
        self._sums.clear()

    def _watch_local_gradients(self) -> None:
        """Where ``.grad`` is an average over processes, record what it is an average of, for those who need it."""
        if self.replicas.size == 1:
            return
        products = any("sample_exit" in statistic.WHEN for statistic in self.statistics)
        compared = self._fresh and any("backward" in statistic.WHEN for statistic in self.statistics)
        watched = [
            parameter
            for block in self.blocks
            if products or (compared and not block.has_bare and block.name in self._unchecked)
            for parameter in block.parameters
            if not is_sharded(parameter)
        ]
        if watched:
            self._local = LocalGradients(watched, is_muted)
            self._local.attach()

    def context_gradient(self, block: Block) -> Tensor | None:
        """What this context has added to a block's gradient on this process; ``None`` if nothing."""
        if self._local is not None and not sharded_block([block]):
            found = {n: self._local.get(p) for n, p in zip(block.layout.names, block.parameters, strict=True)}
            if all(gradient is None for gradient in found.values()):
                return None
            named = {
                name: torch.zeros_like(parameter) if (gradient := found[name]) is None else gradient
                for name, parameter in zip(block.layout.names, block.parameters, strict=True)
            }
            return block.layout.pack(named).to(self.dtype_of(block))
        if all(parameter.grad is None for parameter in block.parameters):
            return None
        gradient = self.gradient_of(block)
        return gradient - self.entry_gradients[block.name] if block.name in self.entry_gradients else gradient

    # ------------------------------------------------------------------ services for the statistics

    @staticmethod
    def dtype_of(block: Block) -> torch.dtype:
        """Curvature arithmetic is done in float32 at least."""
        dtype = block.parameters[0].dtype
        return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype

    def own_rows(self, call: LikelihoodCall, columns: Tensor, blocks: Sequence[Block]) -> list[tuple[Block, AnyRows]]:
        """Rows of a pass of our own from ``call.outputs`` with the given gradient columns ``(K, *outputs.shape)``.

        ``.grad`` and the user's graph stay untouched.
        """
        check_own_pass(call.outputs, self.statistics, self.replicas)
        wanted = {member for block in blocks for member in block.members}
        calls = [tap for tap in self._taps.calls if tap.member in wanted]
        bare = [member for member in wanted if member.rule is None]
        check_not_sharded([block for block in blocks if block.has_bare], "per-example gradients", self.statistics)
        unseen = wanted - {tap.member for tap in calls} - set(bare)
        with muted(), self._taps.hearing() as heard:
            grads, bare_rows = own_pass(
                call.outputs,
                columns,
                calls,
                bare,
                [member for block in self.blocks for member in block.members if member in unseen],
            )
        compiled = [tap for tap in stack_columns(heard, len(columns)) if tap.member in wanted]
        by_member: dict[Member, list[Call]] = {}
        for tap, grad in zip(calls, grads, strict=True):
            if grad is not None:
                by_member.setdefault(tap.member, []).append(replace(tap, grad=grad))
        for tap in compiled:
            by_member.setdefault(tap.member, []).append(tap)
        rows_of: dict[Member, list[Rows | IndexedRows]] = {
            member: [without_padding(rows, call.mask) for rows in join_calls(taps)]
            for member, taps in by_member.items()
        }
        check_examples({member: max(r.count for r in rows) for member, rows in rows_of.items()}, call.outputs.shape[0])
        rows_of |= {member: [rows] for member, rows in bare_rows.items()}
        self.seen.update(rows_of)
        self._ledger.open[-1].touched.update(id(c) for c, g in zip(calls, grads, strict=True) if g is not None)
        self._ledger.open[-1].touched.update(-1 - tap.key for tap in compiled if tap.key is not None)
        return [(block, rows) for block in blocks for rows in gather(block, rows_of)]

    def stream(self, name: str, device: torch.device) -> torch.Generator:
        """A named stream of random numbers of this context; micro-batches draw from it in turn."""
        assert self.context is not None
        if name not in self._streams:
            context = self.context
            self._streams[name] = generator(
                seed=context.seed,
                stream=name,
                step=context.step,
                sample=context.sample,
                rank=context.rank,
                device=device,
            )
        return self._streams[name]

    def add(self, block: Block, leaves: Observation, source: Source, *, rows: int = 0, probe: bool = False) -> None:
        """Add un-normalised leaves of a block.

        Args:
            block: one of the collector's blocks.
            leaves: what its structure has observed.
            source: where they come from.
            rows: number of rows behind them.
            probe: whether they are a probe's.
        """
        if source == "own":
            self._ledger.expect(block, leaves, rows=rows, probe=probe)
        else:
            self._ledger.add(block, leaves, source, rows=rows, probe=probe)

    # ------------------------------------------------------------------ at step()

    def pool(self, samples_of: Mapping[Block, int], numbers: Mapping[str, int]) -> None:
        """Make the evidence of this process that of all processes; nothing happens if there is only this one.

        Args:
            samples_of: block to the number of weight samples that the gradients were summed over.
            numbers: name to a number that must be the same on all processes.

        Raises:
            RuntimeError: on all processes, if their numbers or gradients differ.
        """
        if self.replicas.size == 1 or self._pooled > 1 or not self.blocks:
            return
        gradients = [
            [parameter.grad for parameter in block.parameters if parameter.grad is not None] for block in self.blocks
        ]
        # the averaging of sharded gradients cannot be forgotten, so their norms need no comparison
        norms = [g.norm().double() for of_block in gradients for g in of_block if not is_sharded(g)]
        norm = float(torch.stack([norm.to(norms[0].device) for norm in norms]).norm()) if norms else 0.0
        self.replicas.check_join()
        self._ledger, self.seen = pool(
            self._ledger,
            self.blocks,
            self.seen,
            agreement=Agreement(numbers, [bool(of_block) for of_block in gradients], norm),
            scale_of=lambda source, block: self._scale(source, block, samples_of[block]),
            dtype_of=self.dtype_of,
            replicas=self.replicas,
        )
        self._pooled = self.replicas.size

    def _scale(self, source: Source, block: Block, mc_samples: int) -> float:
        """The factor on output gradients that makes them those of the sum of this process's losses."""
        scale = 1.0 / self.scale_seen if source in ("user", "exit") else 1.0
        if source == "user" and self.loss_reduction == "mean":
            scale *= self.loss_terms(block) / mc_samples
        return scale

    @property
    def empty(self) -> bool:
        """Whether nothing has been observed since the last ``clear``."""
        return not self._ledger.records

    def loss_terms(self, block: Block) -> int:
        """Number of loss terms behind the gradients: announced by a likelihood, else the number of rows."""
        record = self._ledger.records.get("user", {}).get(block.name)
        return self._ledger.count or (record.rows if record is not None else 0)

    def finish(self, block: Block, mc_samples: int) -> Observation:
        """The normalised observation of a block, empty if nothing was observed.

        Args:
            block: one of the collector's blocks.
            mc_samples: number of weight samples that the gradients were summed over.
        """
        out: Observation = {}
        if block.name not in self._ledger.probed and any(statistic.CHANNEL == "probe" for statistic in self.statistics):
            return out  # rows beside a probe only turn its basis; alone they are no evidence
        for source, records in self._ledger.records.items():
            record = records.get(block.name)
            if record is None:
                continue
            count: float = self.loss_terms(block)
            scale = self._scale(source, block, mc_samples) if self._pooled == 1 else 1.0
            if source == "exit" and self.loss_reduction == "sum":
                self.require_count(count)
                scale /= count / mc_samples
                count = mc_samples
            elif source == "exit":
                count = mc_samples * self._pooled
            if source == "step":
                count = 1
            normal = normalise(block.structure, record.leaves, scale=scale, count=count, rows=max(1, record.rows))
            out |= normal
        return out

    @staticmethod
    def require_count(count: float) -> None:
        """Raise if the number of loss terms of a summed loss is unknown."""
        if not count:
            raise MissingCurvatureError(
                "loss_reduction='sum' needs to know the number of loss terms: compute the loss with one of "
                "vogn.likelihoods inside `with opt.sampled_params():`, or use a mean loss"
            )
