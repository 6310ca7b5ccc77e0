"""The tables of the study."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.auto_settings.sizes import METHODS, REGRESSIONS, SCORES, SEEDS, SIZES, Found, rule_of
from benchmarks.cells import mean_error, read_cell


def rows(results: Path) -> Iterator[tuple[str, str, list[Found]]]:
    """Data, method and cells of every row that has some, in the order of the tables."""
    for data in (*SIZES, *REGRESSIONS):
        for method in METHODS:
            records = [read_cell(results / f"{data}-{method}-{seed}.json") for seed in range(SEEDS[data])]
            cells = [record for record in records if record is not None]
            if cells:
                yield data, method, cells


def report(results: Path) -> None:
    """Print the table: means over seeds, and the mean paired difference with its standard error."""
    print("| data, method | by hand | auto | auto minus hand | lr by hand | lr auto | target met |")
    print("|---|---|---|---|---|---|---|")
    for data, method, cells in rows(results):
        factor, unit = (100.0, "%") if data in SIZES else (1.0, "")
        hand, auto = (np.array([factor * cell[way][SCORES[data]] for cell in cells]) for way in ("hand", "auto"))
        relative = 1.0 if data in SIZES else 0.01 * hand.mean()
        gap = (auto - hand) / relative
        _, error = mean_error(gap)
        met = gap.mean() >= -0.5 if data in SIZES else gap.mean() <= 3.0
        rates = [sorted(cell[way]["lr"] for cell in cells) for way in ("hand", "auto")]
        lrs = [f"{r[0]:.2g}" + (f" to {r[-1]:.2g}" if f"{r[0]:.2g}" != f"{r[-1]:.2g}" else "") for r in rates]
        difference = f"{gap.mean():+.2f} ± {error:.2f} " + ("points" if data in SIZES else "%")
        title = f"{data}, {method}" + (f" ({len(cells)} seeds)" if len(cells) < SEEDS[data] else "")
        other = sum(cell.get("rule") != rule_of(data) for cell in cells)
        title += f" ({other} of {len(cells)} by an earlier rule)" if other else ""
        digits = 2 if data in SIZES else 3
        print(
            f"| {title} | {hand.mean():.{digits}f} {unit} | {auto.mean():.{digits}f} {unit} | {difference} | "
            f"{lrs[0]} | {lrs[1]} | {'yes' if met else 'no'} |"
        )


def finals(results: Path) -> None:
    """Print in how many cells of each row the longer runs kept the setting that won short ones, and what else won."""
    heads = [f"{damping}{rate}" for damping in ("", "first damping, ") for rate in ("its rate", "higher", "lower")]
    print(f"| data, method | cells | damping that won short runs | {' | '.join(heads)} |")
    print("|---" * (3 + len(heads)) + "|")
    for data, method, cells in rows(results):
        ways = [cell["auto"] for cell in cells if "finals" in cell["auto"]]
        if not ways:
            continue
        counts, winners = [0] * len(heads), {way["finals"][0][0] for way in ways}
        for way in ways:
            # the first run of each damping is at the rate that won short ones
            rate = next(rate for damping, rate, _ in way["finals"] if damping == way["damping"])
            place = 0 if way["lr"] == rate else 1 if way["lr"] > rate else 2
            counts[place + 3 * (way["damping"] != way["finals"][0][0])] += 1
        dampings = ", ".join(f"{damping:.0e}" for damping in sorted(winners))
        print(f"| {data}, {method} | {len(ways)} | {dampings} | {' | '.join(map(str, counts))} |")
