"""One cell: train a method on a task and record its curve."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.cells import command, environment, write_cell
from benchmarks.classification.one_run import schedule
from benchmarks.sample_space.rows import ROWS, Row, Run
from benchmarks.sample_space.sizes import Size, size_of
from benchmarks.sample_space.tasks import Task, make_task
from vogn.data.order import epoch_batches
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError

MODULE = "benchmarks.sample_space"


class Diverged(Exception):
    """A loss or a quantity of the optimizer is not a finite number."""


def train(
    row: Row, configuration: Mapping[str, Any], task: Task, size: Size, seed: int
) -> tuple[list[dict[str, Any]], dict[str, float], str]:
    """Train for ``size.epochs``, with warm-up and cosine decay of the learning rate.

    Returns:
        For each epoch the training loss (mean over its steps), the loss and metric on the validation part, and the CPU
        seconds of all steps so far; loss and metric on the test part; and what went wrong, empty if nothing did.
    """
    torch.manual_seed(seed)
    model = task.model()
    steps = len(epoch_batches(task.examples, size.batch, seed, 0))
    options = {key: value for key, value in configuration.items() if key != "epochs"}
    optimizer = row.build(model, Run(task.examples, size.batch, steps), seed=seed, **options)
    rates = [group["lr"] for group in optimizer.param_groups]
    curve: list[dict[str, Any]] = []
    step, seconds = 0, 0.0
    try:
        for epoch in range(size.epochs):
            model.train()
            losses, start = [], time.process_time()
            for batch in epoch_batches(task.examples, size.batch, seed, epoch):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * schedule(step, size.epochs * steps)
                losses.append(one_step(row, optimizer, task, model, batch))
                step += 1
            seconds += time.process_time() - start
            model.eval()
            found = task.measure(model, "validation")
            curve.append(
                {"epoch": epoch + 1, "cpu_seconds": round(seconds, 3), "train_loss": sum(losses) / len(losses)} | found
            )
    except (Diverged, NonFiniteStatisticsError, NotPositiveDefiniteError) as error:
        return curve, {"loss": math.inf, task.metric: 0.0}, str(error).split("\n")[0] or type(error).__name__
    return curve, task.measure(model, "test"), ""


def one_step(row: Row, optimizer: Any, task: Task, model: torch.nn.Module, batch: torch.Tensor) -> float:
    """One step of training; returns the loss before it.

    Raises:
        Diverged: if the loss is not finite.
    """
    optimizer.zero_grad()
    with row.context(optimizer, batch):
        loss = task.loss(model, batch)
        loss.backward()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise Diverged(f"loss {value}")
    optimizer.step()
    return value


def run_cell(arguments: argparse.Namespace) -> None:
    """Train and measure one (task, method, configuration, seed)."""
    row, size = ROWS[arguments.method], size_of(arguments, arguments.task)
    configuration = row.configurations(arguments.task)[arguments.configuration]
    size = replace(size, epochs=configuration.get("epochs", size.epochs))
    task = make_task(arguments, arguments.task)
    curve, test, failure = train(row, configuration, task, size, arguments.seed)
    record = {
        "task": arguments.task,
        "method": arguments.method,
        "configuration": configuration,
        "seed": arguments.seed,
        "form": arguments.form,
        "train": task.examples,
        "batch": size.batch,
        "epochs": size.epochs,
        "metric": task.metric,
        "curve": curve,
        "validation_loss": curve[-1]["loss"] if curve and not failure else math.inf,
        "test": test,
        "failure": failure,
        "cpu_seconds": curve[-1]["cpu_seconds"] if curve else 0.0,
        "command": command(MODULE),
        "environment": environment(),
    }
    write_cell(arguments.cell, record)
