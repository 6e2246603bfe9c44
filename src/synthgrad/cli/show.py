"""What is shown while runs go on, and the tables at the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text

from ..experiments.config import RunConfig
from ..experiments.sweep import Listener
from ..records import Record
from ..report import Sheet, bench_groups, bench_sheet, table_sheet, tabulate

#: Rows of a table that a terminal is given; the records have all.
MOST_ROWS = 200
#: Tables that it is given.
MOST_TABLES = 100

__all__ = ["Display", "print_bench", "print_tables"]


class Display(Listener, AbstractContextManager["Display"]):
    """Progress bars on a terminal, one line for each finished run elsewhere, nothing if quiet.

    Args:
        num_runs: runs in all.
        quiet: show nothing.
    """

    def __init__(self, num_runs: int, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._all = self._progress.add_task("all runs", total=num_runs)
        self._run: TaskID | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def estimates(self, configs: Iterable[RunConfig]) -> None:
        """Say beforehand what a step of each method will cost, about."""
        known = {c.method: c.estimated_ratio for c in configs if c.estimated_ratio is not None}
        if known:
            words = ", ".join(f"{method} {ratio:.2f} ×" for method, ratio in known.items())
            self._console.print(
                f"estimated cost of a step, by its matrix products: {words} that of backprop",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )

    def started(self, config: RunConfig) -> None:
        self._run = self._progress.add_task(config.label, total=config.schedule.steps)

    def stepped(self, config: RunConfig, step: int) -> None:
        if self._run is not None:
            self._progress.update(self._run, completed=step)

    def ended(self, config: RunConfig, record: Record) -> None:
        self._drop_run()
        self._progress.advance(self._all)
        metrics = record.get("metrics") or {}
        error = next((v for k, v in metrics.items() if k in ("test_error_pct", "val_error_pct")), None)
        seconds = (record.get("time") or {}).get("train_s")
        text = f"{config.label}: {record['status']}"
        text += f", error {error:.2f} %" if error is not None else ""
        text += f", {seconds:.1f} s" if seconds is not None else ""
        text += f" ({record['error']})" if record.get("error") else ""
        self._console.print(text, highlight=False, markup=False)

    def skipped(self, config: RunConfig) -> None:
        self._progress.advance(self._all)
        self._console.print(f"{config.label}: done before, skipped", highlight=False, markup=False)

    def _drop_run(self) -> None:
        if self._run is not None:
            self._progress.remove_task(self._run)
            self._run = None


def _stdout() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width; do not wrap the table for it
    return console


def _print_sheet(sheet: Sheet) -> None:
    shown = RichTable(title=Text(sheet.title), title_justify="left", title_style="bold")
    for k, heading in enumerate(sheet.headings):
        shown.add_column(
            heading, justify="left" if k == 0 or heading.startswith("cause") else "right", overflow="fold"
        )
    for row, bad in zip(sheet.rows[:MOST_ROWS], sheet.bad, strict=False):
        shown.add_row(*map(Text, row), style="red" if bad else None)
    console = _stdout()
    console.print(shown)
    if len(sheet.rows) > MOST_ROWS:
        console.print(f"… and {len(sheet.rows) - MOST_ROWS} more rows")
    for failure in sheet.failures[:20]:
        console.print(failure, style="red", highlight=False, markup=False)


def print_bench(records: Iterable[Record]) -> None:
    """Print the benchmark records among these, one table for each benchmark."""
    for name, group in bench_groups(records).items():
        _print_sheet(bench_sheet(name, group))


def print_tables(records: Iterable[Record], problems: Sequence[str] = ()) -> None:
    """Print the tables of some records on standard output, what was left out of them on standard error."""
    errors = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        errors.print(problem, highlight=False, markup=False)
    tables = tabulate(records)
    for table in tables[:MOST_TABLES]:
        _print_sheet(table_sheet(table))
    if len(tables) > MOST_TABLES:
        errors.print(f"{len(tables) - MOST_TABLES} more tables, left out; name fewer folders")
