"""The page holds the figures and everything that it shows, and runs nothing that it was given."""

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

from vogn import report


class Elements(HTMLParser):
    """Start tags with their attributes; end tags must match."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_asks_for_nothing(page):
    elements = Elements(page)
    assert elements.open == []
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in elements.found:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            if name in attributes:
                assert attributes[name].startswith("data:"), (tag, attributes[name][:60])
    assert "@import" not in page and "url(" not in page


def test_what_is_given_is_escaped(page):
    assert "A &lt;/title&gt; &lt;b&gt;run&lt;/b&gt;" in page and "{&lt;pre&gt;}" in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "npz:&quot;a&amp;b&quot;.npz" in page
    assert "mean &lt;script&gt;alert(1)&lt;/script&gt; &amp; $a$ $" in page
    assert "noise &lt;b&gt;&amp;" in page


def test_the_page_holds_the_figures(page, measured):
    for row in measured.rows:
        assert f"{row.report.nll:.4f}" in page and f"{100 * row.report.accuracy:.2f} %" in page
    low, high = measured.rows[0].report.intervals["brier"]
    assert f"{low:.4f} to {high:.4f}" in page
    for found in measured.outside[0].reports["8 samples"].scores.values():
        assert f"<td>{found.fpr95:.3f}</td>" in page or f'<td class="best">{found.fpr95:.3f}</td>' in page
    assert f"{measured.shift.average('8 samples', 'ece')[5]:.4f}" in page


def test_every_picture_is_a_drawing_with_a_caption(page):
    sources = re.findall(r'<img alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)">', page)
    titles = [alt for alt, _ in sources]
    assert titles[:2] == ["Reliability", "Risk and coverage"] and titles[-1] == "Learning curves"
    assert len(titles) == page.count("<figcaption>") == 2 + 2 + 3 + 1
    for _, data in sources:
        root = ElementTree.fromstring(base64.b64decode(data))
        assert root.tag.endswith("svg")
        assert not re.search(rb'href="(?!#)', base64.b64decode(data).replace(b'xlink:href="data:', b""))


def test_the_same_measurements_make_the_same_page(measured):
    again = [report.html(measured, title="x", pictures=report.drawings(measured)[:2]) for _ in range(2)]
    assert again[0] == again[1]


def test_a_page_of_real_targets(regression):
    predictors, x, y = regression
    found = report.measure(predictors, x, y, bootstrap=0)
    page = report.html(found, title="Curve")
    assert [drawing.name for drawing in report.drawings(found)] == ["quantiles", "intervals"]
    assert "RMSE" in page and "90 %" in page and f"{found.rows[0].report.crps:.4f}" in page
    assert "Intervals at 95 %" not in page


def test_the_best_of_a_column_is_marked(measured):
    table = report.figures_table(measured)
    values = [row.report.brier for row in measured.rows]
    marked = [cells[2].best for _, cells in table.rows]
    assert marked == [value == min(values) for value in values]
    assert report.difference_table(measured).rows[0][1][1].text in ("better", "worse", "not told apart")
