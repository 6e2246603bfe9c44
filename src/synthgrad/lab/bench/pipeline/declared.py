"""What the benchmarks of links declare: pipelines, and the codecs on their wires. See ``declaration.py``."""

from __future__ import annotations

from dataclasses import dataclass

from ...options import option
from ..declaration import Declaration, Scope, batch_sizes, by_tier, layers, methods, rounds, widths
from .cases import DEFAULT, EVERY, GPT_DEFAULT, METHODS

__all__ = ["CODECS", "CODEC_NAMES", "PIPELINE", "CodecsScope", "PipelineScope"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineScope(Scope):
    """Parameters of ``bench pipeline``."""

    widths: tuple[int, ...] = widths()
    layers: tuple[int, ...] = layers(3)
    batch_sizes: tuple[int, ...] = batch_sizes(4)
    stages: tuple[int, ...] = option(
        help="Processes that the network is divided among.", kind=int, listed=True, least=2
    )
    methods: tuple[str, ...] = methods(METHODS)
    rounds: int = rounds()
    link: str | None = option(
        None,
        help="Emulate this link between the processes; on Linux, as root.",
        metavar="rtt_ms=X,mbit_s=Y,…",
        default="the loopback device",
    )
    slow: str | None = option(
        None,
        help="Let stages sleep, so that they take so many times as long; methods stages… alone.",
        metavar="STAGE:FACTOR,…",
        default="none",
    )
    cuts: str = option(
        "equal",
        help="Divide the network into as many layers for each process, or where the planner cuts after measuring them.",
        choices=("equal", "planned"),
        default="equal",
    )
    learn: bool = option(
        False, help="Also train to an accuracy, and time that; fully connected networks only.", kind=bool
    )
    losses: str | None = option(
        None,
        help="Records of runs of the same GPT, such as those of gpt_codecs: add the time to a validation loss.",
        metavar="DIR",
        default="none",
    )
    target_bits: float | None = option(
        None,
        help="That loss, in bits per character.",
        kind=float,
        metavar="X",
        default="the lowest that all of these runs reach",
    )
    arch: str = option(
        "fcn",
        help="Network: fully connected, or a GPT on random tokens.",
        choices=("fcn", "gpt"),
        default="fcn",
    )
    precision: str = option(
        "float32", help="Precision of the arithmetic.", choices=("float32", "bfloat16"), default="float32"
    )
    optimizer: str = option(
        "adam",
        help="Optimizer of all methods.",
        choices=("adam", "adamw", "muon"),
        default="adam; muon for a GPT",
    )
    heads: int = 4
    context: int = 64
    seconds: float = 1.0
    schedule: str = "quick"


_FCN_PIPELINE = by_tier(
    PipelineScope,
    widths=[(16,), (512,), (512,)],
    layers=[(5,), (9,), (9,)],
    batch_sizes=[(8,), (256,), (256, 2048)],
    stages=(2,),
    methods=[DEFAULT, DEFAULT, EVERY],
    rounds=[2, 5, 7],
    seconds=[0.02, 1.0, 3.0],
    schedule=["smoke", "quick", "full"],
)
_GPT_PIPELINE = by_tier(
    PipelineScope,
    arch="gpt",
    precision=["float32", "bfloat16", "bfloat16"],
    optimizer="muon",
    widths=[(16,), (128,), (768,)],
    layers=[(4,), (4,), (12,)],
    heads=[2, 4, 12],
    context=[8, 64, 512],
    batch_sizes=[(8,), (32,), (16,)],
    stages=[(2,), (4,), (4,)],
    methods=GPT_DEFAULT,
    rounds=[2, 5, 7],
    seconds=[0.02, 3.0, 10.0],
    schedule=["smoke", "quick", "full"],
)

PIPELINE = Declaration(
    "pipeline",
    "throughput of stages over a link, beside backprop, data parallel and pipeline schedules",
    "pipeline.bench",
    _FCN_PIPELINE,
    {"fcn": _FCN_PIPELINE, "gpt": _GPT_PIPELINE},
    (
        "",
        "--stages 2,4 --methods gpipe,stages",
        "--link rtt_ms=50,mbit_s=1000",
        "--arch gpt --link rtt_ms=50,mbit_s=20",
    ),
    cpu_only=True,
)

#: What is measured by ``bench codecs``; the first sends float32 as it is.
CODEC_NAMES = (
    *("float32", "bfloat16", "8_bits", "4_bits", "subspace_32", "subspace_32_8_bits"),
    *("largest_1_16", "largest_1_64"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecsScope(Scope):
    """Parameters of ``bench codecs``."""

    widths: tuple[int, ...] = option(
        help="Features of a token.", flag="--width", kind=int, listed=True, least=32
    )
    tokens: tuple[int, ...] = option(help="Tokens in a batch.", kind=int, listed=True, least=1)
    methods: tuple[str, ...] = methods(CODEC_NAMES)
    rounds: int = rounds()
    seconds: float = 0.1


CODECS = Declaration(
    "codecs",
    "bytes, time and error of every codec of activations and messages",
    "codecs",
    by_tier(
        CodecsScope,
        widths=[(64,), (128, 768), (128, 768)],
        tokens=[(32,), (2048,), (2048, 8192)],
        rounds=[2, 15, 15],
        seconds=[0.005, 0.1, 0.1],
    ),
    examples=("", "--width 768 --methods 8_bits,4_bits"),
)
