"""The density that an approximate posterior stands for: prior times tempered likelihood, over a flat vector."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior, Prior


@dataclass(frozen=True)
class Target:
    """``log p(theta) - ess * mean loss(theta)`` up to a constant; the posterior at temperature ``terms / ess``.

    Args:
        model: a float64 copy in evaluation mode without gradients.
        likelihood: a copy of the observation model.
        inputs: of the data: a tensor, a tuple (``model(*x)``) or a dictionary (``model(**x)``), float64.
        targets: of the data.
        shapes: ``{name: shape}`` of the parameters that are uncertain, in the order of the flat vector.
        fixed: ``{name: value}`` of the others that the posterior names.
        prior_mean: ``(D,)``.
        prior_precision: ``(D,)``, > 0.
        ess: effective sample size, > 0.
        terms: number of loss terms of the data.
    """

    model: nn.Module
    likelihood: Likelihood
    inputs: Any
    targets: Tensor
    shapes: Mapping[str, torch.Size]
    fixed: Mapping[str, Tensor]
    prior_mean: Tensor
    prior_precision: Tensor
    ess: float
    terms: int

    @property
    def numel(self) -> int:
        """Number of uncertain parameters ``D``."""
        return len(self.prior_mean)

    @property
    def temperature(self) -> float:
        """``terms / ess``: 1 for the Bayesian posterior of the data."""
        return self.terms / self.ess

    def outputs(self, flat: Tensor, inputs: Any) -> Tensor:
        """Outputs of the network with the weights ``flat``, ``(D,)``."""
        weights, start = dict(self.fixed), 0
        for name, shape in self.shapes.items():
            weights[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        args, kwargs = called_with(inputs)
        outputs = functional_call(self.model, weights, args, kwargs)
        if not isinstance(outputs, Tensor):
            raise TypeError(f"the model returns {type(outputs).__name__}; give a module that returns the tensor")
        return outputs

    def energy(self, flat: Tensor) -> Tensor:
        """Minus the log density up to a constant, a scalar; differentiable."""
        return self.energy_of(flat, self.outputs(flat, self.inputs))

    def energy_of(self, flat: Tensor, outputs: Tensor) -> Tensor:
        """:meth:`energy` where the outputs at the data's inputs are known."""
        loss = self.likelihood.terms(outputs, self.targets).sum()
        difference = flat - self.prior_mean
        return self.ess / self.terms * loss + 0.5 * (self.prior_precision * difference.square()).sum()

    def observed(self, outputs: Tensor) -> Tensor:
        """Outputs ``(S, N, ..., K)`` on the scale that is compared: of functions, or probabilities of labels."""
        return self.likelihood.predictive(outputs)[2]


def called_with(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple is unpacked, a dictionary gives keywords, a tensor is the only one."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def make_target(
    model: nn.Module,
    posterior: Posterior,
    likelihood: Likelihood,
    data: Sequence[Any],
    *,
    prior: Prior | None = None,
    ess: float | None = None,
) -> Target:
    """The density that a posterior approximates.

    Args:
        model: any; is copied.
        posterior: parameters with zero variance everywhere are known, as are those that it does not name. A posterior
            without any variance (a point, dropout) leaves all parameters of its mean uncertain.
        likelihood: one of :mod:`vogn.likelihoods`; a learnable noise is taken as it is.
        data: ``(inputs, targets)``, all of them.
        prior: ``None`` reads it from a Gaussian posterior, block by block: ``ess * weight_decay``.
        ess: ``None`` reads it from a Gaussian posterior; for others it is the number of loss terms.

    Raises:
        ValueError: if the data hold NaN, or the prior precision is not known.
    """
    inputs, targets = checked_data(data)
    twin = copy.deepcopy(model).double().eval().requires_grad_(False)
    mean = {name: value.detach().double() for name, value in posterior.mean().items()}
    _check_names(twin, mean)
    blocks = [block for block in getattr(posterior, "blocks", ()) if block.sampled]  # optional: a Gaussian has them
    free = _uncertain(posterior, blocks, mean)
    sizes = {block.ess for block in blocks}
    if ess is None and len(sizes) > 1:
        raise ValueError(f"the posterior's blocks have different effective sample sizes, {sorted(sizes)}: pass ess=")
    centre, precision = _prior(prior, blocks, {name: mean[name] for name in free})
    observation = copy.deepcopy(likelihood)
    args, kwargs = called_with(inputs)
    with torch.no_grad():
        outputs = twin(*args, **kwargs)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model returns {type(outputs).__name__}; give a module that returns the tensor")
    observation.check_shapes(outputs, targets)
    observation.check_values(outputs, targets)
    terms = math.prod(observation.term_shape(outputs))
    size = ess if ess is not None else next(iter(sizes), float(terms))
    if not (size > 0 and math.isfinite(size)):
        raise ValueError(f"ess={size} must be a positive finite number, for example the number of training examples")
    fixed = {name: value for name, value in mean.items() if name not in free}
    shapes = {name: mean[name].shape for name in free}
    return Target(twin, observation, inputs, targets, shapes, fixed, centre, precision, float(size), terms)


def checked_data(data: Sequence[Any]) -> tuple[Any, Tensor]:
    """Inputs and targets in double precision, all numbers finite.

    Raises:
        ValueError: if it is no pair, or something is NaN or infinite.
    """
    if isinstance(data, Tensor | Mapping) or len(data) != 2 or not isinstance(data[1], Tensor):
        raise ValueError("data must be (inputs, targets) with a tensor of targets: all training data, not a loader")
    return checked_inputs(data[0], "inputs"), checked_inputs(data[1], "targets")


def checked_inputs(inputs: Any, name: str) -> Any:
    """Inputs in double precision.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    for leaf in tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            bad = int((~torch.isfinite(leaf)).sum())
            raise ValueError(f"the {name} hold {bad} NaN or infinite numbers of {leaf.numel()}; remove those examples")

    def ready(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().double() if leaf.is_floating_point() else leaf.detach()

    return tree_map(ready, inputs)


def _check_names(model: nn.Module, mean: Mapping[str, Tensor]) -> None:
    known = dict(model.named_parameters(remove_duplicate=False))
    for name, value in mean.items():
        if name not in known or known[name].shape != value.shape:
            raise ValueError(f"the posterior's parameter {name!r} {tuple(value.shape)} is none of the model's")


def _uncertain(posterior: Posterior, blocks: Sequence[Any], mean: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters with a variance; all of them if there is none."""
    if blocks:
        sampled = {name for block in blocks for name in block.layout.names}
        return [name for name in mean if name in sampled]
    spread = {name: float(value.amax()) if value.numel() else 0.0 for name, value in posterior.variance().items()}
    return [name for name in mean if spread.get(name, 0.0) > 0] or list(mean)


def _prior(prior: Prior | None, blocks: Sequence[Any], free: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and precision of every uncertain parameter, ``(D,)``."""
    if prior is not None:
        centre = torch.cat([value.flatten() for value in prior.mean_like(free).values()])
        return centre, torch.full_like(centre, prior.precision)
    known = {name: block.ess * block.shift for block in blocks for name in block.layout.names}
    missing = [name for name in free if not known.get(name, 0.0) > 0]
    if missing:
        why = "was made with weight_decay=0" if blocks else "does not store one"
        raise ValueError(
            f"no prior precision is known for {', '.join(missing[:3])}: the posterior {why}; "
            "pass prior=vogn.Prior(precision=ess * weight_decay) with the values of training"
        )
    parts = [torch.full((value.numel(),), known[name], dtype=torch.float64) for name, value in free.items()]
    precision = torch.cat(parts)
    return torch.zeros_like(precision), precision
