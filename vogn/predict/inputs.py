"""What a user may pass as inputs, turned into batches that every weight sample sees in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


@dataclass(frozen=True)
class Arguments:
    """Arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None

    def to(self, device: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with their tensors on ``device``."""
        args = tuple(_move(value, device) for value in self.args)
        return args, {key: _move(value, device) for key, value in (self.kwargs or {}).items()}


def batches_of(x: Any, batch_size: int) -> Iterable[Arguments]:
    """Batches that can be iterated over several times, in the same order each time.

    Args:
        x: see :func:`stream_of`. Other iterables than lists and sequential loaders are read once and kept in memory.
        batch_size: examples per call for tensors, >= 1.

    Raises:
        ValueError: if there are no examples, first dimensions disagree, or a loader shuffles.
        TypeError: if ``x`` is no inputs.
    """
    stream = stream_of(x, batch_size)
    repeats = isinstance(x, Tensor | tuple | Mapping | list) or (isinstance(x, DataLoader) and _is_sequential(x))
    return stream if repeats else list(stream)


def stream_of(x: Any, batch_size: int, *, name: str = "x") -> Iterable[Arguments]:
    """Batches in the order in which they come.

    Args:
        x: a tensor (``model(x)``), a tuple (``model(*x)``) or a dictionary (``model(**x)``) of tensors with one common
            first dimension, which are cut into batches; or a list, ``DataLoader`` or other iterable of ready batches.
            A ready batch is a tensor, a dictionary, a sequence of one (inputs) or of two (inputs, targets); its inputs
            may be a tuple or a dictionary again, its targets are ignored.
        batch_size: examples per call for tensors, >= 1.
        name: what messages call ``x``.

    Raises:
        ValueError: if tensors hold no examples or their first dimensions disagree.
        TypeError: if ``x`` is nothing of the above.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if isinstance(x, Tensor | tuple | Mapping):
        return _cut(arguments_of(x), batch_size, name)
    if not isinstance(x, Iterable):
        raise TypeError(
            f"{name} must be a tensor, a tuple or dictionary of tensors, or an iterable of batches, "
            f"got {type(x).__name__}"
        )
    return _Stream(x)


def inputs_of(batch: Any) -> Any:
    """The inputs of a ready batch: the batch itself, or the first of (inputs, targets).

    Raises:
        ValueError: if the batch is a sequence of another length.
    """
    if not isinstance(batch, tuple | list):
        return batch
    if len(batch) not in (1, 2):
        raise ValueError(
            f"a batch must be the inputs or (inputs, targets), got a sequence of {len(batch)}; "
            "group several model inputs as ((first, second), targets)"
        )
    return batch[0]


def arguments_of(inputs: Any) -> Arguments:
    """A tuple becomes positional, a dictionary keyword arguments; anything else is the only argument."""
    if isinstance(inputs, tuple | list):
        return Arguments(tuple(inputs))
    if isinstance(inputs, Mapping):
        return Arguments(kwargs=dict(inputs))
    return Arguments((inputs,))


@dataclass(frozen=True)
class _Stream:
    """Batches of a list, loader or other iterable."""

    source: Iterable[Any]

    def __iter__(self) -> Iterator[Arguments]:
        return (arguments_of(inputs_of(batch)) for batch in self.source)

    def __length_hint__(self) -> int:
        return length_hint(self.source)


@dataclass(frozen=True)
class Batches:
    """Batches whose readers are counted.

    Args:
        source: batches, in the same order at every iteration.
        done: is told of every batch that was used, for how many weight samples.
    """

    source: Iterable[Arguments]
    done: Callable[[int], object] = lambda samples: None

    def __iter__(self) -> Iterator[Arguments]:
        return self.repeated(1)

    def repeated(self, samples: int) -> Iterator[Arguments]:
        """The batches, each used for so many weight samples at once."""
        for batch in self.source:
            yield batch
            self.done(samples)


def _is_sequential(loader: DataLoader[Any]) -> bool:
    """Whether the order is known to repeat; raises if it is known not to."""
    if isinstance(loader.dataset, IterableDataset):
        return False
    batched = loader.batch_sampler
    sampler = getattr(batched, "sampler", loader.sampler)
    if isinstance(sampler, _SHUFFLING):
        raise ValueError(
            "the DataLoader shuffles, so every weight sample would see another order and the predictions would not "
            "line up with the examples; build it with shuffle=False"
        )
    return (batched is None or type(batched) is BatchSampler) and type(sampler) is SequentialSampler


def _cut(arguments: Arguments, batch_size: int, name: str) -> list[Arguments]:
    """Slices along the first dimension; arguments that are not tensors go to every batch."""
    named = {**{str(i): value for i, value in enumerate(arguments.args)}, **(arguments.kwargs or {})}
    sizes = {key: len(value) if value.ndim else 0 for key, value in named.items() if isinstance(value, Tensor)}
    if not sizes or 0 in sizes.values():
        raise ValueError(f"{name} holds no examples: predict needs at least one")
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"the inputs in {name} have different numbers of examples: {sizes}; the first dimension must agree"
        )
    count = next(iter(sizes.values()))

    def part(value: Any, start: int) -> Any:
        return value[start : start + batch_size] if isinstance(value, Tensor) else value

    return [
        Arguments(
            tuple(part(value, start) for value in arguments.args),
            {key: part(value, start) for key, value in (arguments.kwargs or {}).items()},
        )
        for start in range(0, count, batch_size)
    ]


def _move(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
