"""Tables and plots of what was measured: docs/speed.md and docs/speed/*.png.

What stands in the page between ``<!-- by hand: NAME -->`` and ``<!-- end by hand -->`` is kept, in the section NAME.

    python -m benchmarks.speed.report
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHORT = {
    "SGD, momentum, fused": "SGD",
    "AdamW, fused": "AdamW",
    "vogn (variational)": "VOGN",
    "heavyball SOAP, every 10": "hb SOAP",
    "heavyball Muon": "hb Muon",
    "pytorch-optimizer SOAP, every 10": "po SOAP",
    "pytorch-optimizer Shampoo, every 10": "po Shampoo",
    "singd dense, every 10": "singd",
    "singd diagonal, every 10": "singd diag.",
}
"""Short names of references, for heads of columns."""
TITLES = {
    "step_time_noise": "Training steps with noise",
    "parts": "Parts of a step",
    "step_time": "Training steps of all methods",
    "step_time_quarter": "K-FAC with statistics of a quarter of the batch",
    "step_time_two_threads": "Training steps with two threads",
    "parts_two_threads": "Parts of a step with two threads",
    "step_time_cuda": "Training steps on a GPU",
    "per_example": "Sums of squared per-example gradients",
    "per_example_two_threads": "Sums of squared per-example gradients with two threads",
    "curvature_refresh": "K-FAC's factors and their factorisation",
    "curvature_refresh_two_threads": "K-FAC's factors and their factorisation with two threads",
    "predictive": "Prediction with 32 weight samples",
    "predictive_two_threads": "Prediction with 32 weight samples, two threads",
    "memory": "Memory",
    "import_time": "Import",
}


BY_HAND = re.compile(r"<!-- by hand: (\S+) -->\n(.*?)<!-- end by hand -->", re.DOTALL)
"""A part of the page that is not made from results: its section, and what stands there."""


def by_hand(page: str) -> dict[str, str]:
    """Section to what is written there by hand.

    Raises:
        ValueError: if it stands in a section that will not be there, or twice in one.
    """
    found = BY_HAND.findall(page)
    names = [name for name, _ in found]
    wrong = sorted({name for name in names if name not in ("aims", *TITLES) or names.count(name) > 1})
    if wrong or page.count("<!-- by hand:") != len(found):
        raise ValueError(f"what is written by hand has no place of its own: {', '.join(wrong) or 'a mark without end'}")
    return {name: text for name, text in found if text.strip()}


def table(lines: Mapping[str, Any], baseline: str, more: Sequence[str] = (), others: Sequence[str] = ()) -> list[str]:
    """Lines of a markdown table.

    Args:
        lines: of a network.
        baseline: whose ratios are shown with quartiles.
        more: keys of further columns.
        others: further references of ratios.
    """
    head = ["row", "ms (quartiles)", f"x {SHORT.get(baseline, baseline)} (quartiles)"]
    head += [f"x {SHORT.get(name, name)}" for name in others] + list(more) + ["n"]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, line in lines.items():
        if "skipped" in line:
            out.append("| " + " | ".join([name, "", line["skipped"], *[""] * (len(head) - 3)]) + " |")
            continue
        low, high = line["quartiles"]
        ratio = "{:.2f} ({:.2f}, {:.2f})".format(*line["ratio"][baseline]) if baseline in line["ratio"] else ""
        cells = [name, f"{line['ms']:.4g} ({low:.4g}, {high:.4g})", ratio]
        cells += [f"{line['ratio'][key][0]:.2f}" if key in line["ratio"] else "" for key in others]
        cells += [f"{line[key]:.4g}" for key in more]
        out.append("| " + " | ".join([*cells, str(line["n"])]) + " |")
    return out


def memory_table(lines: Mapping[str, Any]) -> list[str]:
    """Lines of a markdown table about memory."""
    out = ["| row | state, bytes per parameter | peak of a step, MB | x SGD |", "|---|---|---|---|"]
    for name, line in lines.items():
        if "skipped" in line:
            out.append(f"| {name} | | {line['skipped']} | |")
        else:
            out.append(
                f"| {name} | {line['state bytes per parameter']:.1f} | {line['peak MB']:.4g} | {line['x SGD']:.2f} |"
            )
    return out


def target_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a markdown table of what is aimed at and what was found."""
    from benchmarks.speed.targets import TARGETS, measured

    out = ["| network | row | x | aim | measured (quartiles) | | two threads | |", "|" + "---|" * 8]
    notes: dict[str, list[str]] = {}
    for target in TARGETS:
        reference = SHORT.get(target.reference, target.reference)
        line = f"| {target.case} | {target.row} | {reference} | {target.ratio:.2f} |"
        for two_threads in (False, True):
            found = measured(target, results, two_threads=two_threads)
            if isinstance(found, str):
                line += f" {found} | |"
                continue
            missed = found[0] > target.ratio
            line += f" {found[0]:.2f} ({found[1]:.2f}, {found[2]:.2f}) | {'missed' if missed else 'met'} |"
            if missed and target.note and not two_threads:
                notes.setdefault(target.note, []).append(f"{target.row}, {target.case}")
        out.append(line)
    listed = [f"- {'; '.join(rows)}: {note}." for note, rows in notes.items()]
    title = "Where the time goes in rows that miss with one thread (parts of a step, below; shares by the profiler):"
    return [*out, "", title, "", *listed] if notes else out


def circumstances(record: Mapping[str, Any]) -> list[str]:
    """Machine, versions and command, in words."""
    seen = record["environment"]
    peers = ", ".join(f"{name} {version}" for name, version in seen["peers"].items() if version != "not installed")
    device = f"{seen['device']} (CUDA {seen['cuda']}), " if "device" in seen else ""
    device += f"{seen['clock']}; " if seen["clock"] != "processor time" else ""
    return [
        f"`{record['command']}`: {device}{seen['processor']}, {seen['threads']} thread(s) of {seen['cores']} cores, "
        f"load {seen['load']:g} at the end; Python {seen['python']}, torch {seen['torch']}"
        f"{'; ' + peers if peers else '; no peers were installed there'}."
    ]


def plot(lines: Mapping[str, Any], title: str, baseline: str, path: Path) -> None:
    """Bars of the ratios to the baseline, with quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {name: line["ratio"][baseline] for name, line in lines.items() if baseline in line.get("ratio", {})}
    order = sorted(found, key=lambda name: found[name][0], reverse=True)
    figure, axes = plt.subplots(figsize=(8.0, 1.0 + 0.19 * len(order)), layout="constrained")
    ours = [name.endswith(("(variational)", "(deterministic)")) for name in order]
    axes.barh(
        order,
        [found[name][0] for name in order],
        xerr=[[found[n][0] - found[n][1] for n in order], [found[n][2] - found[n][0] for n in order]],
        color=["tab:blue" if own else "tab:gray" for own in ours],
        error_kw={"linewidth": 0.8},
    )
    axes.set_xscale("log")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel(f"processor time of a step, x {SHORT.get(baseline, baseline)}")
    axes.set_title(title, fontsize=10)
    axes.tick_params(axis="y", labelsize=7)
    axes.margins(y=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


INTRODUCTION = """# What it costs

Written by `python -m benchmarks.speed.report` from `benchmarks/results/speed/`; each part names the command that
measures it. The machine was shared with other work while this was measured. Times are processor time of the measuring
process, which other processes do not add to but can lengthen, through caches and memory; with two threads they are
elapsed time. Variants ran in turn in one process, and a ratio is the median over the rounds of ratios within a round,
quartiles in brackets. `n` is the number of rounds: with fewer than five, quartiles say little. Rows that use up their
time sit out the other rounds.

A schedule of a method of ours is charged in proportion: plain, observing and refreshing steps are measured one by one
and weighted by how often they occur. Peers with a schedule run whole periods. Rows without numbers say why.

On a GPU small elementwise blocks of VOGN, VAdam and IVON are computed together, packed and unpacked in one call each,
and per-example sums are formed in larger pieces. What is left there, by torch's profiler, is Python's time for many
small calls, which hides behind the device's on larger networks: the noise of every block is a call, one reason why IVON
takes longer than ivon-opt; for K-FAC, products in single precision that form the factors (half of an observing step)
and `eigh`, 6 ms for a factor of size 577 (70 % of a refreshing step).
"""


def report(results: Mapping[str, Mapping[str, Any]], folder: Path, page: str = "") -> str:
    """The new page in the place of an old one; plots are written beside it."""
    from benchmarks.speed.cases import CASES, LARGE
    from benchmarks.speed.parts import parts_table

    kept = by_hand(page)

    def own(name: str) -> list[str]:
        return [f"<!-- by hand: {name} -->\n{kept[name]}<!-- end by hand -->", ""] if name in kept else []

    out = [INTRODUCTION, "## Aims", "", *target_table(results), "", *own("aims")]
    for question, title in TITLES.items():
        if not results.get(question):
            if question in kept:
                raise ValueError(f"nothing was measured for {question!r}, where the page has a part by hand")
            continue
        out += ["", f"## {title}", "", *own(question)]
        for case, record in results[question].items():
            cases = LARGE if question.endswith("_cuda") else CASES
            if case in cases:
                out += [f"### {cases[case].title}", ""]
            out += [*circumstances(record), ""]
            lines = record["lines"]
            if question == "memory" or question.startswith("parts"):
                out += [*(memory_table(lines) if question == "memory" else parts_table(lines)), ""]
                continue
            baseline = record["baseline"]
            references = {key for line in lines.values() for key in line.get("ratio", {})} - {baseline}
            more = [key for key in ("MB",) if any(key in line for line in lines.values())]
            others = [name for name in lines if name in references]
            if question == "step_time":
                path = folder / "speed" / f"step_time_{case}.png"
                plot(lines, record.get("title", CASES[case].title), baseline, path)
                out += [f"![steps relative to SGD](speed/{path.name})", ""]
            out += [*table(lines, baseline, more, others), ""]
            out += [f"{key}: {value:.4g}. " for key, value in record.get("numbers", {}).items()]
    return "\n".join(out).rstrip() + "\n"


def main(argv: Sequence[str] | None = None) -> str:
    """Command line."""
    from benchmarks.cells import read_cell
    from benchmarks.speed.measuring import RESULTS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of speed.md")
    arguments = parser.parse_args(argv)
    found = {question: read_cell(arguments.results / f"{question}.json") or {} for question in TITLES}
    path = arguments.docs / "speed.md"
    text = report(found, arguments.docs, path.read_text() if path.exists() else "")
    path.write_text(text)
    return text


if __name__ == "__main__":
    main()
