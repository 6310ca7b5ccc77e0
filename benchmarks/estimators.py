"""How good are the scikit-learn estimators untuned, beside scikit-learn's own untuned ones?

Every estimator with its default settings. Regression: scikit-learn's diabetes and, with ``--data-dir``, the first
splits of four UCI sets; RMSE, coverage of 90 % intervals and mean log-likelihood of the targets: of a
Gaussian with the predicted mean and standard deviation (without one, the root mean square of five-fold cross-validated
residuals of the training rows). Classification: scikit-learn's breast cancer, wine, iris, digits; accuracy and NLL.

    OMP_NUM_THREADS=1 python -m benchmarks.estimators --data-dir DIR
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn import datasets
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.cells import command, environment, mean_error, write_cell
from vogn.sklearn import VOGNClassifier, VOGNRegressor

RESULTS = Path(__file__).parent / "results" / "estimators" / "summary.json"
UCI = ("boston", "concrete", "energy", "yacht")
CLASSES = ("breast_cancer", "wine", "iris", "digits")
Splits = Iterator[tuple[np.ndarray, np.ndarray]]
Maker = Callable[[int], Any]


def gaussian_process() -> Any:
    """A squared exponential kernel per feature and noise, by marginal likelihood."""

    class Process(GaussianProcessRegressor):  # type: ignore[misc]
        def fit(self, X: np.ndarray, y: np.ndarray) -> Any:
            self.kernel = ConstantKernel() * RBF(np.ones(X.shape[1])) + WhiteKernel()
            return super().fit(X, y)

    return make_pipeline(StandardScaler(), Process(normalize_y=True))


REGRESSORS: dict[str, Maker] = {
    "VOGNRegressor()": lambda seed: VOGNRegressor(random_state=seed),
    'VOGNRegressor("vogn")': lambda seed: VOGNRegressor("vogn", random_state=seed),
    "VOGNRegressor(prior_precision=1)": lambda seed: VOGNRegressor(prior_precision=1.0, random_state=seed),
    "VOGNRegressor(variational=False)": lambda seed: VOGNRegressor(variational=False, random_state=seed),
    "MLPRegressor()": lambda seed: make_pipeline(StandardScaler(), MLPRegressor(random_state=seed)),
    "RandomForestRegressor()": lambda seed: RandomForestRegressor(random_state=seed),
    "Gaussian process": lambda seed: gaussian_process(),
}
CLASSIFIERS: dict[str, Maker] = {
    "VOGNClassifier()": lambda seed: VOGNClassifier(random_state=seed),
    'VOGNClassifier("vogn")': lambda seed: VOGNClassifier("vogn", random_state=seed),
    "VOGNClassifier(prior_precision=1)": lambda seed: VOGNClassifier(prior_precision=1.0, random_state=seed),
    "VOGNClassifier(variational=False)": lambda seed: VOGNClassifier(variational=False, random_state=seed),
    "MLPClassifier()": lambda seed: make_pipeline(StandardScaler(), MLPClassifier(random_state=seed)),
    "RandomForestClassifier()": lambda seed: RandomForestClassifier(random_state=seed),
    "LogisticRegression()": lambda seed: make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
}


def regression_data(directory: Path | None, name: str, splits: int) -> tuple[np.ndarray, np.ndarray, Splits]:
    """Inputs, targets and splits."""
    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
        return x, y, KFold(splits, shuffle=True, random_state=0).split(x)
    assert directory is not None
    with np.load(directory / f"uci_{name}.npz", allow_pickle=False) as archive:
        x, y = archive["X"].astype(np.float64), archive["y"].astype(np.float64)
        pairs = [(archive[f"train_{k}"], archive[f"test_{k}"]) for k in range(splits)]
    return x, y, iter(pairs)


def regressed(make: Maker, x: np.ndarray, y: np.ndarray, train: Any, test: Any, seed: int) -> list[float]:
    """RMSE, log-likelihood, coverage of the 90 % interval, seconds of the fit."""
    model, start = make(seed), time.process_time()
    model.fit(x[train], y[train])
    seconds = time.process_time() - start
    if hasattr(model, "sample_y") or hasattr(getattr(model, "steps", [[None, None]])[-1][1], "sample_y"):
        mean, std = model.predict(x[test], return_std=True)
    else:
        mean = model.predict(x[test])
        residuals = y[train] - cross_val_predict(make(seed), x[train], y[train], cv=5)
        std = np.full(len(mean), np.sqrt(np.mean(residuals**2)))
    inside = np.abs(y[test] - mean) < norm.ppf(0.95) * std
    return [
        float(np.sqrt(np.mean((y[test] - mean) ** 2))),
        float(norm.logpdf(y[test], mean, std).mean()),
        float(inside.mean()),
        seconds,
    ]


def classified(make: Maker, x: np.ndarray, y: np.ndarray, train: Any, test: Any, seed: int) -> list[float]:
    """Accuracy, NLL, seconds of the fit."""
    model, start = make(seed), time.process_time()
    model.fit(x[train], y[train])
    seconds = time.process_time() - start
    found = model.predict_proba(x[test])
    return [float((model.classes_[found.argmax(1)] == y[test]).mean()), float(log_loss(y[test], found)), seconds]


def show(name: str, line: dict[str, list[float]]) -> None:
    """A row of Markdown."""
    print(f"| {name} | " + " | ".join("{:.3f} ± {:.3f}".format(*value) for value in line.values()) + " |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    record: dict[str, Any] = {"regression": {}, "classification": {}}
    for data in ("diabetes", *(UCI if arguments.data_dir else ())):
        print(f"\n| {data} | RMSE | log-likelihood | coverage of 90 % | seconds |\n|---|---|---|---|---|")
        x, y, splits = regression_data(arguments.data_dir, data, arguments.splits)
        pairs = list(splits)
        for name, make in REGRESSORS.items():
            rows = [regressed(make, x, y, train, test, k) for k, (train, test) in enumerate(pairs)]
            keys = ("rmse", "log_likelihood", "coverage", "seconds")
            line = {key: mean_error([row[i] for row in rows]) for i, key in enumerate(keys)}
            record["regression"].setdefault(data, {})[name] = line
            show(name, line)
    for data in CLASSES:
        print(f"\n| {data} | accuracy | NLL | seconds |\n|---|---|---|---|")
        x, y = getattr(datasets, f"load_{data}")(return_X_y=True)
        pairs = list(StratifiedKFold(arguments.splits, shuffle=True, random_state=0).split(x, y))
        for name, make in CLASSIFIERS.items():
            rows = [classified(make, x, y, train, test, k) for k, (train, test) in enumerate(pairs)]
            line = {key: mean_error([row[i] for row in rows]) for i, key in enumerate(("accuracy", "nll", "seconds"))}
            record["classification"].setdefault(data, {})[name] = line
            show(name, line)
    record |= {"splits": arguments.splits, "environment": environment(), "command": command("benchmarks.estimators")}
    write_cell(arguments.results, record)


if __name__ == "__main__":
    main()
