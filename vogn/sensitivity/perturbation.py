"""The memory-perturbation equation: how outputs move when examples are taken out of the loss.

At the minimum ``m`` of ``sum_n loss_n(theta) + prior(theta)`` with the precision ``Lambda = Sigma^-1``, taking out
examples with output gradients ``r``, output Hessians ``H = L L^T`` and Jacobians ``J`` moves the mean by

    first order    dm = Sigma J^T r                            Lambda stays
    leverage       dm = (Lambda - J^T H J)^-1 J^T r            one Newton step: Lambda loses the examples too

so that outputs with Jacobians ``K`` move by ``K Sigma J^T s`` with ``s = r``, or
``s = (I - H V)^-1 r = r + L (I - L^T V L)^-1 L^T V r`` and ``V = J Sigma J^T``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood, likelihood_from_dict
from vogn.posterior import Posterior
from vogn.predict.evaluation import calls_of, undisturbed, weights_for
from vogn.predict.inputs import batches_of
from vogn.predict.jacobians import Named, jacobians

Order = Literal["leverage", "first"]
ORDERS = ("leverage", "first")


def check_options(order: str, temperature: float) -> None:
    """Raise ValueError unless both are allowed."""
    if order not in ORDERS:
        raise ValueError(f"order={order!r}: choose one of {', '.join(ORDERS)}")
    if not 0.0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be a positive finite number")


def find_likelihood(posterior: Posterior, given: Likelihood | None) -> Likelihood:
    """The given likelihood, else the one that the posterior knows.

    Raises:
        ValueError: if it knows none.
    """
    stored = given if given is not None else getattr(posterior, "likelihood", None)
    if stored is None:
        raise ValueError("the posterior does not know its likelihood; pass likelihood=")
    return stored if isinstance(stored, Likelihood) else likelihood_from_dict(stored)


def uncertain_names(posterior: Posterior) -> list[str]:
    """Names of the parameters that can move: those with a covariance.

    Raises:
        ValueError: if there are none.
    """
    blocks = getattr(posterior, "sampled_blocks", None)
    if blocks is None:
        return list(posterior.mean())
    names = [name for block in blocks for name in block.layout.names]
    if not names:
        raise ValueError("this posterior is a point mass, so that nothing moves; vogn.laplace makes one that is not")
    return names


def linearised(model: nn.Module, posterior: Posterior, x: Any, batch_size: int) -> Iterator[tuple[Tensor, Named]]:
    """Outputs ``(b, K)`` at the posterior's mean and Jacobians ``{name: (b, K, *shape)}``, a few examples at a time.

    Raises:
        ValueError: if there are no examples, or an example has outputs of more than one dimension.
    """
    wanted, seen = uncertain_names(posterior), 0
    with undisturbed(model, seed=0):
        ready = {name: tensor.detach() for name, tensor in weights_for(model, posterior.mean()).items()}
        variable = {name: ready.pop(name) for name in wanted}
        for call in calls_of(model, {}, batches_of(x, batch_size)):
            shape = call.outputs({**ready, **variable}).shape
            if len(shape) > 2:
                raise ValueError(
                    f"the model returns outputs of shape {tuple(shape)}; one vector of outputs for each example, "
                    "(N, K) or (N,), is needed"
                )
            for outputs, found in jacobians(model, variable, call.buffers, call.inputs, fixed=ready):
                seen += len(outputs)
                yield outputs, found
    if not seen:
        raise ValueError("there are no examples")


def checked_targets(likelihood: Likelihood, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in the shape that the likelihood expects beside these targets, and the targets; all valid.

    Raises:
        ValueError: for targets of a wrong shape, dtype or range, or outputs that are not finite.
    """
    targets = targets.to(outputs.device)
    if outputs.ndim == 2 and outputs.shape[1] == 1 and targets.ndim == 1 and targets.is_floating_point():
        outputs = outputs.squeeze(1)
    likelihood.check_shapes(outputs, targets)
    likelihood.check_values(outputs, targets)
    if not bool(torch.isfinite(outputs).all()):
        raise ValueError("the network's outputs hold NaN or infinite values; check the weights and the inputs")
    return outputs, targets


def vectors(outputs: Tensor) -> Tensor:
    """``(N,)`` or ``(N, K)`` as ``(N, K)``."""
    return outputs.unsqueeze(-1) if outputs.ndim == 1 else outputs


def roots(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    """``L (N, K, columns)`` with ``L L^T`` the output Hessian of every example."""
    return torch.stack([vectors(column) for column in likelihood.hessian_sqrt(outputs)], -1)


def leveraged(variance: Tensor, root: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    """``(I - H V)^-1 r``, and the largest leverage, the largest eigenvalue of ``L^T V L``.

    Where the leverage is 1 or more, the posterior does not contain the examples: there ``r`` itself is returned.

    Args:
        variance: ``V (*batch, n, n)``.
        root: ``L (*batch, n, columns)``.
        residual: ``r (*batch, n)``.
    """
    across = root.mT @ variance
    gram = across @ root
    leverage = torch.linalg.eigvalsh(0.5 * (gram + gram.mT))[..., -1]
    valid = leverage < 1.0
    gram = torch.where(valid[..., None, None], gram, torch.zeros_like(gram))
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inner = torch.linalg.solve(eye - gram, across @ residual.unsqueeze(-1))
    moved = residual + (root @ inner).squeeze(-1)
    return torch.where(valid[..., None], moved, residual), leverage
