"""SENG: the empirical natural gradient in sample space, sketched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.kfac import clipped_chain, fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.structures import Gram, PairGram, SampledGram, SketchedGram, SketchedPairGram
from vogn.structures.base import Structure


class SENG(NaturalGradient):
    """The empirical Fisher of every layer through the inner products of its per-example gradients.

    ===================  ==========================  ==========================
    paper                argument                    unit
    ===================  ==========================  ==========================
    alpha                ``lr``                      1
    lambda               ``damping``                 loss / parameter^2
    weight decay         ``weight_decay``            loss / parameter^2
    q (code: ``c^2``)    ``coordinates``             coordinates of a layer
    p (svd rank)         ``positions``               pairs of a row
    implicit form        ``implicit_above``          parameters of a layer
    update frequency     ``observe_every``           steps
    N                    ``ess`` (variational)       examples
    ===================  ==========================  ==========================

    Without a sketch, the default, all layers are exact and both modes run. The sketches are two:

    - ``coordinates=65536`` is the paper's: layers with more parameters than that estimate their inner products from
      random coordinates. Their curvature is not symmetric and cannot be sampled, so it needs ``variational=False``.
    - ``rows=0.5`` draws that share of the examples (a whole number: that many) by importance. It runs in both modes.

    Layers with more than ``implicit_above`` parameters take the paper's implicit form: their rows stay ``positions``
    pairs of inputs and output gradients, which are exact for layers without shared weights, and cut to the largest
    singular values of the output gradients where a convolution or a sequence has more positions. It runs in both modes,
    and with ``coordinates`` as in the paper, where inner products then run over ``sqrt(coordinates)`` inputs and
    outputs.

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only; the authors decay it exponentially from 2: write the group's entry.
        momentum: of the preconditioned gradient.
        curvature_decay: 0 keeps the rows of one batch, as in the paper.
        fisher: ``"empirical"`` as in the paper, ``"mc"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        coordinates: coordinates per layer of the paper's sketch; ``None`` for none.
        rows: rows that are drawn, a share or a number; ``None`` for all.
        implicit_above: layers with more parameters hold pairs instead of rows, where these are the smaller form
            (:class:`vogn.structures.PairGram`); the authors have a million. ``None`` for no layer.
        positions: pairs of a row, with ``implicit_above``.
        window: rows that are held of a batch, at most; more are merged.
        observe_every: steps between batches that are looked at for curvature.
        mc_samples, variational, seed, **options: see :class:`NaturalGradient`. The seed is also that of the sketches.

    Raises:
        ValueError: if both sketches are asked for, or a draw of rows together with pairs.
        UnsupportedObservationError: if ``coordinates`` are given in variational mode.

    Of the authors' code, the factor ``D / q`` too much in the inner products, the way back of the implicit form by a
    product of sums, and the average of each process's own directions are not followed: processes pool their rows. See
    :class:`vogn.structures.SketchedGram` and :class:`vogn.structures.SketchedPairGram`.

    Source: Yang, Xu, Wen, Chen, Xu (2020), "Sketchy Empirical Natural Gradient Methods for Deep Learning", Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.05,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-2,
        damping: float = 2.0,
        momentum: float = 0.9,
        curvature_decay: float = 0.0,
        fisher: Literal["empirical", "mc", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        coordinates: int | None = None,
        rows: int | float | None = None,
        implicit_above: int | None = None,
        positions: int = 16,
        window: int = 256,
        observe_every: int = 50,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, _structure(coordinates, rows, implicit_above, positions, window, seed)),
            fisher_statistic(fisher, ggn_samples),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            observe_every=observe_every,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=clipped_chain(None),
            **options,
        )


def _structure(
    coordinates: int | None,
    rows: int | float | None,
    implicit_above: int | None,
    positions: int,
    window: int,
    seed: int,
) -> Structure:
    """The structure of the sketch and of the form that are asked for.

    Raises:
        ValueError: if they exclude each other.
    """
    if rows is not None:
        for name, value in (("coordinates", coordinates), ("implicit_above", implicit_above)):
            if value is not None:
                raise ValueError(f"{name}={value} and rows={rows}: SENG has one of them at a time; leave one out")
        return SampledGram(rank=rows, window=window, seed=seed)
    if implicit_above is None:
        return Gram(window) if coordinates is None else SketchedGram(coordinates, window, seed)
    if coordinates is None:
        return PairGram(positions, window, implicit_above)
    return SketchedPairGram(coordinates, window, seed, positions, implicit_above)
