"""One number per parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.kernels import native
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Negative, Shift, Structure
from vogn.structures.earlier import kept, with_earlier
from vogn.structures.evidence import absorb, blend, require_positive_without_shift
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class Diagonal(Structure):
    """``C = diag(c)``, ``c`` a block vector.

    Where an observation holds both channels, the probe is the evidence.

    Args:
        negative: what to do with negative evidence (probes): ``"raise"``, ``"clamp"`` it at zero, take ``"abs"``, or
            ``"retract"`` (see :func:`vogn.structures.evidence.absorb`): the law of IVON, for which
            ``c' + shift = (c + shift) (1 + x + x^2 / 2)`` with ``x = weight (h - c) / (c + shift)`` at
            ``decay = 1 - weight``.

    Raises:
        ValueError: if ``negative`` is unknown.
    """

    negative: Negative = "raise"

    OBSERVES: ClassVar[frozenset[str]] = frozenset({"rows", "probe"})
    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "exponent", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"rows": 2, "probe": 1}
    ELEMENTWISE: ClassVar[bool] = True
    FORMS_ROWS: ClassVar[bool] = True
    EARLIER: ClassVar[tuple[str, ...]] = ("earlier",)

    def __post_init__(self) -> None:
        self._check_option("negative", self.negative, ("raise", "retract", "clamp", "abs"))

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``c = initial``."""
        return {"c": torch.full(shape, initial, dtype=dtype, device=device)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Sum of squared rows."""
        return {"rows": rows.squares()}

    def observe_probe(self, state: State, probe: Tensor, response: Tensor) -> Observation:
        """``probe * response``."""
        return {"probe": probe * response}

    def observe_displacement(
        self, state: State, displacement: Tensor, response: Tensor, *, shift: Shift, ess: float
    ) -> Observation:
        """See :meth:`Structure.observe_displacement`."""
        c = state["c"]
        if isinstance(shift, float) and c.shape == response.shape and native.fit(displacement, c, response):
            return {"probe": native.price(displacement, c, response, shift=shift, ess=ess, out=displacement)}
        return super().observe_displacement(state, displacement, response, shift=shift, ess=ess)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """``decay c + weight c_hat``; probes follow ``negative``."""
        if "probe" in observation:
            h = with_earlier(observation["probe"], state, "earlier")
            c = absorb(state["c"], h, decay=decay, weight=weight, shift=shift, negative=self.negative)
        else:
            c = blend(state["c"], with_earlier(observation["rows"], state, "earlier"), decay, weight)
        return {"c": c} | kept(state, self.EARLIER)

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """See :meth:`Structure.with_earlier`."""
        earlier = factor * other["c"]
        return state | {"c": state["c"] + earlier, "earlier": earlier}

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``e v``."""
        return state["earlier"] * v if "earlier" in state else torch.zeros_like(v)

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """``v / (c^exponent + shift)``; under a root, negative ``c`` counts as zero."""
        if exponent == 1.0:
            return _into(torch.div, v, self._shifted(state, shift))
        return v / require_positive_without_shift(state["c"].clamp_min(0.0).pow_(exponent) + shift, shift)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(c + shift) v``."""
        return _into(torch.mul, v, state["c"] + shift)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """``noise / sqrt(c + shift)``."""
        return _into(torch.mul, noise, self._shifted(state, shift).rsqrt_())

    def plain_diagonal(self, state: State, shift: Shift) -> Tensor | None:
        """See :meth:`Structure.plain_diagonal`."""
        return state["c"] if isinstance(shift, float) and shift > 0.0 and native.fit(state["c"]) else None

    def displace(self, state: State, noise: Tensor, shift: Shift, ess: float) -> Tensor:
        """See :meth:`Structure.displace`."""
        c = state["c"]
        if isinstance(shift, float) and shift > 0.0 and c.shape == noise.shape and native.fit(noise, c):
            return native.displace(noise, c, shift=shift, ess=ess)
        return super().displace(state, noise, shift, ess)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``sum log(c + shift)``."""
        return self._shifted(state, shift).log_().sum()

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``1 / (c + shift)``."""
        return self._shifted(state, shift).reciprocal_()

    def input_variance(self, state: State, shape: Shape, a: Tensor, shift: Shift, *, diagonal: bool = False) -> Tensor:
        """``a^2 / (c + shift)``, summed over the inputs; outputs are independent."""
        variances = a.square() @ self._shifted(state, shift).reciprocal_().expand(shape).mT
        return variances if diagonal else torch.diag_embed(variances)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        values = self._shifted(state, shift)
        return values.min(), values.max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``diag(c + shift)``."""
        return (state["c"] + shift).flatten().diag()

    def _shifted(self, state: State, shift: Shift) -> Tensor:
        return require_positive_without_shift(state["c"] + shift, shift)


def _into(function: Callable[..., Tensor], v: Tensor, own: Tensor) -> Tensor:
    """``function(v, own)``, in the memory of ``own`` where it has room for the result: new memory costs page faults.

    Autograd allows no ``out=``, so a result that is differentiated gets memory of its own.
    """
    recorded = torch.is_grad_enabled() and (v.requires_grad or own.requires_grad)
    fits = v.shape == own.shape and v.dtype == own.dtype and not recorded
    return function(v, own, out=own) if fits else function(v, own)
