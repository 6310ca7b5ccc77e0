"""Which options of a prediction go together."""

from __future__ import annotations

import math

from vogn.likelihoods import Likelihood
from vogn.posterior.protocol import Posterior
from vogn.predict.averaging import GROUPS
from vogn.predict.links import LINKS


def link_of(name: str | None, method: str, likelihood: Likelihood) -> str:
    """The link of that name, by default the exact one where there is one, checked.

    Raises:
        ValueError: if it is unknown, or does not go with the method or the likelihood; it says what does.
    """
    if name is None:
        return "exact" if method == "linearized" and likelihood.kind in LINKS["exact"].kinds else "mc"
    if name == "mc":
        return name
    if name not in LINKS:
        raise ValueError(f"unknown link {name!r}; known links: mc, {', '.join(sorted(LINKS))}")
    if method != "linearized":
        raise ValueError(f"link={name!r} is one of the linearised network's outputs: use method='linearized'")
    if likelihood.kind not in LINKS[name].kinds:
        fitting = ["mc", *(other for other, link in sorted(LINKS.items()) if likelihood.kind in link.kinds)]
        raise ValueError(f"link={name!r} is not meant for {likelihood!r}; choose one of {', '.join(fitting)}")
    return name


def check_sampling(
    method: str, link: str, posterior: Posterior, *, samples: int, noise: str, tolerance: float | None
) -> bool:
    """Whether weight samples are drawn at all.

    Raises:
        ValueError: for an option that is out of range, or that this method, link or posterior has no use for.
    """
    if samples < 1:
        raise ValueError(f"samples must be >= 1, got {samples}")
    if noise not in GROUPS:
        raise ValueError(f"unknown noise {noise!r}; known: {', '.join(GROUPS)}")
    if tolerance is not None and not (0.0 < tolerance < math.inf):
        raise ValueError(f"tolerance={tolerance} must be a finite number > 0, for example 0.01, or None")
    drawn = method != "mean" and link == "mc"
    if not drawn and (noise != "independent" or tolerance is not None):
        way, other = ("method='mean'", "method='mc'") if method == "mean" else (f"link={link!r}", "link='mc'")
        raise ValueError(f"{way} draws no weight samples: leave noise and tolerance out, or use {other}")
    known = getattr(posterior, "noises", ("independent",))  # optional: the protocol does not ask for it
    if noise not in known:
        raise ValueError(
            f"a {type(posterior).__name__} has no draws with noise={noise!r}; leave it out (it has {', '.join(known)})"
        )
    if noise == "antithetic" and samples % 2:
        raise ValueError(f"noise='antithetic' draws pairs: samples must be even, got {samples}")
    if noise == "sobol" and tolerance is not None:
        raise ValueError(
            "the points of one Sobol sequence do not say how wrong their average is, so tolerance cannot stop them; "
            "use noise='antithetic' or 'independent'"
        )
    return drawn
