"""Time to a validation loss: the updates that runs without a link took to it, times a steady step over the link.

The runs are those of an experiment on the same GPT, such as ``gpt_codecs``, in one process: where their modules are those of
the stages, their weights are too, bit for bit, as long as lags are those of the stages. Where the loss lies between two
evaluations, the updates do too, in the same proportion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from ....core import ConfigError
from ...records import Record, read
from .cases import CORRECTED_LATE, Case
from .network import Size

__all__ = ["LossRuns", "loss_runs", "steady"]

_LOSS = "val_bits_per_char"
#: Rounds in a row, of which the steadiest count.
_WINDOWS = 3


@dataclass(frozen=True, slots=True)
class LossRuns:
    """Runs of one network whose losses are known.

    Attributes:
        runs: of one size, each finished.
        target: validation loss that they are followed to, in bits per character.
    """

    runs: Mapping[Case, Sequence[Record]]
    target: float

    def times(self, case: Case, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the updates and the seconds to the loss; None where a run does not reach it; nothing without runs."""
        if case not in self.runs:
            return {}
        reached = [_updates_to(self.target, run) for run in self.runs[case]]
        known = [updates for updates in reached if updates is not None]
        updates = mean(known) if len(known) == len(reached) else None
        step_ms = metrics.get("steady_step_ms") or metrics["step_ms_median"]
        return {
            "target_val_bits": self.target,
            "num_loss_runs": len(reached),
            "steps_to_loss": updates,
            "time_to_loss_s": None if updates is None else updates * step_ms * 1e-3,
        }


def loss_runs(folder: str, cases: Sequence[Case], size: Size, target: float | None) -> LossRuns:
    """Return the runs of a folder that are of the network of a benchmark, by what it measures.

    Args:
        folder: with records of runs.
        cases: what is measured.
        size: of what is measured.
        target: validation loss in bits per character; None for the lowest that all of the runs reach.

    Raises:
        ConfigError: if the folder has no such run, or runs of several texts.
    """
    path = Path(folder) / "results.jsonl"
    if not path.is_file():
        raise ConfigError(f"--losses {folder}: expected a folder with the records of runs, results.jsonl")
    records, _ = read(path)
    fitting = [record for record in records if record.status in ("ok", "diverged") and _fits(record, size)]
    texts = sorted({_text(record) for record in fitting})
    if len(texts) > 1:
        raise ConfigError(
            f"--losses {folder}: its runs are of several texts ({'; '.join(texts)}), whose losses cannot be compared; give a "
            "folder with runs of one"
        )
    found = {
        case: runs for case in cases if (runs := _of_one_setting(r for r in fitting if _is_of(r, case, size)))
    }
    if not found:
        raise ConfigError(
            f"--losses {folder}: none of its {len(records)} records is of a GPT of {size.layers} blocks × {size.width}, "
            f"{size.heads} heads, {size.context} tokens, updates of {size.batch_size} sequences, {size.optimizer}, "
            f"{size.precision}, in {size.stages} modules; give runs of the network that is measured"
        )
    if target is None:
        well = [run for runs in found.values() for run in runs if run.status == "ok"]
        target = max((min(_curve(run).values()) for run in well), default=math.inf)
    return LossRuns(found, target)


def steady(times_ms: Sequence[float]) -> tuple[float, float] | None:
    """Return the middle of the steadiest rounds in a row, and by how many percent these differ; None if there are too few.

    >>> steady([9.0, 10.0, 10.1, 10.05])
    (10.05, 1.0)
    """
    windows = [times_ms[k : k + _WINDOWS] for k in range(len(times_ms) - _WINDOWS + 1)]
    if not windows:
        return None
    spread_pct, middle = min((100 * (max(w) / min(w) - 1), median(w)) for w in windows)
    return middle, round(spread_pct, 3)


def _fits(record: Record, size: Size) -> bool:
    """Return whether a run is of the network, and has updates of as many tokens."""
    cell, config = record.cell, record.config
    sequences = (record.batch_size or 0) * (config.get("accumulate") or 1)
    precision = cell.precision or config.precision or "float32"
    return (
        (cell.arch, cell.layers, cell.width, cell.get("heads"), cell.get("context"), sequences)
        == ("gpt", size.layers, size.width, size.heads, size.context, size.batch_size)
        and str(config.get("optimizer", "adam")).lower() == size.optimizer
        and precision == size.precision
        and bool(_curve(record))
    )


def _of_one_setting(runs: Iterable[Record]) -> list[Record]:
    """Return the runs of one setting: of those with the fewest updates the best, by the mean of what its seeds reach."""
    by_setting: dict[tuple[float, str], list[Record]] = {}
    for run in runs:
        updates = (run.steps or 0) / (run.config.get("accumulate") or 1)
        setting = json.dumps(dict(run.config), sort_keys=True)
        by_setting.setdefault((updates, setting), []).append(run)
    if not by_setting:
        return []
    fewest = min(updates for updates, _ in by_setting)
    return min(
        (found for (updates, _), found in by_setting.items() if updates == fewest),
        key=lambda found: mean(min(_curve(run).values()) for run in found),
    )


def _text(record: Record) -> str:
    """Return which text a run has learned, and as what: losses of others cannot be compared."""
    cell = record.cell
    parts = (cell.data, cell.get("tokens"), cell.get("vocabulary"), "tied" if cell.get("tied") else None)
    return ", ".join(str(part) for part in parts if part is not None)


def _is_of(record: Record, case: Case, size: Size) -> bool:
    """Return whether a run computes what a case does, without a link."""
    rule, modules = record.config.rule, record.cell.get("modules")
    codec, late = rule.get("codec") or "float32", rule.delay or 0
    wire = case.wire_dtype.replace(" ", "")
    if rule.get("message_codec") not in (None, codec) or case.method == "independent":
        return False
    if not case.is_ours and wire == "float32":
        return record.method == "backprop"
    if modules != size.stages or codec != wire:
        return False
    if not case.is_ours:
        return record.method == "delayed" and not late
    if case.rule in ("delayed", "interlocked"):
        # However many microbatches there are: all are learned from one update late. A head has a private block.
        is_late = late > 0 and (record.config.get("accumulate") or 1) > 1
        return record.method == case.rule and is_late and not rule.get("blocks")
    linear = case.rule not in ("local_loss", "late_correction") or rule.get("blocks") == 0
    if case.rule == "late_correction" and (late, rule.get("share"), rule.get("weight")) != (
        CORRECTED_LATE,
        None,
        None,
    ):
        return False
    return record.method == case.rule and case.observe_prob == 1 and linear


def _curve(record: Record) -> dict[float, float]:
    """Return losses by updates."""
    size = record.config.get("accumulate") or 1
    points = [(point.step, point.number(_LOSS)) for point in record.curve]
    return {step / size: loss for step, loss in points if step is not None and loss is not None}


def _updates_to(target: float, record: Record) -> float | None:
    """Return the updates to a loss, between evaluations in proportion; None if it is not reached."""
    before: tuple[float, float] | None = None
    for updates, loss in sorted(_curve(record).items()):
        if loss <= target:
            if before is None:
                return updates
            share = (before[1] - target) / (before[1] - loss)
            return before[0] + share * (updates - before[0])
        before = updates, loss
    return None
