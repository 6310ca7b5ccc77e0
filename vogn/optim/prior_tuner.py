"""The precision of the prior, from the evidence, while training."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vogn.capture.partition import Block, norm_parameter_names
from vogn.capture.selection import matches
from vogn.distributed import whole
from vogn.errors import MissingCurvatureError, UnsupportedObservationError, in_block
from vogn.optim.base import NaturalGradient
from vogn.optim.blocks import BlockTable
from vogn.optim.methods import sets_groups
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.posterior.block import exactly_damped
from vogn.posterior.evidence import precision_at, stationary_precision

HALVINGS = 24
"""Of the interval in which a precision is sought: a relative error below 1e-5."""


class PriorTuner:
    """Sets ``weight_decay = prior precision / ess`` of every group, every so many steps, from mean and curvature.

    The precision ``delta`` of a group is where the effective number of its parameters is ``delta |m|^2``::

        D - delta tr Lambda^-1 = delta |m|^2,      Lambda = ess (C + delta / ess)

    which is the maximum of the Laplace evidence at this mean and curvature, and likewise the stationary point in
    ``delta`` of the variational bound with the covariance ``Lambda^-1``: one rule for both modes. Training and tuning
    in turns converge to the precision at which both hold; on a linear model to the maximum of the evidence. With
    factored damping (:class:`vogn.KFAC`) ``C + delta / ess`` is the damped product whose inverse weights are sampled
    from.

    Weights in front of a normalisation layer have no scale: the network is the same whatever their length, and the
    evidence only asks for shorter ones. Leave them out with ``only``.

    The tracked curvature counts more parameters as determined than the data do: its structure leaves correlations out,
    and in variational mode it is an average over sampled weights. Where the network is small enough, let the tuner look
    at all data in a better structure (``measure``).

    It keeps nothing and draws nothing: ``weight_decay`` is in the checkpoint, and when it is due follows from the
    number of steps. One tuning costs about 25 times the diagonal of an inverse: from a few plain steps (diagonal) to a
    few tens of factorisations (Kronecker); and what ``measure`` costs.

    Args:
        optimizer: whose groups are tuned: those that are sampled, in either mode. ``groups=layer_groups(model)`` gives
            every layer a precision of its own.
        every: steps between two tunings, >= 1: a few epochs.
        start: first step that may tune; ``None``: ``every``. Better the middle of the run: small weights that have not
            learned yet get a strong prior, which then keeps them small.
        temperature: the one in ``ess``, > 0. The evidence is that of the untempered posterior, so that training at a
            lower temperature keeps its objective.
        bounds: smallest and largest precision.
        only: a pattern of parameter names (``"classifier.*"``, as in ``structure``), or several: groups that hold a
            parameter which none of them matches keep their prior. ``None`` tunes all groups.
        measure: returns a posterior of the present weights, whose curvature is used instead of the tracked one:
            ``lambda: vogn.laplace(model, likelihood, loader, structure="dense")``. Called at every tuning; its prior
            does not matter, its blocks must not span groups.

    Raises:
        ValueError: if a number is out of range, a pattern matches nothing, no group is left to tune, a group that is
            tuned has no ``ess``, the method sets ``weight_decay`` itself, or what is measured does not fit the groups.
        UnsupportedObservationError: naming the block, if its structure has no inverse diagonal.

    Example:
        >>> import torch, vogn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(2, 1)
        >>> x = torch.randn(200, 2)
        >>> y = x @ torch.tensor([[3.0], [0.0]]) + 0.1 * torch.randn(200, 1)
        >>> opt = vogn.VOGN(model, lr=0.1, ess="auto", data=x, fisher="ggn", weight_decay=100.0)
        >>> tuner = vogn.PriorTuner(opt, every=20)
        >>> for step in range(200):
        ...     opt.zero_grad()
        ...     with opt.sampled_params():
        ...         vogn.likelihoods.Gaussian(noise=0.1)(model(x), y).backward()
        ...     opt.step()
        ...     changed = tuner.step()
        >>> precision = opt.param_groups[0]["weight_decay"] * 200
        >>> 0.2 < precision < 0.5  # three parameters, 3, 0 and 0: three over nine
        True

    Source: MacKay (1992), "Bayesian Interpolation", eq. 4.9; Immer et al. (2021), "Scalable Marginal Likelihood
    Estimation for Model Selection in Deep Learning", algorithm 1 (in turns with training, there by gradient steps).
    """

    def __init__(
        self,
        optimizer: NaturalGradient,
        *,
        every: int,
        start: int | None = None,
        temperature: float = 1.0,
        bounds: tuple[float, float] = (1e-4, 1e6),
        only: str | Sequence[str] | None = None,
        measure: Callable[[], GaussianPosterior] | None = None,
    ) -> None:
        start = every if start is None else start
        if int(every) != every or every < 1:
            raise ValueError(f"every={every} must be a whole number of steps, at least 1")
        if int(start) != start or start < 1:
            raise ValueError(f"start={start} must be a whole number of steps, at least 1, or None")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature} must be a positive finite number")
        if not 0 < bounds[0] < bounds[1] < math.inf:
            raise ValueError(f"bounds={bounds}: a smallest and a larger largest precision, both > 0, are needed")
        if sets_groups(optimizer):
            raise ValueError(f"{type(optimizer).__name__} sets weight_decay itself: there is no prior to tune")
        self.optimizer, self.every, self.start = optimizer, every, start
        self.temperature, self.bounds = temperature, bounds
        self.only = None if only is None else (only,) if isinstance(only, str) else tuple(only)
        self.measure = measure
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        unmatched = [key for key in self.only or () if not any(matches(key, [name]) for name in names)]
        if unmatched:
            close = difflib.get_close_matches(unmatched[0], names, 1)
            hint = f"; is {close[0]!r} meant?" if close else ""
            raise ValueError(f"only={only}: {unmatched[0]!r} matches no parameter{hint}")
        if not any(map(self._wanted, optimizer.param_groups)):
            raise ValueError(
                f"only={only}: no sampled group has nothing but such parameters; give them a group of their own "
                "(groups=vogn.layer_groups(model))"
            )
        self._require_ess()

    def step(self) -> dict[int, float]:
        """Tune if it is due; call it after every ``opt.step()``.

        Returns:
            The new prior precisions by the number of the group; empty where nothing was due.
        """
        done = int(self.optimizer.param_groups[0]["steps_done"])
        return self.tune() if done >= self.start and done % self.every == 0 else {}

    @torch.no_grad()
    def tune(self) -> dict[int, float]:
        """Tune now.

        Returns:
            The new prior precisions by the number of the group.

        Raises:
            MissingCurvatureError: if no curvature has been observed.
            RuntimeError: inside a sampled context.
        """
        self.optimizer._contexts.require_mean("tuning the prior")
        self._require_ess()
        table, _ = self.optimizer._build()
        measured = None
        if self.measure is not None:
            with torch.enable_grad():
                measured = self.measure()
        found: dict[int, float] = {}
        for number, group in enumerate(self.optimizer.param_groups):
            members = [block for block, owner in table if owner is group]
            if not self._wanted(group) or not members or table.without_curvature(group):
                continue
            ess = float(group["ess"]) * self.temperature
            options: dict[str, Any] = {"bounds": self.bounds, "halvings": HALVINGS}
            if measured is not None:
                own = _of_group(measured.sampled_blocks, group["param_names"])
                found[number] = precision_at(own, measured.mean(), **options)
            else:
                blocks = [_with_curvature(table, block, ess) for block in members]
                length = sum(map(_length, members))
                found[number] = stationary_precision(blocks, length, **options)
            group["weight_decay"] = found[number] / ess
        return found

    def _wanted(self, group: Mapping[str, Any]) -> bool:
        """Whether the group is one of those that are tuned."""
        names = group["param_names"] if self.only is not None else ()
        able = bool(group["sampled"]) and any(parameter.requires_grad for parameter in group["params"])
        return able and all(any(matches(key, [n]) for key in self.only or ()) for n in names)

    def _require_ess(self) -> None:
        if any(group["ess"] is None for group in filter(self._wanted, self.optimizer.param_groups)):
            raise ValueError("the prior's precision is weight_decay * ess: set ess=len(train_set)")


def _length(block: Block) -> float:
    """``|m|^2`` of a block's weights."""
    weights = {name: whole(p.detach()) for name, p in zip(block.layout.names, block.parameters, strict=True)}
    return sum(float(weight.double().square().sum()) for weight in block.layout.without_constants(weights).values())


def _of_group(measured: Sequence[PosteriorBlock], names: Sequence[str]) -> list[PosteriorBlock]:
    """The measured blocks of a group's parameters."""
    blocks = [block for block in measured if set(block.layout.names) & set(names)]
    for block in blocks:
        others = sorted(set(block.layout.names) - set(names))
        if others:
            raise ValueError(
                f"the measured block {block.name!r} holds {others[0]!r} too, which is in another group: measure with a "
                "block for every layer, or train with one group"
            )
    missing = sorted(set(names).difference(*(block.layout.names for block in blocks)))
    if missing:
        raise ValueError(
            f"what is measured has no curvature of {missing[0]!r}: use subset='all', or leave it out by only="
        )
    return blocks


def _with_curvature(table: BlockTable, block: Block, ess: float) -> PosteriorBlock:
    """A block with the sum of curvature and prior that factored damping stands for, without a copy of its state.

    Factored damping adds more than the prior, and so counts too many effective parameters.
    """
    if not table.known(block):
        raise MissingCurvatureError(
            f"block {block.name!r} has no curvature yet, so that its evidence is not known: tune later, "
            "or freeze what the model never uses with requires_grad_(False)"
        )
    if "inverse_diagonal" not in block.structure.SUPPORTS:
        with in_block(block.name):
            raise UnsupportedObservationError(
                f"{type(block.structure).__name__} has no diagonal of its inverse, so that its evidence is not known; "
                "choose another structure for this block"
            )
    state = table.gathered(block)["curvature"]
    own = PosteriorBlock(block.name, block.layout, block.structure, state, shift=0.0, ess=ess, sampled=False)
    return exactly_damped(own)


def layer_groups(model: nn.Module) -> list[dict[str, Any]]:
    """A param group for every layer, for ``groups=`` of an optimizer: each gets a ``weight_decay`` of its own.

    The first layer, and norm layers, stay in the default group.

    Args:
        model: any; a parameter that several layers share belongs to the first of them.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> opt = vogn.VOGN(model, ess=20, groups=vogn.layer_groups(model))
        >>> [group["param_names"] for group in opt.param_groups]
        [['0.weight', '0.bias'], ['2.weight', '2.bias']]
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    norms, taken, layers = norm_parameter_names(model), set[Tensor](), []
    for module in model.modules():
        own = [p for p in module.parameters(recurse=False) if p not in taken and names[p] not in norms]
        taken.update(own)
        layers += [{"params": own}] if own else []
    return layers[1:]
