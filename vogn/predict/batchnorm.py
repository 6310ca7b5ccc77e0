"""Running statistics of batch norm for the weights that will be used for prediction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from vogn.posterior.protocol import Posterior
from vogn.predict.evaluation import batchnorm_layers, cumulative, device_of, undisturbed, weights_for
from vogn.predict.inputs import arguments_of, inputs_of


def update_batchnorm(
    model: nn.Module,
    loader: Iterable[Any],
    posterior: Posterior | None = None,
    *,
    samples: int = 0,
    seed: int = 0,
) -> None:
    """Recompute the running statistics of all batch norm layers, in place.

    Training tracks running statistics under sampled weights, and prediction uses them for every weight sample unless
    it is given ``calibration`` inputs. Call this to have them belong to other weights instead: the mean, or an average
    over samples. They become the plain average over all batches (batches count equally, whatever their size). Only
    batch norm layers run in training mode, so dropout is off as in prediction. Momenta and training flags are restored;
    if anything raises, the old statistics too. Layers without running statistics are left alone.

    Args:
        model: the model.
        loader: batches: inputs or (inputs, targets); may shuffle. Read once per weight sample.
        posterior: ``None`` uses the model's own weights.
        samples: 0 uses the posterior's mean; ``S >= 1`` averages over the batches of ``S`` weight samples.
        seed: fixes the weight samples.

    Raises:
        ValueError: if there is no batch, ``samples`` is negative or given without a posterior, or the posterior does
            not fit the model.
    """
    if samples < 0 or (samples > 0 and posterior is None):
        raise ValueError(f"samples must be >= 0, and 0 without a posterior, got {samples}")
    layers = batchnorm_layers(model)
    if not layers:
        return
    with undisturbed(model, seed=seed), _recomputing(layers.values()):
        if samples > 1 and isinstance(loader, Iterator):
            loader = list(loader)
        for weights in _weights(model, posterior, samples, seed):
            count = 0
            for batch in loader:
                arguments = arguments_of(inputs_of(batch))
                args, kwargs = arguments.to(device_of(model))
                functional_call(model, weights, args, kwargs)
                count += 1
            if count == 0:
                raise ValueError("the loader is empty: running statistics need at least one batch")


@contextmanager
def _recomputing(layers: Iterable[_BatchNorm]) -> Iterator[None]:
    """Statistics restart as a cumulative average; the old ones come back after an exception."""
    old = [(layer, {name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)}) for layer in layers]
    try:
        for layer, _ in old:
            layer.reset_running_stats()
        with cumulative(layer for layer, _ in old):
            yield
    except BaseException:
        for layer, buffers in old:
            for name, buffer in layer.named_buffers(recurse=False):
                buffer.copy_(buffers[name])
        raise


def _weights(model: nn.Module, posterior: Posterior | None, samples: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Weights to run the loader under, in the device and dtype of the model."""
    if posterior is None:
        yield {}
        return
    for k in range(max(1, samples)):
        draw = posterior.sample(1, seed=seed, start=k) if samples else None
        weights = posterior.mean() if draw is None else {name: tensor[0] for name, tensor in draw.items()}
        yield weights_for(model, weights)
