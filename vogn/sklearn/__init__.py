"""Floor 7: scikit-learn estimators with predictive uncertainty, for pipelines, grid searches and calibration.

Neither scikit-learn nor this package is loaded by ``import vogn``: write ``from vogn.sklearn import VOGNClassifier``.
"""

from vogn.sklearn.classifier import VOGNClassifier
from vogn.sklearn.regressor import VOGNRegressor

__all__ = ["VOGNClassifier", "VOGNRegressor"]
