"""Batch norm statistics that belong to given weights, estimated from training inputs and remembered."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from vogn.predict.digest import digest
from vogn.predict.evaluation import batchnorm_layers, cumulative, device_of, undisturbed
from vogn.predict.inputs import Arguments, stream_of

STATISTICS = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0}
"""The buffers of a batch norm layer and what they hold before the first batch."""


class BatchNormCalibration:
    """Training inputs for batch norm statistics, and the statistics found so far: one per weight sample.

    Pass it as ``calibration`` to predict batch after batch: the inputs are read, and the statistics estimated, in the
    first call only. Statistics are estimated anew whenever something they depend on has other values: the weight
    sample (another posterior or seed), a parameter outside the posterior, a buffer that is not a statistic of batch
    norm, or when another model is given. Values are compared by digests, so no reference to model or posterior is kept.
    Other changes (replaced inputs, a changed hyperparameter of a layer) need :meth:`clear`.

    Args:
        inputs: in any form that ``x`` of :func:`vogn.predict.predict` may have; may shuffle. Batches should be about as
            large as in training; each counts equally. They are read once per call that needs them and kept in memory
            until it ends; those of a plain iterator, which cannot be read again, for good.
        batch_size: examples per call of the model when ``inputs`` holds tensors, >= 1.
        max_batches: number of batches to read, >= 1; ``None`` reads all.

    Raises:
        ValueError: if ``batch_size`` or ``max_batches`` is below 1.

    Example:
        >>> import torch, vogn
        >>> from vogn.posterior import GaussianPosterior
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> point = GaussianPosterior([], {name: p.detach() for name, p in model.named_parameters()})
        >>> calibration = vogn.BatchNormCalibration(torch.randn(64, 2))
        >>> for batch in torch.randn(10, 2).split(5):
        ...     found = vogn.predict(
        ...         model, point, batch, samples=2, likelihood=vogn.likelihoods.Categorical(), calibration=calibration
        ...     )
        >>> calibration.remembered
        2
    """

    def __init__(self, inputs: Any, *, batch_size: int = 256, max_batches: int | None = None) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        if max_batches is not None and max_batches < 1:
            raise ValueError(f"max_batches must be >= 1 or None, got {max_batches}")
        self._inputs = inputs
        self._batch_size = batch_size
        self._max_batches = max_batches
        self._batches: list[Arguments] | None = None
        self._readers = 0
        self._model: weakref.ref[nn.Module] | None = None
        self._known: dict[int | None, tuple[tuple[int, ...], dict[str, Tensor]]] = {}

    @property
    def remembered(self) -> int:
        """Number of weight samples (the mean counts as one) whose statistics are remembered."""
        return len(self._known)

    def clear(self) -> None:
        """Forget all statistics."""
        self._known.clear()

    def statistics(
        self, model: nn.Module, weights: Mapping[str, Tensor], *, seed: int, draw: int | None
    ) -> Mapping[str, Tensor]:
        """Running statistics of the model's batch norm layers under the given weights.

        Args:
            model: the model; it is left as it was.
            weights: ``{name: shape}`` in the device and dtype of the model's parameters.
            seed: seeds torch's generators while inputs are read and the model runs.
            draw: index of the weight sample, under which the statistics are remembered; ``None`` for the mean.

        Returns:
            ``{buffer's name: value}``, empty for a model without running statistics; layers that the inputs do not
            reach are left out.

        Raises:
            ValueError: if there are no inputs, or a batch holds a single value per channel.
        """
        if not batchnorm_layers(model):
            return {}
        if self._model is None or self._model() is not model:
            self.clear()
            self._model = weakref.ref(model)
        dependencies = _digests(model, weights)
        known = self._known.get(draw)
        if known is None or known[0] != dependencies:
            with undisturbed(model, seed=seed), self.reading():
                batches = self._read()
            with undisturbed(model, seed=seed):
                known = dependencies, estimate_statistics(model, weights, batches)
            self._known[draw] = known
        return known[1]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Batches that are read inside stay in memory until the outermost of these contexts ends."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if self._readers == 0 and not isinstance(self._inputs, Iterator):
                self._batches = None

    def _read(self) -> list[Arguments]:
        if self._batches is None:
            batches = list(islice(stream_of(self._inputs, self._batch_size, name="calibration"), self._max_batches))
            if not batches:
                raise ValueError(
                    "calibration holds no batches: batch norm statistics need at least one batch of training inputs"
                )
            self._batches = batches
        return self._batches


def estimate_statistics(
    model: nn.Module, weights: Mapping[str, Tensor], batches: Iterable[Arguments]
) -> dict[str, Tensor]:
    """Plain averages over ``batches`` of the batches' means and unbiased variances, under ``weights``.

    Args:
        model: inside :func:`undisturbed`; only its batch norm layers run in training mode, its buffers are copied.
        weights: ``{name: shape}``; other parameters are used as they are.
        batches: arguments of the calls.

    Returns:
        ``{buffer's name: value}`` of all batch norm layers that were called.

    Raises:
        ValueError: if a batch holds a single value per channel, which has no variance.
    """
    layers = batchnorm_layers(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    keys = {layer: {key: f"{layer}.{key}" if layer else key for key in STATISTICS} for layer in layers}
    for names in keys.values():
        for key, name in names.items():
            buffers[name].fill_(STATISTICS[key])
    device = device_of(model)
    with cumulative(layers.values()):
        for batch in batches:
            args, kwargs = batch.to(device)
            try:
                functional_call(model, (dict(weights), buffers), args, kwargs)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ValueError(
                    "a calibration batch has a single value per channel, so no variance: use batches about as large as "
                    "in training, and drop a last batch of one example (DataLoader(..., drop_last=True))"
                ) from error
    called = [names for names in keys.values() if int(buffers[names["num_batches_tracked"]])]
    return {name: buffers[name] for names in called for name in names.values()}


def _digests(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Of everything that batch norm statistics depend on, apart from the inputs: weights in use and other buffers."""
    own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for layer in batchnorm_layers(model):
        for key in STATISTICS:
            own.pop(f"{layer}.{key}" if layer else key)
    return tuple(digest(tensor) for tensor in {**own, **weights}.values())
