"""The collector: observations of one optimizer between two steps.

It listens to taps and likelihoods while a sampled context is open, lets the statistics turn what it hears into
observations, and normalises them once for all structures (:mod:`vogn.capture.normalisation`): structures never see
batch size, loss scale or reduction.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall, start_listening, stop_listening
from vogn.capture.bundles import Bundle, Bundles
from vogn.capture.context import SampleContext
from vogn.capture.context_gradients import ContextGradients
from vogn.capture.gather import check_examples, gather, with_places, without_padding
from vogn.capture.gradients_from_rows import GradientsFromRows
from vogn.capture.ledger import Announcement, Ledger, Source
from vogn.capture.loss_factor import LossFactor
from vogn.capture.normalisation import Leaf, Normalisation
from vogn.capture.own_pass import member_rows
from vogn.capture.partition import Block, Member
from vogn.capture.pooling import agreement_of, pool
from vogn.capture.replication import check_noise, check_not_sharded, check_own_pass
from vogn.capture.reweighting import Reweighting
from vogn.capture.row_sums import RowSums
from vogn.capture.statistics.base import Statistic
from vogn.capture.taps import Call, Taps, is_muted, join_calls, passed_twice
from vogn.distributed import Placement, Replicas
from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows
from vogn.types import Observation, State


class Collector:
    """Observations of a list of blocks.

    Args:
        blocks: the optimizer's blocks.
        statistics: what is measured.
        state_of: block to its curvature state, as far as this process holds it.
        gradient_of: block to its packed ``.grad`` (zeros where a parameter has none), as far as this process holds it.
        loss_reduction: ``"mean"`` or ``"sum"`` over the loss terms.
        loss_scale: returns the factor on the loss during backward (gradient scaling), 1 if there is none.
        replicas: the processes that train copies of the model.
        placement_of: block to what of it each of them holds; ``None``: all hold everything.
        bundles: which blocks may be computed together; ``None``: none.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        statistics: Sequence[Statistic],
        *,
        state_of: Callable[[Block], State],
        gradient_of: Callable[[Block], Tensor | None],
        loss_reduction: Literal["mean", "sum"],
        loss_scale: Callable[[], float],
        replicas: Replicas | None = None,
        placement_of: Callable[[Block], Placement] | None = None,
        bundles: Bundles | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self.bundles = bundles or Bundles({}, {}, elementwise=False)
        self.statistics = tuple(statistics)
        self.state_of = state_of
        self.gradient_of = gradient_of
        self.loss_reduction = loss_reduction
        self.loss_scale = loss_scale
        self.replicas = replicas or Replicas(process_group=None)
        self._placement_of = placement_of
        self.context: SampleContext | None = None
        members = [member for block in blocks for member in block.members if member.rule is not None]
        self._block_of = {member: block for block in blocks for member in block.members}
        pairs = any(statistic.NEEDS_PAIRS for statistic in statistics)
        user = any("backward" in statistic.WHEN for statistic in statistics)
        outputs = {m for block in blocks for m in block.members if "outputs" in block.structure.reads}
        self._taps = Taps(members if pairs else [], self._on_gradient if user else None, outputs)
        self._waiting: list[Call] = []
        self._active = False
        self._row_counts: dict[Member, int] = {}
        self._queued = False
        self._spent: list[weakref.ref[Tensor]] = []
        self._gradients = ContextGradients(gradient_of, self.replicas)
        self._row_sums = RowSums(blocks)
        self._from_rows = GradientsFromRows(blocks, self.statistics)
        self._reweighting = Reweighting(blocks, self._in_backward, self.replicas)
        self.seen: set[Member] = set()
        """Members whose rows have ever been observed."""
        self._streams: dict[str, torch.Generator] = {}
        self._ledger = Ledger()
        self._normalisation = Normalisation(loss_reduction)
        self._factor = LossFactor(loss_reduction)
        self.likelihood: Any = None
        """The likelihood that was heard last."""
        self.examples = 0
        """Examples of the last completed context, if their places in the data set were asked for."""
        self.clear()

    # ------------------------------------------------------------------ life of the observations

    def clear(self) -> None:
        """Forget all observations; called with ``zero_grad``.

        A likelihood call inside the open context whose backward has not begun is kept: its gradients are yet to come.
        """
        self._before = Ledger()
        self._normalisation.reset()
        self._waiting.clear()
        self._gradients.clear()
        if self.context is not None and self._ledger.open:
            self._ledger = self._ledger.only_open()
        else:
            self._ledger = Ledger()
            self._taps.calls.clear()

    def begin(self, context: SampleContext, *, active: bool = True) -> None:
        """Open a sampled context: attach the taps and listen to likelihoods.

        ``active=False`` only counts loss terms (steps between two observations).
        """
        check_noise(self.blocks, context.displaced, self.replicas)
        if self._normalisation.processes > 1:
            self.clear()  # left by a step that failed: it is not this process's alone
        self.context = context
        self._streams.clear()
        self._active = active and not context.weights
        self._before = self._ledger.copy()
        fresh = all(parameter.grad is None for block in self.blocks for parameter in block.parameters)
        self._row_sums.begin(fresh=self._active and fresh)
        if context.weights:
            assert context.places is not None
            self._reweighting.attach(context.weights, context.places)
        if self._active:
            for statistic in self.statistics:
                statistic.on_entry(self)
            self._taps.attach()
            self._from_rows.attach()
            self._gradients.watch(filter(self._needs_own_gradient, self.blocks))
        start_listening(self.on_likelihood)

    def end(self, *, completed: bool) -> None:
        """Close the context; ``completed=False`` (an exception) drops everything that it has observed."""
        stop_listening(self.on_likelihood)
        kept = self._before
        try:
            if completed:
                self._normalisation.loss_scale = self.loss_scale()
                self._end_of_backward()
                self._ledger.open = []  # evaluated, but no backward came: logging
                self._factor.check()
                self._row_sums.check(self.blocks, self.context_gradient, self._gradients.averaged)
                if self.context is not None and self.context.places is not None:
                    self.context.places.check()
                    self.examples = self.context.places.done
                if self._active:
                    for statistic in self.statistics:
                        statistic.on_exit(self)
                kept = self._ledger
        finally:
            self._ledger, self._before = kept, Ledger()
            self._waiting.clear()
            self._row_counts.clear()
            self._spent.clear()
            self._queued = False
            self._taps.detach()
            self._from_rows.detach()
            self._reweighting.detach()
            self._gradients.end()
            self.context = None

    def _needs_own_gradient(self, block: Block) -> bool:
        """Whether somebody asks for what this context adds to the block's gradient on this process."""
        if any("sample_exit" in statistic.WHEN for statistic in self.statistics):
            return True
        backward = any("backward" in statistic.WHEN for statistic in self.statistics)
        return backward and not block.has_bare and self._row_sums.wants(block)

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
        self._factor.watch(call, scaled=self.loss_scale() != 1.0)
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
        self._normalisation.loss_scale = self.loss_scale()
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
            self._from_rows.begin(call)
            self._deliver(block, {call.member: [call]})
            return
        self._waiting.append(call)

    def observes_user_backward(self, block: Block) -> bool:
        """Blocks with bare parameters are measured in a pass of our own instead."""
        return not block.has_bare

    def _end_of_backward(self) -> None:
        """Deliver the layers that were called several times and the joined blocks, then count the loss terms."""
        self._queued = False
        self._reweighting.finish_pass()
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
        if self.context is not None and self.context.places is not None:
            self.context.places.finish_pass()
        if self._taps.on_gradient is None:
            touched: set[int] = set().union(*(announcement.touched for announcement in self._ledger.reached))
            if twice := self._taps.passed(touched):
                raise passed_twice(twice)
            self._taps.release(touched)
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
            for rows in self._placed(gather(block, rows_of)):
                for statistic in self.statistics:
                    statistic.on_rows(self, block, rows)

    def _placed(self, gathered: list[AnyRows]) -> list[AnyRows]:
        """Rows that know where their examples stand in the data set, if anybody asks."""
        places = None if self.context is None else self.context.places
        return gathered if places is None else [with_places(rows, places) for rows in gathered]

    # ------------------------------------------------------------------ services for the statistics

    @property
    def entry_gradients(self) -> dict[str, Tensor]:
        """Block name to the packed gradient that was there when the context began, for those that want to know."""
        return self._gradients.at_entry

    def context_gradient(self, block: Block) -> Tensor | None:
        """What this context has added to a block's gradient on this process; ``None`` if nothing, or nothing here."""
        return self._gradients.of(block)

    def context_gradient_of(self, bundle: Bundle) -> Tensor | None:
        """The same of several blocks, without communication and in memory that the next call writes over; ``None``
        where that cannot be had."""
        return self._gradients.of_bundle(bundle)

    def note_sum(self, block: Block, rows: AnyRows) -> None:
        """Keep the sum of the rows of a block's first context: it must be the block's gradient."""
        if not self._gradients.averaged(block):
            self._row_sums.add(block, rows)

    def own_rows(self, call: LikelihoodCall, columns: Tensor, blocks: Sequence[Block]) -> list[tuple[Block, AnyRows]]:
        """Rows of a pass of our own from ``call.outputs`` with the given gradient columns ``(K, *outputs.shape)``.

        ``.grad`` and the user's graph stay untouched.
        """
        check_own_pass(call.outputs, self.statistics, self.replicas)
        check_not_sharded([block for block in blocks if block.has_bare], "per-example gradients", self.statistics)
        wanted = {member for block in blocks for member in block.members}
        rows_of, touched = member_rows(call, columns, wanted, self._taps, list(self._block_of))
        self.seen.update(rows_of)
        self._ledger.open[-1].touched |= touched
        return [(block, rows) for block in blocks for rows in self._placed(gather(block, rows_of))]

    def stream(self, name: str, device: torch.device) -> torch.Generator:
        """A named stream of random numbers of this context; micro-batches draw from it in turn."""
        assert self.context is not None
        if name not in self._streams:
            self._streams[name] = self.context.generator(name, device)
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
        if self.replicas.size == 1 or self._normalisation.processes > 1 or not self.blocks:
            return
        agreement = agreement_of(self.blocks, numbers)
        self.replicas.check_join()
        self._ledger, self.seen = pool(
            self._ledger,
            self.blocks,
            self.seen,
            agreement=agreement,
            scale_of=lambda source, block: self._normalisation.scale(self._ledger, source, block, samples_of[block]),
            replicas=self.replicas,
            placement_of=self._placement_of,
        )
        self._normalisation.processes = self.replicas.size

    @property
    def empty(self) -> bool:
        """Whether nothing has been observed since the last ``clear``."""
        return self._ledger.empty

    def loss_terms(self, block: Block) -> int:
        """Number of loss terms behind the gradients: announced by a likelihood, else the number of rows."""
        return self._ledger.loss_terms(block)

    def observed(self, block: Block) -> bool:
        """Whether there is evidence about a block, on whichever process."""
        return self._counts(block) and self._ledger.observed(block)

    def _counts(self, block: Block) -> bool:
        """Rows beside a probe only turn its basis; alone they are no evidence."""
        return block.name in self._ledger.probed or all(statistic.CHANNEL != "probe" for statistic in self.statistics)

    def finish(self, block: Block, mc_samples: int) -> dict[str, Leaf]:
        """The observation of a block and what normalises it, as far as this process holds it; empty if nothing was
        observed.

        Args:
            block: one of the collector's blocks.
            mc_samples: number of weight samples that the gradients were summed over.
        """
        if not self._counts(block):
            return {}
        return self._normalisation.leaves(self._ledger, block, mc_samples)
