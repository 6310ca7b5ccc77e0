"""A schedule of measurements and factorisations from a bound on what they may cost."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

from vogn.distributed import Replicas

TRIAL = {"observe_every": 3, "refresh_every": 6}
"""Intervals while times are measured. The six kinds of steps: one that observes and factorises, the next one, which may
have to compute with the new factors what it keeps, a plain one, and the same again without factorisation."""
WARM_UP, REPEATS = 6, 4
"""Steps that do not count, and how often each kind is timed after them."""


class OverheadBudget:
    """Times the first steps, then sets ``observe_every`` and ``refresh_every`` of all groups, once.

    What is timed is the time between the ends of two steps, with whatever the loop does there, so that the bound is one
    on the whole loop. The choice is kept in the groups: a resumed run does not measure again.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._last: float | None = None
        self._seen = 0
        self._times: dict[int, list[float]] = defaultdict(list)

    def finished(self, groups: Sequence[dict[str, Any]], replicas: Replicas) -> None:
        """A step is done.

        Args:
            groups: the optimizer's groups; they agree about the entry ``"overhead"``.
            replicas: the processes, which choose together.
        """
        if groups[0].get("overhead") is None:
            return
        if groups[0]["overhead_met"]:
            for group in groups[1:]:  # one may have been added
                group.update({key: groups[0][key] for key in (*TRIAL, "overhead_met")})
            return
        devices = {parameter.device: None for group in groups for parameter in group["params"]}
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        now = self._clock()
        period = TRIAL["refresh_every"]
        if self._last is not None and self._seen >= WARM_UP:
            self._times[(groups[0]["steps_done"] - 1) % period].append(now - self._last)
        self._seen, self._last = self._seen + 1, now
        if all(len(self._times[kind]) >= REPEATS for kind in range(period)):
            medians = torch.tensor([median(self._times[kind]) for kind in range(period)], device=next(iter(devices)))
            both, after, plain, observe, after_observe, again = replicas.average(medians).tolist()
            plain = (plain + again) / 2.0
            observe += after_observe
            chosen = intervals(groups[0]["overhead"] * plain, observe - 2.0 * plain, both + after - observe)
            for group in groups:
                group.update(zip(TRIAL, chosen, strict=True), overhead_met=True)


def intervals(budget: float, observe: float, refresh: float) -> tuple[int, int]:
    """A short schedule with ``observe / observe_every + refresh / refresh_every <= budget``.

    The first interval is where the sum of both would be smallest if they needed not be whole numbers, the second the
    smallest multiple of the first that keeps the bound: a factorisation without new evidence changes nothing.

    Args:
        budget: seconds per step, > 0.
        observe: seconds of one measurement; what is not positive costs nothing.
        refresh: seconds of one factorisation, likewise.

    Returns:
        ``(observe_every, refresh_every)``, both >= 1.
    """
    o, r = math.sqrt(max(observe, 0.0)), math.sqrt(max(refresh, 0.0))
    observe_every = max(1, math.ceil(o * (o + r) / budget - 1e-9))
    left = budget - max(observe, 0.0) / observe_every
    wanted = r * r / left if left > 0.0 else 0.0
    return observe_every, observe_every * max(1, math.ceil(wanted / observe_every - 1e-9))

