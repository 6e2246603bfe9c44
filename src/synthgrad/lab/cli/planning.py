"""The work of ``synthgrad plan``: profile or read costs, plan, print the table, write page and traces."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...core import ConfigError, Rule, Site
from ...core.given import brief, example_arguments, similar
from ...planner import Plan, parse_link, plan
from ...planner.menu import Row
from ...planner.proposal import HEADINGS
from ...planner.run import Run, Span
from ...planner.trace import steady_part, write_trace
from ...planner.words import seconds_text
from ..records import write_whole
from ..report.plan_page import Bar, Flight, PlanPage, Timeline, write_plan_page
from ..tasks import load
from ..tasks.own_data import import_attribute
from ..training.machine import choose_device, configure_process, device_name
from ..training.methods import METHODS, DataFacts
from ..training.trainers import CrossEntropy, TokenCrossEntropy
from .plan_command import CODECS, RULES, SCHEDULES, PlanOptions

__all__ = ["print_plan"]

#: Of a data set, for rules that keep something of each example.
_NUM_EXAMPLES = 10_000
_CAUSES = {
    "peer": "mostly to wait for other stages",
    "latency": "mostly because of latency",
    "bandwidth": "mostly because of the rate",
}
#: A trace with more events holds one step.
_MOST_EVENTS = 40_000
#: Timelines share an axis if none shows so many steps of another.
_SHARED_AXIS = 8.0
_EXPECTED = (
    "expected package.module:factory, an importable factory that takes no arguments and returns a network, or a tuple (network, batch), (network, "
    "batch, target) or (network, batch, target, criterion)"
)


def print_plan(options: PlanOptions) -> int:
    """Make a plan and print it; return the exit status.

    Raises:
        ConfigError: if an option is missing or wrong, the factory fails, or a file cannot be written.
    """
    for folder in (options.out, options.save_costs and options.save_costs.parent):
        if folder is not None:  # before the minutes that a profile of a large network takes
            _made(folder)
    found = _plan(options)
    _print(found)
    if options.save_costs is not None:
        found.costs.write(options.save_costs)
    if options.out is not None:
        _write(found, options.out)
    return 0


def _plan(options: PlanOptions) -> Plan:
    if options.stages is None:
        raise ConfigError("--stages is missing: expected the number of processes, 2 or more")
    if options.stages < 2:
        raise ConfigError(
            f"--stages {options.stages}: expected 2 or more processes, or there is nothing to plan"
        )
    if options.link is None:
        raise ConfigError(
            "--link is missing: expected the link between machines, as in rtt_ms=50,mbit_s=1000"
        )
    for flag, given, known in (
        ("--schedules", options.schedules or (), SCHEDULES),
        ("--codec", options.codec, CODECS),
        ("--rule", (options.rule,) if options.rule else (), RULES),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(
                    f"{flag} '{name}' is unknown{similar(name, known)}; accepted: {', '.join(known)}"
                )
    how: dict[str, Any] = {
        "stages": options.stages,
        "link": parse_link(options.link),
        "speeds": None if options.devices is None else _speeds(options.devices, options.stages),
        "schedules": options.schedules,
        "microbatches": options.microbatches,
        "shares": _numbers("--share", options.share, 0.0, 1.0),
        "codecs": options.codec,
        "accumulate": options.accumulate,
        "window": options.window,
        "rendezvous": options.rendezvous,
    }
    if options.round_trips is not None:
        trips = options.round_trips
        how["round_trips_ms"] = () if trips == "none" else _numbers("--round-trips", trips, 1e-6, 1e9)
    if options.costs is not None:
        if options.model is not None:
            raise ConfigError(
                "--model and --costs are both given: profile the network or read its costs, not both"
            )
        return plan(costs=options.costs, **how)
    if options.model is None:
        raise ConfigError(
            "neither --model nor --costs is given: name a factory, or a file with a table of costs"
        )
    device = choose_device(options.device)
    with _threads(options.threads):
        made = _Given(options, device)
        click.echo(
            f"profiling {type(made.model).__name__} on {device_name(device)}, "
            f"{torch.get_num_threads()} threads, batches of {made.batch_size:,} …",
            err=True,
        )
        return plan(
            made.model,
            made.example,
            target=made.target,
            criterion=made.criterion,
            rule=made.rule(),
            local_loss=made.rule_of("local_loss") if made.wants_local_loss(options.schedules) else None,
            **how,
        )


class _Given:
    """What the factory has returned, on its device."""

    def __init__(self, options: PlanOptions, device: str) -> None:
        assert options.model is not None
        self._options = options
        parts = _called(options.model)
        model = parts[0]
        if not isinstance(model, nn.Module):
            raise ConfigError(f"--model {options.model}: returned {brief(model)} as network; {_EXPECTED}")
        self.model = model.to(device)
        example, target, criterion = (*parts[1:], None, None, None)[:3]
        if example is None:
            example, target = _batch(options)
        to: Callable[[Any], Any] = lambda t: t.to(device) if isinstance(t, Tensor) else t  # noqa: E731
        self.example = pytree.tree_map(to, example)
        self.target = pytree.tree_map(to, target)
        self._output = self._run()
        self.classes = self._classes()
        if criterion is not None and not callable(criterion):
            raise ConfigError(
                f"--model {options.model}: returned {brief(criterion)} as criterion; {_EXPECTED}"
            )
        self.criterion: Any = self._criterion() if criterion is None else criterion

    @property
    def batch_size(self) -> int:
        first = next((t for t in pytree.tree_leaves(self.example) if isinstance(t, Tensor) and t.ndim), None)
        return 1 if first is None else len(first)

    def rule(self) -> Callable[[Site], Rule] | None:
        """Return the rule that was asked for, or one that fits."""
        name = self._options.rule or ("dni" if self.classes is None else "cdni")
        return None if name == "none" else self.rule_of(name)

    def wants_local_loss(self, schedules: Sequence[str] | None) -> bool:
        """Return whether stages with a local loss are planned beside those with the rule."""
        wanted = schedules is None or "local_loss" in schedules
        return wanted and self.classes is not None and self._options.rule != "local_loss"

    def rule_of(self, name: str) -> Callable[[Site], Rule]:
        """Return what makes the rule of a method for each cut.

        Raises:
            ConfigError: if it needs labels, and there are none.
        """
        if self.classes is None and name in ("cdni", "local_loss", "sobolev", "head_gradient"):
            raise ConfigError(
                f"--rule {name} needs labels: let the factory return (network, batch, target) with a target of class "
                "numbers, or use --rule dni"
            )
        method = METHODS[name]
        settings = method.settings("", self._form)
        facts = DataFacts(self.classes or 1, max(_NUM_EXAMPLES, self.batch_size))

        def at(site: Site) -> Rule:
            # A private block is like the module below the cut, which has to be one.
            plain = isinstance(site.module, nn.Embedding)
            return method.make_rule(replace(settings, blocks=0) if plain else settings, facts)

        return at

    @property
    def _form(self) -> str:
        """What the network is, as methods tell their settings apart."""
        if isinstance(self.target, Tensor) and self.target.ndim == 2:
            return "gpt"
        first = next((t for t in pytree.tree_leaves(self.example) if isinstance(t, Tensor)), None)
        return "cnn" if first is not None and first.ndim == 4 and self._is_convolutional else "fcn"

    @property
    def _is_convolutional(self) -> bool:
        """Whether activations are images: a Transformer of patches has one convolution, which makes tokens of them."""
        return sum(isinstance(m, nn.Conv2d) for m in self.model.modules()) > 1

    def _run(self) -> Any:
        args, kwargs = example_arguments(self.example)
        was = self.model.training
        try:
            with torch.no_grad():
                return self.model.eval()(*args, **kwargs)
        except Exception as error:
            raise ConfigError(
                f"--model {self._options.model}: the network cannot be run on its batch ({type(error).__name__}: {error}); "
                f"{_EXPECTED}"
            ) from error
        finally:
            self.model.train(was)

    def _classes(self) -> int | None:
        """Return the number of classes; None where the target is no class numbers or the output is no scores."""
        if not isinstance(self.target, Tensor) or self.target.is_floating_point():
            return None
        scores = self._output if isinstance(self._output, Tensor) else getattr(self._output, "logits", None)
        if not isinstance(scores, Tensor) or scores.ndim != self.target.ndim + 1:
            return None
        return scores.shape[-1]

    def _criterion(self) -> Any:
        if not isinstance(self._output, Tensor):
            return None  # of a model that returns its loss
        if self.classes is None:
            return None if self.target is None else nn.MSELoss()
        kind = TokenCrossEntropy if self.target.ndim == 2 else CrossEntropy
        return kind(reduction="none" if self._options.rule == "sobolev" else "mean")


def _called(name: str) -> tuple[Any, ...]:
    """Return what a factory makes, as a tuple that begins with the network."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = import_attribute(name)()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--model {name}: {type(error).__name__}: {error}; {_EXPECTED}") from error
    if isinstance(made, nn.Module):
        return (made,)
    if isinstance(made, tuple | list) and 1 <= len(made) <= 4:
        return tuple(made)
    raise ConfigError(f"--model {name}: returned {brief(made)}; {_EXPECTED}")


def _batch(options: PlanOptions) -> tuple[Tensor, Tensor]:
    """Return a batch of the data set, for a network that comes without one."""
    if options.data is None:
        raise ConfigError(
            f"--model {options.model}: the factory returns the network alone; let it return (network, batch, target), or "
            "name data with --data"
        )
    data = load(options.data, options.data_dir)
    return data.train.x[: options.batch_size], data.train.y[: options.batch_size]


def _speeds(text: str, stages: int) -> tuple[float, ...]:
    found = _numbers("--devices", text, 0.0, math.inf)
    if min(found) <= 0:
        raise ConfigError(f"--devices {text}: expected speeds over 0, 1 for this machine")
    if len(found) != stages:
        raise ConfigError(
            f"--devices {text}: {len(found)} speeds for {stages} stages; expected one for each, the first stage's first"
        )
    return found


def _numbers(flag: str, text: str, least: float, most: float) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(least <= value <= most and value != math.inf for value in found):
        top = "" if most == math.inf else f" to {most:g}"
        raise ConfigError(f"{flag} {text}: expected numbers from {least:g}{top}, separated by commas")
    return found


@contextmanager
def _threads(count: int | None) -> Generator[None]:
    """Profile with a number of threads, and with memory that stays in the process, as trainings have them."""
    before = torch.get_num_threads()
    configure_process(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- showing ------------------------------------------------------------------------------------------------


def _print(found: Plan) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe has no width, and tables should not be wrapped for it
    shown = Table()
    for k, heading in enumerate(HEADINGS):
        shown.add_column(heading, justify="left" if k < 2 else "right", overflow="fold")
    for cells in found.cells():
        shown.add_row(*map(Text, cells))
    console.print(shown)
    for sentence in found.words:
        console.print(sentence, highlight=False, markup=False, soft_wrap=not console.is_terminal)


def _write(found: Plan, folder: Path) -> None:
    """Write the plan into a folder: as data, as a page, and traces of the best schedules."""
    best = found.best_schedules()
    runs = [found.traced(row) for row in best]
    try:
        write_whole(folder / "plan.json", json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
        write_plan_page(folder / "plan.html", _page(found, best, runs))
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be written ({error.strerror or error}); name another folder with --out"
        ) from error
    found.costs.write(folder / "costs.json")
    names = ["plan.html", "plan.json", "costs.json"]
    for row, run in zip(best, runs, strict=True):
        names.append(f"trace-{row.schedule}.json")
        large = len(run.spans) + 2 * len(run.transfers) > _MOST_EVENTS
        write_trace(folder / names[-1], run, part=steady_part(run) if large else None, owners=row.job.owners)
    click.echo(f"{folder}: {' · '.join(names)}")


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be made ({error.strerror or error}); name another folder"
        ) from error


def _page(found: Plan, best: Sequence[Row], runs: Sequence[Run]) -> PlanPage:
    curve = found.curve
    batch = found.costs.batch_size
    names = {"decoupled": found.best.schedule} if found.curve.steps_s.get("decoupled") else {}
    wires = [wire for link in found.network.links for wire in (link.up, link.down)]
    settings = {
        "network": found.costs.model or "—",
        "batch": f"{batch:,}",
        "stages": str(found.stages),
        "speeds": ", ".join(f"{speed:g}" for speed in found.speeds),
        "cuts": ", ".join(found.cuts) or "—",
        "round trip": f"{1e3 * max(link.rtt_s for link in found.network.links):g} ms",
        "rate": f"{8e-6 * min(w.bytes_per_s for w in wires):,g} Mbit/s",
        **{k.replace("_", " "): _said(v) for k, v in found.settings.items()},
    }
    return PlanPage(
        title=f"Plan: {found.costs.model or 'a network'} on {found.stages} machines",
        words=found.words,
        headings=HEADINGS,
        rows=found.cells(),
        timelines=_timelines(best, runs),
        round_trips_ms=[float(f"{1e3 * s:.6g}") for s in curve.round_trips_s],
        curves={names.get(k, k): [batch / s for s in steps] for k, steps in curve.steps_s.items()},
        here_ms=1e3 * max(link.rtt_s for link in found.network.links),
        settings=list(settings.items()),
    )


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "—" if value is None else str(value)


def _timelines(best: Sequence[Row], runs: Sequence[Run]) -> list[Timeline]:
    steps_s = [run.step_s for run in runs]
    shared = max(steps_s) <= _SHARED_AXIS * min(steps_s)
    found: list[Timeline] = []
    for row, run in zip(best, runs, strict=True):
        steps = (
            max(1.0, round(max(steps_s) / run.step_s)) if shared else 3.0 if row.window is not None else 1.0
        )
        _, end_s = steady_part(run)
        length_s = max(steps_s) if shared else steps * run.step_s
        found.append(_timeline(row, run, max(0.0, end_s - length_s), end_s, row.job.owners))
    return found


def _timeline(row: Row, run: Run, start_s: float, end_s: float, owners: Mapping[int, int]) -> Timeline:
    spans = [s for s in run.spans if s.end_s > start_s and s.start_s < end_s and s.process not in owners]
    first = min((s.batch for s in spans), default=0)

    def number(span: Span) -> int | None:
        if row.microbatches is None:
            return span.batch - first
        return None if span.kind == "update" else span.batch % row.microbatches

    cause = "" if row.idle_for is None else f", {_CAUSES[row.idle_for]}"
    return Timeline(
        title=row.name,
        about=f"{seconds_text(row.step_s)} a step, {100 * max(0.0, run.idle_share):.0f} % idle{cause}.",
        rows=tuple(f"stage {k}" if row.cuts else f"copy {k}" for k in range(len(run.stages))),
        start_s=start_s,
        end_s=end_s,
        bars=tuple(Bar(s.process, s.kind, number(s), s.start_s, s.end_s) for s in spans),
        flights=tuple(
            Flight(owners.get(t.source, t.source), owners.get(t.to, t.to), t.begins_s, t.arrives_s)
            for t in run.transfers
            if t.arrives_s > start_s
            and t.begins_s < end_s
            and owners.get(t.source, t.source) != owners.get(t.to, t.to)
        ),
    )
