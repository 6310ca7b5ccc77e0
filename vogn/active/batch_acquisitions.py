"""Acquisitions that choose a batch together, not example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vogn.active import scores
from vogn.active.acquisition import LABELS, NUMBERS, Acquisition, Selection, sampled, sampled_probabilities
from vogn.active.batchbald import batchbald
from vogn.active.candidates import Candidates, remembered
from vogn.active.core_set import k_centres
from vogn.active.joint_gaussian import joint_information_gain
from vogn.predict.evaluation import device_of, undisturbed

Features = Callable[[nn.Module, Tensor], Tensor]
"""From the network, with the posterior's mean weights and in evaluation mode, and inputs to features ``(n, F)``."""


class BatchBALD(Acquisition):
    """:func:`vogn.active.batchbald` among the examples with the largest BALD.

    The pool is gone through once; the ``kept`` best examples stay in memory. An example's gain is never more than its
    BALD, so if no BALD that was left out is above the smallest gain, the choice is that of the whole pool
    (:attr:`Selection.exact`).

    Args:
        kept: examples among which the batch is chosen, >= 1.
        configurations: see :func:`vogn.active.batchbald`.
    """

    KINDS = frozenset({LABELS})

    def __init__(self, kept: int = 2000, configurations: int = 1000) -> None:
        if kept < 1:
            raise ValueError(f"kept={kept} must be at least 1")
        self.kept, self.configurations = kept, configurations

    def select(self, candidates: Candidates, count: int) -> Selection:
        """See :meth:`Acquisition.select`."""
        numbers = torch.empty(0, dtype=torch.int64)
        values = torch.empty(0, dtype=torch.float64)
        held: Tensor | None = None
        missed = -torch.inf
        room = max(self.kept, count)
        for piece, found in candidates.predictions(keep_samples=True):
            p = sampled_probabilities(found).double()
            numbers, values = torch.cat([numbers, piece]), torch.cat([values, scores.bald(p).cpu()])
            held = p if held is None else torch.cat([held, p], 1)
            if len(numbers) > room:
                order = values.argsort(descending=True, stable=True)
                missed = max(missed, float(values[order[room]]))
                best = order[:room].sort().values
                numbers, values, held = numbers[best], values[best], held[:, best.to(held.device)]
        assert held is not None
        configurations = max(self.configurations, held.shape[-1])
        joint = batchbald(held, count, configurations=configurations, seed=candidates.seed)
        certain = bool(joint.exact.all()) and float(joint.gains.min()) >= missed
        return Selection(numbers[joint.indices], joint.gains, certain)


class BatchInformationGain(Acquisition):
    """:func:`vogn.active.joint_information_gain`, for one real target per example."""

    KINDS = frozenset({NUMBERS})

    def select(self, candidates: Candidates, count: int) -> Selection:
        """See :meth:`Acquisition.select`."""
        _, first = next(candidates.predictions())
        noise = first.aleatoric.reshape(len(first.mean), -1)[0]
        if len(noise) != 1:
            raise ValueError(
                f"batch_information_gain is for one target per example, not {len(noise)}; use 'information_gain'"
            )

        def pieces() -> Iterator[tuple[Tensor, Tensor]]:
            for numbers, found in candidates.predictions(keep_samples=True):
                yield numbers, sampled(found).flatten(1)

        return Selection(*joint_information_gain(remembered(pieces), count, float(noise)))


class CoreSet(Acquisition):
    """:func:`vogn.active.k_centres` in a space of features.

    Args:
        features: ``None`` takes the inputs of the network's last linear layer.
    """

    def __init__(self, features: Features | None = None) -> None:
        self.features = features or last_features

    def select(self, candidates: Candidates, count: int) -> Selection:
        """See :meth:`Acquisition.select`."""

        def pieces() -> Iterator[tuple[Tensor, Tensor]]:
            for numbers, x in candidates.pieces():
                yield numbers, self._of(candidates, x)

        known = () if candidates.known is None else candidates.known.split(candidates.chunk)
        centres = [self._of(candidates, x) for x in known if len(x)]
        numbers, distances = k_centres(remembered(pieces), centres, count)
        return Selection(numbers, distances.double())

    def _of(self, candidates: Candidates, x: Tensor) -> Tensor:
        model = candidates.model
        mean = {name: m.to(device_of(model)) for name, m in candidates.posterior.mean().items()}
        with undisturbed(model, seed=candidates.seed):
            found = self.features(_AtMean(model, mean), x.to(device_of(model)))
        if found.ndim < 2 or len(found) != len(x):
            raise ValueError(f"features of {len(x)} inputs must have shape ({len(x)}, F), got {tuple(found.shape)}")
        return found.flatten(1).float().cpu()


class _AtMean(nn.Module):
    """A network with the mean weights in place of its own."""

    def __init__(self, model: nn.Module, mean: dict[str, Tensor]) -> None:
        super().__init__()
        self.model = model
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = functional_call(self.model, self.mean, (x,))
        return found


def last_features(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs of the network's last linear layer, ``(n, F)``.

    Raises:
        ValueError: if it has none.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError(
            "core_set looks at the inputs of the last linear layer, and the model has none; give "
            "CoreSet(features=lambda model, x: ...)"
        )
    seen: list[Tensor] = []
    handle = layers[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    try:
        model(x)
    finally:
        handle.remove()
    return seen[-1].flatten(1)
