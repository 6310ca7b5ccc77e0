"""Simulation-based calibration: over data sets from the prior, ranks of the truth among posterior draws are uniform."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vogn.check.target import checked_inputs
from vogn.likelihoods import Likelihood
from vogn.optim.report import Cell, Report
from vogn.posterior import Posterior, Prior
from vogn.predict.evaluation import cuda_devices_of, device_of, seeded
from vogn.predict.inputs import arguments_of

Fit = Callable[[nn.Module, Any, Tensor], Posterior]
"""``fit(model, inputs, targets)`` trains the model on the data and returns its posterior."""


class _Table(Report):
    COLUMNS: ClassVar[Mapping[str, Cell]] = {
        "quantity": lambda row: row["quantity"],
        "chi-square p": lambda row: f"{row['chi-square p']:.3g}",
        "KS p": lambda row: f"{row['KS p']:.3g}",
    }
    RIGHT = frozenset({"chi-square p", "KS p"})


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """Ranks and what they say.

    Args:
        ranks: ``(simulations, quantities)``, each in ``0 ... draws``: how many draws lie below the truth.
        names: of the quantities.
        draws: posterior draws per simulation.
        bins: of the histograms; divides ``draws + 1``.
        chi_square: p-value of every quantity's histogram.
        ks: p-value of every quantity's Kolmogorov-Smirnov test, with a uniform draw added to each rank.
    """

    ranks: Tensor
    names: tuple[str, ...]
    draws: int
    bins: int
    chi_square: tuple[float, ...]
    ks: tuple[float, ...]

    @property
    def p_value(self) -> float:
        """The smallest p-value of all tests times their number (Bonferroni), at most 1."""
        values = (*self.chi_square, *self.ks)
        return min(1.0, len(values) * min(values))

    @property
    def shape(self) -> str:
        """What the pooled histogram looks like: ``"narrow"`` (truths lie outside too often), ``"wide"``, ``"shifted"``
        or ``"flat"``."""
        if self.p_value >= 0.01:
            return "flat"
        share = (self.ranks.double() + 0.5) / (self.draws + 1)
        if float((share.mean(0) - 0.5).abs().max()) * math.sqrt(12 * len(share)) > 4:
            return "shifted"
        return "narrow" if float((share - 0.5).square().mean()) > 1 / 12 else "wide"

    def table(self) -> Report:
        """One row per quantity, and a sentence."""
        rows = zip(self.names, self.chi_square, self.ks, strict=True)
        table = _Table({"quantity": name, "chi-square p": chi, "KS p": ks} for name, chi, ks in rows)
        words = {
            "flat": "the ranks are uniform as far as these simulations can tell",
            "narrow": "the posterior is too narrow: the truth is too often beyond its draws",
            "wide": "the posterior is too wide: the truth is too often in the middle of its draws",
            "shifted": "the posterior is shifted",
        }
        head = f"{len(self.ranks)} simulations, {self.draws} draws: p = {self.p_value:.2g} over all tests; "
        table.remarks = (head + words[self.shape],)
        return table

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        """The table for a rich console."""
        return self.table().__rich__()

    def plot(self, path: str | Path | None = None, *, level: float = 0.99) -> Any:
        """Rank histogram of every quantity with the band that a uniform one stays in, bin by bin.

        Args:
            path: where to write the picture; ``None`` writes nothing.
            level: probability of the band of each bin, in (0, 1).

        Returns:
            The matplotlib figure.

        Raises:
            ValueError: if the level is out of range.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level={level} must lie between 0 and 1, for example 0.99")
        from matplotlib.figure import Figure
        from scipy.stats import binom

        low, high = binom.interval(level, len(self.ranks), 1 / self.bins)
        columns = min(4, len(self.names))
        rows = math.ceil(len(self.names) / columns)
        figure = Figure(figsize=(3.2 * columns, 2.4 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        edges = [k * (self.draws + 1) / self.bins for k in range(self.bins + 1)]
        for k, name in enumerate(self.names):
            axes[k].axhspan(low, high, color="0.85", label=f"{100 * level:g} % of a uniform bin")
            axes[k].stairs(histogram(self.ranks[:, k], self.draws, self.bins).tolist(), edges, fill=True)
            axes[k].set(title=name, xlabel="rank", ylabel="simulations")
        for axis in axes[len(self.names) :]:
            axis.remove()
        axes[0].legend(fontsize=7, loc="lower center")
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def simulation_based_calibration(
    model: nn.Module,
    likelihood: Likelihood,
    inputs: Any,
    fit: Fit,
    *,
    prior: Prior | None = None,
    at: Any = None,
    simulations: int = 200,
    draws: int = 99,
    bins: int = 20,
    seed: int = 0,
) -> SimulationBasedCalibration:
    """Is a way to compute posteriors right, on average over data sets from the prior?

    Again and again: weights are drawn from the prior, targets from the model with these weights, ``fit`` computes a
    posterior, and the true value of every quantity is ranked among draws from it. If the posteriors are right, ranks
    are uniform on ``0 ... draws``; too narrow a posterior piles them up at both ends.

    It holds at temperature 1 (``ess`` the number of loss terms) and for the prior of ``fit`` only.

    Args:
        model: all of its parameters are drawn from the prior.
        likelihood: draws the targets.
        inputs: of every simulated data set.
        fit: ``fit(model, inputs, targets) -> posterior``; gets a copy of the model with its own weights. Torch's random
            state inside, of the CPU and the model's devices, is fixed by ``seed`` and the number of the simulation.
        prior: ``None`` is ``vogn.Prior()``, ``N(0, 1)``; ``fit`` must use the same.
        at: ``None`` ranks every weight, for linear and logistic models. Inputs: rank the outputs there; the weights of
            a network can be permuted, its outputs cannot.
        simulations: >= 20.
        draws: of each posterior, independent of one another, >= 1.
        bins: of the histogram, >= 2; divides ``draws + 1``.
        seed: of everything.

    Raises:
        ValueError: if a number is out of range, or ``bins`` does not divide ``draws + 1``.

    Example: a mean with a known standard deviation, and its exact posterior.
        >>> import torch, vogn
        >>> x, likelihood = torch.ones(5, 1), vogn.likelihoods.Gaussian(noise=1.0)
        >>> def fit(model, x, y):
        ...     with torch.no_grad():
        ...         _ = model.weight.fill_(float(y.sum()) / 6)
        ...     return vogn.laplace(model, likelihood, [(x, y)], structure="dense", prior_precision=1.0)
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> found = vogn.simulation_based_calibration(model, likelihood, x, fit, simulations=40, draws=9, bins=5)
        >>> found.shape
        'flat'

    Source: Talts, Betancourt, Simpson, Vehtari, Gelman (2018), "Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration".
    """
    for name, value, least in (("simulations", simulations, 20), ("draws", draws, 1), ("bins", bins, 2)):
        if value < least:
            raise ValueError(f"{name}={value} is out of range: it must be at least {least}")
    if (draws + 1) % bins:
        raise ValueError(f"bins={bins} does not divide draws + 1 = {draws + 1}: bins would be unequal; try draws=99")
    prior = prior or Prior()
    checked_inputs(inputs, "inputs")
    places = None if at is None else checked_inputs(at, "inputs at=")
    double = copy.deepcopy(model).double().eval()
    devices = cuda_devices_of(model)
    rows: list[Tensor] = []
    names: tuple[str, ...] = ()
    for number in range(simulations):
        with seeded(1_000_003 * seed + number, devices):
            found, names = _simulate(model, double, likelihood, inputs, fit, prior, places, draws)
        rows.append(found)
    ranks = torch.stack(rows)
    chi, ks = zip(*(_p_values(ranks[:, k], draws, bins, seed + k) for k in range(len(names))), strict=True)
    return SimulationBasedCalibration(ranks, names, draws, bins, chi, ks)


def _simulate(
    model: nn.Module,
    double: nn.Module,
    likelihood: Likelihood,
    inputs: Any,
    fit: Fit,
    prior: Prior,
    at: Any,
    draws: int,
) -> tuple[Tensor, tuple[str, ...]]:
    """Ranks of one data set, and what they are of; ``double`` is a float64 copy of the model in evaluation mode."""
    student = copy.deepcopy(model)
    parameters = {name: p.detach() for name, p in student.named_parameters()}
    centre = prior.mean_like(parameters)
    truth = {name: centre[name] + torch.randn_like(p) / math.sqrt(prior.precision) for name, p in parameters.items()}
    args, kwargs = arguments_of(inputs).to(device_of(student))
    with torch.no_grad():
        student.eval()
        targets = likelihood.sample(functional_call(student, truth, args, kwargs))
        student.train(model.training)
    of_draws = int(torch.randint(1 << 31, ()))  # now: fit may seed torch itself
    posterior = fit(student, inputs, targets)
    samples = posterior.sample(draws, seed=of_draws)
    missing = sorted(truth.keys() - samples.keys())
    if missing:
        raise ValueError(f"the posterior of fit has no parameter {missing[0]!r}: it must cover the whole model")
    if at is None:
        drawn = torch.cat([samples[name].double().reshape(draws, -1) for name in truth], 1)
        true = torch.cat([value.double().flatten() for value in truth.values()])
        names = [_index(name, i, value.numel()) for name, value in truth.items() for i in range(value.numel())]
    else:
        place, more = arguments_of(at).to(device_of(double))

        def outputs(weights: Mapping[str, Tensor]) -> Tensor:
            return functional_call(double, {name: w.double() for name, w in weights.items()}, place, more).flatten()

        with torch.no_grad():
            true = outputs(truth)
            drawn = torch.stack([outputs({name: samples[name][k] for name in truth}) for k in range(draws)])
        names = [_index("output", i, len(true)) for i in range(len(true))]
    return (drawn < true).sum(0), tuple(names)


def _index(name: str, i: int, count: int) -> str:
    return name if count == 1 else f"{name}[{i}]"


def histogram(ranks: Tensor, draws: int, bins: int) -> Tensor:
    """Counts of ranks ``0 ... draws`` in equal bins."""
    return torch.bincount(ranks * bins // (draws + 1), minlength=bins)


def _p_values(ranks: Tensor, draws: int, bins: int, seed: int) -> tuple[float, float]:
    """Of the chi-square test of the histogram, and of the Kolmogorov-Smirnov test."""
    from scipy.stats import chisquare, kstest

    jitter = torch.rand(len(ranks), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniform = (ranks + jitter) / (draws + 1)
    return (
        float(chisquare(histogram(ranks, draws, bins).numpy()).pvalue),
        float(kstest(uniform.numpy(), "uniform").pvalue),
    )
