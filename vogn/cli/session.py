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
from vogn.cli.run_folder import RunFolder
from vogn.cli.settings import Settings
from vogn.data import Data, Preprocessing, epoch_batches, load_data
from vogn.errors import CheckpointError
from vogn.posterior import GaussianPosterior


@dataclass
class Position:
    """How far a run has come.

    Args:
        epoch: completed epochs.
        batch: completed batches of the epoch that has begun.
        seen: examples of that epoch so far.
        loss_sum: sum of their losses.
        correct: how many of them were classified correctly.
        seconds: training time of that epoch so far.
    """

    epoch: int = 0
    batch: int = 0
    seen: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seconds: float = 0.0

    def check(self) -> None:
        """Raise ``ValueError`` for a position that no run can have."""
        counts = (self.epoch, self.batch, self.seen, self.correct)
        if not all(type(count) is int and count >= 0 for count in counts) or (self.seen == 0) != (self.batch == 0):
            raise ValueError(f"no run has the position {self}")


@dataclass
class Session:
    """Everything one contender needs for training and evaluation.

    Args:
        settings: what was asked for.
        contender: how it is trained.
        data: the data set.
        spec: the architecture.
        model: the network.
        optimizer: the optimizer.
        options: keyword arguments the optimizer was built with.
        rates: peak learning rate of every param group.
        folder: where it is recorded.
        device: where it runs.
        position: how far it has come.
    """

    settings: Settings
    contender: Contender
    data: Data
    spec: ModelSpec
    model: nn.Module
    optimizer: torch.optim.Optimizer
    options: dict[str, Any]
    rates: list[float]
    folder: RunFolder
    device: torch.device
    position: Position

    @classmethod
    def start(cls, settings: Settings, contender: Contender, data: Data, folder: RunFolder) -> Session:
        """A run at its beginning."""
        device = resolve_device(settings.device)
        spec = ModelSpec.of(settings, data.input_shape, data.num_classes)
        model = build_network(spec, seed=settings.seed).to(device)
        options = contender.options(settings, len(data.train), data.augmentation_factor)
        try:
            optimizer = contender.build(model, options, settings.seed)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{contender.label} cannot train model {spec.name!r}: {error}") from error
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        return cls(settings, contender, data, spec, model, optimizer, options, rates, folder, device, Position())

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
                "class_names": list(self.data.class_names),
                "position": asdict(self.position),
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
            "class_names": list(self.data.class_names),
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
            self.position = Position(**content["position"])
            self.position.check()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{path} does not fit this model: {' '.join(reason[:2])}") from error


def rehearse(settings: Settings, contender: Contender, data: Data) -> None:
    """Start a session, run its first batch through the network and discard it, before anything is written.

    Raises:
        UsageError: the network cannot be built, or cannot be trained on the batch.
    """
    session = Session.start(settings, contender, data, RunFolder(Path()))
    first = epoch_batches(len(data.train), settings.batch_size, settings.seed, 0)[0]
    try_training(session.model, session.spec, data.train.x[first].to(session.device))


def open_data(settings: Settings, preprocessing: Preprocessing | None = None) -> Data:
    """The data set of a run. The split has its own fixed seed, so that runs with different seeds share a test set."""
    return load_data(
        settings.data, image_size=settings.image_size, augment=settings.augment, preprocessing=preprocessing
    )


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
