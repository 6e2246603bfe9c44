"""The table of ``bench networks``: one row for a network, and every reason once."""

from __future__ import annotations

from typing import Any

from synthgrad.lab.report import markdown
from synthgrad.lab.report.machine import differences
from tests.lab.report.helpers import bench, record, typed

EXACT = {
    "exact": 1,
    "refused": 0,
    "parameters": 933,
    "max_relative_deviation": 2e-15,
    "control_deviation": 3e-7,
}
REFUSED = {"exact": 0, "refused": 1, "refused_at": "construction"}


def line(
    network: str = "MLP",
    method: str = "plain",
    metrics: dict[str, Any] = EXACT,
    error: str | None = None,
    *,
    dropout: float = 0.0,
    status: str = "ok",
) -> dict[str, Any]:
    cell = {"network": network, "library": "torch", "dtype": "float64", "dropout": dropout}
    return record(
        method, experiment="bench/networks", cell=cell, metrics=metrics, error=error, status=status, curve=[]
    )


def rows(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    sheet = bench("networks", records)
    return [dict(zip(sheet.headings, row, strict=True)) for row in sheet.rows]


def test_a_row_for_each_network_and_a_column_for_each_engine() -> None:
    worse = EXACT | {"max_relative_deviation": 4e-14, "control_deviation": 2e-8}
    found = rows([line(), line(method="stages", metrics=worse), line(dropout=0.1), line("BERT")])
    assert found == [
        {
            "network": "MLP",
            "from": "torch",
            "parameters": "933",
            "plain loop": "exact",
            "two stages": "exact",
            "plain loop, dropout": "exact",
            "deviation": "4e-14",
            "control": "2e-08",
        },
        {
            "network": "BERT",
            "from": "torch",
            "parameters": "933",
            "plain loop": "exact",
            "two stages": "—",
            "plain loop, dropout": "—",
            "deviation": "2e-15",
            "control": "3e-07",
        },
    ]


def test_a_library_has_its_version_unless_it_is_pytorch() -> None:
    other = line() | {"config": {"library_version": "5.23.0"}}
    other["cell"] = other["cell"] | {"library": "transformers"}
    assert rows([other])[0]["from"] == "transformers 5.23.0"
    assert rows([line() | {"config": {"library_version": "2.13.0"}}])[0]["from"] == "torch"


def test_reasons_that_differ_in_names_alone_are_one() -> None:
    records = [
        line("A", metrics=REFUSED, error="ConfigError: 'a.0' has a forward of its own"),
        line("B", metrics=REFUSED, error="ConfigError: 'b.1' has a forward of its own"),
        line("C", metrics=REFUSED, error="ConfigError: parameter 'w' is shared"),
    ]
    sheet = bench("networks", records)
    assert [row["plain loop"] for row in rows(records)] == ["refused (1)", "refused (1)", "refused (2)"]
    assert sheet.notes == (
        "(1) ConfigError: 'a.0' has a forward of its own",
        "(2) ConfigError: parameter 'w' is shared",
    )
    assert (sheet.failures, sheet.bad) == ((), (False, False, False))


def test_what_is_neither_exact_nor_refused_is_a_failure() -> None:
    deviates = EXACT | {"exact": 0, "max_relative_deviation": 1.21e-3}
    records = [
        line("A", metrics=deviates, error="'w' deviates by 1.2e-03", status="failed"),
        line("B", metrics={}, error="TypeError: no", status="failed"),
        line("C", metrics={"skipped": 1}, error="skipped: no timm"),
        line("D", metrics=REFUSED | {"refused_at": "step 3"}, error="ShapeError: 5 examples"),
    ]
    sheet = bench("networks", records)
    assert [row["plain loop"] for row in rows(records)] == [
        *("deviates by 1.2e-03 (1)", "failed (2)", "skipped (3)", "refused in step 3 (4)"),
    ]
    assert sheet.bad == (True, True, False, False)
    assert sheet.failures == ("(1) 'w' deviates by 1.2e-03", "(2) TypeError: no")
    assert sheet.notes == ("(3) skipped: no timm", "(4) ShapeError: 5 examples")


def test_of_lines_that_were_measured_again_the_last_counts() -> None:
    again = [line(metrics={}, error="TypeError: no", status="failed"), line()]
    assert rows(again)[0]["plain loop"] == "exact"
    assert bench("networks", again).failures == ()


def test_a_document_has_the_reasons_below_the_table() -> None:
    lines = [line(), line("B", metrics=REFUSED, error="CutError: 'x' returns <two> tensors")]
    assert markdown(bench("networks", lines), titled=False).splitlines() == [
        "*All rows: from: torch.*",
        "",
        "| network | plain loop | deviation | control | parameters |",
        "|---|---|---|---|---|",
        "| MLP | exact | 2e-15 | 3e-07 | 933 |",
        "| B | refused (1) | — | — | — |",
        "",
        "*(1) CutError: 'x' returns &lt;two> tensors*",
    ]


def test_versions_of_the_rows_libraries_are_no_difference_to_warn_of() -> None:
    records = [line(), line() | {"config": {"library_version": "5.23.0"}}]
    assert not any("library_version" in text for text in differences(typed(records)))
