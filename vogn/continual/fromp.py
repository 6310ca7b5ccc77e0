"""Functional regularisation of the memorable past (FROMP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.heads import evaluating, selected_head
from vogn.continual.memory import Memory, check_size, memories_from_state, most_uncertain
from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.continual.ranges import check_not_negative, check_positive
from vogn.likelihoods import Categorical, Likelihood
from vogn.optim.laplace import laplace, unseen_allowed
from vogn.predict import jacobian


class FROMP(ContinualMethod):
    """``penalty = strength / 2 sum_s sum_k (p_k - p_k^old)^T K_(s,k)^-1 (p_k - p_k^old)`` on memorable examples.

    ``p_k`` are the probabilities of class ``k`` on the memory of the earlier task ``s``. The kernel
    ``K_(s,k) = J_k Sigma J_k^T + jitter I`` has the slopes ``J_k`` of these probabilities at the weights where the
    latest task ended, and the diagonal Laplace covariance ``Sigma`` there: one over ``prior_precision`` plus the
    generalised Gauss-Newton diagonals of all tasks. After every task the kernels and ``p^old`` of all memories are
    taken anew. The network runs in evaluation mode on memories.

    Args:
        model, optimizer: see :class:`ContinualMethod`.
        likelihood: :class:`vogn.likelihoods.Categorical`.
        memory: memorable examples of each task, >= 1.
        strength: ``tau``, >= 0. The authors' code has ``tau / N`` (0.5 on permuted, 10 on split MNIST), which is
            ``strength = N`` times these numbers.
        prior_precision: ``delta``, > 0.
        jitter: on the diagonals of the kernels, > 0.

    Raises:
        ValueError: if a number is out of range.
        TypeError: for another likelihood.

    Source: Pan et al. (2020), "Continual Deep Learning by Functional Regularisation of Memorable Past",
    and the authors' code for the covariance and the jitter.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        memory: int = 40,
        strength: float = 1.0,
        prior_precision: float = 1e-3,
        jitter: float = 1e-5,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        if not isinstance(likelihood, Categorical):
            raise TypeError(f"FROMP regularises class probabilities: give Categorical, not {type(likelihood).__name__}")
        check_size(memory)
        check_positive(prior_precision=prior_precision, jitter=jitter)
        check_not_negative(strength=strength)
        self.memory, self.strength = memory, strength
        self.prior_precision, self.jitter = prior_precision, jitter
        self.memories: list[Memory] = []
        self.curvature = {name: torch.zeros_like(p) for name, p in self.copy_of_weights().items()}
        """Sum of the Gauss-Newton diagonals of all tasks, ``{name: shape}``."""
        self.roots: list[Tensor] = []
        """Cholesky factors of the kernels of each memory, ``(K, M, M)``."""

    def penalty(self) -> Tensor:
        """See :class:`FROMP`."""
        total = self.zero()
        for memory, root in zip(self.memories, self.roots, strict=True):
            with evaluating(self.model, memory.head):
                moved = (self.model(memory.inputs).softmax(-1) - memory.outputs).T.unsqueeze(-1)
            half = torch.linalg.solve_triangular(root, moved.to(root), upper=False)
            total = total + 0.5 * self.strength * half.square().sum().to(total)
        return total

    def after_task(self, loader: Loader) -> None:
        """Choose memorable examples, add the task's curvature, and take all kernels anew."""
        batches, head = self.batches(loader), selected_head(self.model)
        names = list(self.weights())
        with unseen_allowed():
            found = laplace(self.model, self.likelihood, batches, structure="diagonal", fisher="ggn", subset=names)
        for block in found.blocks:
            for name, values in block.layout.unpack(block.ess * block.state["c"]).items():
                self.curvature[name] = self.curvature[name] + values.to(self.curvature[name])
        with torch.no_grad(), evaluating(self.model, head):
            self.memories.append(most_uncertain(batches, self.memory, head, lambda x: self.model(x).softmax(-1)))
        self.roots = [self._root(memory) for memory in self.memories]

    def _root(self, memory: Memory) -> Tensor:
        """The kernel's root at the present weights, in double precision; the memory's probabilities are taken too."""
        weights = {f"model.{name}": value for name, value in self.copy_of_weights().items()}
        with torch.no_grad(), evaluating(self.model, memory.head):
            memory.outputs = self.model(memory.inputs).softmax(-1)
        count, classes = memory.outputs.shape
        kernel = memory.outputs.new_zeros((classes, count, count), dtype=torch.float64)
        for label in range(classes):  # one after the other: all slopes at once would not fit into memory
            with evaluating(self.model, memory.head):
                _, slopes = jacobian(_Probability(self.model, label), weights, memory.inputs)
            for name, curvature in self.curvature.items():
                rows = slopes[f"model.{name}"].detach().double().flatten(1)
                kernel[label] += rows / (curvature.double().flatten() + self.prior_precision) @ rows.T
        kernel.diagonal(dim1=-2, dim2=-1).add_(self.jitter)
        return torch.linalg.cholesky(kernel)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        memories = [memory.state() for memory in self.memories]
        return super().state_dict() | {"curvature": self.curvature, "roots": self.roots, "memories": memories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.curvature, self.roots = dict(state["curvature"]), list(state["roots"])
        self.memories = memories_from_state(state["memories"])


class _Probability(nn.Module):
    """The probability of one class, ``(N, 1)``."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        probability: Tensor = self.model(x).softmax(-1)[:, self.label : self.label + 1]
        return probability
