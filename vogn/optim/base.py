"""The one optimizer shell: parameters, groups, contexts and checkpoints around the functional core."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vogn.announcement import LikelihoodCall
from vogn.capture.collector import Collector
from vogn.capture.objective import Objective
from vogn.capture.partition import Partition
from vogn.capture.selection import Selection, StructureOption, make_selection
from vogn.capture.statistics import Statistic, make_statistic
from vogn.distributed import ProcessGroupChoice, Replicas, SampleSync, inner_module, reshard
from vogn.errors import CheckpointError
from vogn.optim.blocks import BlockTable, new_collector, new_table
from vogn.optim.checkpoints import check_checkpoint, describe
from vogn.optim.checks import check_blocks, check_combination, check_group
from vogn.optim.contexts import SampledContexts, draw, run_closure
from vogn.optim.coverage import Coverage, announce_fallbacks, coverage_of
from vogn.optim.diagnostics import diagnostics
from vogn.optim.evidence import REMEDY, EvidenceCheck
from vogn.optim.groups import STARTING_ENTRIES, NormPolicy, build_groups, named_members
from vogn.optim.initial_curvature import InitialCurvature, automatic
from vogn.optim.overhead import TRIAL, OverheadBudget
from vogn.optim.posterior import posterior_of, store_likelihood
from vogn.optim.sample_size import SampleSize, resolved
from vogn.optim.steps import Momentum, Prior, Solve, Step
from vogn.optim.update import update
from vogn.optim.watch import PosteriorWatch
from vogn.posterior import GaussianPosterior
from vogn.structures import Diagonal
from vogn.structures.base import Structure


class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient optimizer and Gaussian variational inference over one tracked curvature.

    ``C`` is the curvature of the mean loss per example, ``m`` the mean of the weights::

        sample    theta = m + (ess (C + weight_decay I))^(-1/2) eps     (variational; else theta = m)
        observe   C <- curvature_decay C + (1 - curvature_decay) statistic(theta)
        step      m <- m - lr (C + (weight_decay + damping) I)^-1 (gradient(theta) + weight_decay m)

    The loop is the same in both modes::

        opt.zero_grad()
        with opt.sampled_params():
            likelihood(model(x), y).backward()
        opt.step()

    Args:
        params: the model. Methods whose statistics need no layer inputs also take parameters or group dictionaries.
        structure: matrix family of ``C``, an instance or a registered name; or a mapping from name patterns
            (``"encoder.*"``, ``"head"``) or module types (``nn.Conv2d``) to them: the first entry that matches a block
            decides, the other blocks get the ``fallback``. A named method's ``structure=`` is such a mapping, where the
            other blocks keep the method's own structure; a name takes over how the method reads evidence.
        statistics: names from :data:`vogn.capture.statistics.REGISTRY` or instances; at most one per channel.
        lr: learning rate of the mean, >= 0.
        ess: effective sample size ``N * augmentation / temperature``, > 0; needed for sampling and posteriors.
            ``"auto"`` counts the examples of ``data``; with augmentation or a temperature pass the number that
            :func:`vogn.effective_sample_size` returns.
        weight_decay: ``prior_precision / ess``, >= 0.
        damping: added to ``C`` in the step only, >= 0.
        momentum: in [0, 1).
        curvature_decay: weight of the old curvature, in [0, 1].
        refresh_every: steps between factorisations, >= 1.
        observe_every: steps between curvature observations, >= 1.
        overhead: bound, > 0, on the share of time that observations and factorisations add to a step. About 30 steps
            are timed, then ``observe_every`` and ``refresh_every`` of all groups are chosen and stay; ``None`` keeps
            the intervals that are given.
        initial_curvature: ``"first_batch"`` (the first observation counts fully) or a number >= 0, ``C_0 = c I``;
            ``"auto"`` is ``"first_batch"``, or, for a statistic that learns from the weight noise (Price), the number
            at which that noise is a tenth of the weights (:mod:`vogn.optim.initial_curvature`). A number near 1 with
            ``curvature_decay=0.999`` lets the posterior begin narrow, from which small regression networks gain.
        mc_samples: weight samples per step, >= 1: number of sampled contexts that one ``step()`` averages over.
        antithetic: samples come in mirrored pairs; ``mc_samples`` must be even.
        variational: the one flag; a group entry that may be changed between any two steps.
        seed: seed of all noise; the global random state is never used.
        steps: the chain from gradient to update; default ``Momentum, Prior, Solve``.
        partition: ``"layer"``, ``"parameter"`` or ``"model"`` (one block per param group).
        norms: ``"sampled"`` treats norm parameters like all others; ``"point"`` preconditions them but neither samples
            them nor gives them a prior.
        groups: further param groups, as dictionaries with ``"params"`` and overrides; the model's other parameters form
            the default group.
        loss_reduction: whether the user's loss is the ``"mean"`` or the ``"sum"`` over the loss terms.
        fallback: structure of blocks that ``structure`` cannot afford; a warning says where it is used.
        process_group: the processes that train copies of the model, whose evidence becomes one: ``"auto"`` (the group
            of a ``DistributedDataParallel``, else the default group if there is one), a ``ProcessGroup``, or ``None``
            for this process alone.
        sample_sync: ``"shared"``: all processes draw the same weights; ``"independent"``: each draws its own.
        data: for ``ess="auto"``: the training ``DataLoader`` or data set, or the number of examples.

    Raises:
        TypeError: if layer inputs are needed but only parameters were given, or ``data`` cannot be counted.
        ValueError: if an option is out of range.
        UnsupportedObservationError: if structure, statistics and mode do not fit.

    Example: the same run, first deterministic K-FAC, then noisy K-FAC from the same curvature.
        >>> import torch, vogn
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = vogn.KFAC(model, ess=20, variational=False)
        >>> x, y = torch.randn(20, 3), torch.randn(20, 1)
        >>> for step in range(4):
        ...     opt.param_groups[0]["variational"] = step >= 2
        ...     opt.zero_grad()
        ...     with opt.sampled_params():
        ...         vogn.likelihoods.Gaussian(noise=0.5)(model(x), y).backward()
        ...     opt.step()
        >>> opt.coverage()[0]["structure"]
        'Kronecker'

    Source: Khan et al. (2018), "Fast and Scalable Bayesian Deep Learning by Weight-Perturbation in Adam"; Zhang et al.
    (2018), "Noisy Natural Gradient as Variational Inference"; Khan and Rue (2023), "The Bayesian Learning Rule".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        structure: StructureOption | Selection,
        statistics: str | Statistic | Sequence[str | Statistic],
        *,
        lr: float,
        ess: SampleSize = None,
        weight_decay: float = 0.0,
        damping: float = 0.0,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        refresh_every: int = 1,
        observe_every: int = 1,
        overhead: float | None = None,
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        antithetic: bool = False,
        variational: bool = True,
        seed: int = 0,
        steps: Sequence[Step] | None = None,
        partition: Partition = "layer",
        norms: NormPolicy = "sampled",
        groups: Iterable[Mapping[str, Any]] = (),
        loss_reduction: Literal["mean", "sum"] = "mean",
        fallback: Structure | None = None,
        process_group: ProcessGroupChoice = "auto",
        sample_sync: SampleSync = "shared",
        data: Any = None,
    ) -> None:
        self.replicas = Replicas(params, process_group, sample_sync)
        params = inner_module(params)
        self.fallback = fallback or Diagonal(negative="retract")
        self.selection = make_selection(structure, self.fallback)
        self.statistics = tuple(
            make_statistic(item) for item in ([statistics] if isinstance(statistics, (str, Statistic)) else statistics)
        )
        self.chain = tuple(steps) if steps is not None else (Momentum(), Prior(), Solve())
        self.partition: Partition = partition
        self.seed = seed
        self.antithetic = antithetic
        self.loss_reduction = loss_reduction
        self.grad_scaler: Any = None
        """A ``torch.amp.GradScaler`` whose scale is on the loss during backward, or ``None``."""
        self._model = params if isinstance(params, nn.Module) else None
        check_combination(self, needs_model=any(s.NEEDS_PAIRS for s in self.statistics) or partition == "layer")
        defaults = {
            "lr": lr,
            "ess": resolved(ess, data),
            "weight_decay": weight_decay,
            "damping": damping,
            "momentum": momentum,
            "curvature_decay": curvature_decay,
            "refresh_every": refresh_every,
            "observe_every": observe_every,
            "overhead": overhead,
            "initial_curvature": initial_curvature,
            "mc_samples": mc_samples,
            "variational": variational,
            **STARTING_ENTRIES,
        }
        self._collector: Collector | None = None
        self._contexts = SampledContexts()
        self._closed = False
        self._table: BlockTable | None = None
        self._evidence = EvidenceCheck(self.statistics)
        self._announced: set[str] = set()
        self._overhead = OverheadBudget()
        self._watch = PosteriorWatch()
        super().__init__(build_groups(params, norms, groups), defaults)
        for group in self.param_groups if overhead is not None else ():
            group.update(TRIAL)
        if self.selection.rules:
            check_blocks(self, new_table(self))

    # ------------------------------------------------------------------ blocks

    @property
    def structure(self) -> Structure:
        """The structure of the blocks that no entry of a mapping matches."""
        return self.selection.default

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; see ``torch.optim.Optimizer.add_param_group``. Unnamed parameters are named by the model or by
        their position."""
        taken = sum(len(group["params"]) for group in self.param_groups)
        named = named_members(param_group["params"], self._model, taken)
        # torch wants names in all groups or in none; it cannot read them off an empty group
        super().add_param_group(param_group | {"params": named} | ({} if named else {"param_names": []}))
        try:
            group = self.param_groups[-1]
            if group["initial_curvature"] == "auto":
                group["initial_curvature"] = automatic(group, self.statistics)
            check_group(self, group)
        except Exception:
            self.param_groups.pop()
            raise
        self._forget_blocks()

    def _build(self, *, divide: bool = True) -> tuple[BlockTable, Collector]:
        """Blocks and collector of the current groups; made anew when groups are added or parameters unfrozen.

        ``divide=False``: the caller lets processes divide the states, where they do.
        """
        if self._table is not None and self._collector is not None and not self._table.outdated():
            return self._table, self._collector
        self._reshard()
        self.replicas.check_shards(self._parameters(), has_model=self._model is not None)
        old, self._collector = self._table, None
        self._gather_states()
        table = self._table = new_table(self, tracked=frozenset() if old is None else old.tracked)
        check_blocks(self, table)
        announce_fallbacks(self, table, self._announced)
        if old is not None:
            table.forget_changed(old)
        if divide:
            table.divide_states()
        self._collector = new_collector(self, table)
        return table, self._collector

    def _forget_blocks(self) -> None:
        self._gather_states()
        self._table, self._collector = None, None

    def _gather_states(self) -> None:
        """States are divided among processes as the table says; without one they are whole."""
        if self._table is not None and self._table.divided:
            self.state.update(self._table.gathered_states())

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _reshard(self) -> None:
        reshard(self._model, self._parameters())

    def coverage(self) -> Coverage:
        """What happens to every parameter: block, structure, statistic, bytes, cost, and why a fallback is used.

        Returns:
            One row per parameter, frozen ones included; ``print`` shows a table. See :class:`vogn.optim.Coverage`.
        """
        table, _ = self._build()
        return coverage_of(self, table)

    def diagnostics(self, *, per_block: bool = False) -> dict[str, float]:
        """Numbers to log: ``for k, v in opt.diagnostics().items(): writer.add_scalar(k, v, step)``.

        Nothing is changed. A number that is not defined is left out: what needs curvature before the first observation,
        standard deviations without ``ess``, inverses that do not exist. The cost is about that of one step without the
        passes through the network (of one inversion for ``Dense``).

        Args:
            per_block: also ``block/NAME/...`` of every block.

        Returns:
            ``steps``, ``posterior_std``, ``effective_parameters``, ``condition_number`` and more: the table is in
            :func:`vogn.optim.diagnostics.diagnostics`. With several groups also ``group0/...`` and so on.

        Raises:
            RuntimeError: inside a sampled context.

        Source: MacKay (1992), "Bayesian Interpolation", for the effective number of parameters.
        """
        self._contexts.require_mean("diagnostics()")
        with torch.no_grad():
            return diagnostics(self, per_block=per_block)

    # ------------------------------------------------------------------ sampled contexts

    @contextmanager
    def sampled_params(self, indices: Tensor | None = None) -> Iterator[None]:
        """Weights ``~ q`` inside the block (``m`` itself in deterministic mode); capture is active.

        The mean is restored bit for bit at the end, also when the body raises; then what the body had observed is
        dropped.

        Args:
            indices: where the examples of the context stand in the data set, integers ``(examples,)``, in the order of
                the backward passes: for methods that remember something of every example (:class:`vogn.FNGD`). The
                others have no use for it. :class:`vogn.data.Indexed` makes a loader yield them.
        """
        self.sample_(indices)
        try:
            yield
        except BaseException:
            self.restore_(completed=False)
            raise
        self.restore_()

    @torch.no_grad()
    def sample_(self, indices: Tensor | None = None) -> None:
        """Write a weight sample into the model and start to capture; for trainers that cannot use a ``with`` block.

        Args:
            indices: see :meth:`sampled_params`.

        Raises:
            RuntimeError: if a sample is already in the model.
        """
        if "param_groups" not in vars(self):
            raise RuntimeError(
                f"{type(self).__name__} only imitates the optimizer that it wraps; open the context on the one inside: "
                "`with wrapper.optimizer.sampled_params():`"
            )
        if self._closed:
            raise RuntimeError("the optimizer has been closed; build a new one and load its state_dict()")
        if self._contexts.open:
            raise RuntimeError("sampled_params() is already active; contexts cannot be nested")
        self._reshard()
        table, collector = self._build()
        for block in table.blocks:  # in their order: a backward would start them in its own
            table.state(block)
        context, draws, bundles = draw(self, table, indices)
        due = any(table.due(block, "observe_every") for block in table.blocks)
        try:
            self._contexts.enter(table, context, self._parameters(), draws, bundles)
            collector.begin(context, active=due)
        except BaseException:
            self.restore_(completed=False)
            raise

    @torch.no_grad()
    def restore_(self, *, completed: bool = True) -> None:
        """Put the mean back and stop capturing. ``completed=False`` drops what this context has observed."""
        if not self._contexts.open:
            return
        assert self._collector is not None
        try:
            self._collector.end(completed=completed)
        finally:
            self._contexts.leave()
            self._reshard()
        if completed:
            self._contexts.count(self._parameters(), self._collector.examples)
            store_likelihood(self.param_groups, self._collector.likelihood)

    def close(self) -> None:
        """End the capture for good: an open context is dropped and its mean restored, hooks and graphs are let go.

        The state stays: ``state_dict()`` and ``posterior()`` still work. Closing twice is harmless.
        """
        self.restore_(completed=False)
        if self._collector is not None:
            self._collector.clear()
        self._closed = True

    def observe(
        self, outputs: Tensor, likelihood: Any, targets: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Tell capture about outputs whose loss was not computed by one of :mod:`vogn.likelihoods`.

        Args:
            outputs: network outputs, attached to the graph, inside a sampled context.
            likelihood: the likelihood of these outputs.
            targets: needed by the empirical Fisher of bare parameters and by Hutchinson probes.
            mask: loss terms that count.
        """
        if not self._contexts.open or self._collector is None:
            raise RuntimeError(f"observe() belongs inside a sampled context: {REMEDY}")
        count = math.prod(likelihood.term_shape(outputs)) if mask is None else int(mask.sum())
        self._collector.on_likelihood(LikelihoodCall(likelihood, outputs, targets, 1.0, mask, count))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and, with them, the observations made since the last step."""
        super().zero_grad(set_to_none)
        if self._collector is not None and not self._contexts.in_closure:
            self._collector.clear()
            self._contexts.reset()
        elif self._collector is not None:
            self._collector.entry_gradients.clear()

    # ------------------------------------------------------------------ step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of curvature and mean from the gradients and observations at hand.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward()`` and returns the loss; it is run once
                per weight sample. A :class:`vogn.Objective` is one, and serves the steps that compare losses.

        Returns:
            The closure's last value, or ``None``.

        Raises:
            MissingCurvatureError: if there are gradients but the curvature has never been observed.
            NonFiniteStatisticsError: if a gradient, a statistic or the result is not finite.
            NotPositiveDefiniteError: if the curvature plus its shift has no inverse, or factorisations keep failing.
            TypeError: if a step of the chain compares losses and ``closure`` is no :class:`vogn.Objective`.

        After an error nothing has changed: weights, curvature and momentum are those before the step.
        """
        loss = run_closure(self, self._parameters(), closure) if closure is not None else None
        self.restore_()
        with torch.no_grad():
            update(self, closure if isinstance(closure, Objective) else None)
            self._watch.after_step(self)
        self._overhead.finished(self.param_groups, self.replicas)
        return loss

    # ------------------------------------------------------------------ posterior and checkpoints

    def posterior(self) -> GaussianPosterior:
        """The Gaussian ``N(m, (ess (C + weight_decay I))^-1)`` at the current mean and curvature.

        In deterministic mode this is the Laplace approximation read from the tracked curvature. The object is
        independent of the optimizer. Blocks without any evidence have the prior. With ``fully_shard`` all processes
        must call this, and all get everything.

        Raises:
            RuntimeError: inside a sampled context.
            MissingCurvatureError: if no curvature has been observed.
            ValueError: if ``ess`` is missing.
        """
        self._contexts.require_mean("posterior()")
        table, collector = self._build()
        return posterior_of(self, table, collector)

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; loads with ``torch.load(..., weights_only=True)``.

        With ``fully_shard`` all processes must call this, and all get everything.

        Raises:
            RuntimeError: inside a sampled context.
        """
        self._contexts.require_mean("state_dict()")
        for group in self.param_groups:
            group["engine"], group["seed"] = describe(self), self.seed
        if self._table is None or not self._table.divided:
            return super().state_dict()
        divided, self.state = self.state, self._table.gathered_states()
        try:
            return super().state_dict()
        finally:
            self.state = divided

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same method; curvature keeps its own dtype. The seed, the mode and all other group
        entries are the checkpoint's.

        Raises:
            CheckpointError: if the checkpoint belongs to another structure, statistic or set of parameters.
        """
        self._contexts.require_mean("load_state_dict()")
        table, _ = self._build()
        check_checkpoint(self, table.blocks, state_dict)
        try:
            super().load_state_dict(state_dict)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"the checkpoint does not fit this optimizer: {error}") from error
        self._table = None  # what was loaded is whole
        table, _ = self._build(divide=False)
        table.restore_dtypes(state_dict)
        table.divide_states()
        self.seed = next((int(group["seed"]) for group in self.param_groups), self.seed)
        self._contexts.reset()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but hooks and caches, so that ``copy.deepcopy`` of a model together with its optimizer works."""
        self._contexts.require_mean("a copy")
        table = self._table
        state = table.gathered_states() if table is not None and table.divided else self.state
        return self.__dict__ | {"state": state, "_table": None, "_collector": None}
