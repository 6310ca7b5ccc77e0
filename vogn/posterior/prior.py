"""The isotropic Gaussian prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prior:
    """``N(mean, I / precision)`` over every sampled parameter.

    Args:
        mean: one number for all parameters, or ``{name: tensor of the parameter's shape}``.
        precision: inverse variance, > 0 and finite. Equals ``weight_decay * ess`` at temperature 1.

    Raises:
        ValueError: if the precision is not a positive finite number.
    """

    mean: float | Mapping[str, Tensor] = 0.0
    precision: float = 1.0

    def __post_init__(self) -> None:
        if not (self.precision > 0 and math.isfinite(self.precision)):
            raise ValueError(
                f"the prior precision must be a positive finite number, got {self.precision}; "
                "without weight decay there is no proper prior"
            )

    def mean_like(self, means: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The prior mean in the shapes, dtypes and devices of ``means``.

        Raises:
            ValueError: if a name is missing from a dictionary of prior means or has another shape.
        """
        if not isinstance(self.mean, Mapping):
            return {name: tensor.new_full(tensor.shape, float(self.mean)) for name, tensor in means.items()}
        out = {}
        for name, tensor in means.items():
            if name not in self.mean:
                raise ValueError(f"the prior has no mean for parameter {name!r}; it has {sorted(self.mean)}")
            if self.mean[name].shape != tensor.shape:
                raise ValueError(
                    f"the prior mean of {name!r} has shape {tuple(self.mean[name].shape)}, "
                    f"the parameter has {tuple(tensor.shape)}"
                )
            out[name] = self.mean[name].detach().to(tensor)
        return out
