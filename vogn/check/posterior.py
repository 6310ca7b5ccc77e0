"""A posterior over weights, compared in function space with the best available reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vogn.check.reference import Reference, Sampler, make_reference
from vogn.check.statistics import Estimate, bootstrap, median_ratio, pearson, root_mean_square
from vogn.check.target import Target, checked_inputs, make_target
from vogn.check.verdict import Verdict, judge
from vogn.likelihoods import Likelihood
from vogn.optim.report import Cell, Report
from vogn.posterior import Posterior, Prior
from vogn.predict import predict

FORMS = {
    "exact": "the exact Gaussian posterior",
    "quadrature": "quadrature on a grid",
    "nuts": "Hamiltonian Monte Carlo (NUTS)",
}


class _Table(Report):
    COLUMNS: ClassVar[Mapping[str, Cell]] = {
        "quantity": lambda row: row["quantity"],
        "value": lambda row: row["value"],
        "ideal": lambda row: row["ideal"],
    }
    RIGHT = frozenset({"value"})


@dataclass(frozen=True)
class PosteriorCheck:
    """How far a posterior is from a reference, at given inputs. ``print`` shows a table and says whether to trust it.

    Estimates have 95 % intervals over the inputs; "variance" is always that over the weights, without noise.

    Args:
        reference: what the posterior was compared with; may be passed on as ``reference=`` of the next check.
        mean_rmse: root mean square difference of the predictive means, in the unit of the outputs (real targets) or
            of probabilities.
        mean_error: the same over the root mean square of the reference's standard deviation.
        variance_correlation: Pearson correlation over inputs of the predictive variances.
        std_correlation: the same of the standard deviations, which is less ruled by a few inputs.
        variance_ratio: median over inputs of the posterior's variance over the reference's.
        coverage: ``{level: share of the posterior's samples inside the reference's central interval}``; equals the
            level if the two agree.
        inputs: number of inputs.
        samples: number of weight samples of the posterior.
        parameters: number of uncertain parameters.
        ess: effective sample size.
        temperature: number of loss terms over ``ess``; the reference has the same.
    """

    reference: Reference
    mean_rmse: Estimate
    mean_error: Estimate
    variance_correlation: Estimate
    std_correlation: Estimate
    variance_ratio: Estimate
    coverage: Mapping[float, Estimate]
    inputs: int
    samples: int
    parameters: int
    ess: float
    temperature: float

    @property
    def r_hat(self) -> float | None:
        """Largest split R-hat of the reference's predictions; ``None`` unless it was sampled."""
        return self.reference.r_hat

    @property
    def divergences(self) -> int | None:
        """Divergent transitions of the reference; ``None`` unless it was sampled."""
        return self.reference.divergences

    @property
    def effective_samples(self) -> float | None:
        """Smallest effective sample size of a prediction of the reference; ``None`` unless it was sampled."""
        return self.reference.effective_samples

    @property
    def verdict(self) -> Verdict:
        """Whether to trust, with the reasons; see :func:`vogn.check.verdict.judge` for the limits."""
        return judge(
            self.reference,
            mean_error=self.mean_error.value,
            variance_ratio=self.variance_ratio.value,
            correlation=self.std_correlation.value,
            coverage={level: found.value for level, found in self.coverage.items()},
        )

    @property
    def trusted(self) -> bool:
        """Whether the verdict is plain trust."""
        return self.verdict.word == "trust"

    def table(self) -> Report:
        """The printed rows."""
        rows = [
            ("error of the mean / reference std", str(self.mean_error), "0"),
            ("error of the mean, root mean square", str(self.mean_rmse), "0"),
            ("correlation of variances", str(self.variance_correlation), self._ceiling()),
            ("correlation of standard deviations", str(self.std_correlation), "1"),
            ("variance / reference variance, median", str(self.variance_ratio), "1"),
            *((f"samples in the {100 * p:.0f} % interval", str(c), f"{p:g}") for p, c in self.coverage.items()),
        ]
        if self.reference.name == "nuts":
            rows += [
                ("reference: largest R-hat of a prediction", f"{self.r_hat:.3f}", "1"),
                ("reference: smallest effective sample size", f"{self.effective_samples:.0f}", ""),
                ("reference: divergences", f"{self.divergences} of {self.reference.draws}", "0"),
            ]
        table = _Table({"quantity": a, "value": b, "ideal": c} for a, b, c in rows)
        cold = "" if math.isclose(self.temperature, 1.0, rel_tol=1e-6) else f", temperature {self.temperature:.3g}"
        table.title = (
            f"posterior over {self.parameters} parameters at {self.inputs} inputs, against "
            f"{FORMS[self.reference.name]} (ess {self.ess:g}{cold}); {self.samples} samples"
        )
        table.remarks = (str(self.verdict),)
        return table

    def _ceiling(self) -> str:
        ceiling = self.reference.ceiling
        return "1" if ceiling is None else f"1 (two chains: {ceiling:.3f})"

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        """The table for a rich console."""
        return self.table().__rich__()


def check_posterior(
    model: nn.Module,
    posterior: Posterior,
    likelihood: Likelihood,
    data: Sequence[Any],
    *,
    at: Any = None,
    method: str = "mc",
    samples: int = 2000,
    reference: str | Reference = "auto",
    prior: Prior | None = None,
    ess: float | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorCheck:
    """Compare a posterior over the weights of a small network with the best available reference, in function space.

    The reference has the posterior's own prior ``N(0, I / (ess * weight_decay))`` and its temperature: with ``ess``
    other than the number of loss terms it is the tempered posterior ``prior * likelihood^(ess / terms)``, because the
    posterior's precision ``ess (C + weight_decay I)`` is that of this density. It is the exact Gaussian where the model
    is linear in its parameters and the likelihood Gaussian; quadrature on a grid for labels and a model that is linear
    in at most two parameters; Pyro's NUTS otherwise. Everything runs in float64 copies in evaluation mode.

    Args:
        model: returns the outputs of the likelihood.
        posterior: any :class:`vogn.Posterior`; what it knows exactly stays fixed, see
            :func:`vogn.check.target.make_target`.
        likelihood: one of :mod:`vogn.likelihoods`; a learnable noise is taken as it is.
        data: ``(inputs, targets)``: all data that the posterior was trained on.
        at: inputs where functions are compared, at least two; ``None``: those of the data. Inputs away from the data
            tell more.
        method: of :func:`vogn.predict`: ``"mc"``, or ``"linearized"`` for Laplace posteriors.
        samples: weight samples of the posterior, >= 2.
        reference: ``"auto"``, ``"exact"``, ``"quadrature"``, ``"nuts"``, or a :class:`vogn.check.Reference` of an
            earlier check with the same data, prior and inputs.
        prior: ``None`` reads it from a Gaussian posterior.
        ess: ``None`` reads it from a Gaussian posterior; for others it is the number of loss terms.
        sampler: how NUTS runs; ``None`` is ``vogn.check.Sampler()``: two chains of 500 + 500.
        seed: of the samples, the resamples and NUTS.
        progress: show NUTS' progress.

    Returns:
        The comparison; ``print`` shows it.

    Raises:
        ValueError: if data or inputs hold NaN, no prior precision is known, a reference does not apply, there are too
            many parameters for NUTS, or a number is out of range.
        TypeError: if the model does not return a tensor.

    Example: Bayesian linear regression, for which a Laplace approximation with dense curvature is exact.
        >>> import torch, vogn
        >>> x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
        >>> model, likelihood = torch.nn.Linear(1, 1).double(), vogn.likelihoods.Gaussian(noise=0.5)
        >>> information = float(x.square().sum()) / 0.5**2
        >>> with torch.no_grad():  # the optimum for the targets y = x under the prior N(0, 1)
        ...     _ = model.weight.fill_(information / (information + 1)), model.bias.zero_()
        >>> posterior = vogn.laplace(model, likelihood, [(x, x)], structure="dense")
        >>> found = vogn.check_posterior(model, posterior, likelihood, (x, x))
        >>> found.reference.name, found.trusted
        ('exact', True)

    Source: Zhang, Sun, Duvenaud, Grosse (2018), "Noisy Natural Gradient as Variational Inference", for the correlation
    of predictive variances with those of Hamiltonian Monte Carlo.
    """
    if samples < 2:
        raise ValueError(f"samples={samples} must be at least 2: a variance needs two")
    target = make_target(model, posterior, likelihood, data, prior=prior, ess=ess)
    inputs = target.inputs if at is None else checked_inputs(at, "inputs at=")
    found = predict(
        target.model,
        posterior,
        inputs,
        method=method,
        link="mc" if method == "linearized" else None,  # samples, not the closed form of real targets
        samples=samples,
        likelihood=target.likelihood,
        seed=seed,
    ).samples
    if found is None:
        raise ValueError(f"method={method!r} has no weight samples; choose 'mc' or 'linearized'")
    if found.shape[1] < 2:
        raise ValueError("at= holds one input; a correlation over inputs needs at least two, better twenty")
    if isinstance(reference, str):
        reference = make_reference(target, inputs, reference, sampler=sampler, seed=seed, progress=progress)
    if found.shape[1:] != reference.mean.shape:
        raise ValueError(
            f"the predictions have shape {tuple(found.shape[1:])} but the reference {tuple(reference.mean.shape)}; "
            "it must come from a check at the same inputs"
        )
    return _compared(found, reference, target, seed)


def _compared(samples: Tensor, reference: Reference, target: Target, seed: int) -> PosteriorCheck:
    """The comparison of samples ``(S, N, ...)`` with a reference."""
    mean, variance = _matrix(samples.mean(0)), _matrix(samples.var(0, correction=0))
    mean_ref, variance_ref = _matrix(reference.mean), _matrix(reference.variance)
    difference, std_ref = mean - mean_ref, variance_ref.sqrt()

    def inside(low: Tensor, high: Tensor) -> Estimate:
        share = _matrix(((samples >= low) & (samples <= high)).double().mean(0))
        return bootstrap(lambda part: part.mean((-2, -1)), share, seed=seed)

    return PosteriorCheck(
        reference=reference,
        mean_rmse=bootstrap(root_mean_square, difference, seed=seed),
        mean_error=bootstrap(lambda d, s: root_mean_square(d) / root_mean_square(s), difference, std_ref, seed=seed),
        variance_correlation=bootstrap(pearson, variance, variance_ref, seed=seed),
        std_correlation=bootstrap(pearson, variance.sqrt(), std_ref, seed=seed),
        variance_ratio=bootstrap(median_ratio, variance, variance_ref, seed=seed),
        coverage={level: inside(low, high) for level, (low, high) in reference.intervals.items()},
        inputs=len(mean),
        samples=len(samples),
        parameters=target.numel,
        ess=target.ess,
        temperature=target.temperature,
    )


def _matrix(values: Tensor) -> Tensor:
    """``(N, ...)`` as ``(N, M)``."""
    return values.reshape(len(values), -1)
