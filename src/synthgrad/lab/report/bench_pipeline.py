"""What tables and plots show of ``bench pipeline``: of each schedule the best number of microbatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Record
from .fields import number, part
from .sheet import DASH, unit

__all__ = ["PIPELINE_ABOUT", "PIPELINE_PEERS", "PIPELINE_SIZES", "pipeline_cells", "without_rivals"]

PIPELINE_ABOUT = (
    "One network trained in several processes. Methods take turns, in rounds; a ratio is of the times of a step, taken in "
    "each round, and “10–90 %” is its spread over rounds. “Best pipeline” is the fastest of the synchronous schedules, "
    "each with the best of its numbers of microbatches; the others stand in the records. “Sent” is what all processes "
    "together send in a step: counted for stages, reckoned from the sizes of the tensors for the others. “Peak memory” is "
    "that of the largest process. “Of it for microbatches” is the part of a step that a stage loses because batches are "
    "cut into them, as measured in one process without stages. “With the other rate” is the time to the accuracy at another learning rate, which "
    "methods with true gradients are allowed."
)

PIPELINE_PEERS: Mapping[str, str] = {
    "backprop_all_threads": "backprop, all threads",
    "backprop_microbatches": "backprop in microbatches",
    "independent": "backprop, a network in each process",
    "ddp": "data parallel",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "zero_bubble": "zero bubble",
    "stages_sparse": "stages",
    "stages_local": "stages",
    "stages_bfloat16": "stages, bfloat16 sent",
    "stages_sparse_bfloat16": "stages, bfloat16 sent",
}

#: Columns that say what was measured, not what came out.
PIPELINE_SIZES = ("stages", "round trip", "rate", "microbatches")


def without_rivals(name: str, records: Sequence[Record]) -> list[Record]:
    """Return the lines of a benchmark without those of schedules that were faster with other microbatches."""
    if name != "pipeline":
        return list(records)
    return [r for r in records if part(r, "metrics").get("is_best") is not False]


def pipeline_cells(record: Record) -> dict[str, str]:
    """Return the columns of a line that only this benchmark has."""
    cell, metrics = part(record, "cell"), part(record, "metrics")
    low, high = (number(metrics, f"ratio_to_best_pipeline_p{p}") for p in (10, 90))
    rtt, rate, count = (number(cell, name) for name in ("rtt_ms", "mbit_s", "microbatches"))
    threads, stages = number(cell, "threads"), number(cell, "stages")
    if record.get("method") == "backprop_all_threads" and threads is not None and stages is not None:
        threads *= stages  # a cell names those of a stage
    emulated = rtt is not None and cell.get("link") != "loopback"
    return {
        "threads": DASH if threads is None else f"{threads:g}",
        "stages": DASH if stages is None else f"{stages:g}",
        "round trip": f"{rtt:g} ms" if emulated else DASH,
        "rate": DASH if rate is None else f"{rate:g} Mbit/s",
        "microbatches": DASH if count is None else f"{count:g}",
        "step": unit("ms", number(metrics, "step_ms_median")),
        "throughput": unit("examples_per_s", number(metrics, "examples_per_s")),
        "ratio to best pipeline": unit("ratio", number(metrics, "ratio_to_best_pipeline")),
        "10–90 %": DASH if low is None or high is None else f"{low:.2f}–{high:.2f}",
        "ratio to backprop": unit("ratio", number(metrics, "ratio_to_backprop")),
        "of it for microbatches": unit("ms", number(metrics, "microbatch_overhead_ms")),
        "sent": unit("bytes", number(metrics, "sent_bytes_per_step")),
        "peak memory": unit("bytes", number(metrics, "peak_bytes")),
        "with the other rate": unit("s", number(metrics, "time_to_accuracy_other_lr_s")),
    }
