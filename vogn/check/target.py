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
from vogn.predict.evaluation import check_weights
from vogn.predict.inputs import arguments_of


@dataclass(frozen=True)
class Target:
    """``log p(theta) - ess * mean loss(theta)`` up to a constant; the posterior at temperature ``terms / ess``.

    Args:
        model: a float64 copy on the CPU in evaluation mode without gradients.
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
        return _outputs(self.model, weights, inputs)

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


def make_target(
    model: nn.Module,
    posterior: Posterior,
    likelihood: Likelihood,
    data: Sequence[Any],
    *,
    prior: Prior | None = None,
    ess: float | None = None,
) -> Target:
    """The density that a posterior approximates, on the CPU.

    Args:
        model: any, on any device; is copied.
        posterior: parameters with zero variance everywhere are known, as are those that it does not name. A posterior
            without any variance (a point, dropout) leaves all parameters of its mean uncertain.
        likelihood: one of :mod:`vogn.likelihoods`; a learnable noise is taken as it is.
        data: ``(inputs, targets)``, all of them.
        prior: ``None`` reads it from a Gaussian posterior, block by block: ``ess * weight_decay``.
        ess: ``None`` reads it from a Gaussian posterior; for others it is the number of loss terms.

    Raises:
        ValueError: if the data hold NaN, the posterior is not one of the model's, or the prior precision is not known.
        TypeError: if the model does not return a tensor.
    """
    inputs, targets = checked_data(data)
    twin = copy.deepcopy(model).cpu().double().eval().requires_grad_(False)
    mean = {name: value.detach().cpu().double() for name, value in posterior.mean().items()}
    check_weights(twin, mean, batch=0)
    blocks = getattr(posterior, "sampled_blocks", ())  # optional: a Gaussian has them
    free = _uncertain(posterior, blocks, mean)
    sizes = {block.ess for block in blocks}
    if ess is None and len(sizes) > 1:
        raise ValueError(f"the posterior's blocks have different effective sample sizes, {sorted(sizes)}: pass ess=")
    centre, precision = _prior(prior, blocks, {name: mean[name] for name in free})
    observation = copy.deepcopy(likelihood)
    for parameter in observation.parameters():
        parameter.data = parameter.data.cpu()
    with torch.no_grad():
        outputs = _outputs(twin, {}, inputs)
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
    """Inputs and targets on the CPU in double precision, all numbers finite.

    Raises:
        ValueError: if it is no pair, or something is NaN or infinite.
    """
    if isinstance(data, Tensor | Mapping) or len(data) != 2 or not isinstance(data[1], Tensor):
        raise ValueError("data must be (inputs, targets) with a tensor of targets: all training data, not a loader")
    return checked_inputs(data[0], "inputs"), checked_inputs(data[1], "targets")


def checked_inputs(inputs: Any, name: str) -> Any:
    """Inputs on the CPU in double precision.

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
        moved = leaf.detach().cpu()
        return moved.double() if moved.is_floating_point() else moved

    return tree_map(ready, inputs)


def _outputs(model: nn.Module, weights: Mapping[str, Tensor], inputs: Any) -> Tensor:
    """Outputs with some weights in place of the model's own."""
    args, kwargs = arguments_of(inputs).to("cpu")
    outputs = functional_call(model, dict(weights), args, kwargs)
    if not isinstance(outputs, Tensor):
        raise TypeError(f"the model returns {type(outputs).__name__}; give a module that returns the tensor")
    return outputs


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
