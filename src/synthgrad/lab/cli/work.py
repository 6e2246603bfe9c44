"""The work of the commands: make and train runs, and show their results.

It is separate from `commands`, so that help and completion do not load PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...core import ConfigError
from ..bench.declarations import BENCHMARKS
from ..names import DATA, METHODS, RECURRENT, TEXTS
from ..recipes import Choice, comparison, experiment_named, experiments
from ..records import FILE, Record, read
from ..report import write_report
from ..training.machine import choose_device
from ..training.rehearsal import rehearse_all
from ..training.run import Run
from ..training.sweep import Sweep
from ..training.tensorboard import check_installed
from .options import CommonOptions, TrainingOptions
from .show import Display, print_bench, print_tables

__all__ = ["compare", "print_list", "report", "results_folder", "run", "warn_of_other_records", "write_page"]


def compare(options: TrainingOptions, given: dict[str, Any]) -> int:
    """Train the runs of a comparison; return the exit status.

    Args:
        options: the options of commands that train.
        given: the other options, with None for those that are not given.
    """
    runs = comparison(
        options.tier,
        given.pop("data"),
        given.pop("methods"),
        options.seeds,
        choose_device(options.device),
        _data_dir(options),
        **given,
    )
    return _train(runs, "compare", options)


def run(options: TrainingOptions, name: str, choice: dict[str, Any]) -> int:
    """Train the selected runs of an experiment; return the exit status.

    Args:
        options: the options of commands that train.
        name: name of the experiment, or a file that declares it.
        choice: fields of `Choice`.
    """
    experiment = experiment_named(name)
    runs = experiment.runs(
        options.tier, options.seeds, choose_device(options.device), _data_dir(options), Choice(**choice)
    )
    return _train(runs, experiment.name, options)


def report(folders: Sequence[Path], out: Path | None) -> int:
    """Print tables of the records in some folders, and write a page; return the exit status.

    Args:
        folders: results folders, or their record files.
        out: the page; None for ``report.html`` in the first folder.

    Raises:
        ConfigError: if a folder has no records, or the page cannot be written.
    """
    records: list[Record] = []
    problems: list[str] = []
    for folder in folders:
        path = folder if folder.is_file() else folder / FILE
        if not path.exists():
            raise ConfigError(f"{folder}: has no {FILE}; name a folder to which a command wrote its results")
        found, wrong = read(path)
        records += found
        problems += wrong or ([] if found else [f"{path}: has no records"])
    page = out or (folders[0] if folders[0].is_dir() else folders[0].parent) / "report.html"
    try:
        write_report(page, records, problems)
    except OSError as error:
        raise ConfigError(
            f"{page}: cannot be written ({error.strerror}); name another file with --out"
        ) from error
    print_tables(records, problems)
    print_bench(records)
    click.echo(str(page))
    return 0


def print_list() -> int:
    """Print experiments, benchmarks, methods and data sets; return the exit status."""
    lists = {
        "experiments": {e.name: e.about for e in experiments().values()},
        "benchmarks": {b.name: b.about for b in BENCHMARKS.values()},
        "methods": METHODS,
        "methods of recurrent networks": RECURRENT,
        "data sets": DATA,
        "texts": TEXTS,
    }
    width = max(len(name) for entries in lists.values() for name in entries)
    for title, entries in lists.items():
        click.echo(f"{title}:")
        for name, about in entries.items():
            click.echo(f"  {name:<{width}}  {about}")
    return 0


def _data_dir(options: CommonOptions) -> str | None:
    return str(options.data_dir) if options.data_dir else None


def results_folder(out: Path | None, name: str, *, resume: bool = False) -> Path:
    """Return the results folder: the given one, or a new name made of the command's name and the time.

    Args:
        out: the folder that was given, or None.
        name: name of the command or experiment.
        resume: whether runs are resumed.

    Raises:
        ConfigError: if ``resume`` is set and no folder is given.
    """
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume is given without --out; name the folder of the runs to resume")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def write_page(folder: Path, records: Sequence[Record]) -> bool:
    """Write a folder's page and print its path; return whether that succeeded.

    A failure is only a warning, so that it cannot hide an error that is on its way.
    """
    page = folder / "report.html"
    try:
        write_report(page, records)
    except OSError as error:
        click.echo(
            f"synthgrad: warning: {page}: cannot be written ({error.strerror}); the records are complete, make room and "
            f"run synthgrad report {folder}",
            err=True,
        )
        return False
    click.echo(f"{folder / FILE} · {page}")
    return True


def _train(runs: Sequence[Run], name: str, options: TrainingOptions) -> int:
    """Train runs, write their records and a page; return the exit status."""
    if options.tensorboard:
        check_installed()
    out = results_folder(options.out, name, resume=options.resume)
    runs = rehearse_all(runs)
    if options.tensorboard:
        runs = [replace(run, tensorboard=str(out / "tensorboard")) for run in runs]
    if not options.resume:
        warn_of_other_records(out)
    trained = Sweep(runs, out, options.resume, options.jobs, options.threads)
    records: list[Record] = []
    written = True
    try:
        with Display(runs, options.jobs, quiet=options.quiet) as display:
            display.estimates()
            for _ in trained.records(display):
                pass
    finally:  # after an interruption too, the records on the disk are shown
        records = trained.written()
        if records:
            print_tables(records)
            written = write_page(out, records)
            if options.tensorboard:
                click.echo(f"tensorboard --logdir '{out / 'tensorboard'}'")
    return 0 if written and all(r.status == "ok" for r in records) else 1


def warn_of_other_records(out: Path) -> None:
    """Warn if a results folder has records already, because new ones will be appended to them."""
    found = read(out / FILE)[0]
    if found:
        names = ", ".join(dict.fromkeys(r.experiment for r in found))
        click.echo(
            f"synthgrad: warning: --out {out}: has {len(found)} records ({names}) already, and new ones are appended; "
            "name another folder to keep them apart, or use --resume to skip the runs that are done",
            err=True,
        )
