"""What the commands do with their values: have runs made and measured, and show what came out.

Apart from `commands`, so that help and completion need not wait for PyTorch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...core import ConfigError
from ..bench.base import Benchmark, choose, sweep
from ..bench.registry import BENCHMARKS, benchmark_named
from ..bench.survival.damage import INPUTS, DamageBench
from ..experiments import compare as comparison
from ..experiments.machine import choose_device
from ..experiments.methods import METHODS
from ..experiments.recurrent_methods import RECURRENT_METHODS
from ..experiments.registry import EXPERIMENTS, Choice, experiment_named
from ..experiments.rehearsals import rehearsed
from ..experiments.run_config import AnyRun
from ..experiments.sweep import Sweep
from ..experiments.tensorboard import check_installed
from ..records import FILE, Record, read
from ..report import write_report
from ..tasks import DATASETS, TEXTS
from .damaged_lines import COMMAND_LINES
from .names import MODES
from .options import Common
from .show import Display, print_bench, print_tables

__all__ = ["bench", "compare", "report", "run", "show_list"]


#: Benchmarks that measure the command line too.
_OWN: Mapping[str, Benchmark] = {"damage": DamageBench((*INPUTS, *COMMAND_LINES))}


def compare(
    options: Common,
    data: str,
    methods: Sequence[str],
    at: Sequence[str] | None,
    overrides: dict[str, Any],
    *,
    tensorboard: bool,
) -> int:
    """Run a comparison; return the exit status."""
    configs = comparison.configs(
        options.tier,
        data,
        methods,
        options.seeds,
        comparison.Overrides(at=tuple(at or ()), **overrides),
        choose_device(options.device),
        _data_dir(options),
    )
    return _train(configs, "compare", options, tensorboard=tensorboard)


def run(options: Common, name: str, choice: dict[str, Any], *, tensorboard: bool) -> int:
    """Run an experiment, or those of its runs that are wanted; return the exit status."""
    configs = experiment_named(name, options.tier).runs(
        options.tier, options.seeds, choose_device(options.device), _data_dir(options), Choice(**choice)
    )
    return _train(configs, name, options, tensorboard=tensorboard)


def bench(options: Common, name: str, modes: Sequence[str] | None, given: dict[str, Any]) -> int:
    """Measure a benchmark; return the exit status."""
    benchmark = _OWN.get(name) or benchmark_named(name)
    if options.jobs > 1:
        raise ConfigError(f"--jobs {options.jobs}: a benchmark wants the machine to itself; leave out --jobs")
    if unknown := set(modes or ()) - set(MODES):
        raise ConfigError(f"--modes {','.join(sorted(unknown))}: expected eager, compiled or eager,compiled")
    scope = choose(
        benchmark,
        options.tier,
        compiled=None if modes is None else tuple(mode == "compiled" for mode in modes),
        seeds=options.seeds,
        threads=options.threads,
        device=choose_device(options.device),
        data_dir=_data_dir(options),
        **given,
    )
    folder = _folder(options.out, f"bench-{name}", resume=options.resume)
    say = None if options.quiet else lambda text: click.echo(text, err=True)
    records: list[Record] = []
    written = True
    try:
        for record in sweep(benchmark, scope, folder, resume=options.resume, say=say):
            records.append(record)
    finally:  # also when interrupted: what is on the disk is shown
        if records:
            print_bench(records)
            written = _write_page(folder, records)
    return 0 if written and all(r["status"] == "ok" for r in records) else 1


def report(folders: Sequence[Path], out: Path | None) -> int:
    """Show the records of some folders, and write their page."""
    records: list[Record] = []
    problems: list[str] = []
    for folder in folders:
        path = folder if folder.is_file() else folder / FILE
        if not path.exists():
            raise ConfigError(f"{folder}: holds no {FILE}; name a folder that a command wrote to with --out")
        found, wrong = read(path)
        records += found
        problems += wrong or ([] if found else [f"{path}: holds no record"])
    page = out or (folders[0] if folders[0].is_dir() else folders[0].parent) / "report.html"
    try:
        write_report(page, records, problems)
    except OSError as error:
        raise ConfigError(f"{page}: cannot be written ({error.strerror}); name a file with --out") from error
    print_tables(records, problems)
    print_bench(records)
    click.echo(str(page))
    return 0


def show_list() -> int:
    """Say which experiments, benchmarks, methods and data sets there are."""
    lists = {
        "experiments": {e.name: e.about for e in EXPERIMENTS.values()},
        "benchmarks": {b.name: b.about for b in BENCHMARKS.values()},
        "methods": {m.name: m.about for m in METHODS.values()},
        "methods of recurrent networks": {m.name: m.about for m in RECURRENT_METHODS.values()},
        "data sets": {d.name: d.about for d in DATASETS.values()},
        "texts": {d.name: d.about for d in TEXTS.values()},
    }
    width = max(len(name) for entries in lists.values() for name in entries)
    for title, entries in lists.items():
        click.echo(f"{title}:")
        for name, about in entries.items():
            click.echo(f"  {name:<{width}}  {about}")
    return 0


def _data_dir(options: Common) -> str | None:
    return str(options.data_dir) if options.data_dir else None


def _folder(out: Path | None, name: str, *, resume: bool = False) -> Path:
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume is given without --out; name the folder whose runs are to go on")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _write_page(folder: Path, records: Sequence[Record]) -> bool:
    """Write a folder's page and say where; return whether it could be. What is under way fails for another reason."""
    page = folder / "report.html"
    try:
        write_report(page, records)
    except OSError as error:
        click.echo(
            f"synthgrad: warning: {page}: cannot be written ({error.strerror}); the records are whole, make room and "
            f"call synthgrad report {folder}",
            err=True,
        )
        return False
    click.echo(f"{folder / FILE} · {page}")
    return True


def _train(configs: Sequence[AnyRun], name: str, options: Common, *, tensorboard: bool) -> int:
    """Run configurations, write their records and a report; return the exit status."""
    if tensorboard:
        check_installed()
    out = _folder(options.out, name, resume=options.resume)
    configs = rehearsed(configs)
    if tensorboard:
        configs = [replace(config, tensorboard=str(out / "tensorboard")) for config in configs]
    runs = Sweep(configs, out, options.resume, options.jobs, options.threads)
    records: list[Record] = []
    written = True
    try:
        with Display(configs, options.jobs, quiet=options.quiet) as display:
            display.estimates()
            for _ in runs.records(display):
                pass
    finally:  # also when interrupted: what is on the disk is shown
        records = runs.written()
        if records:
            print_tables(records)
            written = _write_page(out, records)
            if tensorboard:
                click.echo(f"tensorboard --logdir '{out / 'tensorboard'}'")
    return 0 if written and all(r["status"] == "ok" for r in records) else 1
