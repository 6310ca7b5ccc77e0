"""One call of the model for several weight samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from vogn.predict.evaluation import concatenated, device_of
from vogn.predict.inputs import Batches

WORK = 1 << 28
"""Parameters times numbers in a batch's inputs up to which one call for all weight samples is preferred to one call for
each. Measured on one core of a CPU (``benchmarks/prediction.py``): 1.5 to 3.6 times faster below; above, between 1.6
times faster and 1.1 times slower."""

INPUTS = 1 << 19
"""So many weight samples at a time that the inputs, repeated for each of them, would hold this many numbers."""


def evaluate_together(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    statistics: Sequence[Mapping[str, Tensor]],
    batches: Batches,
) -> Tensor | None:
    """Outputs of the model under several sets of weights, as :func:`vogn.predict.evaluation.evaluate` finds them one by
    one, to rounding.

    Args:
        model: inside :func:`vogn.predict.evaluation.undisturbed`.
        weights: ``{name: (S, *shape)}`` in the device and dtype of the parameters.
        statistics: values of buffers, ``S`` mappings with the same names.
        batches: arguments of the calls.

    Returns:
        ``(S, N, ...)``, or ``None`` if the model or a batch is too large, or the model cannot be vectorised.
    """
    device, size = device_of(model), sum(p.numel() for p in model.parameters())
    shared = {name: buffer.clone() for name, buffer in model.named_buffers()}
    own = {name: torch.stack([each[name] for each in statistics]) for name in statistics[0]}
    moving = {**weights, **{name: value.to(shared[name]) for name, value in own.items()}}
    fixed = {name: buffer for name, buffer in shared.items() if name not in moving}
    outputs = []
    for batch in batches.repeated(len(statistics)):
        args, kwargs = batch.to(device)
        numbers = sum(leaf.numel() for leaf in (*args, *kwargs.values()) if isinstance(leaf, Tensor))
        if numbers * size > WORK:
            return None

        def call(values: dict[str, Tensor], args: Any = args, kwargs: Any = kwargs) -> Any:
            return functional_call(model, (values, fixed), args, kwargs)

        at_a_time = max(1, INPUTS // max(1, numbers))
        try:
            with _slow_vectorisation_raises():
                found = vmap(call, chunk_size=at_a_time)(moving)
        except Exception:  # whatever it is, the plain loop says it better, or has no such problem
            return None
        if not isinstance(found, Tensor):
            return None
        outputs.append(found.movedim(0, 1))
    return concatenated(outputs).movedim(1, 0)


@contextmanager
def _slow_vectorisation_raises() -> Iterator[None]:
    """Operations that PyTorch would vectorise by a loop of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        yield
