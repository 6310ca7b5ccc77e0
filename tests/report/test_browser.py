"""The page in a real browser: it is shown, its pictures decode, the console is silent, nothing is asked for."""

import pytest

import chromium

pytestmark = pytest.mark.skipif(
    chromium.executable() is None, reason="there is no chromium on the PATH; Debian: apt-get install chromium"
)


def test_the_page_renders_without_errors(measured, page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, "utf-8")
    found = chromium.render(path)
    assert found.console == []
    assert found.page["title"] == "A </title> <b>run</b>"
    assert len(found.page["pictures"]) == 8
    for picture in found.page["pictures"]:
        assert picture["decoded"] and picture["width"] > 100 and picture["shown"] > 100, picture
    assert found.page["rows"] and all(height > 10 for height in found.page["rows"])
    assert found.page["height"] > 3000
    assert f"{measured.rows[0].report.nll:.4f}" in found.page["text"]
    assert "mean <script>alert(1)</script>" in found.page["text"]
    assert not [name for name in found.page["requested"] if not name.startswith("data:")]


def test_a_broken_page_is_noticed(tmp_path):
    path = tmp_path / "broken.html"
    path.write_text('<title>x</title><img alt="a" src="data:image/png;base64,AAAA"><script>nothing()</script>')
    found = chromium.render(path)
    assert any("nothing is not defined" in line for line in found.console)
    assert [picture["decoded"] for picture in found.page["pictures"]] == [False]
