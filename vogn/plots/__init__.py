"""Floor 6: pictures of predictions and runs, on matplotlib axes that are given or made; no global state.

Every function takes ``ax=`` and returns the axes; ``ax.figure.savefig("file.png")`` writes them. Matplotlib is imported
when the first picture is drawn.
"""

from vogn.plots.curves import learning_curves, severity_curves
from vogn.plots.label_curves import label_curves
from vogn.plots.regression_intervals import regression_intervals
from vogn.plots.reliability_diagram import confidence_histogram, quantile_diagram, reliability_diagram
from vogn.plots.reward_curves import reward_curves
from vogn.plots.selection import ood_histogram, ood_roc_curve, risk_coverage_curve
from vogn.plots.task_curves import accuracy_heatmap, task_curves

__all__ = [
    "accuracy_heatmap",
    "confidence_histogram",
    "label_curves",
    "learning_curves",
    "ood_histogram",
    "ood_roc_curve",
    "quantile_diagram",
    "regression_intervals",
    "reliability_diagram",
    "reward_curves",
    "risk_coverage_curve",
    "severity_curves",
    "task_curves",
]
