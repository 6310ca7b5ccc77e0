"""From data to the task that goes with it."""

from __future__ import annotations

from typing import Any

from vogn.cli.classification import Classification
from vogn.cli.regression import Regression
from vogn.cli.task import Task
from vogn.data import Data, Parts, RealData

TASKS: dict[type[Parts], type[Task[Any]]] = {Data: Classification, RealData: Regression}
"""Kind of data to task."""


def task_of(data: Data | RealData) -> Task[Any]:
    """What is learned from the data."""
    return TASKS[type(data)](data)
