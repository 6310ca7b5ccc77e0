"""The outputs of one weight sample after the other, several at once where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vogn.posterior.protocol import Posterior
from vogn.predict.averaging import LOOK_EVERY
from vogn.predict.evaluation import weights_for
from vogn.predict.policies import StatisticsOf

DRAW_BYTES = 1 << 23
"""Small models draw several weight samples at once, up to this many bytes; large ones hold one sample at a time."""

ONE_BY_ONE_BYTES = 1 << 22
"""The same, once it is known that each sample is evaluated on its own: more at once only saves Python's time."""

Weights = Mapping[str, Tensor]
Statistics = Mapping[str, Tensor]


@dataclass(frozen=True)
class Evaluation:
    """How outputs are found.

    Args:
        one: outputs ``(N, ..., K)`` from weights, batch norm statistics and the number of the weight sample.
        several: outputs ``(S, N, ..., K)`` of weights ``{name: (S, *shape)}`` and the statistics of each, or ``None``
            if they should go one by one.
        statistics: batch norm statistics of a weight sample.
    """

    one: Callable[[Weights, Statistics, int], Tensor]
    several: Callable[[Weights, Sequence[Statistics]], Tensor | None] = lambda weights, statistics: None
    statistics: StatisticsOf = lambda weights, draw: {}


def outputs_of_draws(
    model: nn.Module,
    posterior: Posterior,
    evaluation: Evaluation,
    *,
    samples: int,
    seed: int,
    noise: str,
    tolerance: float | None,
) -> Iterator[Tensor]:
    """Outputs ``(N, ..., K)`` of the weight samples 0, 1, ...; see :func:`vogn.predict.predict` for the arguments."""
    size = sum(max(4, p.element_size()) * p.numel() for p in model.parameters())
    chunk = max(1, min(samples, DRAW_BYTES // max(1, size)))
    if tolerance is not None:
        chunk = min(chunk, LOOK_EVERY)
    options = {} if noise == "independent" else {"noise": noise}  # which not every posterior takes
    vectorised, start = True, 0
    while start < samples:
        count = min(chunk, samples - start)
        draws = weights_for(model, posterior.sample(count, seed=seed, start=start, **options), batch=1)
        weights, statistics = [], []
        for i in range(count):
            weights.append({name: draw[i] for name, draw in draws.items()})
            statistics.append(evaluation.statistics(weights[i], start + i))
        together = evaluation.several(draws, statistics) if vectorised and count > 1 else None
        if together is not None:
            yield from together
        else:
            vectorised, chunk = False, max(1, min(chunk, ONE_BY_ONE_BYTES // max(1, size)))
            for i in range(count):
                yield evaluation.one(weights[i], statistics[i], start + i)
        del draws, weights, statistics, together  # before the next ones are drawn
        start += count
