"""Online Laplace: the quadratic expansion of earlier losses as a penalty. EWC is its diagonal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vogn.capture.selection import StructureOption
from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.continual.posterior_state import posterior_from_state, posterior_state
from vogn.continual.ranges import check_not_negative
from vogn.likelihoods import Likelihood
from vogn.optim.laplace import laplace, unseen_allowed
from vogn.posterior import GaussianPosterior, PosteriorBlock

Combine = Literal["list", "nearest"]


class OnlineLaplace(ContinualMethod):
    """``penalty = 1/2 (theta - theta*)^T (delta I + strength sum_t w_t F_t) (theta - theta*)``.

    ``F_t`` is the curvature of the *summed* loss of task ``t`` at the weights where its training ended, ``theta*`` the
    weights where the latest training ended, and ``w_t = decay^(tasks since t)``. With dense curvature, strength and
    decay 1 and Gaussian noise a linear model is updated exactly: the penalty is the negative logarithm of the posterior
    of all earlier data.

    Args:
        model, likelihood, optimizer: see :class:`ContinualMethod`.
        structure: ``"kronecker"``, ``"diagonal"`` or ``"dense"``, or as for :func:`vogn.laplace`.
        fisher: ``"ggn"``, ``"mc"`` or ``"empirical"``, see :func:`vogn.laplace`.
        strength: factor on the curvature, >= 0 (``lambda`` in the papers); 1 is Bayes' rule.
        decay: of the curvature of a task with every later one, in [0, 1] (``gamma``).
        prior_precision: ``delta`` of the prior ``N(0, I / delta)``, >= 0.
        combine: ``"list"`` keeps the curvature of every task, which is exact; ``"nearest"`` keeps one: the exact sum
            of diagonal and dense curvature, the nearest Kronecker product of a sum of such.
        seed: of labels that are drawn.

    Raises:
        ValueError: if a number is out of range.

    Source: Ritter, Botev, Barber (2018), "Online Structured Laplace Approximations for Overcoming Catastrophic
    Forgetting".
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        structure: StructureOption = "kronecker",
        fisher: Literal["ggn", "mc", "empirical"] = "ggn",
        strength: float = 1.0,
        decay: float = 1.0,
        prior_precision: float = 0.0,
        combine: Combine = "list",
        seed: int = 0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        check_not_negative(strength=strength, prior_precision=prior_precision)
        if not 0 <= decay <= 1:
            raise ValueError(f"decay={decay} must lie in [0, 1]")
        if combine not in ("list", "nearest"):
            raise ValueError(f"combine={combine!r}: choose 'list' or 'nearest'")
        self.structure, self.fisher, self.seed = structure, fisher, seed
        self.strength, self.decay, self.prior_precision = strength, decay, prior_precision
        self.combine = combine
        self.terms: list[tuple[float, GaussianPosterior]] = []
        """Weight and Laplace approximation of every task that is kept; of these only the curvature counts."""
        self.centre = {name: torch.zeros_like(p) for name, p in self.copy_of_weights().items()}
        self._tasks = 0

    def penalty(self) -> Tensor:
        """See :class:`OnlineLaplace`; differentiable in the weights."""
        moved = {name: p - self.centre[name] for name, p in self.weights().items()}
        total = self.zero()
        if self.prior_precision:
            total = total + 0.5 * self.prior_precision * torch.stack([d.square().sum() for d in moved.values()]).sum()
        for weight, posterior in self.terms:
            factor = 0.5 * self.strength * weight
            for block in posterior.blocks if factor else ():
                vector = block.layout.pack({name: moved[name].to(_dtype(block.state)) for name in block.layout.names})
                total = total + factor * block.ess * _QuadraticForm.apply(vector, block).to(total)
        return total

    def after_task(self, loader: Loader) -> None:
        """Measure the curvature of the task at the present weights, which become the centre."""
        with unseen_allowed():
            found = laplace(
                self.model, self.likelihood, self.batches(loader), structure=self.structure, fisher=self.fisher,
                subset=list(self.weights()), seed=self.seed + self._tasks,
            )  # fmt: skip
        self._tasks += 1
        self.centre = self.copy_of_weights()
        terms = [(self.decay * weight, posterior) for weight, posterior in self.terms]
        if terms and self.combine == "nearest":
            ((weight, earlier),) = terms
            found, terms = _sum(found, earlier, weight), []
        self.terms = [*terms, (1.0, found)]

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        return super().state_dict() | {
            "tasks": self._tasks,
            "centre": self.centre,
            "weights": [weight for weight, _ in self.terms],
            "terms": [posterior_state(posterior) for _, posterior in self.terms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self._tasks, self.centre = int(state["tasks"]), dict(state["centre"])
        self.terms = list(zip(state["weights"], map(posterior_from_state, state["terms"]), strict=True))


def online_ewc(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    strength: float = 1.0,
    decay: float = 1.0,
    fisher: Literal["ggn", "mc", "empirical"] = "mc",
    prior_precision: float = 0.0,
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
) -> OnlineLaplace:
    """Online elastic weight consolidation: :class:`OnlineLaplace` with one diagonal Fisher information.

    ``F <- decay F + F_t`` with labels drawn from the network. Published strengths are those of losses that are means
    over a batch; here the losses are sums, and 1 is Bayes' rule.

    Args:
        model, likelihood, strength, decay, fisher, prior_precision, seed, optimizer: see :class:`OnlineLaplace`.

    Source: Kirkpatrick et al. (2017), "Overcoming Catastrophic Forgetting in Neural Networks"; Huszár (2018);
    Schwarz et al. (2018), "Progress & Compress".
    """
    return OnlineLaplace(
        model, likelihood, structure="diagonal", fisher=fisher, strength=strength, decay=decay,
        prior_precision=prior_precision, combine="nearest", seed=seed, optimizer=optimizer,
    )  # fmt: skip


def kronecker_laplace(
    model: nn.Module,
    likelihood: Likelihood,
    *,
    strength: float = 1.0,
    prior_precision: float = 1.0,
    combine: Combine = "list",
    fisher: Literal["ggn", "mc", "empirical"] = "ggn",
    seed: int = 0,
    optimizer: OptimizerFactory | None = None,
) -> OnlineLaplace:
    """Kronecker-factored online Laplace: :class:`OnlineLaplace` with the factors of every layer and task.

    Args:
        model, likelihood, strength, prior_precision, combine, fisher, seed, optimizer: see :class:`OnlineLaplace`.

    Source: Ritter, Botev, Barber (2018).
    """
    return OnlineLaplace(
        model, likelihood, structure="kronecker", fisher=fisher, strength=strength, prior_precision=prior_precision,
        combine=combine, seed=seed, optimizer=optimizer,
    )  # fmt: skip


class _QuadraticForm(torch.autograd.Function):
    """``v^T C v``, whose gradient ``2 C v`` reuses the product: ``C`` is symmetric."""

    @staticmethod
    def forward(context: Any, vector: Tensor, block: PosteriorBlock) -> Tensor:
        product = block.structure.apply(block.state, vector, 0.0)
        context.save_for_backward(vector, product)
        context.block = block
        return (vector * product).sum()

    @staticmethod
    def backward(context: Any, slope: Tensor) -> tuple[Tensor, None]:
        vector, product = context.saved_tensors
        if torch.is_grad_enabled():  # the gradient is to be differentiated again
            product = context.block.structure.apply(context.block.state, vector, 0.0)
        return 2.0 * slope * product, None


def _dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    return next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())


def _sum(new: GaussianPosterior, old: GaussianPosterior, weight: float) -> GaussianPosterior:
    """The newer Laplace approximation with the curvature of both."""
    blocks = []
    for block, earlier in zip(new.blocks, old.blocks, strict=True):
        state = block.structure.with_earlier(block.state, earlier.state, weight * earlier.ess / block.ess)
        blocks.append(replace(block, state={k: v for k, v in state.items() if k not in block.structure.EARLIER}))
    return GaussianPosterior(blocks, new.mean(), likelihood=new.likelihood, method=new.method)
