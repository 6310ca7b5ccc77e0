"""A run put together from its settings: data, network, optimizer, and their checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vogn.cli.contenders import Contender
from vogn.cli.errors import UsageError
from vogn.cli.networks import ModelSpec, build_network, try_training
from vogn.cli.observation import Observation
from vogn.cli.position import Position, RunPosition
from vogn.cli.run_folder import RunFolder
from vogn.cli.settings import Settings
from vogn.cli.task import Task
from vogn.cli.tasks import task_of
from vogn.data import Data, RealData, epoch_batches, load_task_data
from vogn.errors import CheckpointError
from vogn.posterior import GaussianPosterior


@dataclass
class Session:
    """Everything one contender needs for training and evaluation.

    Args:
        settings: what was asked for.
        contender: how it is trained.
        task: the data set and what is learned from it.
        spec: the architecture.
        model: the network.
        optimizer: the optimizer.
        observation: the likelihood.
        options: keyword arguments the optimizer was built with.
        rates: peak learning rate of every param group.
        folder: where it is recorded.
        device: where it runs.
        position: how far it has come.
    """

    settings: Settings
    contender: Contender
    task: Task[Any]
    spec: ModelSpec
    model: nn.Module
    optimizer: torch.optim.Optimizer
    observation: Observation
    options: dict[str, Any]
    rates: list[float]
    folder: RunFolder
    device: torch.device
    position: RunPosition

    @property
    def data(self) -> Data | RealData:
        """The data set."""
        found: Data | RealData = self.task.data
        return found

    @classmethod
    def start(cls, settings: Settings, contender: Contender, data: Data | RealData, folder: RunFolder) -> Session:
        """A run at its beginning."""
        device = resolve_device(settings.device)
        task = task_of(data)
        spec = task.spec(settings)
        model = build_network(spec, seed=settings.seed).to(device)
        options = contender.options(settings, len(data.train), data.augmentation_factor)
        try:
            optimizer = contender.build(model, options, settings.seed)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{contender.label} cannot train model {spec.name!r}: {error}") from error
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        return cls(
            settings,
            contender,
            task,
            spec,
            model,
            optimizer,
            task.observation(settings, device),
            options,
            rates,
            folder,
            device,
            task.position(),
        )

    def resolved(self) -> dict[str, Any]:
        """What the settings amounted to, for ``config.json``."""
        return {
            "contender": self.contender.key,
            "model": self.spec.to_dict(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "examples": {part: len(getattr(self.data, part)) for part in ("train", "validation", "test")},
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "optimizer": {"lr": self.rates[0], **self.options},
        }

    def posterior(self) -> GaussianPosterior:
        """The distribution over weights at this point of the run, at the temperature of training."""
        return self.contender.posterior(self.model, self.optimizer)

    def save(self) -> None:
        """Write the checkpoint."""
        self.folder.save_checkpoint(
            {
                "contender": self.contender.key,
                "model": self.spec.to_dict(),
                "seed": self.settings.seed,
                "preprocessing": self.data.preprocessing.to_dict(),
                **self.task.identity(),
                "position": asdict(self.position),
                **self.observation.state_dict(),
                "model_state": self.model.state_dict(),
                "optimizer_state": self.optimizer.state_dict(),
            }
        )

    def restore(self) -> None:
        """Go to where the checkpoint is.

        Raises:
            CheckpointError: it belongs to another model, method, seed or data set.
        """
        content = self.folder.load_checkpoint(self.device)
        path = self.folder.checkpoint_path
        expected = {
            "model": self.spec.to_dict(),
            "contender": self.contender.key,
            "seed": self.settings.seed,
            **self.task.identity(),
            "preprocessing": self.data.preprocessing.to_dict(),
        }
        for key, value in expected.items():
            if content.get(key) != value:
                raise CheckpointError(
                    f"{path} was written for another {key}: it holds {_short(content.get(key))}, "
                    f"this run has {_short(value)}"
                )
        try:
            self.model.load_state_dict(content["model_state"])
            self.optimizer.load_state_dict(content["optimizer_state"])
            self.observation.load_state_dict(content)
            self.position = self.task.position(**content["position"])
            self.position.check()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{path} does not fit this model: {' '.join(reason[:2])}") from error


def rehearse(settings: Settings, contender: Contender, data: Data | RealData) -> None:
    """Start a session, run its first batch through the network and discard it, before anything is written.

    Raises:
        UsageError: the network cannot be built, or cannot be trained on the batch.
    """
    session = Session.start(settings, contender, data, RunFolder(Path()))
    first = epoch_batches(len(data.train), settings.batch_size, settings.seed, 0)[0]
    try_training(session.model, session.spec, data.train.x[first].to(session.device))


def open_data(settings: Settings) -> Data | RealData:
    """The data set of a run. The split has its own fixed seed, so that runs with different seeds share a test set."""
    return load_task_data(settings.data, settings.task, image_size=settings.image_size, augment=settings.augment)


def resolve_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        UsageError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines() or ["unknown"]
        raise UsageError(f"--device {name} cannot be used here: {reason[0]}") from error
    return device


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."


__all__ = ["Position", "Session", "open_data", "rehearse", "resolve_device"]
