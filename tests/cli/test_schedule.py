"""Learning-rate schedules are pure functions of the step."""

import math

import pytest

from vogn.cli.schedule import SCHEDULES, cosine


def test_cosine_warms_up_linearly_then_falls_to_nearly_zero():
    rates = [cosine(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (7, 3)])
def test_every_schedule_is_positive_and_at_most_one(name, total, warmup):
    assert all(0 < SCHEDULES[name](step, total, warmup) <= 1 for step in range(total))
