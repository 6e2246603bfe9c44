"""The page in a real browser, without a screen: it loads, and nothing complains."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from synthgrad.lab.report import write_report
from tests.lab.report.helpers import branchy, chain, failed, memory_line, point, record, step_line, uncut

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
#: Arguments for a browser without a screen that asks the network for nothing.
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"),
]


def _whole_page(path: Path) -> None:
    quality = {"layer1": {"cosine": 0.5, "relative_error": 0.8}}
    curve = [point(s, quality=quality) for s in (10, 20)]
    records = [
        record(graph=uncut("layer1", "output")),
        record("dni", curve=curve, graph=chain(12), estimate={"ratio_to_backprop": 1.5}),
        record("cdni", status="diverged", error="not finite", graph=branchy()),
        failed("<script>boom()</script>"),
        *(step_line(cell={"layers": n, "compiled": c}) for n in (4, 8) for c in (False, True)),
        *(memory_line(cell={"layers": n}) for n in (4, 8)),
    ]
    write_report(path, records, ["a problem"])


@pytest.mark.skipif(BROWSER is None, reason="needs chromium or google-chrome on PATH")
def test_page_loads_in_a_browser_without_an_error(tmp_path: Path) -> None:
    assert BROWSER is not None
    path = tmp_path / "report.html"
    _whole_page(path)
    assert "<script" not in path.read_text(encoding="utf-8")
    done = subprocess.run(
        [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    # What the page says to the console; the browser's own complaints about its machine are not ours.
    said = [line for line in done.stderr.splitlines() if re.search(r"CONSOLE|report\.html", line)]
    assert said == []
    # As the browser understood it: nothing was moved or closed for us.
    written = path.read_text(encoding="utf-8")
    for tag in ("<section", "<table", "<svg", "<figure", "<tr", "<rect"):
        assert done.stdout.count(tag) == written.count(tag) > 0
    assert written.count("could not be made") == 0
