"""The public face: nothing heavy is loaded before a table is made."""

from __future__ import annotations

import subprocess
import sys

from synthgrad.lab.report import is_unsteady

HEAVY = ("pandas", "matplotlib", "jinja2")


def test_names_are_imported_without_what_groups_and_draws() -> None:
    code = (
        "import sys; from synthgrad.lab.report import Sheet, bench_sheets, markdown, training_sheets, write_report; "
        f"print([m for m in {HEAVY} if m in sys.modules]); training_sheets([]); print('pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.splitlines() == ["[]", "True"]


def test_a_spread_of_more_than_half_the_ratio_is_wide() -> None:
    assert is_unsteady(2.0, 1.5, 2.6)
    assert not is_unsteady(2.0, 1.5, 2.4)
    assert not is_unsteady(None, 1.0, 9.0)
    assert not is_unsteady(2.0, None, 9.0)
