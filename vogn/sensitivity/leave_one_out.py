"""Leave-one-out outputs and losses of every training example, without retraining."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.sensitivity.perturbation import (
    Order,
    check_options,
    checked_targets,
    find_likelihood,
    leveraged,
    linearised,
    roots,
    vectors,
)

MANY = 0.02
"""Share of examples whose leverage may be 1 or more without a warning."""


@dataclass(frozen=True)
class LeaveOneOut:
    """What the network would say about every training example, had it not seen that example.

    Args:
        outputs: ``(N, K)`` outputs at the mean: logits of classes.
        outputs_without: ``(N, K)`` outputs about an example after it was taken out of the training data.
        nll: ``(N,)`` negative log-likelihood in nats of every target under ``outputs_without``. Large where the other
            examples contradict the target: sort by it to find wrong labels.
        training_nll: ``(N,)`` the same under ``outputs``.
        residual: ``(N, K)`` derivative of the loss in the outputs: ``p - onehot(y)`` for classes.
        variance: ``(N, K, K)`` of the outputs over the weights.
        leverage: ``(N,)`` largest eigenvalue of (output Hessian times variance): how much of its own prediction an
            example decides, in [0, 1) if the posterior contains it. Examples at 1 or more use the first-order form.
    """

    outputs: Tensor
    outputs_without: Tensor
    nll: Tensor
    training_nll: Tensor
    residual: Tensor
    variance: Tensor
    leverage: Tensor

    @property
    def mean_nll(self) -> Tensor:
        """Leave-one-out estimate of the NLL on new data, a scalar in nats."""
        return self.nll.mean()

    @property
    def sensitivity(self) -> Tensor:
        """``(N,)``, how far an example's own outputs move when it is taken out: the length of their difference."""
        return (self.outputs_without - self.outputs).norm(dim=-1)

    def ranking(self) -> Tensor:
        """Places of the examples, the most suspicious label first, ``(N,)``."""
        return self.nll.argsort(descending=True, stable=True)


def leave_one_out(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
    y: Tensor,
    *,
    order: Order = "leverage",
    likelihood: Likelihood | None = None,
    temperature: float = 1.0,
    batch_size: int = 256,
) -> LeaveOneOut:
    """Leave-one-out predictions for training examples by the memory-perturbation equation.

    Works with any posterior that has ``functional_variance``: ``opt.posterior()`` during or after a run, or
    :func:`vogn.laplace`. Exact for linear models with Gaussian noise and dense curvature under ``order="leverage"``;
    otherwise as good as one Newton step from a mean that has converged. The model is left as it was.

    Args:
        model: returns outputs ``(N, K)`` or ``(N,)``.
        posterior: at whose mean the outputs are taken.
        x: training inputs, as in :func:`vogn.predict`; all of them or some.
        y: their targets.
        order: ``"leverage"`` (the precision loses the example too; wants curvature that is nearly exact, such as
            ``structure="dense", partition="model"``) or ``"first"`` (it stays as it is; for diagonals and Kronecker
            factors, where leverages of 1 and more occur).
        likelihood: ``None`` takes the posterior's.
        temperature: the one in the posterior's ``ess``, > 0: its covariance is divided by it.
        batch_size: examples per call of the model.

    Warns:
        UserWarning: if many examples have a leverage of 1 or more.

    Raises:
        ValueError: for targets that do not fit, an unknown order, a point mass, or no examples.

    Example:
        >>> import torch, vogn
        >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
        >>> y = torch.where(x > 0, 1, 0).squeeze(1)
        >>> y[3] = 1  # a wrong label
        >>> model, likelihood = torch.nn.Linear(1, 2), vogn.likelihoods.Categorical()
        >>> opt = torch.optim.LBFGS(model.parameters(), max_iter=50)
        >>> def closure():
        ...     opt.zero_grad()
        ...     loss = likelihood(model(x), y) + 0.5 / 20 * sum(p.square().sum() for p in model.parameters())
        ...     loss.backward()
        ...     return loss
        >>> _ = opt.step(closure)
        >>> posterior = vogn.laplace(model, likelihood, [(x, y)], structure="dense")
        >>> int(leave_one_out(model, posterior, x, y).ranking()[0])
        3

    Source: Nickl, Xu, Tailor, Möllenhoff, Khan (2023), "The Memory Perturbation Equation: Understanding Model's
    Sensitivity to Data" (first order); Cook (1977), "Detection of Influential Observation in Linear Regression", and
    Rad, Maleki (2020), "A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
    cross-validation" (leverage).
    """
    check_options(order, temperature)
    likelihood = find_likelihood(posterior, likelihood)
    outputs, variances = [], []
    for found, slopes in linearised(model, posterior, x, batch_size):
        outputs.append(found)
        variances.append(posterior.functional_variance(slopes) / temperature)
    variance = torch.cat(variances)
    f, y = checked_targets(likelihood, torch.cat(outputs).to(variance), y)
    residual = vectors(likelihood.score(f, y))
    moving, leverage = leveraged(variance, roots(likelihood, f), residual)
    if order == "first":
        moving = residual
    elif float((leverage >= 1.0).double().mean()) > MANY:
        warnings.warn(
            f"{int((leverage >= 1.0).sum())} of {len(leverage)} examples have a leverage of 1 or more, which an exact "
            "posterior never has: its curvature is too coarse for order='leverage'. Use order='first', or "
            "vogn.laplace(..., structure='dense', partition='model') for a small network",
            stacklevel=2,
        )
    without = vectors(f) + (variance @ moving.unsqueeze(-1)).squeeze(-1)
    with torch.no_grad():
        nll = likelihood.terms(without.view_as(f), y)
        training_nll = likelihood.terms(f, y)
    return LeaveOneOut(vectors(f), without, nll, training_nll, residual, variance, leverage)
