"""Floor 2: likelihoods. One file per observation model, one line in ``REGISTRY``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vogn.likelihoods.base import Likelihood, Prediction
from vogn.likelihoods.bernoulli import Bernoulli
from vogn.likelihoods.categorical import Categorical
from vogn.likelihoods.gaussian import Gaussian

REGISTRY: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "gaussian": Gaussian,
}
"""Name in checkpoints and on the command line to class."""


def likelihood_from_dict(data: Mapping[str, Any]) -> Likelihood:
    """Rebuild a likelihood from :meth:`Likelihood.to_dict`.

    Raises:
        ValueError: if the kind is unknown.
    """
    kind = data.get("kind")
    if kind not in REGISTRY:
        raise ValueError(f"unknown likelihood {kind!r}; known likelihoods: {', '.join(sorted(REGISTRY))}")
    return REGISTRY[kind].from_dict(data)


__all__ = ["REGISTRY", "Bernoulli", "Categorical", "Gaussian", "Likelihood", "Prediction", "likelihood_from_dict"]
