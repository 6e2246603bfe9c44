"""``bench plan``: predicted beside measured, a record for each line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from ....core import ConfigError
from ....core.errors import DataError
from ...records import Cell, Config, Env, Metrics, Record
from ...training.machine import describe_environment
from ..base import Bench, Figures, Setting
from ..declarations import PLAN, PlanScope
from .fit import fit, named
from .lines import Line, Session, read_sessions
from .new import NEW
from .predict import Overheads, predict

__all__ = ["BENCHMARK", "PlanBench"]

#: A row that is not made yet: its method and cell, and what makes its metrics.
Row = Mapping[str, Any]


class PlanBench(Bench[PlanScope, Any, Any]):
    """Records of other benchmarks, published figures, and a grid of links; see `names.PLAN_PARTS`."""

    declared = PLAN
    axes = {}
    optimizer = ""

    def settings(self, scope: PlanScope) -> list[Setting]:
        return [self._part(scope, what) for what in scope.what]

    def cases(self, scope: PlanScope, size: Any) -> Sequence[Any]:
        return ()

    def cell(self, scope: PlanScope, size: Any, case: Any) -> Mapping[str, Any]:
        return {}

    def label(self, scope: PlanScope, size: Any) -> str:
        return "plan"

    def measure(self, scope: PlanScope, size: Any, cases: Sequence[Any]) -> Iterator[Figures]:
        return iter(())

    def _part(self, scope: PlanScope, what: str) -> Setting:
        if what == "records":
            return _against_records(scope)
        if what == "new":
            return _of_new_settings(scope)
        if what == "cuts":
            from .cuts import cut_rows  # builds networks

            return _of_rows(scope, what, partial(cut_rows, scope.rounds, scope.threads))
        if what == "public":
            from .public import public_rows

            return _of_rows(scope, what, public_rows)
        from .scale import scale_rows

        return _of_rows(scope, what, scale_rows)


def _record(
    scope: PlanScope, what: str, method: str, cell: Mapping[str, Any], batch_size: int | None
) -> Record:
    return Record(
        experiment="plan",
        tier=scope.tier,
        method=method,
        seed=0,
        cell=Cell({"what": what, **cell}),
        steps=1,
        batch_size=batch_size,
        config=Config({"device": scope.device}),
    )


def _finished(line: Record, metrics: Mapping[str, Any], scope: PlanScope, **config: Any) -> Record:
    return replace(
        line,
        metrics=Metrics(dict(metrics)),
        config=Config({**line.config, **config}),
        status="ok",
        env=Env(describe_environment(scope.device)),
    )


# -- our own records ----------------------------------------------------------------------------------------


def _against_records(scope: PlanScope) -> Setting:
    sessions = read_sessions(_folders("--records", scope.records))
    pairs = [(line, session) for session in sessions for line in session.lines]
    lines = [
        _record(scope, "records", line.method, _cell(line, session), line.batch_size)
        for line, session in pairs
    ]

    def measure() -> Iterator[Record]:
        chosen = named(sessions)
        overheads = fit(chosen)
        fitted = {id(line) for line, _ in chosen}
        for record, (line, session) in zip(lines, pairs, strict=True):
            metrics = _figures(line, session, overheads) | {"is_fitted": id(line) in fitted}
            yield _finished(record, metrics, scope)

    return Setting(f"plan: {len(lines)} lines of bench pipeline", lines, measure)


def _of_new_settings(scope: PlanScope) -> Setting:
    known = read_sessions(_folders("--costs", scope.costs))
    measured = read_sessions(_folders("--records", scope.records)) if scope.records else []
    chosen = NEW[scope.settings]
    cells = [{"set": scope.settings, **_cell(line)} for line in chosen]
    lines = [
        _record(scope, "new", line.method, cell, line.batch_size)
        for line, cell in zip(chosen, cells, strict=True)
    ]

    def measure() -> Iterator[Record]:
        late = Overheads(
            relay_ms=1.0
        )  # a whole costs folder says how late links are here; a tenth of one does not
        overheads = fit([(line, session) for session in known for line in session.lines], late)
        for record, line in zip(lines, chosen, strict=True):
            session = _session_of(line, known, chosen)
            yield _finished(record, _figures(_with_measured(line, measured), session, overheads), scope)

    return Setting(f"plan: {len(lines)} new settings", lines, measure)


def _session_of(line: Line, known: Iterable[Session], chosen: Iterable[Line]) -> Session:
    """Return what is known of a line's network: of the last folder, the session that measured one process on it over the
    loopback device.

    The connections have carried what the line's own run carries before it.
    """
    same = (line.layers, line.width, line.batch_size)
    sessions = [s for s in known if s.sizes == same]
    if not sessions:
        raise DataError(
            f"--costs: no one-process line of {line.layers} layers × {line.width} with batch {line.batch_size}; measure "
            "method backprop on it, in the folder that --costs names"
        )
    together = tuple(
        other
        for other in chosen
        if (other.rtt_ms, other.mbit_s, other.stages) == (line.rtt_ms, line.mbit_s, line.stages)
    )
    still = [s for s in sessions if not s.emulated] or sessions
    first = next(s for s in still if s.name == still[-1].name)
    return replace(first, lines=together)


def _with_measured(line: Line, sessions: Iterable[Session]) -> Line:
    for session in sessions:
        for other in session.lines:
            if replace(other, measured_ms=None) == line:
                return other
    return line


def _figures(line: Line, session: Session, overheads: Overheads) -> dict[str, Any]:
    run = predict(line, session, overheads)
    found: dict[str, Any] = {"predicted_ms": 1e3 * run.step_s}
    if line.measured_ms is not None:
        step, low, high = line.measured_ms
        found |= {
            "measured_ms": step,
            "measured_ms_p10": low,
            "measured_ms_p90": high,
            "error_pct": 100 * (1e3 * run.step_s / step - 1),
        }
    return found | {
        "idle_share": run.idle_share,
        "idle_cause": run.idle_cause,
        "mean_age": run.mean_age,
        **{f"overhead_{name}": value for name, value in overheads.to_dict().items()},
    }


def _cell(line: Line, session: Session | None = None) -> dict[str, Any]:
    cell = {f.name: getattr(line, f.name) for f in fields(line) if f.name not in ("method", "measured_ms")}
    return cell if session is None else {"session": session.name, "machine": session.machine, **cell}


def _folders(flag: str, text: str | None) -> list[Path]:
    names = [] if text is None else [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(
            f"bench plan: {flag} is missing; name folders of 'synthgrad bench pipeline', separated by commas"
        )
    return [Path(name) for name in names]


# -- everything else ----------------------------------------------------------------------------------------


def _of_rows(scope: PlanScope, what: str, make: Callable[..., Iterable[Row]]) -> Setting:
    """Return the setting of rows whose names are known before they are worked out."""
    declared = list(make(names_only=True))
    lines = [_record(scope, what, row["method"], row["cell"], row.get("batch_size")) for row in declared]

    def measure() -> Iterator[Record]:
        for record, row in zip(lines, make(), strict=True):
            yield _finished(record, row["metrics"], scope)

    return Setting(f"plan: {what}", lines, measure)


BENCHMARK = PlanBench()
