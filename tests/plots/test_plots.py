"""Pictures hold the numbers that they show, draw where they are told and leave no global state."""

import io
import math
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from scipy.stats import binom
from sklearn.metrics import roc_curve

from vogn import metrics, plots


@pytest.fixture
def predictions():
    source = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(300, 4, generator=source)).softmax(-1)
    return p, torch.randint(4, (300,), generator=source)


@pytest.fixture
def scores():
    source = torch.Generator().manual_seed(0)
    return torch.randn(80, generator=source), torch.randn(50, generator=source) + 1


ROWS = [{"epoch": k, "train_loss": 1 / k, "validation_loss": 2 / k, "train_accuracy": 0.1 * k} for k in (1, 2, 3)]


def calls(predictions, scores):
    """Every public function, with a legal call on given axes."""
    p, y = predictions
    x = torch.linspace(0, 1, 20)
    return {
        "reliability_diagram": lambda ax: plots.reliability_diagram(p, y, label="model", ax=ax),
        "confidence_histogram": lambda ax: plots.confidence_histogram(p, y, ax=ax),
        "quantile_diagram": lambda ax: plots.quantile_diagram(torch.rand(100), label="model", ax=ax),
        "risk_coverage_curve": lambda ax: plots.risk_coverage_curve(p, y, ax=ax),
        "ood_histogram": lambda ax: plots.ood_histogram(*scores, ax=ax),
        "ood_roc_curve": lambda ax: plots.ood_roc_curve(*scores, ax=ax),
        "regression_intervals": lambda ax: plots.regression_intervals(x, x, x - 1, x + 1, targets=x, ax=ax),
        "learning_curves": lambda ax: plots.learning_curves({"a": ROWS}, ax=ax),
        "severity_curves": lambda ax: plots.severity_curves({"a": [1, 0.9, 0.8, 0.7, 0.6, 0.5]}, ax=ax),
        "task_curves": lambda ax: plots.task_curves({"a": [1.0, 0.8]}, ax=ax),
        "label_curves": lambda ax: plots.label_curves([10, 20], {"a": [[0.5, 0.7], [0.6, 0.8]]}, ax=ax),
        "reward_curves": lambda ax: plots.reward_curves({"a": [[1, 0.0], [2, 1.0], [3, 0.5]]}, window=2, ax=ax),
        "accuracy_heatmap": lambda ax: plots.accuracy_heatmap([[1.0, 0.5], [0.8, 0.9]], ax=ax),
    }


def test_the_list_is_complete(predictions, scores):
    assert calls(predictions, scores).keys() == set(plots.__all__)


@pytest.mark.parametrize("name", plots.__all__)
def test_axes_are_used_or_made_and_the_picture_renders(predictions, scores, name):
    call = calls(predictions, scores)[name]
    given = Figure().subplots()
    assert call(given) is given and given.has_data()
    made = call(None)
    assert made.figure is not given.figure
    file = io.BytesIO()
    made.figure.savefig(file, format="png", dpi=50)
    assert len(file.getvalue()) > 1000


def test_pyplot_is_never_loaded():
    code = (
        "import sys, torch; from vogn import plots; assert 'matplotlib' not in sys.modules; "
        "p = torch.rand(50); plots.reliability_diagram(p, (p > 0.5).long()); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def band(ax):
    """Lower and upper edge of the filled band, by place."""
    vertices = ax.collections[0].get_paths()[0].vertices
    places = sorted({round(float(x), 9) for x, _ in vertices})
    ends = [[float(y) for x, y in vertices if round(float(x), 9) == place] for place in places]
    return places, [min(e) for e in ends], [max(e) for e in ends]


def test_reliability_diagram_shows_the_bins_and_their_intervals(predictions):
    p, y = predictions
    points = metrics.reliability(p.double(), y, 10)
    low, high = points.interval(0.9)
    filled = points.count > 0
    ax = plots.reliability_diagram(p.double(), y, bins=10, level=0.9)
    line = next(line for line in ax.lines if line.get_gid() != "diagonal")
    assert list(line.get_xdata()) == pytest.approx(points.confidence[filled].tolist())
    assert list(line.get_ydata()) == pytest.approx(points.accuracy[filled].tolist())
    places, lower, upper = band(ax)
    assert places == pytest.approx(points.confidence[filled].tolist())
    assert lower == pytest.approx(low[filled].tolist()) and upper == pytest.approx(high[filled].tolist())
    plots.reliability_diagram(points, ax=ax, level=None)
    assert len([line for line in ax.lines if line.get_gid() == "diagonal"]) == 1 and len(ax.collections) == 1
    meter = metrics.ClassificationMeter(10)
    meter.update(p.double(), y)
    again = plots.reliability_diagram(meter.reliability()).lines[1]
    assert list(again.get_ydata()) == pytest.approx(list(line.get_ydata()))


def test_confidence_histogram_shows_the_counts(predictions):
    patch = plots.confidence_histogram(*predictions, bins=10).patches[0]
    assert patch.get_data().values.tolist() == metrics.reliability(*predictions, 10).count.tolist()


def test_quantile_diagram_shows_shares_and_the_band_of_calibrated_ones():
    pit = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ax = plots.quantile_diagram(pit, levels=9, level=0.9)
    line = next(line for line in ax.lines if line.get_gid() != "diagonal")
    assert list(line.get_ydata()) == pytest.approx([float((pit <= k / 10).double().mean()) for k in range(1, 10)])
    _, lower, upper = band(ax)
    assert lower[4] * 200 == pytest.approx(binom.ppf(0.05, 200, 0.5))
    assert upper[4] * 200 == pytest.approx(binom.ppf(0.95, 200, 0.5))


def test_risk_coverage_curve_shows_the_risks(predictions):
    ax = plots.risk_coverage_curve(*predictions, label="model")
    found = metrics.risk_coverage(*predictions)
    assert list(ax.lines[0].get_ydata()) == pytest.approx(found.risk.tolist())
    assert ax.lines[0].get_label() == f"model (AURC {float(metrics.aurc(*predictions)):.4f})"


def test_ood_pictures_show_the_scores(scores):
    inside, outside = scores
    ax = plots.ood_histogram(inside, outside, score="entropy", bins=10)
    assert ax.get_xlabel() == "entropy" and f"{float(metrics.auroc(inside, outside)):.3f}" in ax.get_title()
    width = ax.patches[0].get_width()
    heights = [patch.get_height() for patch in ax.patches]
    assert sum(heights[:10]) * width == pytest.approx(1) and sum(heights[10:]) * width == pytest.approx(1)
    low = min(float(inside.min()), float(outside.min()))
    assert heights[0] * width * 80 == pytest.approx(float((inside < low + width).sum()))
    curve = plots.ood_roc_curve(inside, outside).lines[1]
    labels = torch.cat([torch.zeros(80), torch.ones(50)])
    false, true, _ = roc_curve(labels, torch.cat([inside, outside]))
    assert list(curve.get_xdata()) == pytest.approx(list(false)) and list(curve.get_ydata()) == pytest.approx(
        list(true)
    )


def test_regression_intervals_are_in_order_of_the_input():
    x = torch.tensor([[2.0], [0.0], [1.0]])
    ax = plots.regression_intervals(x, 10 * x, 10 * x - 1, 10 * x + 2, targets=10 * x + 0.5)
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2] and ax.lines[0].get_ydata().tolist() == [0, 10, 20]
    assert band(ax) == ([0, 1, 2], [-1, 9, 19], [2, 12, 22])
    assert sorted(ax.lines[1].get_ydata().tolist()) == [0.5, 10.5, 20.5]


def test_losses_that_are_not_all_above_zero_have_a_linear_scale():
    rows = [{"epoch": k, "train_loss": 1.0 - k} for k in (1, 2, 3)]
    assert plots.learning_curves({"a": rows}).get_yscale() == "linear"
    assert plots.learning_curves({"a": ROWS}).get_yscale() == "log"
    assert plots.learning_curves({"a": ROWS}, log=False).get_yscale() == "linear"


def test_learning_curves_show_what_the_rows_have():
    ax = plots.learning_curves({"a": ROWS, "b": []})
    assert [line.get_label() for line in ax.lines] == ["a: train", "a: validation"]
    assert ax.lines[1].get_ydata() == pytest.approx([2, 1, 2 / 3]) and ax.get_yscale() == "log"
    accuracy = plots.learning_curves({"a": ROWS}, "accuracy")
    assert len(accuracy.lines) == 1 and accuracy.get_yscale() == "linear"
    assert not plots.learning_curves({"a": []}).lines


def test_severity_curves_show_values_and_intervals():
    values, ends = [0.9, 0.8, 0.7], [[0.85, 0.95], [0.7, 0.85], [0.6, 0.8]]
    ax = plots.severity_curves({"a": values}, "ECE", severities=(0, 2, 4), intervals={"a": ends})
    assert list(ax.lines[0].get_ydata()) == values and ax.get_ylabel() == "ECE"
    assert band(ax) == ([0, 2, 4], [0.85, 0.7, 0.6], [0.95, 0.85, 0.8])


def test_task_curves_and_matrices_show_their_numbers():
    ends = [[0.85, 0.95], [0.7, 0.85]]
    ax = plots.task_curves({"a": [0.9, 0.8], "b": [0.7, 0.6]}, intervals={"a": ends})
    assert [list(line.get_ydata()) for line in ax.lines] == [[0.9, 0.8], [0.7, 0.6]]
    assert ax.lines[0].get_xdata().tolist() == [1, 2] and band(ax) == ([1, 2], [0.85, 0.7], [0.95, 0.85])
    ax = plots.accuracy_heatmap([[0.9, 0.2], [0.4, 1.0]])
    assert ax.images[0].get_array().tolist() == [[0.9, 0.2], [0.4, 1.0]]
    assert [text.get_text() for text in ax.texts] == ["90", "20", "40", "100"]


def test_illegal_input_raises(predictions, scores):
    p, y = predictions
    x = torch.ones(4)
    for call, message in [
        (lambda: plots.reliability_diagram(p), "need targets="),
        (lambda: plots.reliability_diagram(p, y, level=1.5), "level=1.5"),
        (lambda: plots.quantile_diagram(p[:, 0], level=0.0), "level=0.0"),
        (lambda: plots.ood_histogram(*scores, bins=0), "bins=0"),
        (lambda: plots.ood_roc_curve(scores[0], scores[1] / 0), "outside holds NaN or infinite"),
        (lambda: plots.regression_intervals(x, x, x, x[:2]), r"high has shape \(2,\) but x \(4,\)"),
        (lambda: plots.regression_intervals(x, x, x, x * math.nan), "high or x hold NaN"),
        (lambda: plots.learning_curves({"a": ROWS}, "perplexity"), "no row has train_perplexity"),
        (lambda: plots.severity_curves({}), "no figures"),
        (lambda: plots.task_curves({}), "no averages"),
        (lambda: plots.task_curves({"a": [1.0], "b": [1.0, 0.5]}), "different numbers of tasks"),
        (lambda: plots.accuracy_heatmap([[1.0, 0.5]]), "square"),
        (lambda: plots.severity_curves({"a": [1.0]}), "'a' has 1 values for 6 severities"),
        (lambda: plots.severity_curves({"a": [1.0]}, severities=(0,), intervals={"b": [[0, 1]]}), r"\['b'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
