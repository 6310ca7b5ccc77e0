"""Setting the least certain weights, units or filters to zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from vogn.capture.selection import matches
from vogn.posterior import Posterior
from vogn.pruning.pruned import PrunedPosterior
from vogn.pruning.scores import scores


def prune(
    posterior: Posterior,
    share: float,
    *,
    score: str = "snr",
    by: Literal["weight", "unit"] = "weight",
    per: Literal["all", "parameter"] = "all",
    only: Sequence[str] | None = None,
) -> PrunedPosterior:
    """Set the share of the weights (or units) with the lowest scores to zero.

    Args:
        posterior: with means and marginal variances, such as ``opt.posterior()`` or that of :func:`vogn.laplace`.
        share: of what may go, in [0, 1]; rounded to a whole number.
        score: ``"snr"`` (mean over standard deviation), ``"second_order"``, ``"signal_plus_noise"`` or ``"magnitude"``;
            see :data:`vogn.pruning.SCORES`. Of a unit it is the root mean square over its weights.
        by: ``"weight"``: each weight alone, of parameters with two or more dimensions (biases and norms stay).
            ``"unit"``: rows of weights, that is all that enters a unit or makes a filter, with its bias, so that its
            output is zero before the activation. The last such parameter, whose units are the outputs, stays.
        per: one threshold for ``"all"``, or for every ``"parameter"`` its own.
        only: patterns of parameter names (``"encoder.*"``, as in ``structure``): others stay. ``None`` is all.

    Returns:
        A posterior with zeros, which :func:`vogn.predict` takes.

    Raises:
        ValueError: if a number or option is out of range, or there is nothing to prune.

    Example:
        >>> import torch, vogn
        >>> from vogn.pruning import prune
        >>> model = torch.nn.Linear(10, 2)
        >>> data = [(torch.randn(50, 10), torch.randint(2, (50,)))]
        >>> posterior = vogn.laplace(model, vogn.likelihoods.Categorical(), data, structure="diagonal")
        >>> pruned = prune(posterior, 0.75)
        >>> int((pruned.mean()["weight"] == 0).sum())
        15

    Source: Graves (2011), "Practical Variational Inference for Neural Networks"; Blundell et al. (2015),
    "Weight Uncertainty in Neural Networks", section 5.1.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share={share} must lie between 0 and 1")
    if by not in ("weight", "unit") or per not in ("all", "parameter"):
        raise ValueError(f"by={by!r}, per={per!r}: choose by='weight' or 'unit', per='all' or 'parameter'")
    found = scores(posterior, score)
    names = [name for name, value in found.items() if value.ndim > 1]
    if by == "unit":
        names = names[:-1]
    if only is not None:
        names = [name for name in names if any(matches(pattern, [name]) for pattern in only)]
    if not names:
        raise ValueError(f"there is nothing to prune by {by} among {list(found)[:5]} ...; see only=")
    wanted = {name: found[name] if by == "weight" else _of_units(name, found) for name in names}
    kept = _kept(wanted, share, per)
    if by == "weight":
        return PrunedPosterior(posterior, kept)
    keep = {}
    for name, units in kept.items():
        for part in (name, _bias_of(name)):
            if part in found and len(found[part]) == len(units):
                keep[part] = units.view(-1, *[1] * (found[part].ndim - 1)).expand_as(found[part])
    return PrunedPosterior(posterior, keep)


def _bias_of(name: str) -> str:
    head, _, last = name.rpartition(".")
    bias = "bias" + last.removeprefix("weight")
    return f"{head}.{bias}" if head else bias


def _of_units(name: str, found: Mapping[str, Tensor]) -> Tensor:
    """Root mean square score of everything that enters a unit, ``(units,)``."""
    parts = [found[part].flatten(1) if found[part].ndim > 1 else found[part].unsqueeze(1)
             for part in (name, _bias_of(name)) if part in found]  # fmt: skip
    return torch.cat(parts, 1).square().mean(1).sqrt()


def _kept(wanted: Mapping[str, Tensor], share: float, per: str) -> dict[str, Tensor]:
    """Booleans: which are not among the share with the lowest scores; equal scores go in their order."""
    groups = [list(wanted)] if per == "all" else [[name] for name in wanted]
    out = {}
    for group in groups:
        flat = torch.cat([wanted[name].flatten().float() for name in group])
        keep = torch.ones(len(flat), dtype=torch.bool, device=flat.device)
        keep[flat.argsort(stable=True)[: round(share * len(flat))]] = False
        for name, part in zip(group, keep.split([wanted[name].numel() for name in group]), strict=True):
            out[name] = part.view_as(wanted[name])
    return out
