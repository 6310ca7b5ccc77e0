"""SNGD: gradient descent on a network whose layers are reparametrised by a local Fisher metric of their inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Inputs
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Prior, Solve
from vogn.structures import LocalFisher


class SNGD(NaturalGradient):
    """Structured natural gradient descent with local Fisher layers.

    A layer ``y = W x`` is seen as ``y = W' (M^(-1/2) x)`` with ``W' = W M^(1/2)`` and ``M`` the metric of its inputs.
    Gradient descent on ``W'`` is ``W <- W - lr dL/dW M^-1``, and that is how the engine does it: it keeps ``W``, so the
    network is always the user's own. The metric is fixed between refreshes; whenever it changes the coordinates are
    based anew, ``W' <- W' M_old^(-1/2) M_new^(1/2)``, which leaves the function of the network as it is (and is no
    arithmetic on ``W`` at all).

    Momentum averages gradients with respect to ``W'`` and is based anew with it: on ``W`` it averages the
    preconditioned gradient.

    =============  =========================  ===============================================
    paper          argument                   unit
    =============  =========================  ===============================================
    eta            ``lr``                     input^2 parameter^2 / loss
    M              ``curvature_decay``        1 (weight of the old metric in its average)
    epsilon        ``damping``                input^2
    N              ``ess``                    examples
    =============  =========================  ===============================================

    ``M`` is the curvature of a loss whose Hessian in the layer's outputs is the identity: ``weight_decay`` and
    ``damping`` are added to it in units of squared inputs. The authors' code damps by ``1e-4 tr(M)``.

    In variational mode the precision of the weights is ``ess (I_out (x) M + weight_decay I)``: a sample is
    ``E (M + weight_decay I)^(-1/2) / sqrt(ess)``.

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        metric: ``"inputs"``, the metric of the paper, shared by all outputs of a layer; or ``"rfim_unit"``, the one of
            the authors' code for hidden layers: one for each output, weighted by the squared slope of a softplus at the
            unit's output. It stores ``o i^2`` numbers per layer, and layers beyond
            ``LocalFisher(scope="unit").max_elements`` have the shared metric. The code gives the first and last layer
            the shared metric too: ``structure={"head": LocalFisher()}``.
        root: how roots of the metric are taken: ``"eigh"``, ``"nystrom"`` or ``"denman_beavers"``; see
            :class:`vogn.structures.LocalFisher`.
        columns: of ``root="nystrom"``.
        refresh_every: steps between two metrics.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`. They must read inputs alone: ``LocalFisher`` or ``Identity``.
        weight_decay, damping, momentum, curvature_decay, initial_curvature, mc_samples, variational, seed, **options:
            see :class:`NaturalGradient`.

    Source: Liu, Boumaraf, Li, Lin, Liu, Niu, Werghi (2024), "Reconstructing Deep Neural Networks: Unleashing the
    Optimization Potential of Natural Gradient Descent"; Desjardins et al. (2015), "Natural Neural Networks", for basing
    anew; Sun and Nielsen (2017), "Relative Fisher Information and Natural Gradient for Learning Large Modular Models".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        metric: Literal["inputs", "rfim_unit"] = "inputs",
        root: Literal["eigh", "nystrom", "denman_beavers"] = "eigh",
        columns: int = 64,
        weight_decay: float = 1e-4,
        damping: float = 1e-2,
        momentum: float = 0.0,
        curvature_decay: float = 0.995,
        refresh_every: int = 100,
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if metric not in ("inputs", "rfim_unit"):
            raise ValueError(f"metric={metric!r}: choose 'inputs' or 'rfim_unit'")
        shared = LocalFisher(root=root, columns=columns)
        unit = LocalFisher(scope="unit", root=root, columns=columns)
        super().__init__(
            params,
            make_selection(structure, shared if metric == "inputs" else unit),
            Inputs(),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            refresh_every=refresh_every,
            initial_curvature=initial_curvature,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=(Prior(), Solve(), Momentum()),
            **({"fallback": shared} | options),
        )
