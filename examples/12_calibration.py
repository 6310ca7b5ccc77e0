"""How far can probabilities be trusted, and what can be promised whatever they are?

A network is trained on 300 digits, a temperature and conformal sets are fitted to 400 others, and everything is
measured on a thousand more: first as they are, then blurred and noisy, where what was fitted to clean images no longer
holds. Last, intervals for real targets. A picture is written beside the numbers, calibration.png.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

import vogn
from vogn import plots
from vogn.calibration import ConformalGaussian, ConformalSets, TemperatureScaling, set_coverage, set_size
from vogn.data import corrupt, epoch_batches, load_data
from vogn.likelihoods import Categorical
from vogn.metrics import classification_report, ood_report, regression_report
from vogn.models import mlp

LEVEL = 0.95


def fitted(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.nn.Module, vogn.GaussianPosterior]:
    """Variational online Gauss-Newton."""
    model, likelihood = mlp((64, 64, 10)), Categorical()
    ess = 10 * len(x)  # a cold posterior: temperature 0.1
    opt = vogn.VOGN(model, lr=0.01, ess=ess, weight_decay=30 / ess)
    for epoch in range(60):
        for batch in epoch_batches(len(x), 50, seed=0, epoch=epoch):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(model(x[batch]), y[batch]).backward()
            opt.step()
    return model, opt.posterior()


def digits() -> None:
    data = load_data("digits")
    x, y = (
        torch.cat([data.train.x, data.test.x, data.validation.x]),
        torch.cat([data.train.y, data.test.y, data.validation.y]),
    )
    model, posterior = fitted(x[:300], y[:300])
    how = {"value_range": (0, 16), "mean": data.preprocessing.mean, "std": data.preprocessing.std}

    def predicted(images: torch.Tensor) -> vogn.Predictive:
        return vogn.predict(model, posterior, images, samples=32, likelihood=Categorical())

    held, labels = predicted(x[300:700]).mean, y[300:700]
    test, answers = x[700:], y[700:]
    temperature = TemperatureScaling().fit(held, labels)
    sets = ConformalSets(LEVEL, allow_empty=True).fit(held, labels)
    clean = predicted(test)
    print(classification_report(clean.mean, answers, bootstrap=200))
    print(f"\ntemperature {temperature.temperature:.2f}")

    print("\n                      NLL          ECE          sets of 95 %")
    print("corruption  severity  raw   fitted  raw   fitted  coverage  size")
    errors: dict[str, list[float]] = {}
    for name in ("blur", "gaussian_noise"):
        for severity in (0, 1, 3, 5):
            p = predicted(corrupt(test, name, severity, **how)).mean
            raw, mended = (classification_report(each, answers) for each in (p, temperature(p)))
            held_by, size = float(set_coverage(sets(p), answers)), float(set_size(sets(p)))
            print(f"{name:14s}  {severity}   {raw.nll:6.3f} {mended.nll:6.3f} {raw.ece:6.3f} {mended.ece:6.3f}", end="")
            print(f"  {held_by:8.3f} {size:6.2f}")
            errors.setdefault(name, []).append(mended.ece)
            if severity == 0:
                assert abs(held_by - LEVEL) < 0.05 and mended.nll < raw.nll

    noise = torch.empty_like(test).uniform_(float(test.min()), float(test.max()))
    strange = predicted(noise)
    report = ood_report(vogn.ood_scores(clean), vogn.ood_scores(strange))
    print(f"\n{report}")

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    plots.reliability_diagram(clean.mean, answers, label="posterior predictive", ax=left)
    plots.reliability_diagram(temperature(clean.mean), answers, label="with temperature", ax=left).legend()
    plots.severity_curves(errors, "ECE", severities=(0, 1, 3, 5), ax=middle)
    entropy = vogn.ood_score(clean, "entropy"), vogn.ood_score(strange, "entropy")
    plots.ood_histogram(*entropy, score="entropy", labels=("digits", "noise"), ax=right)
    figure.savefig("calibration.png", dpi=100)


def regression() -> None:
    """A model that believes in one noise for all inputs, although it grows with the input."""
    x = torch.rand(1200, 1)
    y = torch.sin(6 * x) + 0.5 * x * torch.randn(x.shape)
    mean, variance = torch.sin(6 * x), torch.full_like(x, 0.1**2)
    intervals = ConformalGaussian(LEVEL).fit(mean[:200], variance[:200], y[:200])
    low, high = intervals(mean[200:], variance[200:])
    print(f"\n{regression_report(mean[200:], variance[200:], y[200:], level=LEVEL)}")
    coverage = float(vogn.metrics.interval_coverage(low, high, y[200:]))
    print(f"conformal intervals hold {coverage:.3f}")
    for name, part in (("x < 0.5", x[200:] < 0.5), ("x > 0.5", x[200:] > 0.5)):
        inside = vogn.metrics.interval_coverage(low[part], high[part], y[200:][part])
        print(f"    of {name}: {float(inside):.3f}")  # the promise is one on average, not for each kind of input
    assert abs(coverage - LEVEL) < 0.06


def main() -> None:
    torch.manual_seed(0)
    digits()
    regression()


if __name__ == "__main__":
    main()
