"""KL divergences between Gaussian posteriors in closed form, and what one observation adds to one."""

from __future__ import annotations

import torch
from torch import Tensor


def diagonal_kl(mean: Tensor, sd: Tensor, other_mean: Tensor, other_sd: Tensor) -> Tensor:
    """``KL(N(mean, sd^2) || N(other_mean, other_sd^2))`` of independent weights, summed, nats.

    Args:
        mean, sd, other_mean, other_sd: the same shape; standard deviations > 0.
    """
    ratio = (sd / other_sd).square()
    return 0.5 * (ratio + ((mean - other_mean) / other_sd).square() - 1 - ratio.log()).sum()


def kronecker_kl(
    mean: Tensor, inputs: Tensor, outputs: Tensor, other_mean: Tensor, other_inputs: Tensor, other_outputs: Tensor
) -> Tensor:
    """``KL(q || p)`` of weight matrices with precisions ``A (x) S``, nats.

    Args:
        mean, other_mean: ``(d_out, d_in)``, of ``q`` and ``p``.
        inputs, other_inputs: ``A``, ``(d_in, d_in)``, positive definite.
        outputs, other_outputs: ``S``, ``(d_out, d_out)``, positive definite.

    Returns:
        ``0.5 (tr(A_p A_q^-1) tr(S_p S_q^-1) + tr(D^T S_p D A_p) - d_in d_out + d_out log(|A_q| / |A_p|) +
        d_in log(|S_q| / |S_p|))`` with ``D`` the difference of the means.

    Source: Zhang, Sun, Duvenaud, Grosse (2018), section 5.4, with the identities of Kronecker products.
    """
    rows, columns = mean.shape
    trace = torch.linalg.solve(inputs, other_inputs).trace() * torch.linalg.solve(outputs, other_outputs).trace()
    shift = mean - other_mean
    square = ((other_outputs @ shift @ other_inputs) * shift).sum()
    logdets = rows * (torch.logdet(inputs) - torch.logdet(other_inputs))
    logdets = logdets + columns * (torch.logdet(outputs) - torch.logdet(other_outputs))
    return 0.5 * (trace + square - rows * columns + logdets)


def information_gain(variance: Tensor, residual: Tensor, noise: float) -> Tensor:
    """``KL(q' || q)``, with ``q'`` the posterior after one more observation, of the network linearised at the mean.

    With ``q = N(m, Sigma)``, Jacobian ``J`` and ``y = f + J (theta - m) + noise eps``, the exact ``q'`` has precision
    ``Sigma^-1 + J^T J / noise^2``, a natural-gradient step of length one. Only ``V = J Sigma J^T`` is needed, whatever
    the structure of ``Sigma``::

        KL(q' || q) = 0.5 (log|I + M| - tr(M (I + M)^-1) + u^T V u)
        M = V / noise^2          u = (V + noise^2 I)^-1 e

    Its expectation over ``e ~ N(0, V + noise^2 I)`` is the mutual information ``0.5 log|I + M|``.

    Args:
        variance: ``V``, ``(N, K, K)``, of ``N`` observations, each for itself.
        residual: ``e = y - f``, ``(N, K)``.
        noise: > 0.

    Returns:
        ``(N,)``, nats, >= 0.

    Raises:
        ValueError: for other shapes or a noise out of range.
    """
    if variance.ndim != 3 or variance.shape[:2] != residual.shape or variance.shape[1] != variance.shape[2]:
        raise ValueError(f"variance must be (N, K, K) and residual (N, K), got {variance.shape} and {residual.shape}")
    if not 0 < noise < float("inf"):
        raise ValueError(f"noise={noise} must be a positive finite number")
    eye = torch.eye(variance.shape[-1], dtype=variance.dtype)
    ratio = variance / noise**2
    inverse = torch.linalg.inv(eye + ratio)
    solved = (inverse @ residual.unsqueeze(-1) / noise**2).squeeze(-1)
    square = torch.einsum("ni,nij,nj->n", solved, variance, solved)
    trace = torch.einsum("nij,nji->n", ratio, inverse)
    return (0.5 * (torch.logdet(eye + ratio) - trace + square)).clamp_min(0.0)
