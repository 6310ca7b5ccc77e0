"""Training on new data under a prior that is the posterior of earlier data: sequential Bayes."""

from __future__ import annotations

import math

import torch

from vogn.capture.partition import Block
from vogn.errors import UnsupportedObservationError, in_block
from vogn.optim.base import NaturalGradient
from vogn.optim.blocks import BlockTable
from vogn.optim.methods import sets_groups
from vogn.optim.steps import EarlierPosterior, Prior, Solve
from vogn.optim.steps.earlier import PRIOR_MEAN
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.posterior.block import exactly_damped


@torch.no_grad()
def use_as_prior(optimizer: NaturalGradient, posterior: GaussianPosterior, *, strength: float = 1.0) -> None:
    """Make a posterior the prior of an optimizer that has not stepped yet: its mean *and* its precision.

    With the posterior's precision ``P = ess_0 (C_0 + weight_decay_0 I)`` and mean ``m_0``, an optimizer of effective
    sample size ``ess`` then tracks ``C + E``, ``E = ess_0 C_0 / ess``, and takes the prior's gradient
    ``(P / ess) (m - m_0)``; its weight decay becomes ``ess_0 weight_decay_0 / ess``. Weight samples, steps and
    ``opt.posterior()`` all have the precision ``ess C + P``: what is learnt from all data.

    Diagonal and dense curvature add exactly. A sum of Kronecker products is none: steps, samples and the next posterior
    have the nearest product to ``C + E``, the prior's gradient is exact; so it is with a diagonal plus low rank, which
    keeps the best columns of the sum and its exact diagonal, and with an eigen-corrected product, which has the
    diagonal of ``C + E`` in the eigenbasis of its partial traces. Factored damping (:class:`vogn.KFAC`'s default) is
    read as the sum of curvature and prior that it stands for. Blocks that are not sampled (norm parameters of some
    methods) have no prior, and start where the model is. ``ess`` and the weight decay must stay as they are from here
    on: ``E`` is per example.

    :class:`vogn.VAdam` is refused. Its steps divide by a root of the curvature that is corrected for its start, so the
    average that it stores is not the precision it steps by: an ``E`` in it would be scaled by that correction and then
    enter steps under the root, samples without it.

    Args:
        optimizer: built on the model whose weights are to move, with the method, blocks and structures of the posterior
            and ``ess`` set. A run that is resumed calls this before ``load_state_dict``.
        posterior: of the earlier data.
        strength: factor on ``E`` in the prior's gradient alone, >= 0: above 1 the mean is held more firmly than Bayes'
            rule says, while precisions stay those of the data (Loo, Swaroop, Turner 2021, ``lambda``).

    Raises:
        RuntimeError: if the optimizer has stepped already.
        ValueError: if the strength is out of range, blocks differ, ``ess`` is missing, or blocks of one group have
            different priors.
        UnsupportedObservationError: for another structure, or a method whose steps are not those of a posterior.

    Example: two halves of the data, one after the other.
        >>> import torch, vogn
        >>> from vogn.optim.prior_handover import use_as_prior
        >>> _ = torch.manual_seed(0)
        >>> model, likelihood = torch.nn.Linear(3, 2), vogn.likelihoods.Categorical()
        >>> x, y = torch.randn(40, 3), torch.randint(2, (40,))
        >>> posterior = None
        >>> for part in (slice(0, 20), slice(20, 40)):
        ...     opt = vogn.VOGN(model, lr=0.1, ess=20, weight_decay=1 / 20)
        ...     if posterior is not None:
        ...         use_as_prior(opt, posterior)
        ...     for _ in range(5):
        ...         opt.zero_grad()
        ...         with opt.sampled_params():
        ...             likelihood(model(x[part]), y[part]).backward()
        ...         opt.step()
        ...     posterior = opt.posterior()

    Source: Nguyen, Li, Bui, Turner (2018), "Variational Continual Learning"; Osawa et al. (2019), "Practical
    Deep Learning with Bayesian Principles", for natural gradients; Loo, Swaroop, Turner (2021), "Generalized
    Variational Continual Learning", for the strength.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength} must be a finite number >= 0")
    optimizer._contexts.require_mean("use_as_prior()")
    _check_method(optimizer)
    table, _ = optimizer._build()
    pairs = _pairs(table, posterior)
    for group in {id(group): group for _, group in table}.values():
        own = [block for block in pairs if table.group(block) is group and pairs[block].sampled]
        if own:
            group["weight_decay"] = _common_decay([pairs[block] for block in own], float(group["ess"]))
    means = posterior.mean()
    for block, earlier in pairs.items():
        if not earlier.sampled:
            continue
        state = table.state(block)
        curvature, memory = state["curvature"], dict(state["memory"])
        like = block.parameters[0]
        found = exactly_damped(earlier).cast(block.curvature_dtype, like.device)
        with in_block(block.name):
            factor = earlier.ess / float(table.group(block)["ess"])
            state["curvature"] = block.structure.with_earlier(curvature, found.state, factor)
        mean = block.layout.pack({name: means[name].to(like.device) for name in block.layout.names})
        memory[PRIOR_MEAN] = mean.to(block.curvature_dtype)
        if block.structure.knows_earlier(state["curvature"]):
            memory["curvature_weight"] = torch.ones_like(memory["curvature_weight"])  # samples from the first step on
        state["memory"] = memory
    chain = list(optimizer.chain)
    chain.insert(next(k for k, step in enumerate(chain) if isinstance(step, Prior)) + 1, EarlierPosterior(strength))
    optimizer.chain = tuple(chain)
    optimizer._forget_blocks()


def _check_method(optimizer: NaturalGradient) -> None:
    """The method is the plain one of a posterior, and new."""
    name = type(optimizer).__name__
    if any(group["steps_done"] for group in optimizer.param_groups):
        raise RuntimeError("the optimizer has stepped already: give it its prior before the first step")
    if any(isinstance(step, EarlierPosterior) for step in optimizer.chain):
        raise RuntimeError("the optimizer has a posterior as its prior already; build a new one for new data")
    if optimizer.replicas.size > 1:
        raise UnsupportedObservationError("a posterior as prior is not supported where several processes train")
    solves = [step for step in optimizer.chain if isinstance(step, Solve)]
    plain = all(step.exponent == 1.0 and not step.debias and not step.total for step in solves)
    if not solves or not plain or sets_groups(optimizer) or not any(isinstance(s, Prior) for s in optimizer.chain):
        raise UnsupportedObservationError(
            f"{name} does not step by (C + weight_decay)^-1 (gradient + prior), so a posterior cannot be its prior; "
            "use VOGN, VON, IVON, EVON, KFAC, EKFAC or SLANG"
        )
    if any(group["sampled"] and group["ess"] is None for group in optimizer.param_groups):
        raise ValueError("a posterior as prior needs the effective sample size: pass ess=len(train_set)")


def _pairs(table: BlockTable, posterior: GaussianPosterior) -> dict[Block, PosteriorBlock]:
    """The optimizer's blocks and the posterior's.

    Raises:
        ValueError: naming the first block that has no match.
        UnsupportedObservationError: naming a block whose structure cannot have earlier data.
    """
    known = {block.name: block for block in posterior.blocks}
    found = {}
    for block, group in table:
        other = known.get(block.name)
        kind = type(block.structure)
        if other is None or other.layout != block.layout or type(other.structure) is not kind:
            has = "none" if other is None else f"a {type(other.structure).__name__} of {other.layout.names}"
            raise ValueError(
                f"block {block.name!r} of the optimizer is {kind.__name__} of {block.layout.names}; the posterior has "
                f"{has}: use the method, the partition and the model that it was made with"
            )
        if other.sampled and not block.structure.EARLIER:
            raise UnsupportedObservationError(
                f"block {block.name!r}: {kind.__name__} cannot start from the posterior of earlier data; use Diagonal, "
                "Dense, Kronecker, EigenKronecker or DiagonalLowRank"
            )
        if other.sampled != bool(group["sampled"]):
            raise ValueError(f"block {block.name!r} is sampled in one of optimizer and posterior only; use one norms=")
        found[block] = other
    return found


def _common_decay(blocks: list[PosteriorBlock], ess: float) -> float:
    """The weight decay of an optimizer whose blocks have these isotropic parts of the prior.

    Raises:
        ValueError: if they differ.
    """
    precisions = [block.ess * block.shift for block in blocks]
    if not math.isclose(min(precisions), max(precisions), rel_tol=1e-5):
        raise ValueError(
            f"blocks of one param group have priors of different precisions, {min(precisions):g} to "
            f"{max(precisions):g}; give them groups of their own, or one weight decay"
        )
    return precisions[0] / ess
