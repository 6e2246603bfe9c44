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
from ..report import BENCH_HEADINGS, bench_cells, cells, headings, tabulate

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
        console.width = 140  # a pipe has no width; do not wrap the table for it
    return console


def print_bench(records: Iterable[Record]) -> None:
    """Print the benchmark records among these, one table for each benchmark."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if str(record.get("experiment", "")).startswith("bench/"):
            groups.setdefault(record["experiment"], []).append(record)
    for name, group in groups.items():
        shown = RichTable(title=Text(name), title_justify="left", title_style="bold")
        for k, heading in enumerate(BENCH_HEADINGS):
            shown.add_column(heading, justify="left" if k == 0 else "right")
        for record in group:
            shown.add_row(
                *map(Text, bench_cells(record)), style=None if record.get("status") == "ok" else "red"
            )
        _stdout().print(shown)


def print_tables(records: Iterable[Record], problems: Sequence[str] = ()) -> None:
    """Print the tables of some records on standard output, what was left out of them on standard error."""
    errors = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        errors.print(f"left out: {problem}", highlight=False, markup=False)
    console = _stdout()
    for table in tabulate(records):
        shown = RichTable(title=Text(table.title), title_justify="left", title_style="bold")
        for k, heading in enumerate(headings(table)):
            shown.add_column(heading, justify="left" if k in (0, 5) else "right")
        for row in table.rows:
            shown.add_row(*map(Text, cells(row)), style="red" if row.num_bad else None)
        console.print(shown)
        for row in table.rows:
            if row.note:
                console.print(f"{row.method}: {row.note}", style="red", highlight=False, markup=False)
