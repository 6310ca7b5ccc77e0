"""scikit-learn's diabetes data: 442 patients, 10 measurements, a real number to predict; no download."""

from __future__ import annotations

import numpy as np

from vogn.data.raw import RawData


def load_diabetes(location: str, *, image_size: int | None) -> RawData:
    """Measurements, and the progression of the disease one year later; ``location`` and ``image_size`` must be empty.

    Source: Efron, Hastie, Johnstone, Tibshirani (2004), "Least Angle Regression".
    """
    from sklearn.datasets import load_diabetes as load

    x, y = load(return_X_y=True)
    return RawData(train=(np.asarray(x), np.asarray(y, dtype=np.float64)), validation=None, test=None)
