"""Posteriors as Pyro guides, and networks as Pyro functions whose weights are sample sites."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.func import functional_call

from vogn.posterior import Posterior, Prior
from vogn.predict.evaluation import check_weights

STARTS = 1 << 20
"""Draws begin at a random one of this many places in a posterior's sequence."""


class WeightDistribution(TorchDistribution):
    """A posterior as a distribution over one vector: all its parameters, flattened, in the order of ``mean()``.

    Draws come from torch's global random state, which ``pyro.set_rng_seed`` sets. Several draws at once are consecutive
    ones of the posterior's sequence: an ensemble gives its members in turn, from a random one on. Nothing in a
    posterior is learnable, so a draw is reparametrised. A posterior without a density (:class:`vogn.Ensemble`) can be
    sampled, and :meth:`log_prob` raises.

    Args:
        posterior: any :class:`vogn.Posterior` that draws weights.

    Raises:
        ValueError: if a draw is more than its weights (:class:`vogn.MCDropout`).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, posterior: Posterior) -> None:
        if hasattr(posterior, "drawing"):
            raise ValueError(
                f"a draw of {type(posterior).__name__} is more than its weights, which sample sites cannot say; use "
                "vogn.predict, or pyro.sample in the network"
            )
        self.posterior = posterior
        self._like = posterior.mean()
        size = sum(tensor.numel() for tensor in self._like.values())
        super().__init__(torch.Size(), torch.Size((size,)), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws ``(*sample_shape, D)``."""
        shape = torch.Size(sample_shape)
        seed, start = int(torch.randint(1 << 62, ())), int(torch.randint(STARTS, ()))
        draws = self.posterior.sample(math.prod(shape), seed=seed, start=start)
        return self.pack(draws).reshape(*shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, that of ``posterior.log_prob``; ``(*batch, D)`` to ``batch``."""
        return self.posterior.log_prob(self.unpack(value))

    def entropy(self) -> Tensor:
        """In nats."""
        return self.posterior.entropy()

    @property
    def mean(self) -> Tensor:
        """``(D,)``."""
        return self.pack(self._like)

    @property
    def variance(self) -> Tensor:
        """Marginal variances, ``(D,)``."""
        return self.pack(self.posterior.variance())

    def pack(self, weights: Mapping[str, Tensor]) -> Tensor:
        """``{name: (*batch, *shape)}`` to ``(*batch, D)``."""
        parts = []
        for name, like in self._like.items():
            batch = weights[name].shape[: weights[name].ndim - like.ndim]
            parts.append(weights[name].reshape(*batch, -1))
        return torch.cat(parts, -1)

    def unpack(self, value: Tensor) -> dict[str, Tensor]:
        """``(*batch, D)`` to ``{name: (*batch, *shape)}``, each in its own precision."""
        parts = value.split([like.numel() for like in self._like.values()], -1)
        pairs = zip(self._like.items(), parts, strict=True)
        return {name: part.reshape(*value.shape[:-1], *like.shape).to(like.dtype) for (name, like), part in pairs}


class PosteriorGuide:
    """A posterior as a guide: one joint draw, and a site for every parameter. See :func:`to_pyro`."""

    def __init__(self, posterior: Posterior, prefix: str, fixed: Mapping[str, Tensor]) -> None:
        self.distribution = WeightDistribution(posterior)
        self.prefix, self.fixed = prefix, fixed

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample all sites; the model's arguments are ignored."""
        vector = pyro.sample(f"_{self.prefix}weights", self.distribution, infer={"is_auxiliary": True})
        values = {}
        for name, value in self.distribution.unpack(vector).items():
            event = value.ndim - vector.ndim + 1
            values[name] = pyro.sample(self.prefix + name, Delta(value, event_dim=event))
        for name, value in self.fixed.items():
            values[name] = pyro.sample(self.prefix + name, Delta(value, event_dim=value.ndim))
        return values


def to_pyro(posterior: Posterior, *, network: nn.Module | None = None, prefix: str = "") -> PosteriorGuide:
    """A guide that draws the posterior's weights, for ``pyro.infer.Predictive``, ``Trace_ELBO``, importance sampling.

    Every parameter is a site of its own name, as in a ``pyro.nn.PyroModule`` or :func:`random_weights`. The joint
    density is on an auxiliary site, so the guide's log probability is ``posterior.log_prob`` with all correlations.

    Args:
        posterior: any :class:`vogn.Posterior` that draws weights.
        network: gives the parameters that the posterior does not cover (one over the last layer, say) sites too, at
            their present values. Without it they have none, and a model samples them from its prior.
        prefix: in front of the names, where the network is a part of the model: ``"network."``.

    Raises:
        ValueError: if a draw is more than its weights (:class:`vogn.MCDropout`), or the network lacks one of them.

    Example:
        >>> import pyro, torch, vogn
        >>> from vogn.interop.pyro import random_weights, to_pyro
        >>> x, network = torch.randn(20, 3), torch.nn.Linear(3, 1)
        >>> posterior = vogn.laplace(network, vogn.likelihoods.Gaussian(0.1), [(x, x.sum(-1, keepdim=True))])
        >>> weighed = random_weights(network, vogn.Prior(0.0, 1.0))
        >>> def model(x):
        ...     return pyro.sample("y", pyro.distributions.Normal(weighed(x), 0.1).to_event(2))
        >>> predictive = pyro.infer.Predictive(model, guide=to_pyro(posterior), num_samples=8)
        >>> tuple(predictive(x)["y"].shape)
        (8, 20, 1)
    """
    parameters = {} if network is None else {name: p.detach().clone() for name, p in network.named_parameters()}
    if network is not None:
        check_weights(network, posterior.mean(), batch=0)
    covered = posterior.mean().keys()
    return PosteriorGuide(posterior, prefix, {name: p for name, p in parameters.items() if name not in covered})


class RandomWeights:
    """A network as a function whose weights are sample sites. See :func:`random_weights`."""

    def __init__(self, network: nn.Module, prior: Prior, prefix: str) -> None:
        self.network, self.prefix = network, prefix
        parameters = {name: parameter.detach() for name, parameter in network.named_parameters()}
        scale = 1.0 / math.sqrt(prior.precision)
        self.priors = {
            name: Normal(mean, torch.full_like(mean, scale)).to_event(mean.ndim)
            for name, mean in prior.mean_like(parameters).items()
        }

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's outputs at the sampled weights.

        Raises:
            ValueError: inside a ``pyro.plate``, which asks for weights of its own for each of its members.
        """
        weights = {name: pyro.sample(self.prefix + name, prior) for name, prior in self.priors.items()}
        for name, prior in self.priors.items():
            if weights[name].shape != prior.event_shape:
                raise ValueError(
                    f"the site of {name!r} holds weights {tuple(weights[name].shape)} instead of "
                    f"{tuple(prior.event_shape)}: call the network before pyro.plate(...) opens, and use "
                    "Predictive(parallel=False)"
                )
        return functional_call(self.network, weights, args, kwargs)


def random_weights(network: nn.Module, prior: Prior, *, prefix: str = "") -> RandomWeights:
    """The network as a function of its inputs for Pyro models: each call samples its weights from the prior.

    One draw of weights per call, outside of plates; ``Predictive(parallel=True)`` would need a network that takes
    batches of weights.

    Args:
        network: any module; it is not changed.
        prior: the isotropic Gaussian prior, for example ``vogn.Prior(0.0, weight_decay * ess)``.
        prefix: in front of the names of the sites.

    Raises:
        ValueError: if the prior has means by name and one is missing or has another shape.

    Example:
        >>> import pyro, torch, vogn
        >>> from vogn.interop.pyro import random_weights
        >>> function = random_weights(torch.nn.Linear(3, 1), vogn.Prior(0.0, 25.0))
        >>> trace = pyro.poutine.trace(function).get_trace(torch.ones(4, 3))
        >>> sorted(trace.stochastic_nodes)
        ['bias', 'weight']
    """
    return RandomWeights(network, prior, prefix)
