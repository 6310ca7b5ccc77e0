"""Reading a posterior of any kind from its file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vogn.posterior.dropout import MCDropout
from vogn.posterior.ensemble import Ensemble, Point
from vogn.posterior.files import SavedPosterior, read_posterior
from vogn.posterior.gaussian import GaussianPosterior
from vogn.posterior.mixture import Mixture
from vogn.posterior.swag import SWAG

KINDS: Mapping[str, type[SavedPosterior]] = {
    kind.FORMAT: kind for kind in (GaussianPosterior, Ensemble, Point, MCDropout, SWAG, Mixture)
}
"""Name in a file's header to the kind of posterior."""


def load_posterior(path: str | Path, device: torch.device | str = "cpu") -> SavedPosterior:
    """Read what the ``save`` of any posterior of this library wrote; the file says which kind it is.

    Args:
        path: of the file.
        device: where the tensors shall live.

    Returns:
        A :class:`vogn.posterior.Posterior`.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, not a posterior, or of a newer schema.
    """
    return read_posterior(path, KINDS, device)
