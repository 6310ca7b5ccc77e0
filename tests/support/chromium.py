"""A page in headless Chromium: what it shows, whether its pictures decode, what the console says."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

_HARNESS = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe id="page" src="{name}" width="1100" height="800"></iframe><pre id="found"></pre>
<script>
document.getElementById("page").addEventListener("load", async (event) => {{
  const page = event.target.contentDocument;
  const pictures = [];
  for (const picture of page.images) {{
    let decoded = true;
    try {{ await picture.decode(); }} catch (error) {{ decoded = false; }}
    const shown = picture.getBoundingClientRect().width;
    pictures.push({{alt: picture.alt, decoded, width: picture.naturalWidth, shown}});
  }}
  const found = {{
    title: page.title,
    text: page.body.innerText,
    pictures,
    rows: [...page.querySelectorAll("tbody tr")].map((row) => row.getBoundingClientRect().height),
    height: page.documentElement.scrollHeight,
    requested: event.target.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
  }};
  document.getElementById("found").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
}});
</script>"""


@dataclass(frozen=True)
class Rendered:
    """What a browser made of a page.

    Args:
        page: title, visible text, pictures, heights of table rows, resources that were asked for.
        console: messages, errors and warnings included.
    """

    page: dict[str, Any]
    console: list[str]


def executable() -> str | None:
    """The browser, or ``None``."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def render(path: Path) -> Rendered:
    """Open a file in a frame that a script may look into, which the page itself allows no script to do."""
    import base64

    browser = executable()
    assert browser is not None
    harness = path.parent / "harness.html"
    harness.write_text(_HARNESS.format(name=path.name))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--allow-file-access-from-files", f"--user-data-dir={path.parent / 'profile'}"]
    options += ["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=20000", "--dump-dom"]
    result = subprocess.run(
        [browser, *options, harness.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="found">([^<]+)</pre>', result.stdout)
    assert found, result.stderr[-2000:]
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    return Rendered(json.loads(base64.b64decode(found[1])), console)
