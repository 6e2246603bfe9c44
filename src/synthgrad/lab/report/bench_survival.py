"""The tables of ``bench kills`` and ``bench damage``: what runs survived, and what became of damaged inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Record
from .fields import number, part, text
from .sheet import DASH, Sheet, unit

__all__ = ["SURVIVAL_ABOUT", "damage_sheet", "kills_sheet"]

SURVIVAL_ABOUT: Mapping[str, str] = {
    "kills": (
        "Tiny runs that were killed at random moments and started again with --resume until they ended. “Equal”: losses, "
        "metrics and every bit of the weights are those of a run that was not killed. “Lost” is the work of a kill, since "
        "the last snapshot or the start of the process; there a snapshot is written every twentieth of a second."
    ),
    "damage": (
        "Inputs with flipped bits, cut short, with zeroes or halves swapped, each read once. “As given”: still a whole input, "
        "only another one, of a kind that has no checksum."
    ),
}


def kills_sheet(records: Sequence[Record]) -> Sheet:
    """Return a row for each loop and engine.

    Args:
        records: the lines of the benchmark, at least one; each is a kill.
    """
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        cell = part(record, "cell")
        key = (text(cell.get("engine"), 30), text(cell.get("loop"), 30))
        groups.setdefault(key, []).append(record)
    rows: list[tuple[str, ...]] = []
    for (engine, loop), kills in groups.items():
        lost = sorted(v for r in kills if (v := number(part(r, "metrics"), "lost_s")) is not None)
        hard = sum(part(r, "cell").get("signal") == "SIGKILL" for r in kills)
        rows.append(
            (
                engine,
                loop,
                str(len(kills)),
                str(hard),
                str(sum(r.get("status") == "ok" for r in kills)),
                unit("s", lost[len(lost) // 2]) if lost else DASH,
                unit("s", lost[-1]) if lost else DASH,
            )
        )
    reasons = dict.fromkeys(text(r.get("error"), 300) for r in records if r.get("status") != "ok")
    return Sheet(
        title="bench/kills",
        headings=("engine", "loop", "kills", "by SIGKILL", "equal", "lost, median", "lost, most"),
        rows=tuple(rows),
        bad=tuple(any(r.get("status") != "ok" for r in kills) for kills in groups.values()),
        failures=tuple(reasons),
    )


_OUTCOMES: Mapping[str, str] = {
    "refused": "refused in a line",
    "warned": "told, went on",
    "unchanged": "no change",
    "as_given": "as given",
    "silently_wrong": "silently wrong",
    "traceback": "traceback",
    "hang": "hang",
}


def damage_sheet(records: Sequence[Record]) -> Sheet:
    """Return a row for each kind of input.

    Args:
        records: the lines of the benchmark, at least one; each counts what became of the inputs of a kind.
    """
    rows: list[tuple[str, ...]] = []
    for record in records:
        metrics = part(record, "metrics")
        counts = [number(metrics, name) for name in ("inputs", *_OUTCOMES)]
        words = (DASH if count is None else f"{count:,.0f}" for count in counts)
        rows.append((text(part(record, "cell").get("input"), 40), *words))
    return Sheet(
        title="bench/damage",
        headings=("input", "damaged", *_OUTCOMES.values()),
        rows=tuple(rows),
        bad=tuple(r.get("status") != "ok" for r in records),
        failures=tuple(text(r.get("error"), 300) for r in records if r.get("status") != "ok"),
    )
