"""What the lines measure: methods, and of each schedule several numbers of microbatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "CORRECTED_LATE",
    "DEFAULT",
    "EVERY",
    "GPT_DEFAULT",
    "LOW_RANK_ROWS",
    "METHODS",
    "RANK",
    "SCHEDULES",
    "SPARSE_PROB",
    "Case",
    "cases_of",
]

#: Schedules of ``torch.distributed.pipelining``, with the variants of each.
SCHEDULES = {"gpipe": (None,), "1f1b": (None,), "zero_bubble": ("interleaved", "zbv")}

#: The same with a codec around the modules of their stages.
_ENCODED = {
    f"{schedule}_{wire.replace(' ', '')}": (schedule, wire)
    for schedule in ("gpipe", "1f1b")
    for wire in ("bfloat16", "8 bits")
}

_MICROBATCHES = (2, 4, 8, 16)
#: Share of the true messages that the sparse ones of our methods send.
SPARSE_PROB = 0.25
#: Share of the rows of a batch whose message is sent to an ``M`` of low rank, and that rank.
LOW_RANK_ROWS, RANK = 0.25, 32
#: Steps that a correction may be late at each interface; the experiments `gpt` and `gpt_codecs` have the same.
CORRECTED_LATE = 4

#: Our methods: the share of the true messages that is sent, the precision of what crosses, and the rule.
_OURS = {
    "stages": (1.0, "float32", "cdni"),
    "stages_sparse": (SPARSE_PROB, "float32", "cdni"),
    "stages_local": (1.0, "float32", "local_loss"),
    "stages_bfloat16": (1.0, "bfloat16", "cdni"),
    "stages_sparse_bfloat16": (SPARSE_PROB, "bfloat16", "cdni"),
    "stages_8bits": (1.0, "8 bits", "cdni"),
    "stages_local_bfloat16": (1.0, "bfloat16", "local_loss"),
    "stages_local_8bits": (1.0, "8 bits", "local_loss"),
    "stages_local_4bits": (1.0, "4 bits", "local_loss"),
    "stages_low_rank": (1.0, "float32", "low_rank"),
    "stages_late": (1.0, "float32", "delayed"),
    "stages_late_bfloat16": (1.0, "bfloat16", "delayed"),
    "stages_late_8bits": (1.0, "8 bits", "delayed"),
    "stages_interlocked": (1.0, "float32", "interlocked"),
    "stages_interlocked_8bits": (1.0, "8 bits", "interlocked"),
    "stages_corrected": (1.0, "float32", "late_correction"),
    "stages_corrected_8bits": (1.0, "8 bits", "late_correction"),
}

#: Two of them are bounds, no way to train one network: ``backprop_microbatches`` says what cutting a batch costs one
#: process, ``independent`` what the cores give that have nothing to do with each other.
METHODS = (
    "backprop",
    "backprop_all_threads",
    "backprop_microbatches",
    "independent",
    "ddp",
    *SCHEDULES,
    *_ENCODED,
    *_OURS,
)
#: Those that are measured unless others are named.
DEFAULT = tuple(
    method
    for method in METHODS
    if not method.endswith(("bfloat16", "bits", "late", "low_rank", "corrected", "interlocked"))
)
#: Those of the full tier.
EVERY = (*DEFAULT, "stages_bfloat16", "stages_sparse_bfloat16")
#: The same for a GPT, of which links of a low rate are asked for.
GPT_DEFAULT = tuple(
    method
    for method in METHODS
    if method not in ("zero_bubble", "ddp", "stages_sparse", "stages_sparse_bfloat16")
)


@dataclass(frozen=True, slots=True)
class Case:
    """What a line measures.

    Attributes:
        method: one of `METHODS`.
        microbatches: parts of a batch; None for methods that do not cut it.
        variant: name of the variant, of a schedule that has several.
        observe_prob: share of the true messages that are sent; None for methods that need all.
        wire_dtype: what is sent: a dtype, or bits of a codec.
        rule: of our methods, ``cdni``, ``low_rank`` (the same with a cheaper ``M``), ``local_loss``,
            ``late_correction`` of that, or ``delayed`` or ``interlocked``, with which an update is made of the microbatches.
    """

    method: str
    microbatches: int | None = None
    variant: str | None = None
    observe_prob: float | None = None
    wire_dtype: str = "float32"
    rule: str = "cdni"

    @property
    def observe_rows(self) -> float:
        """The share of the rows of a batch whose true message is sent."""
        return LOW_RANK_ROWS if self.rule == "low_rank" else 1.0

    @property
    def is_alone(self) -> bool:
        """Whether it runs in one process, while the others rest."""
        return self.method.startswith("backprop")

    @property
    def is_bound(self) -> bool:
        """Whether it is a bound for the others, and no way to train one network."""
        return self.method in ("backprop_microbatches", "independent")

    def batches(self, stages: int) -> int:
        """Return how many batches all processes together train on in a step."""
        return stages if self.method == "independent" else 1

    @property
    def is_pipeline(self) -> bool:
        """Whether it is a synchronous pipeline."""
        return self.schedule is not None

    @property
    def schedule(self) -> str | None:
        """The schedule of a synchronous pipeline."""
        return (
            _ENCODED[self.method][0]
            if self.method in _ENCODED
            else self.method
            if self.method in SCHEDULES
            else None
        )

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our methods."""
        return self.observe_prob is not None

    def window(self, stages: int) -> int | None:
        """Return how many steps an answer may be late; None if that follows the link.

        Of late gradients a step is a microbatch, and they are as many as make the lowest stage one update late. Those of
        interlocked losses come from the next stage, and do not add up.
        """
        if self.rule == "late_correction":
            return CORRECTED_LATE
        if self.microbatches is None or not self.is_ours:
            return None
        return self.microbatches if self.rule == "interlocked" else self.microbatches // (stages - 1)

    def threads(self, stages: int, threads: int) -> int:
        """Return how many threads each of its processes has, where others have ``threads``."""
        return stages * threads if self.method == "backprop_all_threads" else threads

    @property
    def chunks_per_stage(self) -> int:
        """Parts of the network that a process runs: two in schedules without bubbles."""
        return 2 if self.method == "zero_bubble" else 1


def cases_of(methods: Sequence[str], stages: int, most_parts: int, batch_size: int) -> list[Case]:
    """Return what is measured: backpropagation first, then what is named, as far as it can be made.

    ``most_parts`` is the number of parts into which the network can be divided.

    A schedule is left out where the network has too few layers for its parts, and of the numbers of microbatches those
    that it does not take, or that leave no two examples for BatchNorm.
    """
    cases = [Case("backprop")]
    for method in METHODS[1:]:
        if method not in methods:
            continue
        if method in SCHEDULES or method in _ENCODED:
            schedule, wire = _ENCODED.get(method, (method, "float32"))
            found = [
                Case(method, count, variant, wire_dtype=wire)
                for variant in SCHEDULES[schedule]
                for count in _counts(batch_size)
                if _takes(schedule, variant, count, stages)
            ]
            cases += [case for case in found if case.chunks_per_stage * stages <= most_parts]
        elif method == "backprop_microbatches":
            cases += [Case(method, count) for count in _counts(batch_size)]
        elif method in _OURS:
            prob, dtype, rule = _OURS[method]
            counts: dict[str, Sequence[int | None]] = {
                "delayed": [count for count in _counts(batch_size) if count >= stages - 1],
                "interlocked": _counts(batch_size),
            }
            cases += [
                Case(method, count, observe_prob=prob, wire_dtype=dtype, rule=rule)
                for count in counts.get(rule, [None])
            ]
        else:
            cases.append(Case(method))
    return cases


def _counts(batch_size: int) -> list[int]:
    """Return the numbers of microbatches that a batch can be cut into."""
    return [count for count in _MICROBATCHES if batch_size % count == 0 and batch_size >= 2 * count]


def _takes(method: str, variant: str | None, count: int, stages: int) -> bool:
    """Return whether a schedule takes so many microbatches, by PyTorch's own checks."""
    if method == "1f1b":
        return count >= stages
    return variant != "interleaved" or count % max(1, count // stages) == 0
