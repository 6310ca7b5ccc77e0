"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vogn.cli.errors import one_line_errors
from vogn.cli.settings import Settings

app = typer.Typer(
    help="Bayesian natural-gradient training: one engine, one flag.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_DEFAULTS = Settings()

Run = Annotated[Path, typer.Argument(help="Folder of a run.")]
Device = Annotated[Optional[str], typer.Option(help="cpu, cuda, cuda:1 ... or auto.")]  # noqa: UP045
Samples = Annotated[Optional[int], typer.Option(min=1, help="Weight samples; default: as in the run.")]  # noqa: UP045


def _option(text: str, *names: str, default: object = None) -> object:
    """An option whose absence is ``None``; the default stands in its help."""
    return typer.Option(*names, help=text if default is None else f"{text} \\[default: {default}]", show_default=False)


@app.command()
def train(
    method: Annotated[str | None, _option("See `vogn methods`.", default=_DEFAULTS.method)] = None,
    deterministic: Annotated[
        bool | None, _option("Train without weight noise: the one flag.", "--deterministic/--variational")
    ] = None,
    data: Annotated[
        str | None, _option("digits, npz:FILE, imagefolder:DIR or hf:NAME.", default=_DEFAULTS.data)
    ] = None,
    model: Annotated[
        str | None, _option("A model's name or package.module:callable.", default="resnet8; mlp for feature vectors")
    ] = None,
    width: Annotated[int | None, _option("Width of the model, where it takes one.")] = None,
    norm: Annotated[str | None, _option("batch, group or frn, where the model takes it.")] = None,
    epochs: Annotated[int | None, _option("Passes over the data.", default=_DEFAULTS.epochs)] = None,
    batch_size: Annotated[int | None, _option("Examples per step.", default=_DEFAULTS.batch_size)] = None,
    lr: Annotated[float | None, _option("Peak learning rate.", default="the method's")] = None,
    prior_precision: Annotated[
        float | None, _option("Precision of the Gaussian prior over weights.", default="the method's")
    ] = None,
    ess: Annotated[
        float | None,
        _option("Effective sample size.", default="training examples x augmentation factor / temperature"),
    ] = None,
    temperature: Annotated[float | None, _option("Temperature of the posterior.", default="the method's")] = None,
    prediction_temperature: Annotated[
        float | None, _option("Factor on the trained posterior's covariance.", default="chosen on the validation part")
    ] = None,
    augmentation_factor: Annotated[
        float | None, _option("By how much augmentation enlarges the training set.", default="the data's")
    ] = None,
    augment: Annotated[
        bool | None, _option("Shifts and flips, for images of at least 16 pixels.", "--augment/--no-augment")
    ] = None,
    image_size: Annotated[int | None, _option("Bring image files to this side, in pixels.")] = None,
    schedule: Annotated[str | None, _option("cosine or constant.", default=_DEFAULTS.schedule)] = None,
    warmup_epochs: Annotated[float | None, _option("Linear warm-up.", default=_DEFAULTS.warmup_epochs)] = None,
    seed: Annotated[int | None, _option("Of everything random.", default=_DEFAULTS.seed)] = None,
    samples: Annotated[
        int | None, _option("Weight samples of the posterior predictive.", default=_DEFAULTS.samples)
    ] = None,
    compare: Annotated[
        bool | None, _option("Train AdamW and the twin with the other mode too.", "--compare/--no-compare")
    ] = None,
    checkpoint_every: Annotated[
        int | None, _option("Batches between checkpoints within an epoch.", default=_DEFAULTS.checkpoint_every)
    ] = None,
    device: Annotated[str | None, _option("cpu, cuda, cuda:1 ...", default=_DEFAULTS.device)] = None,
    threads: Annotated[int | None, _option("CPU threads.", default="PyTorch's choice")] = None,
    output: Annotated[Path | None, _option("Folder of the run.", default="a new one in runs/")] = None,
    resume: Annotated[Path | None, _option("Continue the run in this folder.")] = None,
) -> None:
    """Train a classifier; end with a table of accuracy, NLL, Brier score and calibration error."""
    given = {
        "method": None if method is None else method.lower(),
        "variational": None if deterministic is None else not deterministic,
        "data": data,
        "model": model,
        "width": width,
        "norm": norm,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "prior_precision": prior_precision,
        "ess": ess,
        "temperature": temperature,
        "prediction_temperature": prediction_temperature,
        "augmentation_factor": augmentation_factor,
        "augment": augment,
        "image_size": image_size,
        "schedule": schedule,
        "warmup_epochs": warmup_epochs,
        "seed": seed,
        "samples": samples,
        "compare": compare,
        "checkpoint_every": checkpoint_every,
        "device": device,
        "threads": threads,
    }
    with one_line_errors():
        from vogn.cli import commands

        commands.train(given, output=output, resume=resume, console=Console())


@app.command()
def evaluate(
    run: Run,
    data: Annotated[Optional[str], typer.Option(help="Another data set with the same classes.")] = None,  # noqa: UP045
    part: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    samples: Samples = None,
    device: Device = None,
) -> None:
    """Accuracy, NLL, Brier score and calibration error of a run."""
    with one_line_errors():
        from vogn.cli import commands

        commands.evaluate_run(run, data=data, part=part, samples=samples, device=device, console=Console())


@app.command()
def predict(
    run: Run,
    input_path: Annotated[Path, typer.Option("--input", help="Archive with the array x, in the units of training.")],
    output_path: Annotated[Path, typer.Option("--output", help="Archive to write: probabilities, labels, entropy.")],
    samples: Samples = None,
    device: Device = None,
) -> None:
    """Class probabilities for new inputs, averaged over the posterior."""
    with one_line_errors():
        from vogn.cli import commands

        commands.predict_file(
            run, input_path=input_path, output_path=output_path, samples=samples, device=device, console=Console()
        )


@app.command()
def methods() -> None:
    """The methods and their defaults."""
    with one_line_errors():
        from vogn.cli.screen import methods_table

        Console().print(methods_table())
