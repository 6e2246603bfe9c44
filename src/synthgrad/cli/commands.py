"""The commands: each turns its options into configurations, has them run, and shows what came out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ..core import ConfigError
from ..experiments import compare
from ..experiments.bench import choose, sweep
from ..experiments.config import RunConfig
from ..experiments.machine import choose_device
from ..experiments.methods import METHODS
from ..experiments.registry import BENCHMARKS, EXPERIMENTS, benchmark_named, experiment_named
from ..experiments.rehearsal import with_estimates
from ..experiments.sweep import Sweep
from ..experiments.tensorboard import check_installed
from ..experiments.train import data_for
from ..records import FILE, Record, read
from ..report import write_report
from ..tasks import DATASETS
from .options import Common, Names, Numbers, common
from .show import Display, print_bench, print_tables

__all__ = ["bench_command", "compare_command", "list_command", "report_command", "run_command"]


def _folder(out: Path | None, name: str, *, resume: bool = False) -> Path:
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume is given without --out; name the folder whose runs are to go on")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


_TENSORBOARD = click.option(
    "--tensorboard", is_flag=True, help="Also write TensorBoard event files, into the results folder."
)


def _train(configs: Sequence[RunConfig], name: str, options: Common, *, tensorboard: bool) -> int:
    """Run configurations, write their records and a report; return the exit status."""
    if tensorboard:
        check_installed()
    out = _folder(options.out, name, resume=options.resume)
    configs = _rehearse(configs)
    if tensorboard:
        configs = [replace(config, tensorboard=str(out / "tensorboard")) for config in configs]
    runs = Sweep(configs, out, options.resume, options.jobs, options.threads)
    try:
        with Display(len(configs), quiet=options.quiet) as display:
            display.estimates(configs)
            for _ in runs.records(display):
                pass
    finally:  # also when interrupted: what is on the disk is shown
        records = runs.written()
        if records:
            print_tables(records)
            write_report(out / "report.html", records)
            click.echo(f"{out / FILE} · {out / 'report.html'}")
            if tensorboard:
                click.echo(f"tensorboard --logdir '{out / 'tensorboard'}'")
    return 0 if all(r["status"] == "ok" for r in records) else 1


def _rehearse(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Find what would fail in every run before anything is written; return the runs with their estimates."""
    first = configs[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data_for(first.cell.data, first.data_dir, first.hold_out, first.device)
    for text in dict.fromkeys(str(w.message) for w in caught):
        warnings.warn(text, stacklevel=2)
    return with_estimates(configs)


@click.command("compare", short_help="Train one network by several methods, side by side.")
@common
@click.option("--data", default="mnist-10k", show_default=True, help="Data set; see synthgrad list.")
@click.option(
    "--methods", type=Names(), default=",".join(compare.METHODS), show_default=True, help="Methods."
)
@click.option("--arch", default="fcn", show_default=True, help="fcn (fully connected) or cnn.")
@click.option("--layers", type=int, help="Weight layers, the output layer included [default: 4].")
@click.option("--width", type=int, help="Units or filters of a hidden layer [default: the paper's].")
@click.option("--steps", type=int, help="Batches to train on [default: the tier's].")
@click.option("--batch-size", type=int, help="Examples in a batch [default: 256].")
@click.option("--lr", type=float, help="Learning rate of Adam at the start [default: the tier's].")
@click.option("--update-prob", type=float, help="Probability that a module updates in a step [default: 1].")
@click.option("--engine", default="in-process", show_default=True, help="in-process (unlocked) or plain.")
@click.option("--model", metavar="package.module:factory", help="Your own network.")
@click.option("--at", type=Names(), help="Submodules after which to cut [default: after every layer].")
@_TENSORBOARD
def compare_command(
    options: Common,
    data: str,
    methods: tuple[str, ...],
    at: tuple[str, ...] | None,
    tensorboard: bool,
    **overrides: Any,
) -> int:
    """Train one network by several methods on one data set, side by side.

    Without options: backprop, no-bprop, DNI and cDNI on 10,000 embedded handwritten digits.
    """
    configs = compare.configs(
        options.tier,
        data,
        methods,
        options.seeds,
        compare.Overrides(at=at or (), **overrides),
        choose_device(options.device),
        str(options.data_dir) if options.data_dir else None,
    )
    return _train(configs, "compare", options, tensorboard=tensorboard)


@click.command("run")
@click.argument("name")
@common
@_TENSORBOARD
def run_command(options: Common, name: str, tensorboard: bool) -> int:
    """Run the experiment NAME; see synthgrad list."""
    experiment = experiment_named(name, options.tier)
    data_dir = str(options.data_dir) if options.data_dir else None
    configs = experiment.configs(options.tier, options.seeds, choose_device(options.device), data_dir)
    return _train(configs, name, options, tensorboard=tensorboard)


@click.command("bench", short_help="Measure speed or memory.")
@click.argument("name")
@common
@click.option(
    "--width", "widths", type=Numbers(1), help="Units of a hidden layer, as a list [default: the tier's]."
)
@click.option("--layers", type=Numbers(2), help="Weight layers, as a list [default: the tier's].")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=Numbers(1),
    help="Examples in a batch, as a list [default: the tier's].",
)
@click.option("--methods", type=Names(), help="Methods to measure [default: all].")
@click.option("--modes", type=Names(), help="eager, compiled, or both [default: the tier's].")
@click.option("--rounds", type=click.IntRange(1), help="Rounds, methods in turn [default: the tier's].")
@click.option("--learn", is_flag=True, help="Also train to an accuracy, and time that.")
def bench_command(options: Common, name: str, modes: tuple[str, ...] | None, **lists: Any) -> int:
    """Measure speed or memory: the benchmark NAME; see synthgrad list.

    Lists restrict the tier's sweep, or put other values in place of its own.
    """
    benchmark = benchmark_named(name)
    if options.jobs > 1:
        raise ConfigError(f"--jobs {options.jobs}: a benchmark wants the machine to itself; leave out --jobs")
    if unknown := set(modes or ()) - {"eager", "compiled"}:
        raise ConfigError(f"--modes {','.join(sorted(unknown))}: expected eager, compiled or eager,compiled")
    scope = choose(
        benchmark,
        options.tier,
        compiled=None if modes is None else tuple(mode == "compiled" for mode in modes),
        seeds=options.seeds,
        threads=options.threads,
        device=choose_device(options.device),
        data_dir=str(options.data_dir) if options.data_dir else None,
        **lists,
    )
    folder = _folder(options.out, f"bench-{name}", resume=options.resume)
    say = None if options.quiet else lambda text: click.echo(text, err=True)
    records: list[Record] = []
    try:
        for record in sweep(benchmark, scope, folder, resume=options.resume, say=say):
            records.append(record)
    finally:  # also when interrupted: what is on the disk is shown
        if records:
            print_bench(records)
            write_report(folder / "report.html", records)
            click.echo(f"{folder / FILE} · {folder / 'report.html'}")
    return 0 if all(r["status"] == "ok" for r in records) else 1


@click.command("report")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="DIR…")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page [default: report.html in the first DIR]."
)
def report_command(folders: tuple[Path, ...], out: Path | None) -> int:
    """Tables and a page from the results folders DIR…."""
    records: list[Record] = []
    problems: list[str] = []
    for folder in folders:
        path = folder if folder.is_file() else folder / FILE
        if not path.exists():
            raise ConfigError(f"{folder}: holds no {FILE}; name a folder that a command wrote to with --out")
        found, wrong = read(path)
        records += found
        problems += wrong
    page = out or (folders[0] if folders[0].is_dir() else folders[0].parent) / "report.html"
    try:
        write_report(page, records, problems)
    except OSError as error:
        raise ConfigError(f"{page}: cannot be written ({error.strerror}); name a file with --out") from error
    print_tables(records, problems)
    print_bench(records)
    click.echo(str(page))
    return 0


@click.command("list", short_help="Say what there is.")
def list_command() -> int:
    """Say which experiments, benchmarks, methods and data sets there are."""
    lists = {
        "experiments": {e.name: e.about for e in EXPERIMENTS.values()},
        "benchmarks": {b.name: b.about for b in BENCHMARKS.values()},
        "methods": {m.name: m.about for m in METHODS.values()},
        "data sets": {d.name: d.about for d in DATASETS.values()},
    }
    width = max(len(name) for entries in lists.values() for name in entries)
    for title, entries in lists.items():
        click.echo(f"{title}:")
        for name, about in entries.items():
            click.echo(f"  {name:<{width}}  {about}")
    return 0
