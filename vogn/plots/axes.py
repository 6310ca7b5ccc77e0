"""Where a plot is drawn: on axes that are given, or on a figure of its own that no global state knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def axes_or_new(ax: Any, size: tuple[float, float] = (5.0, 4.0)) -> Any:
    """``ax``, or the axes of a new :class:`matplotlib.figure.Figure`, which ``ax.figure.savefig`` writes."""
    if ax is not None:
        return ax
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained").subplots()


def array(values: Tensor | Sequence[float]) -> np.ndarray:
    """As a flat NumPy array in float64."""
    return torch.as_tensor(values).detach().cpu().double().reshape(-1).numpy()
