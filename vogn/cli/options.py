"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vogn.cli.errors import UsageError
from vogn.cli.settings import Settings

_DEFAULTS = Settings()


def option(text: str, *names: str, default: object = None) -> Any:
    """An option whose absence is ``None``; the default stands in its help."""
    return typer.Option(*names, help=text if default is None else f"{text} \\[default: {default}]", show_default=False)


def names(text: str | None) -> tuple[str, ...] | None:
    """Names with commas between them, in lower case."""
    return None if text is None else tuple(word.strip().lower() for word in text.split(",") if word.strip())


def whole_numbers(option_name: str, text: str | None) -> tuple[int, ...] | None:
    """Whole numbers with commas between them.

    Raises:
        UsageError: naming the option, if there is something else.
    """
    try:
        return None if text is None else tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option_name} {text!r} must be whole numbers with commas, such as 100,100") from error


Method = Annotated[str | None, option("See `vogn methods`.", default=_DEFAULTS.method)]
Deterministic = Annotated[
    bool | None, option("Train without weight noise: the one flag.", "--deterministic/--variational")
]
DataOption = Annotated[
    str | None, option("digits, diabetes, npz:FILE, imagefolder:DIR or hf:NAME.", default=_DEFAULTS.data)
]
TaskOption = Annotated[
    str | None, option("classification, regression or auto: by the targets.", "--task", default=_DEFAULTS.task)
]
Noise = Annotated[
    float | None, option("Standard deviation of the noise of numbers, in their unit.", default="learned")
]
Model = Annotated[
    str | None, option("A model's name or package.module:callable.", default="resnet8; mlp for feature vectors")
]
Width = Annotated[int | None, option("Width of the model, where it takes one.")]
Norm = Annotated[str | None, option("batch, group or frn, where the model takes it.")]
BatchSize = Annotated[int | None, option("Examples per step.", default=_DEFAULTS.batch_size)]
Damping = Annotated[float | None, option("Added to the curvature in steps.", default="the method's")]
PriorPrecision = Annotated[
    float | None, option("Precision of the Gaussian prior over weights.", default="the method's")
]
SampleSizeOption = Annotated[
    float | None,
    option("Effective sample size.", "--ess", default="training examples x augmentation factor / temperature"),
]
Temperature = Annotated[float | None, option("Temperature of the posterior.", default="the method's")]
AugmentationFactor = Annotated[
    float | None, option("By how much augmentation enlarges the training set.", default="the data's")
]
Augment = Annotated[
    bool | None, option("Shifts and flips, for images of at least 16 pixels.", "--augment/--no-augment")
]
ImageSize = Annotated[int | None, option("Bring image files to this side, in pixels.")]
Seed = Annotated[int | None, option("Of everything random.", default=_DEFAULTS.seed)]
Device = Annotated[str | None, option("cpu, cuda, cuda:1 ...", default=_DEFAULTS.device)]
Threads = Annotated[int | None, option("CPU threads.", default="PyTorch's choice")]
Output = Annotated[Path | None, option("Folder of the run.", default="a new one in runs/")]
