"""The public kernels: what they compute, what they refuse. Which implementation runs is :mod:`dispatch`'s business.

Results carry no gradient. Sizes may be zero. Half precision is computed in single precision.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vogn.kernels.dispatch import select
from vogn.kernels.reference import DiagonalStep

Pair = int | tuple[int, int]
"""One integer for both dimensions of an image, or one each: height, width."""
LARGEST_ROOT = 32
"""Largest matrix of :func:`inverse_root` with a Triton kernel: its iterates live in registers, and spill beyond."""
MOST_COLUMNS = 32
"""Largest rank of :func:`woodbury_solve` with a Triton kernel: the small system lives in registers."""

MOST_POSITIONS = 1 << 30
"""Most positions of :func:`patch_factor` with a Triton kernel, which counts them in 32 bits."""


@torch.no_grad()
def diagonal_step(
    mean: Tensor,
    curvature: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    evidence: Tensor,
    *,
    lr: float,
    decay: float,
    weight: float,
    momentum_rate: float,
    weight_decay: float,
    damping: float = 0.0,
    retract: bool = False,
    prior_in_momentum: bool = False,
    root: bool = False,
    correction: float = 1.0,
    ess: float | None = None,
    clip_radius: float = math.inf,
    seed: int = 0,
    offset: int = 0,
) -> DiagonalStep:
    """A whole step of a diagonal Gaussian, and the next weight sample, in one pass over the parameters.

    ====================  =====================================================================================
    curvature ``c'``      ``decay c + weight h``, or with ``retract`` ``c + delta + delta^2 / (2 (c + weight_decay))``
                          where ``delta = weight h - (1 - decay) c``, kept above ``-weight_decay``
    momentum ``u'``       ``u + momentum_rate (g - u)``
    mean ``m'``           ``m - lr clip((u' + weight_decay m) / (c' + weight_decay + damping))``
    sample                ``m' + noise / sqrt(ess (c' + weight_decay))``
    ====================  =====================================================================================

    As in Adam, with ``root`` the mean moves by ``sqrt(max(0, correction c'))`` in the place of ``c'``, and with
    ``prior_in_momentum`` the average is one of ``g + weight_decay m``, which is not added again.

    Args:
        mean: ``m``, any shape; the other tensors have the same.
        curvature: ``c``, of the mean loss; ``c + weight_decay > 0`` for ``retract``.
        momentum: ``u``, a debiased average of gradients.
        gradient: ``g``, of the mean loss.
        evidence: ``h``, an estimate of the curvature.
        lr: learning rate.
        decay: factor on ``c``, in [0, 1].
        weight: factor on ``h``, >= 0.
        momentum_rate: ``(1 - b) / (1 - b^t)`` at step ``t`` debiases an average with factor ``b``; 1 for no momentum.
        weight_decay: precision of the prior per example, >= 0.
        damping: enters the step, not the sample, >= 0.
        retract: for evidence of any sign.
        prior_in_momentum: whether the prior's gradient enters the momentum, or comes after it.
        root: whether the mean moves by the root of the curvature.
        correction: factor, > 0, on the curvature in the step, not in the sample: the inverse total weight of the
            evidence debiases an average that started at zero.
        ess: effective sample size, > 0; ``None`` draws no sample.
        clip_radius: bound, > 0, on the elements of the preconditioned gradient.
        seed: of the noise, in ``[0, 2^63)``.
        offset: counter of the first element's noise, >= 0: element ``k`` of the flattened tensor draws what
            ``tl.randn(seed, offset + k)`` draws. Blocks and steps that shall differ take disjoint counters or seeds.

    Returns:
        New tensors ``(curvature, momentum, mean, sample)`` in the dtypes of the old ones, ``sample`` in the mean's. The
        sample starts from the mean before it is rounded. A negative ``c' + weight_decay`` gives a sample of NaN. With
        a finite ``clip_radius`` also ``clipped``, how many elements it has cut, an int64 scalar.

    Raises:
        ValueError: if shapes or devices differ, or an option is out of its range.
        TypeError: if a tensor holds no floating-point numbers.

    Source: Khan et al. (2018), VOGN; Shen et al. (2024), IVON, algorithm 1, for ``retract``.
    """
    tensors = {"mean": mean, "curvature": curvature, "momentum": momentum, "gradient": gradient, "evidence": evidence}
    _check("diagonal_step", tensors)
    for name, x in tensors.items():
        _require(x.shape == mean.shape, "diagonal_step", f"{name} has shape {_shape(x)}, mean has {_shape(mean)}")
    _require(ess is None or ess > 0, "diagonal_step", f"ess is {ess}; it is > 0, or None for no sample")
    _require(correction > 0, "diagonal_step", f"correction is {correction}; it is > 0, or 1 for none")
    _require(clip_radius > 0, "diagonal_step", f"clip_radius is {clip_radius}; it is > 0, or inf for none")
    _require(0 <= seed < 1 << 63, "diagonal_step", f"seed is {seed}; it is in [0, 2^63)")
    _require(0 <= offset <= (1 << 63) - 1 - mean.numel(), "diagonal_step", f"offset {offset} is out of [0, 2^63)")
    result: DiagonalStep = select("diagonal_step", *tensors.values())(
        *tensors.values(),
        lr=lr,
        decay=decay,
        weight=weight,
        momentum_rate=momentum_rate,
        weight_decay=weight_decay,
        damping=damping,
        retract=retract,
        prior_in_momentum=prior_in_momentum,
        root=root,
        correction=correction,
        ess=ess,
        clip_radius=clip_radius,
        seed=seed,
        offset=offset,
    )
    return result


@torch.no_grad()
def squared_gradients(g: Tensor, a: Tensor) -> Tensor:
    """Sum of the squared per-example gradients of a linear layer that is used once: ``sum_n g[n, o]^2 a[n, i]^2``.

    Args:
        g: per-example output gradients, ``(N, d_out)``.
        a: layer inputs, ``(N, d_in)``, in the dtype of ``g``.

    Returns:
        ``(d_out, d_in)``; float32 for half precision, whose squares soon leave its range.

    Raises:
        ValueError: if the shapes do not match.
        TypeError: if the dtypes differ or hold no floating-point numbers.
    """
    _check("squared_gradients", {"g": g, "a": a}, one_dtype=True)
    _require(
        g.ndim == a.ndim == 2 and len(g) == len(a),
        "squared_gradients",
        f"g has shape {_shape(g)} and a {_shape(a)}; they are (N, d_out) and (N, d_in)",
    )
    return _tensor(select("squared_gradients", g, a)(g, a))


@torch.no_grad()
def symmetric_update(c: Tensor | None, a: Tensor, *, decay: float, weight: float, ones: bool = False) -> Tensor:
    """``decay C + weight A^T A``, exactly symmetric; only the lower half of ``C`` is read.

    Args:
        c: ``C``, ``(*batch, d, d)``; ``None`` for zero, which is not read.
        a: ``A``, ``(*batch, n, d)``; with ``ones`` ``(*batch, n, d - 1)``.
        decay: factor on ``C``.
        weight: factor on ``A^T A``.
        ones: append a column of ones to ``A``, the input of a bias, without storing it.

    Returns:
        ``(*batch, d, d)`` in the dtype of ``C``, or of ``A`` where there is no ``C``.

    Raises:
        ValueError: if the shapes do not match.
        TypeError: if a tensor holds no floating-point numbers.
    """
    if c is None:
        _check("symmetric_update", {"a": a})
        _require(a.ndim >= 2, "symmetric_update", f"a has shape {_shape(a)}; it is (*batch, n, d)")
        return _tensor(select("symmetric_update", a)(None, a, decay=decay, weight=weight, ones=ones))
    _check("symmetric_update", {"c": c, "a": a})
    _require(
        c.ndim >= 2 and c.ndim == a.ndim and c.shape[:-2] == a.shape[:-2] and c.shape[-1] == c.shape[-2],
        "symmetric_update",
        f"c has shape {_shape(c)} and a {_shape(a)}; they are (*batch, d, d) and (*batch, n, d)",
    )
    width = c.shape[-1] - ones
    _require(
        a.shape[-1] == width,
        "symmetric_update",
        f"a has {a.shape[-1]} columns; c of size {c.shape[-1]} takes {width} with ones={ones}",
    )
    return _tensor(select("symmetric_update", c, a)(c, a, decay=decay, weight=weight, ones=ones))


@torch.no_grad()
def woodbury_solve(d: Tensor, u: Tensor, v: Tensor, *, wide: bool = True) -> Tensor:
    """``(diag(d) + U U^T)^-1 v`` by Woodbury's identity.

    Args:
        d: ``(*batch, D)``, > 0 (not checked: that would wait for the device).
        u: ``U``, ``(*batch, D, r)``; Triton's kernel takes ``r`` up to :data:`MOST_COLUMNS`.
        v: ``(*batch, k, D)``: ``k`` vectors per matrix.
        wide: compute in double precision, whatever is stored. In single precision the identity cancels: the relative
            error grows up to ``|U|^2 / d`` rounding errors where ``v`` lies in the span of ``U``.

    Returns:
        ``(*batch, k, D)`` in the dtype of ``v``.

    Raises:
        ValueError: if the shapes do not match.
        TypeError: if a tensor holds no floating-point numbers.
    """
    _check("woodbury_solve", {"d": d, "u": u, "v": v})
    _require(
        d.ndim >= 1
        and u.ndim == v.ndim == d.ndim + 1
        and u.shape[:-1] == d.shape
        and (v.shape[:-2], v.shape[-1]) == (d.shape[:-1], d.shape[-1]),
        "woodbury_solve",
        f"shapes {_shape(d)}, {_shape(u)}, {_shape(v)}; d, u, v are (*batch, D), (*batch, D, r), (*batch, k, D)",
    )
    rank = u.shape[-1]
    limit = f"the rank is {rank}, it takes 1 to {MOST_COLUMNS}" if not 0 < rank <= MOST_COLUMNS else ""
    return _tensor(select("woodbury_solve", d, u, v, limit=limit)(d, u, v, wide=wide))


@torch.no_grad()
def eigenbasis_solve(g: Tensor, q_s: Tensor, q_a: Tensor, eigenvalues: Tensor, *, shift: float) -> Tensor:
    """``Q_S ((Q_S^T G Q_A) / (eigenvalues + shift)) Q_A^T``.

    Args:
        g: ``G``, ``(*batch, d_out, d_in)``.
        q_s: ``Q_S``, ``(*batch, d_out, d_out)``.
        q_a: ``Q_A``, ``(*batch, d_in, d_in)``.
        eigenvalues: ``(*batch, d_out, d_in)``.
        shift: ``eigenvalues + shift`` is not zero (not checked: that would wait for the device).

    Returns:
        ``(*batch, d_out, d_in)`` in the dtype of ``G``.

    Raises:
        ValueError: if the shapes do not match.
        TypeError: if a tensor holds no floating-point numbers.

    Source: George et al. (2018), EKFAC, eq. 9.
    """
    _check("eigenbasis_solve", {"g": g, "q_s": q_s, "q_a": q_a, "eigenvalues": eigenvalues})
    _require(g.ndim >= 2, "eigenbasis_solve", f"g has shape {_shape(g)}; it is (*batch, d_out, d_in)")
    *lead, d_out, d_in = g.shape
    wanted = {"q_s": (q_s, (d_out, d_out)), "q_a": (q_a, (d_in, d_in)), "eigenvalues": (eigenvalues, (d_out, d_in))}
    for name, (x, shape) in wanted.items():
        _require(
            _shape(x) == (*lead, *shape),
            "eigenbasis_solve",
            f"{name} has shape {_shape(x)}; with g of shape {_shape(g)} it is {(*lead, *shape)}",
        )
    return _tensor(select("eigenbasis_solve", g, q_s, q_a, eigenvalues)(g, q_s, q_a, eigenvalues, shift=float(shift)))


@torch.no_grad()
def inverse_root(a: Tensor, root: int) -> tuple[Tensor, Tensor]:
    """``A^(-1 / root)`` of symmetric positive definite matrices by the coupled Newton iteration.

    ``X_0 = z^(1 / root) I`` and ``M_0 = z A`` with ``z = (1 + root) / (2 |A|_F)``; ``T = ((root + 1) I - M) / root``,
    ``X <- X T``, ``M <- T^root M`` until ``M`` is ``I`` up to rounding.

    Args:
        a: ``A``, ``(*batch, n, n)``; Triton's kernel takes ``n`` up to :data:`LARGEST_ROOT`.
        root: 2 or 4.

    Returns:
        The roots, ``(*batch, n, n)``, symmetric, in the dtype of ``A``, and the largest element of ``|M - I|`` of each
        matrix, ``(*batch)``. An error that is not small says that the iteration did not converge: the matrix is not
        positive definite to working precision. The roots lose about as many digits as the condition number has.

    Raises:
        ValueError: if the matrices are not square, or ``root`` is neither 2 nor 4.
        TypeError: if ``a`` holds no floating-point numbers.

    Source: Guo, Higham (2006), "A Schur-Newton method for the matrix pth root and its inverse"; Anil et al. (2020),
    "Scalable second order optimization for deep learning", appendix, for the starting point.
    """
    _check("inverse_root", {"a": a})
    _require(root in (2, 4), "inverse_root", f"root is {root}; it is 2 or 4")
    _require(
        a.ndim >= 2 and a.shape[-1] == a.shape[-2], "inverse_root", f"a has shape {_shape(a)}; it is (*batch, n, n)"
    )
    size = a.shape[-1]
    limit = f"the matrices have size {size}, it takes sizes up to {LARGEST_ROOT}" if size > LARGEST_ROOT else ""
    found, error = select("inverse_root", a, limit=limit)(a, root)
    return _tensor(found), _tensor(error)


@torch.no_grad()
def patch_factor(
    x: Tensor,
    kernel_size: Pair,
    *,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    ones: bool = False,
) -> Tensor:
    """``sum over images and positions of patch patch^T``: the input factor of a convolution.

    Args:
        x: inputs of the convolution, ``(N, C, H, W)``.
        kernel_size, stride, padding, dilation: as for :class:`torch.nn.Conv2d`; padding is with zeros.
        ones: append a one to every patch, the input of a bias.

    Returns:
        ``(d, d)`` with ``d = C * kernel height * kernel width``, one more with ``ones``, in the order of the flattened
        weight of the convolution; float32 for half precision.

    Raises:
        ValueError: if ``x`` has no four dimensions, or an option is out of its range.
        TypeError: if ``x`` holds no floating-point numbers.

    Source: Grosse, Martens (2016), "A Kronecker-factored approximate Fisher matrix for convolution layers".
    """
    _check("patch_factor", {"x": x})
    _require(x.ndim == 4, "patch_factor", f"x has shape {_shape(x)}; it is (N, C, H, W)")
    options: dict[str, tuple[int, int]] = {}
    for name, value, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        pair = (value, value) if isinstance(value, int) else tuple(value)
        _require(
            len(pair) == 2 and min(pair) >= least,
            "patch_factor",
            f"{name} is {value}; it is an integer >= {least} or two of them",
        )
        options[name] = (int(pair[0]), int(pair[1]))
    out_size = tuple(
        (x.shape[2 + k] + 2 * options["padding"][k] - options["dilation"][k] * (options["kernel_size"][k] - 1) - 1)
        // options["stride"][k]
        + 1
        for k in (0, 1)
    )
    _require(
        min(out_size) > 0,
        "patch_factor",
        f"a kernel of {options['kernel_size']} has no place in inputs of {_shape(x)[2:]} with these options",
    )
    positions = len(x) * out_size[0] * out_size[1]
    limit = f"there are {positions} positions, it takes up to 2^30" if positions > MOST_POSITIONS else ""
    function = select("patch_factor", x, limit=limit)
    return _tensor(function(x, out_size=out_size, ones=ones, **options))


def _check(op: str, tensors: dict[str, Tensor], *, one_dtype: bool = False) -> None:
    first, x = next(iter(tensors.items()))
    for name, y in tensors.items():
        if not y.is_floating_point():
            raise TypeError(f"{op}: {name} has dtype {y.dtype}; it holds floating-point numbers")
        _require(y.device == x.device, op, f"{name} is on {y.device}, {first} on {x.device}; move them to one device")
        if one_dtype and y.dtype != x.dtype:
            raise TypeError(f"{op}: {name} has dtype {y.dtype}, {first} has {x.dtype}; give them one dtype")


def _require(condition: bool, op: str, message: str) -> None:
    if not condition:
        raise ValueError(f"{op}: {message}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)


def _tensor(result: Any) -> Tensor:
    assert isinstance(result, Tensor)
    return result
