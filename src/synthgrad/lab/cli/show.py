"""The progress display of runs, and the tables at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable
from rich.text import Text

from ..records import Record
from ..report import Sheet, bench_sheets, gathered_sheets, training_sheets
from ..training.run import Run
from ..training.sweep import Progress as SweepProgress
from ..training.time_left import TimeLeft, run_key, run_names

#: Maximum number of rows of a table to print.
MAX_ROWS = 200
#: Maximum number of tables to print.
MAX_TABLES = 100

#: Seconds between two lines about a run under way, if there is no terminal for a progress bar.
_LINE_EVERY_S = 30.0

#: Formats of the figures of an ended run; its line shows the first one that its record has.
_FIGURES = {
    "test_error_pct": ", error {:.2f} %",
    "val_error_pct": ", error {:.2f} %",
    "sequence_length": ", sequences of {}",
    "bits_per_char": ", {:.3f} bits per character",
    "b_accuracy_pct": ", B right in {:.1f} %",
}

__all__ = ["Display", "print_bench", "print_tables"]


class Display(SweepProgress, AbstractContextManager["Display"]):
    """Shows the progress of a sweep: bars on a terminal; otherwise lines for ended runs and at intervals for others.

    Args:
        runs: the runs, with their estimates.
        jobs: number of runs in parallel.
        quiet: whether to show nothing.
    """

    def __init__(self, runs: Sequence[Run], jobs: int = 1, *, quiet: bool) -> None:
        self._runs = runs
        self._names = run_names(runs)
        self._left = TimeLeft(runs, jobs)
        self._num_done = 0
        self._begun = self._last_line_at = time.monotonic()
        self._console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
            transient=True,
        )
        self._all = self._progress.add_task("all runs", total=len(runs), left="")
        self._run: TaskID | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def estimates(self) -> None:
        """Print the estimated cost of a step for each method, from the lowest to the highest of its runs."""
        known: dict[str, list[float]] = {}
        for run in self._runs:
            if run.estimated_ratio is not None:
                known.setdefault(run.method, []).append(run.estimated_ratio)
        if known:
            words = ", ".join(f"{method} {_span(ratios)} ×" for method, ratios in known.items())
            self._print(f"estimated cost of a step, by its matrix products: {words} that of backprop")

    def started(self, run: Run) -> None:
        self._begun = time.monotonic()
        self._run = self._progress.add_task(self._name(run), total=run.schedule.steps, left="")

    def stepped(self, run: Run, step: int) -> None:
        now = time.monotonic()
        if self._run is not None:
            self._progress.update(self._run, completed=step)
        self._left.stepped(run, step, now - self._begun)
        self._show_left()
        if (
            self._progress.disable and now - self._last_line_at >= _LINE_EVERY_S
        ):  # there is no bar to show progress
            self._last_line_at = now
            left = self._left.seconds()
            words = f", {_duration(left)} of all" if left else ""
            self._print(f"{self._name(run)}: step {step:,} of {run.schedule.steps:,}{words}")

    def ended(self, run: Run, record: Record) -> None:
        alone = self._run is not None
        self._remove_bar()
        seconds = record.time.train_s
        # The wall time includes evaluations. It is unknown for runs in parallel, whose begin is not reported.
        wall = time.monotonic() - self._begun if alone else seconds
        self._left.ended(run, wall if record.status == "ok" else None)
        metrics = record.metrics
        text = f"{self._name(run)}: {record.status}"
        text += next(
            (words.format(metrics[k]) for k, words in _FIGURES.items() if metrics.get(k) is not None), ""
        )
        text += f", {seconds:.1f} s" if seconds is not None else ""
        text += f" ({record.error})" if record.error else ""
        self._count_run(text)

    def skipped(self, run: Run) -> None:
        self._left.ended(run, None)
        self._count_run(f"{self._name(run)}: done before, skipped")

    def _count_run(self, text: str) -> None:
        """Count a run as done and print a line about it."""
        self._num_done += 1
        self._progress.advance(self._all)
        self._show_left()
        left, num = self._left.seconds(), len(self._runs)
        if num > 1 and self._num_done < num:
            text += f" · {self._num_done} of {num}" + (f", {_duration(left)}" if left else "")
        self._print(text)

    def _show_left(self) -> None:
        if not self._progress.disable:
            left = self._left.seconds()
            self._progress.update(self._all, left=_duration(left) if left else "")

    def _name(self, run: Run) -> str:
        return self._names.get(run_key(run), run.label)

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _remove_bar(self) -> None:
        if self._run is not None:
            self._progress.remove_task(self._run)
            self._run = None


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}–{high}"


def _duration(seconds: float) -> str:
    """Return a time as words, in a unit that gives about two digits: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        words = f"{max(1, seconds):.0f} s"
    else:
        words = f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
    return f"about {words} left"


def _stdout() -> Console:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width, and tables should not be wrapped for it
    return console


def _print_sheet(sheet: Sheet) -> None:
    shown = RichTable(title=Text(sheet.title), title_justify="left", title_style="bold")
    for k, heading in enumerate(sheet.headings):
        shown.add_column(
            heading, justify="left" if k == 0 or heading.startswith("cause") else "right", overflow="fold"
        )
    for row, bad in zip(sheet.rows[:MAX_ROWS], sheet.bad, strict=False):
        shown.add_row(*map(Text, row), style="red" if bad else None)
    console = _stdout()
    console.print(shown)
    if len(sheet.rows) > MAX_ROWS:
        console.print(f"… and {len(sheet.rows) - MAX_ROWS} more rows")
    for failure in sheet.failures[:20]:
        console.print(failure, style="red", highlight=False, markup=False)


def print_bench(records: Iterable[Record]) -> None:
    """Print the benchmark records among some records, in a table for each benchmark."""
    for sheet in bench_sheets(records):
        _print_sheet(sheet)
        _print_notes(sheet)


def print_tables(records: Sequence[Record], problems: Sequence[str] = ()) -> None:
    """Print tables of training records on standard output.

    Args:
        records: the records; those of benchmarks are ignored.
        problems: messages about records that could not be read, for standard error.
    """
    errors = Console(stderr=True, soft_wrap=True)
    for problem in problems:
        errors.print(problem, highlight=False, markup=False)
    sheets = training_sheets(records)
    for sheet in sheets[:MAX_TABLES]:
        _print_sheet(sheet)
        for warning in sheet.warnings:
            _stdout().print(warning, highlight=False, markup=False)
    for sheet in gathered_sheets(records):
        _print_sheet(sheet)
        _print_notes(sheet)
    if len(sheets) > MAX_TABLES:
        errors.print(f"{len(sheets) - MAX_TABLES} more tables are left out; name fewer folders")


def _print_notes(sheet: Sheet) -> None:
    for note in (*sheet.warnings, *sheet.notes):
        _stdout().print(note, highlight=False, markup=False)
