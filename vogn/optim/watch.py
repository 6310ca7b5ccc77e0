"""A look at the posterior from time to time: has it collapsed, or does its noise drown the weights?"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import whole
from vogn.errors import PosteriorWarning
from vogn.optim.diagnostics import inverse_diagonal

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient

FIRST_STEP = 64
"""The first look is after so many steps, the others after twice, four times ... as many."""
COLLAPSED, EXPLODED = 1e-5, 5.0
"""Bounds on :func:`relative_std`. Sound runs on digits lie between 0.007 and 2.4 (a block of which the data say little
has the prior's width); a ResNet-8 that learns nothing under a prior of precision 1 reaches 13 to 16."""


class PosteriorWatch:
    """Warns once if the noise of a block is too small to matter, and once if it drowns the weights.

    Blocks that are sampled are looked at after 64, 128, 256 ... steps: 11 times in 100,000 steps, each for the diagonal
    of an inverse per block, which is less than a step without its passes through the network. What processes divide
    among themselves is not looked at: it would have to be gathered.
    """

    def __init__(self) -> None:
        self._looked_at = 0
        self._told: set[str] = set()

    def after_step(self, optimizer: NaturalGradient) -> None:
        """A step is done.

        Warns:
            PosteriorWarning: naming the block that is furthest out, and the remedy.
        """
        done = int(optimizer.param_groups[0]["steps_done"])
        if done < FIRST_STEP or done & (done - 1) or done == self._looked_at or len(self._told) == 2:
            return
        self._looked_at = done
        ratios = relative_stds(optimizer)
        if not ratios:
            return
        lowest, highest = min(ratios, key=lambda name: ratios[name]), max(ratios, key=lambda name: ratios[name])
        if ratios[lowest] < COLLAPSED:
            self._tell(
                "collapsed",
                f"block {lowest!r}: the posterior has collapsed: its standard deviation is {ratios[lowest]:.1e} of the "
                "weights' scale, so that samples are the mean. Raise the temperature (lower ess), lower weight_decay, "
                "or save the noise with variational=False",
            )
        if ratios[highest] > EXPLODED and len(ratios) > 1:  # through one layer alone, noise is only added
            self._tell(
                "exploded",
                f"block {highest!r}: the posterior's standard deviation is {ratios[highest]:.1f} times the weights' "
                "scale, so that noise drowns what they have learned. Raise weight_decay (the prior's precision over "
                "ess), or lower the temperature (raise ess)",
            )

    def _tell(self, what: str, message: str) -> None:
        if what not in self._told:
            self._told.add(what)
            message += "; opt.diagnostics(per_block=True) shows all blocks"
            warnings.warn(message, PosteriorWarning, stacklevel=5)


def relative_stds(optimizer: NaturalGradient) -> dict[str, float]:
    """:func:`relative_std` of every block that is sampled now and has curvature, by name."""
    table, _ = optimizer._build()
    found = {}
    for block, group in table:
        sampled = group["variational"] and group["sampled"]
        if not sampled or table.divided or not table.known(block) or table.without_curvature(group):
            continue
        inverse = inverse_diagonal(block, table.state(block)["curvature"], float(group["weight_decay"]))
        if inverse is not None:
            found[block.name] = relative_std(block, inverse / float(group["ess"]))
    return found


def relative_std(block: Block, variance: Tensor) -> float:
    """The posterior's root mean square standard deviation over the scale of the weights.

    The scale is the root mean square of the means, but at least ``1 / sqrt(fan-in)`` of the block's largest parameter,
    the scale of customary initial weights: weights may be zero and noise still be small.

    Args:
        block: the block.
        variance: the diagonal of its covariance.
    """
    means = [whole(parameter.detach()) for parameter in block.parameters]
    squares = math.fsum(float(mean.double().square().sum()) for mean in means)
    largest = max(means, key=lambda mean: mean.numel())
    fan_in = largest[0].numel() if largest.ndim > 1 else 1
    scale = max(math.sqrt(squares / block.layout.numel), fan_in**-0.5)
    return math.sqrt(float(variance.mean())) / scale
