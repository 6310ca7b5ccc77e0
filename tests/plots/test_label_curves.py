"""Curves over labels: means, bands of one standard error, and what is refused."""

import numpy as np
import pytest

from vogn.plots import label_curves


def test_means_and_bands():
    runs = [[0.5, 0.7], [0.7, 0.9], [0.6, 0.8]]
    ax = label_curves([20, 30], {"bald": runs, "random": runs[:1]}, level=0.9)
    first, second, level = ax.get_lines()
    assert np.allclose(first.get_xdata(), [20, 30]) and np.allclose(first.get_ydata(), [0.6, 0.8])
    assert np.allclose(second.get_ydata(), runs[0]) and np.allclose(level.get_ydata(), 0.9)
    (band,) = ax.collections  # none for a single seed
    ends = band.get_paths()[0].get_extents()
    error = np.std([0.5, 0.7, 0.6], ddof=1) / np.sqrt(3)
    assert ends.y0 == pytest.approx(0.6 - error) and ends.y1 == pytest.approx(0.8 + error)


def test_what_is_refused():
    with pytest.raises(ValueError, match="no curves"):
        label_curves([1], {})
    with pytest.raises(ValueError, match="no curves"):
        label_curves([1], {"a": []})
    with pytest.raises(ValueError, match="lengths"):
        label_curves([1, 2], {"a": [[0.1]]})
