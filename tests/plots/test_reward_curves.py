"""Lines of returns: the mean over a window, and what is refused."""

import pytest

from vogn.plots import reward_curves


def test_line_is_the_mean_of_the_last_points():
    axes = reward_curves({"a": [[10, 1.0, 9], [20, 3.0, 9], [30, 8.0, 9]], "none": []}, window=2)
    (line,) = axes.get_lines()
    assert line.get_xdata().tolist() == [10, 20, 30]
    assert line.get_ydata().tolist() == [1.0, 2.0, 5.5]
    assert axes.get_ylabel() == "return, mean of the last 2"


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no points"):
        reward_curves({"a": []})
    with pytest.raises(ValueError, match="window=0"):
        reward_curves({"a": [[1, 2]]}, window=0)
