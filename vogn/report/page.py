"""One page that holds everything that it shows: no script, no font, no picture comes from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from html import escape

from vogn.report.figures import Drawing, drawings
from vogn.report.measuring import Measurements
from vogn.report.tables import Cell, Table, difference_table, figures_table, ood_table, shift_table

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; }
h2 { font-size: 1.25em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3em 0.7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; font-weight: 600; }
.wide { overflow-x: auto; }
.best { font-weight: 700; }
.interval { display: block; font-size: 0.8em; color: #666; font-weight: 400; white-space: nowrap; }
.note, figcaption { color: #555; font-size: 0.9em; max-width: 60em; }
figure { margin: 1.5em 0; }
figure img { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content auto; gap: 0.2em 1em; }
dt { color: #555; } dd { margin: 0; overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: 0.85em; }
@media print { body { max-width: none; } figure, table { break-inside: avoid; } }
"""
_LABELS_NOTE = (
    "NLL in nats. Brier score from 0 to 2. ECE: mean gap between confidence and accuracy in 15 bins of equal width, of "
    "the predicted class; class-wise: of every class; adaptive: in bins of equal mass; debiased: root mean square, "
    "without the bias of finite bins. AURC: area under the curve of risk and coverage. The best of each column is bold."
)
_REAL_NOTE = (
    "RMSE, CRPS, width and sharpness in the unit of the targets, NLL in nats. Coverage and width are of the central "
    "intervals of {level:g} %. The best of each column is bold."
)
_INTERVALS_NOTE = (
    "Intervals at 95 % come from resampling the examples; where resampling would mislead, as for plain calibration "
    "errors, there is none."
)


def html(
    measurements: Measurements,
    *,
    title: str,
    facts: Mapping[str, str] | None = None,
    histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
    details: str = "",
    pictures: Sequence[Drawing] | None = None,
) -> str:
    """The page.

    Args:
        measurements: what :func:`vogn.report.measure` found.
        title: heading of the page.
        facts: name to value, above everything: data, model, versions, the command.
        histories: learning curves, see :func:`vogn.plots.learning_curves`.
        details: longer text for those who look it up, for example a configuration.
        pictures: those of :func:`vogn.report.drawings` if they are made already; ``None`` makes them.

    Returns:
        HTML, to be written in UTF-8. Every text that is given is escaped.

    Example:
        >>> import torch, vogn
        >>> from vogn import report
        >>> net = torch.nn.Linear(2, 3)
        >>> point = vogn.Point(net, likelihood=vogn.likelihoods.Categorical())
        >>> x, y = torch.randn(30, 2), torch.arange(30) % 3
        >>> found = report.measure({"a < b": lambda x: vogn.predict(net, point, x)}, x, y, bootstrap=0)
        >>> page = report.html(found, title="A line")
        >>> page[:15], "a &lt; b" in page, "http://" in page
        ('<!doctype html>', True, False)
    """
    drawn = drawings(measurements, histories) if pictures is None else list(pictures)

    def pictures_of(section: str) -> list[str]:
        return [_picture(drawing) for drawing in drawn if drawing.section == section]

    parts = [f"<h1>{escape(title)}</h1>", _facts(facts or {})]
    parts.append("<h2>Figures</h2>")
    parts.append(_table(figures_table(measurements)))
    parts.append(_note(_about(measurements)))
    differences = difference_table(measurements)
    if differences is not None:
        parts += [_table(differences), _note("On the same examples; below 0 is better than the reference.")]
    parts += pictures_of("figures")
    if measurements.outside:
        parts += _outside(measurements, pictures_of)
    if measurements.shift is not None:
        parts += [*_shift(measurements), *pictures_of("shift")]
    if curves := pictures_of("training"):
        parts += ["<h2>Training</h2>", *curves]
    if details:
        parts.append(f"<details><summary>Configuration</summary><pre>{escape(details)}</pre></details>")
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(part for part in parts if part))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _about(measurements: Measurements) -> str:
    first = measurements.rows[0].report
    note = _REAL_NOTE.format(level=100 * first.level) if hasattr(first, "level") else _LABELS_NOTE
    intervals = f" {_INTERVALS_NOTE}" if first.intervals else ""
    return f"{measurements.count} examples. {note}{intervals}"


def _outside(measurements: Measurements, pictures_of: Callable[[str], list[str]]) -> list[str]:
    parts = ["<h2>Inputs of another kind</h2>"]
    parts.append(
        _note(
            "How well scores tell other inputs from the examples above. AUROC: probability that another input scores "
            "higher than a familiar one, 0.5 is guessing. FPR95: share of other inputs that are accepted where 95 % of "
            "the familiar ones are. The best of each table is bold."
        )
    )
    for number, outside in enumerate(measurements.outside, 1):
        parts.append(f"<h3>{escape(outside.name)}, {outside.count} inputs</h3>")
        if not outside.reports:
            parts.append(_note("No score of these predictors varies, so there is nothing to tell them apart by."))
            continue
        for figure, heading in (("auroc", "AUROC"), ("aupr_outside", "AUPR of the other inputs"), ("fpr95", "FPR95")):
            parts += [f"<h4>{heading}</h4>", _table(ood_table(outside, figure))]
        parts += pictures_of(f"outside {number}")
    return parts


def _shift(measurements: Measurements) -> list[str]:
    parts = ["<h2>Images that get worse</h2>", _note("Mean over the corruptions; each by itself below.")]
    for figure, heading in (("accuracy", "Accuracy"), ("ece", "ECE"), ("nll", "NLL")):
        table = shift_table(measurements, figure)
        parts += [f"<h3>{heading}</h3>", "" if table is None else _table(table)]
    return parts


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = []
    for label, cells in table.rows:
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{"".join(map(_cell, cells))}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    interval = f'<span class="interval">{escape(cell.interval)}</span>' if cell.interval else ""
    opening = '<td class="best">' if cell.best else "<td>"
    return f"{opening}{escape(cell.text)}{interval}</td>"


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _picture(drawing: Drawing) -> str:
    data = base64.b64encode(drawing.svg()).decode("ascii")
    return (
        f'<figure><img alt="{escape(drawing.title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(drawing.title)}. {escape(drawing.caption)}</figcaption></figure>"
    )
