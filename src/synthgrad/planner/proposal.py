"""The plan: which schedule is the fastest for a model on some machines and a link, cut where, and whether decoupling pays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import ConfigError, Rule, Site, SynthgradError
from ..core.given import brief, check_whole, similar
from .cuts import balanced_cuts
from .links import Link, Network, parse_link
from .menu import KINDS, Menu, Row
from .profile import profile_model
from .run import Run
from .simulation import Machine, simulate
from .table import CostTable
from .verdict import ROUND_TRIPS_MS, Curve, best_of, curve_of, pays
from .words import bytes_text, link_text, number_text, seconds_text, text_table

if TYPE_CHECKING:
    from .programs import Codec

__all__ = ["HEADINGS", "Plan", "plan"]

RuleFactory = Callable[[Site], Rule]

#: Of `Plan.table`, and of the texts of `Plan.cells`.
HEADINGS = ("schedule", "setting", "step", "examples/s", "idle", "sent/step", "memory", "age")

_MICROBATCHES = (2, 4, 8, 16, 32)
_DASH = "—"


@dataclass(frozen=True)
class Plan:
    """Schedules for a model on some machines, compared.

    Attributes:
        costs: of the model's parts.
        network: between the processes.
        speeds: of the processes' machines.
        rows: a schedule each, the fastest first. All are of the same examples.
        curve: steps over round trips.
        left_out: why schedules have no row.
        settings: what was asked for, as plain containers.
        machines: processes that share cores.
    """

    costs: CostTable
    network: Network
    speeds: tuple[float, ...]
    rows: tuple[Row, ...]
    curve: Curve = field(default_factory=Curve)
    left_out: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    machines: tuple[Machine, ...] = ()

    @property
    def stages(self) -> int:
        """The number of processes."""
        return len(self.speeds)

    @property
    def best(self) -> Row:
        """The fastest decoupled stages; without any the fastest delayed gradients, and without these the fastest row."""
        found = best_of(self.rows, "decoupled") or best_of(self.rows, "delayed")
        return found or self.rows[0]

    @property
    def cuts(self) -> list[str]:
        """Names of the submodules after which `best` cuts, for `decouple`."""
        return list(self.best.cuts)

    @property
    def window(self) -> int | None:
        """The window of `best`, for `Stages`; None if it has none."""
        return self.best.window

    @property
    def pays(self) -> bool | None:
        """Whether decoupled stages are faster than every synchronous schedule; None if one of the two was not planned."""
        decoupled, synchronous = (best_of(self.rows, kind) for kind in ("decoupled", "synchronous"))
        if decoupled is None or synchronous is None:
            return None
        return pays(decoupled.step_s, synchronous.step_s)

    @property
    def break_even_s(self) -> float | None:
        """The round trip from which on decoupled stages are faster than every synchronous schedule.

        0 if they are at the shortest round trip that was tried; None if they are at none.
        """
        return self.curve.pays[0][0] if self.curve.pays else None

    @property
    def words(self) -> list[str]:
        """What the plan says, in sentences."""
        return _words(self)

    def best_schedules(self, most: int = 3) -> list[Row]:
        """Return the best rows of different schedules, the fastest first: of each kind one, then what is the fastest.

        One machine alone comes last of the synchronous ones.
        """
        several = [row for row in self.rows if row.schedule != "backprop"]
        best = [best_of(several, kind) for kind in ("decoupled", "synchronous", "delayed")]
        found: dict[str, Row] = {}
        for row in (*best, *several, *self.rows):
            if row is not None:
                found.setdefault(row.schedule, row)
        return sorted(list(found.values())[:most], key=lambda row: row.step_s)

    def traced(self, row: Row) -> Run:
        """Return the run of a row with its trace: every computation and every message."""
        machines = () if row.schedule == "backprop" else self.machines  # it has one process
        return simulate(
            row.job, self.network, machines=machines, trace=True, seed=self.settings.get("seed", 0)
        )

    def cells(self) -> list[list[str]]:
        """Return the rows as texts, one for each of `HEADINGS`."""
        return [_cells(row) for row in self.rows]

    def table(self) -> str:
        """Return the rows as a table in plain text."""
        return text_table(HEADINGS, self.cells(), left=2)

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.words])

    def to_dict(self) -> dict[str, Any]:
        """Return everything but traces, as plain containers."""
        return {
            "model": self.costs.model,
            "batch_size": self.costs.batch_size,
            "stages": self.stages,
            "speeds": list(self.speeds),
            "network": _finite(self.network),
            "settings": dict(self.settings),
            "cuts": self.cuts,
            "window": self.window,
            "pays": self.pays,
            "break_even_ms": None if self.break_even_s is None else 1e3 * self.break_even_s,
            "words": self.words,
            "rows": [_row_dict(row) for row in self.rows],
            "left_out": dict(self.left_out),
            "curve": {
                "round_trips_ms": [1e3 * s for s in self.curve.round_trips_s],
                "step_ms": {name: [1e3 * s for s in steps] for name, steps in self.curve.steps_s.items()},
            },
            "costs": self.costs.to_dict(),
        }


def plan(
    model: nn.Module | None = None,
    example: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
    *,
    stages: int,
    link: Link | Sequence[Link] | Network | str,
    costs: CostTable | str | Path | None = None,
    rule: Rule | RuleFactory | None = None,
    local_loss: Rule | RuleFactory | None = None,
    criterion: Callable[[Any, Any], Tensor] | None = None,
    target: Any = None,
    optimizer: Callable[[Any], Any] | None = None,
    speeds: Sequence[float] | None = None,
    schedules: Sequence[str] | None = None,
    microbatches: Sequence[int] | None = None,
    shares: Sequence[float] = (1.0, 0.25),
    codecs: Sequence[str | Codec] = ("float32", "bfloat16"),
    accumulate: int = 1,
    window: int | None = None,
    rendezvous: bool = False,
    machines: Sequence[Machine] = (),
    round_trips_ms: Sequence[float] = ROUND_TRIPS_MS,
    seed: int = 0,
) -> Plan:
    """Return a plan: every schedule simulated for a model, some machines and a link, and whether decoupling pays.

    The model is profiled on its device with the current number of threads, or its costs come from a table. Each schedule is
    cut where its slowest stage is fastest, pipelines are simulated with several numbers of microbatches, and stages with the
    smallest window that a wider one does not beat by 2 %.

    Args:
        model: any network; copies of it are run. Not needed with ``costs``.
        example: one batch, as `decouple` takes it. Not needed with ``costs``.
        stages: the number of processes, 2 or more, each on a machine of its own.
        link: between neighbours, also as text such as ``"rtt_ms=50,mbit_s=1000"``; one for each pair of neighbours; or a
            `Network`.
        costs: a table, or the JSON file of one.
        rule: of the decoupled stages, see `profile_model`; None for a rule that costs nothing.
        local_loss: a rule that learns from a loss of its own, for a row of such stages; the row is left out if it cannot be
            profiled.
        criterion: see `profile_model`.
        target: see there.
        optimizer: see there; None for its default.
        speeds: of the machines, from the first stage on; 1 is the one that was profiled. None for equal ones.
        schedules: names from ``backprop``, ``gpipe``, ``1f1b``, ``interleaved_1f1b``, ``zero_bubble``, ``zero_bubble_v``,
            ``data_parallel``, ``stages``, ``local_loss`` and ``delayed``; None for all of them.
        microbatches: numbers to choose from; None for 2 to 32, as far as they divide the batch.
        shares: of the messages that stages send.
        codecs: of activations, messages and gradients: ``float32``, ``bfloat16``, ``int8``, or a codec. Schedules without a
            rule have a row for a further codec only if this saves 5 % of their step.
        accumulate: batches to an update, of every schedule.
        window: steps that an answer may be late; None to choose it.
        rendezvous: a message starts when its receiver asks for it. Of a `Network` its own setting counts.
        machines: processes that share cores; others have a core of their own.
        round_trips_ms: round trips to try for the break-even; an empty sequence for none, which saves most of the time.
        seed: of draws, jitter and losses.

    Raises:
        ConfigError: if there are fewer than two stages or the model cannot be cut into so many, a name is unknown, the
            number of speeds or links does not fit, a link has no bandwidth, or no schedule can be done.
        CutError: if the model cannot be cut at all.

    >>> from synthgrad.planner.costs import StageCost
    >>> from synthgrad.planner.table import CostTable, ModuleCost
    >>> layer = StageCost(forward_s=0.002, backward_s=0.004, output_bytes=2**19)
    >>> table = CostTable(tuple(ModuleCost(f"layer{k}", layer) for k in range(8)), batch_size=256)
    >>> found = plan(costs=table, stages=4, link="rtt_ms=50,mbit_s=1000")
    >>> found.cuts, found.window
    (['layer1', 'layer3', 'layer5'], 7)
    """
    check_whole("stages", stages, 2, "number of processes, each with a stage")
    names = _chosen(schedules)
    network = _network(link, stages, rendezvous)
    found_codecs = _codecs(codecs)
    for share in shares:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(f"shares: {brief(share)}: expected shares of the messages, from 0 to 1")
    if not shares:
        raise ConfigError("shares=(): expected one share of the messages or more, from 0 to 1")
    check_whole("accumulate", accumulate, 1, "number of batches to an update")
    if window is not None:
        check_whole("window", window, 0, "number of steps that an answer may be late")
    for rtt_ms in round_trips_ms:
        if not 0 < rtt_ms < math.inf:
            raise ConfigError(f"round_trips_ms: {brief(rtt_ms)}: expected milliseconds over 0")
    table, local_table = _tables(
        model, example, costs, rule, local_loss if "local_loss" in names else None,
        {"criterion": criterion, "target": target} | ({} if optimizer is None else {"optimizer": optimizer}),
    )  # fmt: skip
    # Says at once what is wrong with stages and speeds, whatever the schedules.
    balanced_cuts(table, stages, speeds=speeds)
    menu = Menu(
        table=table,
        stages=stages,
        schedules=names,
        speeds=(1.0,) * stages if speeds is None else tuple(float(speed) for speed in speeds),
        microbatches=_counts(microbatches, table.batch_size, stages),
        shares=tuple(shares),
        codecs=found_codecs,
        accumulate=accumulate,
        window=window,
        local_table=local_table,
        machines=machines,
        seed=seed,
    )
    rows = menu.rows(network)
    if not rows:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in menu.left_out.items())
        raise ConfigError(f"no schedule is left ({reasons}); expected others of {', '.join(KINDS)}")
    left_out = dict(menu.left_out)
    curve = curve_of(menu, network, best_of(rows, "decoupled"), [1e-3 * ms for ms in round_trips_ms])
    settings = {
        "schedules": list(names),
        "microbatches": list(menu.microbatches),
        "shares": list(shares),
        "codecs": [codec.name for codec in found_codecs],
        "accumulate": accumulate,
        "window": window,
        "seed": seed,
        "rule": _rule_said(table),
    }
    return Plan(table, network, menu.speeds, tuple(rows), curve, left_out, settings, tuple(machines))


# -- what was given -----------------------------------------------------------------------------------------


def _chosen(schedules: Sequence[str] | None) -> tuple[str, ...]:
    if schedules is None:
        return tuple(KINDS)
    given = [schedules] if isinstance(schedules, str) else list(schedules)
    for name in given:
        if name not in KINDS:
            raise ConfigError(
                f"schedule {brief(name)} is unknown{similar(str(name), KINDS)}; expected some of {', '.join(KINDS)}"
            )
    if not given:
        raise ConfigError(f"no schedules: expected some of {', '.join(KINDS)}")
    return tuple(name for name in KINDS if name in given)


def _network(link: Link | Sequence[Link] | Network | str, stages: int, rendezvous: bool) -> Network:
    if isinstance(link, Network):
        network = link
    else:
        network = Network.of(parse_link(link) if isinstance(link, str) else link, rendezvous=rendezvous)
    for each in network.links:
        if not isinstance(each, Link):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"link={brief(each)}: expected a Link, or a text such as rtt_ms=50,mbit_s=1000")
        for wire in (each.up, each.down):
            if not wire.bytes_per_s > 0:
                raise ConfigError(
                    f"a link of {wire.bytes_per_s:g} bytes per second carries nothing: expected a rate over 0"
                )
    if len(network.links) not in (1, stages - 1):
        raise ConfigError(
            f"{len(network.links)} links for {stages} stages: expected one for all, or {stages - 1}, one for each pair of "
            "neighbours"
        )
    return network


def _codecs(codecs: Sequence[str | Codec]) -> list[Codec]:
    from .programs import CODECS

    found: list[Codec] = []
    for codec in [codecs] if isinstance(codecs, str) else codecs:
        if isinstance(codec, str):
            if codec not in CODECS:
                raise ConfigError(
                    f"codec '{codec}' is unknown{similar(codec, CODECS)}; expected some of {', '.join(CODECS)}"
                )
            codec = CODECS[codec]
        found.append(codec)
    if not found:
        raise ConfigError(f"no codecs: expected some of {', '.join(CODECS)}")
    return found


def _counts(given: Sequence[int] | None, batch: int, stages: int) -> tuple[int, ...]:
    """Return the numbers of microbatches to try."""
    if given is not None:
        for count in given:
            check_whole("microbatches", count, 1, "number of microbatches")
            if count > batch:
                raise ConfigError(f"{count} microbatches of a batch of {batch}: expected {batch} at most")
        if not given:
            raise ConfigError("microbatches=(): expected one number or more")
        return tuple(given)
    most = _MICROBATCHES[-1]
    tried = [*_MICROBATCHES, *(n for n in (stages, 2 * stages) if n > most)]
    fitting = [n for n in tried if n <= batch]
    return tuple(n for n in fitting if batch % n == 0) or tuple(fitting)


def _tables(
    model: nn.Module | None,
    example: Any,
    costs: CostTable | str | Path | None,
    rule: Rule | RuleFactory | None,
    local_loss: Rule | RuleFactory | None,
    how: dict[str, Any],
) -> tuple[CostTable, CostTable | str]:
    """Return the costs with the rule, and those with a local loss in its place, or why they are not known."""
    if costs is not None:
        if not isinstance(costs, CostTable | str | Path):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"costs={brief(costs)}: expected a CostTable, or the path of its JSON file")
        table = costs if isinstance(costs, CostTable) else CostTable.read(costs)
    else:
        if model is None or example is None:
            raise ConfigError(
                "neither a model with an example nor costs: expected plan(model, example, …), or plan(costs=…)"
            )
        table = profile_model(model, example, rule=rule, **how)
    if model is None or example is None or local_loss is None:
        return table, "the costs of a local loss are not known"
    try:
        return table, profile_model(model, example, rule=local_loss, candidates=table.names, **how)
    except SynthgradError as error:  # it is there for comparison, and must not cost the others their rows
        return table, str(error)


def _rule_said(table: CostTable) -> str | None:
    costs = [module.cost for module in table.modules[:-1]]
    if not any(cost.credit_s or cost.observe_s or cost.local_s for cost in costs):
        return "costs nothing"
    return None


# -- what it says -------------------------------------------------------------------------------------------


def _cells(row: Row) -> list[str]:
    run = row.run
    cause = f" {row.idle_for}" if row.idle_for is not None else ""
    age = _DASH if run.mean_age is None else f"{run.mean_age:.1f}"
    return [
        row.schedule,
        row.setting or _DASH,
        seconds_text(row.step_s),
        number_text(row.examples_per_s),
        f"{100 * max(0.0, run.idle_share):.0f} %{cause}",
        bytes_text(row.bytes_per_step) if row.bytes_per_step else _DASH,
        bytes_text(row.memory_bytes),
        age,
    ]


def _words(plan: Plan) -> list[str]:
    found = [_where(plan)]
    decoupled, synchronous, delayed = (
        best_of(plan.rows, kind) for kind in ("decoupled", "synchronous", "delayed")
    )
    if decoupled is not None and synchronous is not None:
        found += [_verdict(decoupled, synchronous), *_over_round_trips(plan)]
    found += _alone(plan, decoupled)
    if decoupled is not None and (age := decoupled.run.mean_age) is not None:
        found.append(f"Messages are {age:.1f} steps old on average when rules learn from them.")
    local = min(
        (row for row in plan.rows if row.schedule == "local_loss"), key=lambda row: row.step_s, default=None
    )
    if local is not None and decoupled is not None and decoupled.schedule != "local_loss":
        found.append(
            f"With a local loss in place of the rule, {local.name}, a step takes {seconds_text(local.step_s)}."
        )
    if delayed is not None:
        age = delayed.run.mean_age
        old = "" if age is None else f", and are {age:.1f} steps old on average"
        found.append(
            f"True gradients that come late, {delayed.name}, take {seconds_text(delayed.step_s)} a step{old}."
        )
    found.append(
        "All rows are of the same examples: they compare throughput, not what is learned. Pipelines and data parallel training "
        "learn what backpropagation learns; stages learn from the credit of rules, and delayed gradients are out of date. What "
        "that costs in accuracy is not simulated."
    )
    if plan.settings.get("rule") == "costs nothing":
        found.append("The table has no costs of a rule: real rules take time, which is missing here.")
    if min(plan.speeds) < max(plan.speeds) and any(row.schedule == "data_parallel" for row in plan.rows):
        found.append(
            "Data parallel processes have equal shares of the batch, so the slowest machine sets the pace."
        )
    found += [f"{name} is left out: {reason}." for name, reason in plan.left_out.items()]
    return found


def _where(plan: Plan) -> str:
    best = plan.best
    model = plan.costs.model or "The network"
    speeds = (
        ""
        if min(plan.speeds) == max(plan.speeds)
        else f" of speeds {', '.join(f'{s:g}' for s in plan.speeds)}"
    )
    after = f", cut after {', '.join(best.cuts)}" if best.cuts else ""
    return f"{model} on {plan.stages} machines{speeds}{after}; {link_text(plan.network)}; batches of {plan.costs.batch_size:,}."


def _verdict(decoupled: Row, synchronous: Row) -> str:
    ratio = synchronous.step_s / decoupled.step_s
    ours = f"{decoupled.name} takes {seconds_text(decoupled.step_s)} a step"
    theirs = (
        f"{_called(synchronous)}, the fastest schedule that learns as backpropagation does, takes "
        f"{seconds_text(synchronous.step_s)}"
    )
    if pays(decoupled.step_s, synchronous.step_s):
        return f"Decoupling pays: {ours}; {theirs}. That is {ratio:.2f} times as many examples a second."
    if pays(synchronous.step_s, decoupled.step_s):
        return f"Decoupling does not pay: {ours}; {theirs}. That is {100 * (1 - ratio):.0f} % fewer examples a second."
    return f"Decoupling makes no difference: {ours}; {theirs}."


def _called(row: Row) -> str:
    return "backpropagation on one machine" if row.schedule == "backprop" else row.name


def _over_round_trips(plan: Plan) -> list[str]:
    tried = plan.curve.round_trips_s
    if not tried:
        return []
    shortest, longest = seconds_text(tried[0]), seconds_text(tried[-1])
    if not plan.curve.pays:
        return [
            f"It pays at no round trip from {shortest} to {longest}, the rest of the link being the same."
        ]
    spans: list[str] = []
    for begin, end in plan.curve.pays:
        if begin == 0 and end == math.inf:
            spans.append(f"at every round trip from {shortest} to {longest}")
        elif end == math.inf:
            spans.append(f"from a round trip of {_two_digits(begin)} on, as far as {longest}")
        elif begin == 0:
            spans.append(f"up to a round trip of {_two_digits(end)}")
        else:
            spans.append(f"at round trips from {_two_digits(begin)} to {_two_digits(end)}")
    return [f"It pays {' and '.join(spans)}, the rest of the link being the same."]


def _two_digits(seconds: float) -> str:
    return seconds_text(float(f"{seconds:.2g}"))


def _alone(plan: Plan, decoupled: Row | None) -> list[str]:
    """Return what the best row gains over one machine."""
    one = next((row for row in plan.rows if row.schedule == "backprop"), None)
    other = decoupled or next((row for row in plan.rows if row.schedule != "backprop"), None)
    if one is None or other is None:
        return []
    ratio = one.step_s / other.step_s
    said = f"One machine alone takes {seconds_text(one.step_s)} a step"
    if ratio >= 1:
        return [f"{said}: {plan.stages} machines are {ratio:.2f} times as fast with {other.name}."]
    return [f"{said}, less than {plan.stages} machines with {other.name}: {seconds_text(other.step_s)}."]


# -- as data ------------------------------------------------------------------------------------------------


def _row_dict(row: Row) -> dict[str, Any]:
    scale = row.batch_size / row.run.batch_size
    found = row.run.to_dict()
    return {
        **found,
        "schedule": row.schedule,
        "learns": row.kind,
        "step_ms": 1e3 * row.step_s,
        "idle_cause": row.idle_for,
        "bytes_per_step": scale * found["bytes_per_step"],
        "memory_bytes": row.memory_bytes,
        "cuts": list(row.cuts),
        "microbatches": row.microbatches,
        "share": row.share,
        "codec": row.codec,
        "window": row.window,
    }


def _finite(network: Network) -> dict[str, Any]:
    """Return a network as plain containers, with None for a rate without limit."""

    def wire(of: Any) -> dict[str, Any]:
        found = {
            name: getattr(of, name) for name in ("delay_s", "bytes_per_s", "occupied_s", "jitter_s", "loss")
        }
        return {name: None if value == math.inf else value for name, value in found.items()}

    rest = ("rendezvous", "inbound", "congestion", "burst_bytes", "startup_s", "copy_s_per_byte")
    links = [{"up": wire(link.up), "down": wire(link.down)} for link in network.links]
    return {"links": links, **{name: getattr(network, name) for name in rest}}
