"""What one training run was asked to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from vogn.cli.errors import UsageError
from vogn.cli.schedule import SCHEDULES
from vogn.data.loading import absolute
from vogn.data.real import TASKS
from vogn.optim.sample_size import effective_sample_size


@dataclass(frozen=True)
class Settings:
    """Every setting that determines a run; ``config.json`` holds them all.

    Args:
        method: name of a method, a key of :data:`vogn.optim.METHODS`.
        variational: whether weights are sampled during training.
        data: description of the data set, see :func:`vogn.data.load_data`.
        task: ``classification``, ``regression``, or ``auto``: by the targets, see :func:`vogn.data.load_task_data`; a
            run that has begun has one of the first two.
        noise: standard deviation of the noise of real targets, in their unit; ``None`` learns it.
        model: name of a model or ``package.module:callable``; ``None`` chooses by the kind of data.
        width: passed to the model's constructor when given.
        norm: passed to the model's constructor when given: ``batch``, ``group`` or ``frn``.
        epochs: passes over the training data.
        batch_size: examples per step.
        lr: peak learning rate; ``None`` takes the method's default.
        damping: added to the curvature in steps; ``None`` takes the method's default.
        prior_precision: precision of the Gaussian prior over each weight; ``None`` takes the method's default.
        ess: effective sample size; ``None`` computes it from the next two.
        temperature: of the posterior, divides the effective sample size; ``None`` takes the method's default.
        prediction_temperature: factor on the covariance of the finished posterior; ``None`` chooses it on the
            validation part.
        augmentation_factor: multiplies the number of training examples; ``None`` takes the data set's default.
        augment: whether to augment images where that is customary.
        image_size: pixels to which image files are brought.
        schedule: name of the learning-rate schedule.
        warmup_epochs: epochs of linear warm-up.
        seed: of initialisation, data order, augmentation and weight noise.
        samples: weight samples of the posterior predictive.
        checkpoint_every: batches between checkpoints, besides the one after every epoch.
        compare: whether to train AdamW and the twin with the other mode too.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto`` takes a GPU if there is one.
        threads: CPU threads; ``None`` leaves PyTorch's choice.
    """

    method: str = "vogn"
    variational: bool = True
    data: str = "digits"
    task: str = "auto"
    model: str | None = None
    width: int | None = None
    norm: str | None = None
    epochs: int = 30
    batch_size: int = 64
    lr: float | None = None
    damping: float | None = None
    prior_precision: float | None = None
    ess: float | None = None
    temperature: float | None = None
    prediction_temperature: float | None = None
    augmentation_factor: float | None = None
    augment: bool = True
    image_size: int | None = None
    schedule: str = "cosine"
    warmup_epochs: float = 1.0
    seed: int = 0
    samples: int = 32
    checkpoint_every: int = 100
    compare: bool = False
    device: str = "auto"
    threads: int | None = None
    noise: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_type(self, field.name, str(field.type))
        for name in ("epochs", "batch_size", "samples", "checkpoint_every", "width", "image_size", "threads"):
            _require(self, name, minimum=1, maximum=2**31 - 1)
        positive = ("lr", "prior_precision", "ess", "temperature", "prediction_temperature", "augmentation_factor")
        for name in (*positive, "noise"):
            _require(self, name, above=0.0)
        _require(self, "damping", minimum=0.0)
        _require(self, "seed", minimum=0, maximum=2**63 - 1)
        _require(self, "warmup_epochs", minimum=0, maximum=2**31 - 1)
        if self.ess is not None and not (self.temperature is None and self.augmentation_factor is None):
            raise UsageError(
                "--ess excludes --temperature and --augmentation-factor: "
                "ess = training examples x augmentation factor / temperature"
            )
        if self.task not in TASKS:
            raise UsageError(f"unknown task {self.task!r}; allowed are {', '.join(TASKS)}")
        if self.image_size is not None and not reads_image_files(self.data):
            raise UsageError(f"--image-size is for image files (imagefolder:DIR, hf:NAME), not for {self.data}")
        if self.schedule not in SCHEDULES:
            raise UsageError(f"unknown schedule {self.schedule!r}; allowed are {', '.join(SCHEDULES)}")

    def effective_sample_size(self, examples: int, *, augmentation_factor: float, temperature: float) -> float:
        """``ess``, or ``examples * augmentation factor / temperature`` with the defaults given here."""
        if self.ess is not None:
            return self.ess
        factor = augmentation_factor if self.augmentation_factor is None else self.augmentation_factor
        chosen = temperature if self.temperature is None else self.temperature
        return effective_sample_size(examples, augmentation_factor=factor, temperature=chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The inverse of :meth:`to_dict`; an unknown key raises ``KeyError``."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise KeyError(unknown[0])
        return cls(**values)


REPLACEABLE_ON_RESUME = ("device", "threads", "checkpoint_every")
"""Settings that may differ between a run and its continuation; threads only at the price of equality to the bit."""


def given_settings(given: Mapping[str, Any]) -> Settings:
    """Defaults overlaid with what the command line gave (``None`` means not given); paths of data become absolute."""
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    return replace(settings, data=absolute(settings.data))


def resumed_settings(stored: Settings, given: Mapping[str, Any], *, where: str) -> Settings:
    """The settings of a stored run, with what may be replaced replaced.

    Raises:
        UsageError: the command line contradicts the stored run.
    """
    changes = {}
    for name, value in given.items():
        if name == "data" and value is not None:
            value = absolute(value)
        if value is None or value == getattr(stored, name):
            continue
        if name not in REPLACEABLE_ON_RESUME:
            raise UsageError(
                f"{where} was started with {name.replace('_', '-')} = {getattr(stored, name)}, not {value}; "
                "--resume keeps a run's settings, so leave that option out or start a new run"
            )
        changes[name] = value
    return replace(stored, **changes)


def reads_image_files(data: str) -> bool:
    """Whether a description of data may stand for image files, which can be brought to another size."""
    return data.startswith(("imagefolder:", "hf:"))


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "text"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}


def _require_type(settings: Settings, name: str, annotation: str) -> None:
    """The value has the type that the field is declared with; a file may hold anything."""
    value = getattr(settings, name)
    kind, _, optional = annotation.partition(" | ")
    types, words = _KINDS[kind]
    if (value is None and optional) or (isinstance(value, types) and isinstance(value, bool) == (kind == "bool")):
        return
    raise UsageError(f"--{name.replace('_', '-')} is {value!r}; it must be {words}")


def _require(
    settings: Settings, name: str, *, minimum: float = -math.inf, above: float = -math.inf, maximum: float = math.inf
) -> None:
    value = getattr(settings, name)
    if value is None:
        return
    if not math.isfinite(value) or value < minimum or value <= above or value > maximum:
        bound = f"at least {minimum:g}" if math.isfinite(minimum) else f"above {above:g}"
        bound += f" and at most {maximum}" if math.isfinite(maximum) and value > maximum else ""
        raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {bound}")
