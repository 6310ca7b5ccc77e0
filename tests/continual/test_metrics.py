"""Transfer and forgetting against sums that a reader can do."""

import pytest

from vogn.continual import ContinualResult, average_accuracy, backward_transfer, forgetting, forward_transfer

MATRIX = [
    [0.9, 0.2, 0.1],
    [0.5, 0.8, 0.3],
    [0.6, 0.7, 1.0],
]
BASELINE = [0.1, 0.3, 0.2]


def test_average_accuracy_is_the_mean_of_the_last_row():
    assert average_accuracy(MATRIX) == pytest.approx((0.6 + 0.7 + 1.0) / 3)


def test_backward_transfer_is_the_change_since_a_task_was_trained():
    assert backward_transfer(MATRIX) == pytest.approx(((0.6 - 0.9) + (0.7 - 0.8)) / 2)


def test_forward_transfer_is_the_gain_before_a_task_is_trained():
    assert forward_transfer(MATRIX, BASELINE) == pytest.approx(((0.2 - 0.3) + (0.3 - 0.2)) / 2)


def test_forgetting_is_the_fall_from_the_best():
    assert forgetting(MATRIX) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)
    better_later = [[0.5, 0.0, 0.0], [0.9, 0.8, 0.0], [0.6, 0.9, 1.0]]
    assert forgetting(better_later) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.9)) / 2)


def test_a_single_task_transfers_nothing():
    assert backward_transfer([[0.7]]) == forward_transfer([[0.7]], [0.1]) == forgetting([[0.7]]) == 0.0
    assert average_accuracy([[0.7]]) == 0.7


@pytest.mark.parametrize(
    ("matrix", "match"),
    [([[0.1, 0.2]], "square"), ([], "square"), ([[float("nan")]], "without NaN"), ([[1.5]], r"in \[0, 1\]")],
)
def test_no_accuracy_matrix(matrix, match):
    for metric in (average_accuracy, backward_transfer, forgetting, lambda m: forward_transfer(m, [0.0])):
        with pytest.raises(ValueError, match=match):
            metric(matrix)


def test_a_baseline_of_another_length():
    with pytest.raises(ValueError, match="3 tasks"):
        forward_transfer(MATRIX, [0.1])


def test_a_result_is_plain_data_and_comes_back():
    found = ContinualResult(["a", "b", "c"], MATRIX, BASELINE)
    assert ContinualResult.from_dict(found.to_dict()) == found
    assert found.averages == pytest.approx([0.9, 0.65, 2.3 / 3])
    assert found.to_dict()["forgetting"] == forgetting(MATRIX)
