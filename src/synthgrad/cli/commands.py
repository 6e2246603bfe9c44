"""The commands: each turns its options into configurations, has them run, and shows what came out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..core import ConfigError
from ..experiments import bench_step, compare
from ..experiments.config import RunConfig
from ..experiments.machine import choose_device
from ..experiments.methods import METHODS
from ..experiments.registry import BENCHMARKS, EXPERIMENTS, experiment_named
from ..experiments.sweep import Sweep
from ..experiments.train import data_for, rehearse
from ..records import FILE, Record, read
from ..report import write_report
from ..tasks import DATASETS
from .options import Common, Names, Numbers, common, measured
from .show import Display, print_bench, print_tables

__all__ = ["bench_command", "compare_command", "list_command", "report_command", "run_command"]


def _folder(out: Path | None, name: str, *, resume: bool = False) -> Path:
    if out is not None:
        return out
    if resume:
        raise ConfigError("--resume is given without --out; name the folder whose runs are to go on")
    return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _train(configs: Sequence[RunConfig], name: str, options: Common) -> int:
    """Run configurations, write their records and a report; return the exit status."""
    out = _folder(options.out, name, resume=options.resume)
    _rehearse(configs)
    sweep = Sweep(configs, out, options.resume, options.jobs, options.threads)
    try:
        with Display(len(configs), quiet=options.quiet) as display:
            for _ in sweep.records(display):
                pass
    finally:  # also when interrupted: what is on the disk is shown
        records = sweep.written()
        if records:
            print_tables(records)
            write_report(out / "report.html", records)
            click.echo(f"{out / FILE} · {out / 'report.html'}")
    return 0 if all(r["status"] == "ok" for r in records) else 1


def _rehearse(configs: Sequence[RunConfig]) -> None:
    """Find what would fail in every run before anything is written."""
    first = configs[0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data_for(first.cell.data, first.data_dir, first.hold_out, first.device)
    for text in dict.fromkeys(str(w.message) for w in caught):
        warnings.warn(text, stacklevel=2)
    seen: set[Any] = set()
    for config in configs:
        key = (config.method, config.cell, config.rule, config.schedule)
        if key not in seen:
            seen.add(key)
            rehearse(config)


@click.command("compare", short_help="Train one network by several methods, side by side.")
@common
@click.option("--data", default="mnist-10k", show_default=True, help="Data set; see synthgrad list.")
@click.option(
    "--methods", type=Names(), default=",".join(compare.METHODS), show_default=True, help="Methods."
)
@click.option("--layers", type=int, help="Weight layers, the output layer included [default: 4].")
@click.option("--width", type=int, help="Units of a hidden layer [default: 256; cifar10: 1000].")
@click.option("--steps", type=int, help="Batches to train on [default: the tier's].")
@click.option("--batch-size", type=int, help="Examples in a batch [default: 256].")
@click.option("--lr", type=float, help="Learning rate of Adam at the start [default: the tier's].")
@click.option("--update-prob", type=float, help="Probability that a module updates in a step [default: 1].")
@click.option("--engine", default="in-process", show_default=True, help="in-process (unlocked) or plain.")
@click.option("--model", metavar="package.module:factory", help="Your own network.")
@click.option("--at", type=Names(), help="Submodules after which to cut [default: after every layer].")
def compare_command(
    options: Common, data: str, methods: tuple[str, ...], at: tuple[str, ...] | None, **overrides: Any
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
    return _train(configs, "compare", options)


@click.command("run")
@click.argument("name")
@common
def run_command(options: Common, name: str) -> int:
    """Run the experiment NAME; see synthgrad list."""
    experiment = experiment_named(name, options.tier)
    data_dir = str(options.data_dir) if options.data_dir else None
    configs = experiment.configs(options.tier, options.seeds, choose_device(options.device), data_dir)
    return _train(configs, name, options)


@click.command("bench")
@click.argument("name")
@measured
@click.option("--width", "widths", type=Numbers(1), help="Units of a hidden layer, as a list.")
@click.option("--layers", type=Numbers(2), help="Weight layers, as a list.")
@click.option("--batch-size", "batch_sizes", type=Numbers(1), help="Examples in a batch, as a list.")
@click.option("--methods", type=Names(), help="Methods to measure.")
@click.option(
    "--rounds", type=click.IntRange(2), default=15, show_default=True, help="Rounds, methods in turn."
)
def bench_command(
    name: str,
    out: Path | None,
    device: str,
    threads: int | None,
    quiet: bool,
    widths: tuple[int, ...] | None,
    layers: tuple[int, ...] | None,
    batch_sizes: tuple[int, ...] | None,
    methods: tuple[str, ...] | None,
    rounds: int,
) -> int:
    """Measure speed: the benchmark NAME; see synthgrad list."""
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark '{name}' is unknown; accepted: {', '.join(BENCHMARKS)}")
    sweep = bench_step.StepBench(
        widths=widths or (256,),
        layers=layers or (4,),
        batch_sizes=batch_sizes or (256,),
        methods=methods or bench_step.METHODS,
        rounds=rounds,
        threads=threads or 1,
        device=choose_device(device),
    )
    folder = _folder(out, f"bench-{name}")
    records = list(sweep.run(folder, None if quiet else lambda text: click.echo(text, err=True)))
    print_bench(records)
    click.echo(str(folder / FILE))
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
        "benchmarks": BENCHMARKS,
        "methods": {m.name: m.about for m in METHODS.values()},
        "data sets": {d.name: d.about for d in DATASETS.values()},
    }
    width = max(len(name) for entries in lists.values() for name in entries)
    for title, entries in lists.items():
        click.echo(f"{title}:")
        for name, about in entries.items():
            click.echo(f"  {name:<{width}}  {about}")
    return 0
