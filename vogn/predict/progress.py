"""A progress bar over the model's calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint

from vogn.predict.inputs import Arguments, Batches
from vogn.terminal import progress


@contextmanager
def watched(batches: Iterable[Arguments], samples: int, *, show: bool) -> Iterator[Batches]:
    """The batches; with ``show``, every batch under every weight sample moves a bar on standard error.

    Args:
        batches: of known number.
        samples: number of weight samples, at most.
        show: whether there is a bar.
    """
    if not show:
        yield Batches(batches)
        return
    total = samples * length_hint(batches)
    with progress("batches", counted=True, always=True) as bar:
        task = bar.add_task("predict", total=total)
        yield Batches(batches, lambda count: bar.advance(task, count))
        bar.update(task, total=bar.tasks[0].completed)
