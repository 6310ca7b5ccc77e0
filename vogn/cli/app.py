"""The commands and their options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from vogn.cli import options
from vogn.cli.errors import one_line_errors
from vogn.cli.options import option
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


@app.command()
def train(
    method: options.Method = None,
    deterministic: options.Deterministic = None,
    data: options.DataOption = None,
    task: options.TaskOption = None,
    model: options.Model = None,
    width: options.Width = None,
    norm: options.Norm = None,
    epochs: Annotated[
        int | None, option("Passes over the data.", default=f"{_DEFAULTS.epochs}; regression: about 2000 steps")
    ] = None,
    batch_size: options.BatchSize = None,
    lr: Annotated[float | None, option("Peak learning rate.", default="the method's")] = None,
    damping: options.Damping = None,
    prior_precision: options.PriorPrecision = None,
    noise: options.Noise = None,
    ess: options.SampleSizeOption = None,
    temperature: options.Temperature = None,
    prediction_temperature: Annotated[
        float | None, option("Factor on the trained posterior's covariance.", default="chosen on the validation part")
    ] = None,
    augmentation_factor: options.AugmentationFactor = None,
    augment: options.Augment = None,
    image_size: options.ImageSize = None,
    schedule: Annotated[str | None, option("cosine or constant.", default=_DEFAULTS.schedule)] = None,
    warmup_epochs: Annotated[float | None, option("Linear warm-up.", default=_DEFAULTS.warmup_epochs)] = None,
    seed: options.Seed = None,
    samples: Annotated[
        int | None, option("Weight samples of the posterior predictive.", default=_DEFAULTS.samples)
    ] = None,
    compare: Annotated[
        bool | None, option("Train AdamW and the twin with the other mode too.", "--compare/--no-compare")
    ] = None,
    checkpoint_every: Annotated[
        int | None, option("Batches between checkpoints within an epoch.", default=_DEFAULTS.checkpoint_every)
    ] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    output: options.Output = None,
    resume: Annotated[Path | None, option("Continue the run in this folder.")] = None,
) -> None:
    """Train a classifier or a regression; end with a table of accuracy (or RMSE), NLL and calibration."""
    given = {
        "method": None if method is None else method.lower(),
        "variational": None if deterministic is None else not deterministic,
        "data": data,
        "task": task,
        "model": model,
        "width": width,
        "norm": norm,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "damping": damping,
        "prior_precision": prior_precision,
        "noise": noise,
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
def tune(
    method: options.Method = None,
    deterministic: options.Deterministic = None,
    data: options.DataOption = None,
    task: options.TaskOption = None,
    model: options.Model = None,
    width: options.Width = None,
    norm: options.Norm = None,
    epochs: Annotated[
        int | None,
        option("Of the training to come, as long as which a search's last runs are.", default="as `vogn train`"),
    ] = None,
    batch_size: options.BatchSize = None,
    damping: options.Damping = None,
    prior_precision: options.PriorPrecision = None,
    noise: options.Noise = None,
    ess: options.SampleSizeOption = None,
    temperature: options.Temperature = None,
    augmentation_factor: options.AugmentationFactor = None,
    augment: options.Augment = None,
    image_size: options.ImageSize = None,
    seed: options.Seed = None,
    smallest: Annotated[float | None, option("First learning rate.", default="a 10,000th of the largest")] = None,
    largest: Annotated[float | None, option("Last learning rate.", default="that of a full Newton step")] = None,
    steps: Annotated[int, option("Steps of the sweep and of each short run.", default=100)] = 100,
    runs: Annotated[bool, typer.Option("--runs/--no-runs", help="Compare neighbouring rates by short runs.")] = True,
    search_damping: Annotated[
        bool,
        typer.Option("--search-damping", help="Compare dampings too, each at its best rate; the best in longer runs."),
    ] = False,
    search_temperature: Annotated[
        bool,
        typer.Option("--search-temperature", help="Compare temperatures too, by runs on the validation part."),
    ] = False,
    folds: Annotated[
        int, option("Folds of --search-damping's longer runs: other examples are held out in each.", default=1)
    ] = 1,
    device: options.Device = None,
    threads: options.Threads = None,
    output: options.Output = None,
) -> None:
    """Find a learning rate (a damping, a temperature) by short runs; end with the options for `vogn train`."""
    given = {
        "method": None if method is None else method.lower(),
        "variational": None if deterministic is None else not deterministic,
        "data": data,
        "task": task,
        "model": model,
        "width": width,
        "norm": norm,
        "epochs": epochs,
        "batch_size": batch_size,
        "damping": damping,
        "prior_precision": prior_precision,
        "noise": noise,
        "ess": ess,
        "temperature": temperature,
        "augmentation_factor": augmentation_factor,
        "augment": augment,
        "image_size": image_size,
        "seed": seed,
        "device": device,
        "threads": threads,
    }
    with one_line_errors():
        from vogn.cli.tuning import tune

        tune(
            given,
            smallest=smallest,
            largest=largest,
            steps=steps,
            runs=runs,
            search_damping=search_damping,
            search_temperature=search_temperature,
            folds=folds,
            output=output,
            console=Console(),
        )


@app.command()
def continual(
    benchmark: Annotated[
        str | None,
        option("permuted-digits, -mnist, split-digits, -mnist or -cifar10.", default="permuted-digits"),
    ] = None,
    method: Annotated[
        str | None,
        option("One method or several, with commas; see the documentation.", default="six of them"),
    ] = None,
    data: Annotated[
        str | None, option("digits or npz:FILE: whose pixels or classes.", default="digits; others need a file")
    ] = None,
    scenario: Annotated[
        str | None,
        option("task (a head each), domain (shared outputs) or class.", default="domain; split-cifar10: task"),
    ] = None,
    examples: Annotated[int | None, option("Training examples used, evenly spaced.", default="all")] = None,
    tasks: Annotated[int | None, option("Number of permutations.", default="5; permuted-mnist: 10")] = None,
    classes_per_task: Annotated[int | None, option("Of a split.", default=2)] = None,
    epochs: Annotated[int | None, option("Passes over each task.", default="20 on digits, else 10")] = None,
    batch_size: Annotated[int | None, option("Examples per step.", default="64; MNIST: 128")] = None,
    lr: Annotated[float | None, option("Learning rate.", default="the method's; Adam 0.001")] = None,
    strength: Annotated[float | None, option("Of penalties and priors.", default="the method's recipe")] = None,
    hidden: Annotated[
        str | None, option("Widths of the hidden layers, with commas.", default="100,100; split-mnist: 256,256")
    ] = None,
    norm: Annotated[str | None, option("frn, group or batch, of split-cifar10.", default="frn")] = None,
    batchnorm: Annotated[
        str | None,
        option("With --norm batch: running statistics, or freeze those of the first task.", default="running"),
    ] = None,
    seed: Annotated[int | None, option("Of everything random.", default=0)] = None,
    checkpoint_every: Annotated[int | None, option("Batches between checkpoints.", default=200)] = None,
    output: options.Output = None,
    resume: Annotated[Path | None, option("Continue the run in this folder.")] = None,
) -> None:
    """Learn tasks one after the other; end with accuracies, transfer and forgetting of every method."""
    with one_line_errors():
        from vogn.cli.continual import continual
        from vogn.cli.options import names, whole_numbers

        given = {
            "benchmark": benchmark,
            "methods": names(method),
            "data": data,
            "scenario": scenario,
            "examples": examples,
            "tasks": tasks,
            "classes_per_task": classes_per_task,
            "epochs": epochs,
            "batch_size": batch_size,
            "lr": lr,
            "strength": strength,
            "hidden": whole_numbers("--hidden", hidden),
            "norm": norm,
            "batchnorm": batchnorm,
            "seed": seed,
            "checkpoint_every": checkpoint_every,
        }
        continual(given, output=output, resume=resume, console=Console())


@app.command()
def active(
    data: Annotated[str | None, option("digits or npz:FILE.", default="digits")] = None,
    target: Annotated[str | None, option("labels, or numbers: real y_train and y_test.", default="labels")] = None,
    method: Annotated[str | None, option("See `vogn methods`.", default="kfac")] = None,
    update: Annotated[str | None, option("With new labels: continue, prior or retrain.", default="continue")] = None,
    acquisition: Annotated[
        str | None, option("One or several, with commas; see the documentation.", default="bald,random")
    ] = None,
    seeds: Annotated[int | None, option("Runs of each acquisition.", default=3)] = None,
    initial: Annotated[int | None, option("Labels of the first query, at random.", default=20)] = None,
    query: Annotated[int | None, option("Labels of every other query.", default=10)] = None,
    rounds: Annotated[int | None, option("Trainings in all.", default=15)] = None,
    steps: Annotated[int | None, option("Of the first training.", default=300)] = None,
    update_steps: Annotated[int | None, option("Of every other training.", default=100)] = None,
    batch_size: Annotated[int | None, option("Examples per step.", default=64)] = None,
    lr: Annotated[float | None, option("Learning rate.", default="the method's")] = None,
    prior_precision: Annotated[float | None, option("Of the Gaussian prior over weights.", default=1)] = None,
    noise: Annotated[float | None, option("Of numbers, in their standard deviations.", default=0.3)] = None,
    samples: Annotated[int | None, option("Weight samples of predictions.", default=32)] = None,
    hidden: Annotated[str | None, option("Widths of the hidden layers, with commas.", default="100")] = None,
    level: Annotated[float | None, option("Count the labels needed for it.", default="accuracy 0.9")] = None,
    output: options.Output = None,
    resume: Annotated[Path | None, option("Continue the run in this folder.")] = None,
) -> None:
    """Ask for the labels that tell most; end with accuracy (or RMSE) over labels of every acquisition."""
    with one_line_errors():
        from vogn.cli.active import active
        from vogn.cli.options import names, whole_numbers

        given = {
            "data": data,
            "target": target,
            "method": None if method is None else method.lower(),
            "update": update,
            "acquisitions": names(acquisition),
            "seeds": seeds,
            "initial": initial,
            "query": query,
            "rounds": rounds,
            "steps": steps,
            "update_steps": update_steps,
            "batch_size": batch_size,
            "lr": lr,
            "prior_precision": prior_precision,
            "noise": noise,
            "samples": samples,
            "hidden": whole_numbers("--hidden", hidden),
            "level": level,
        }
        active(given, output=output, resume=resume, console=Console())


@app.command()
def rl(
    task: Annotated[
        str | None,
        option("wheel, digits, breast-cancer, DeepSea-10, CartPole-v1 ..., package.module:callable.", default="wheel"),
    ] = None,
    agent: Annotated[
        str | None, option("One agent or several, with commas; see the documentation.", default="three that fit")
    ] = None,
    steps: Annotated[int | None, option("Steps of all copies, or rounds.", default="the bandit's; 20000")] = None,
    hidden: Annotated[str | None, option("Widths of the hidden layers, with commas.", default="64,64")] = None,
    discount: Annotated[float | None, option("Of environments.", default=0.99)] = None,
    evaluation_episodes: Annotated[int | None, option("At the end, of environments.", default=10)] = None,
    seed: Annotated[int | None, option("Of everything random.", default=0)] = None,
    checkpoint_every: Annotated[int | None, option("Steps between checkpoints.", default=2000)] = None,
    output: options.Output = None,
    resume: Annotated[Path | None, option("Continue the run in this folder.")] = None,
) -> None:
    """Explore by posteriors, beside other ways: agents on a bandit or in an environment; returns or regret."""
    with one_line_errors():
        from vogn.cli.options import names, whole_numbers
        from vogn.cli.rl import rl

        given = {
            "task": task,
            "agents": names(agent),
            "steps": steps,
            "hidden": whole_numbers("--hidden", hidden),
            "discount": discount,
            "evaluation_episodes": evaluation_episodes,
            "seed": seed,
            "checkpoint_every": checkpoint_every,
        }
        rl(given, output=output, resume=resume, console=Console())


@app.command()
def evaluate(
    run: Run,
    data: Annotated[Optional[str], typer.Option(help="Another data set with the same classes, or numbers.")] = None,  # noqa: UP045
    part: Annotated[str, typer.Option(help="test, validation or train.")] = "test",
    ood: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Data of any other kind, as for --data: are they told apart? May be repeated."),
    ] = None,
    shift: Annotated[
        bool, typer.Option("--shift", help="Add noise, blur, contrast and rotation, 5 severities; image classifiers.")
    ] = False,
    report: Annotated[bool, typer.Option("--report", help="Write report.html, which opens without a network.")] = False,
    samples: Samples = None,
    bootstrap: Annotated[int, typer.Option(help="Replicates of the intervals; 0 for none.")] = 1000,
    device: Device = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for figures, pictures and report.", show_default="evaluation in the run's folder"),
    ] = None,
) -> None:
    """Measure a run beside those trained with it: figures with intervals, pictures, one page that holds all."""
    with one_line_errors():
        from vogn.cli.measuring import evaluate_run

        evaluate_run(
            run,
            data=data,
            part=part,
            ood=ood or [],
            shift=shift,
            report=report,
            samples=samples,
            bootstrap=bootstrap,
            device=device,
            output=output,
            console=Console(),
        )


@app.command()
def predict(
    run: Run,
    input_path: Annotated[Path, typer.Option("--input", help="Archive with the array x, in the units of training.")],
    output_path: Annotated[Path, typer.Option("--output", help="Archive to write: predictions and uncertainty.")],
    samples: Samples = None,
    device: Device = None,
) -> None:
    """Class probabilities or numbers for new inputs, averaged over the posterior."""
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
