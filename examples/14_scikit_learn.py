"""What does an untuned Bayesian network say beside scikit-learn's own untuned regressions?

Progression of diabetes after a year, from ten measurements. Every model with its defaults (ours with fewer steps, for
speed), the same rows. The last columns say how many targets lie in the 90 % interval, and how wide it is.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vogn.sklearn import VOGNRegressor

Z90 = 1.645


def main() -> None:
    warnings.filterwarnings("ignore")  # scikit-learn's perceptron has not converged
    X, y = load_diabetes(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, random_state=0)
    kernel = ConstantKernel() * RBF() + WhiteKernel()
    models: dict[str, Any] = {
        "VOGNRegressor": VOGNRegressor(steps=400, random_state=0),
        "VOGNRegressor, Laplace": VOGNRegressor(steps=400, variational=False, random_state=0),
        "MLPRegressor": MLPRegressor(random_state=0),
        "BayesianRidge": BayesianRidge(),
        "Gaussian process": GaussianProcessRegressor(kernel, normalize_y=True),
    }
    print(f"{'':24s}{'RMSE':>8s}{'inside':>9s}{'width':>8s}")
    for name, model in models.items():
        fitted = make_pipeline(StandardScaler(), model).fit(X, y)
        if name == "MLPRegressor":
            print(f"{name:24s}{np.sqrt(np.mean((y_test - fitted.predict(X_test)) ** 2)):8.1f}")
            continue
        mean, std = fitted.predict(X_test, return_std=True)
        inside = np.mean(np.abs(y_test - mean) < Z90 * std)
        print(f"{name:24s}{np.sqrt(np.mean((y_test - mean) ** 2)):8.1f}{inside:9.2f}{np.mean(2 * Z90 * std):8.1f}")


if __name__ == "__main__":
    main()
