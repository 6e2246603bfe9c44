"""The benchmarks: what each measures, its parameters, and their values by tier.

A benchmark is an entry here, and a module with the code that measures. This module does not load PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..names import METHODS, RECURRENT
from ..options import option
from .declaration import Declaration, Scope, batch_sizes, by_tier, layers, methods, rounds, widths
from .pipeline.declared import CODECS, PIPELINE, PipelineScope

__all__ = [
    "BENCHMARKS",
    "DENSE_METHODS",
    "FAULTS",
    "GPT",
    "GPT_METHODS",
    "HEAD_METHODS",
    "KILLED_METHODS",
    "LAYER_PARALLEL_METHODS",
    "LSTM_METHODS",
    "NETWORKS",
    "NETWORK_METHODS",
    "PLAN",
    "PLAN_PARTS",
    "TOKEN_HEAD",
    "FaultsScope",
    "ChaosScope",
    "GptScope",
    "KillsScope",
    "LayerParallelScope",
    "MemoryScope",
    "NetworksScope",
    "PipelineScope",
    "PlanScope",
    "StepScope",
    "TokenHeadScope",
    "UnrollScope",
]

_LEARN = "Also train to an accuracy, and time that."
_UNROLL = "Steps of an unroll."


_EAGER, _BOTH = ("eager",), ("eager", "compiled")


def _modes() -> Any:
    return option(_EAGER, help="With torch.compile, without, or both.", listed=True, choices=_BOTH)


def _precision() -> Any:
    return option(
        "float32", help="Precision of the arithmetic.", choices=("float32", "bfloat16"), default="float32"
    )


# -- step -------------------------------------------------------------------------------------------------

#: What the tiers measure. A method that came later is measured where it is named, so that a tier has the lines it had.
_STEP_METHODS = (
    *("backprop", "no_bprop", "dni", "cdni", "stale", "local_loss", "sobolev", "delayed"),
    *("dni_unlock", "cdni_unlock"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepScope(Scope):
    """Parameters of ``bench step``."""

    widths: tuple[int, ...] = widths()
    layers: tuple[int, ...] = layers()
    batch_sizes: tuple[int, ...] = batch_sizes()
    methods: tuple[str, ...] = methods(tuple(METHODS), _STEP_METHODS)
    modes: tuple[str, ...] = _modes()
    rounds: int = rounds()
    arch: str = option(
        "fcn", help="Network: fully connected or convolutional.", choices=("fcn", "cnn"), default="fcn"
    )
    precision: str = _precision()
    learn: bool = option(False, help=f"{_LEARN[:-1]}; fully connected networks only.", kind=bool)
    seconds: float = 0.2
    schedule: str = "quick"


_FCN_STEPS = by_tier(
    StepScope,
    widths=[(32,), (64, 256), (64, 256, 1024)],
    layers=[(3,), (2, 4, 8), (2, 4, 8, 16)],
    batch_sizes=[(32,), (256,), (256,)],
    modes=[_EAGER, _EAGER, _BOTH],
    rounds=[2, 15, 15],
    seconds=[0.01, 0.2, 0.2],
    schedule=["smoke", "quick", "quick"],
)
_CNN_STEPS = by_tier(
    StepScope,
    arch="cnn",
    widths=[(4,), (32,), (32, 128)],
    layers=[(3,), (3, 4), (3, 4)],
    batch_sizes=[(8,), (128,), (256,)],
    modes=[_EAGER, _EAGER, _BOTH],
    rounds=[2, 15, 15],
    seconds=[0.01, 0.2, 0.2],
)

STEP = Declaration(
    "step",
    "time of a training step of every method, over a hand-written backprop loop",
    "step",
    _FCN_STEPS,
    {"fcn": _FCN_STEPS, "cnn": _CNN_STEPS},
    ("", "--width 64 --layers 4,8 --methods cdni,delayed", "--arch cnn --precision bfloat16"),
)

# -- memory -----------------------------------------------------------------------------------------------

DENSE_METHODS = ("backprop", "checkpointing", "in_process")
LSTM_METHODS = ("full_bptt", "bptt", "dni", "dni_aux")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScope(Scope):
    """Parameters of ``bench memory``."""

    widths: tuple[int, ...] = widths()
    layers: tuple[int, ...] = layers()
    batch_sizes: tuple[int, ...] = batch_sizes()
    methods: tuple[str, ...] = methods(tuple(dict.fromkeys((*DENSE_METHODS, *LSTM_METHODS))), DENSE_METHODS)
    unrolls: tuple[int, ...] = option(
        (), help=f"{_UNROLL[:-1]}, with --arch lstm.", flag="--unroll", kind=int, listed=True, least=1
    )
    horizons: tuple[int, ...] = ()
    rounds: int = rounds("Steps that are timed.")
    arch: str = option(
        "fcn", help="Network: fully connected, or an LSTM.", choices=("fcn", "lstm"), default="fcn"
    )


_DENSE = by_tier(
    MemoryScope,
    widths=[(32,), (256,), (1024,)],
    layers=[(3, 5), (5, 9, 17, 33), (5, 9, 17, 33)],
    batch_sizes=[(64,), (1024,), (2048,)],
    rounds=[1, 3, 3],
)
_LSTM = by_tier(
    MemoryScope,
    arch="lstm",
    methods=LSTM_METHODS,
    widths=[(16,), (256,), (1024,)],
    layers=(),
    batch_sizes=[(8,), (256,), (256,)],
    unrolls=[(2, 4), (5, 10, 20), (5, 10, 20)],
    horizons=[(8,), (40, 120, 360), (40, 120, 360)],
    rounds=[1, 3, 3],
)

MEMORY = Declaration(
    "memory",
    "bytes held for backward, and peak memory: backprop, activation checkpointing, in-process",
    "memory.{arch}",
    _DENSE,
    {"fcn": _DENSE, "lstm": _LSTM},
    ("", "--layers 9,33 --methods in_process", "--arch lstm --unroll 5,20"),
)

# -- unroll -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class UnrollScope(Scope):
    """Parameters of ``bench unroll``."""

    widths: tuple[int, ...] = widths()
    batch_sizes: tuple[int, ...] = batch_sizes(1)
    unrolls: tuple[int, ...] = option(help=_UNROLL, flag="--unroll", kind=int, listed=True, least=1)
    methods: tuple[str, ...] = methods(tuple(RECURRENT))
    rounds: int = rounds()
    seconds: float = 0.3


UNROLL = Declaration(
    "unroll",
    "time of an unroll of a recurrent network, over a hand-written truncated BPTT",
    "unroll",
    by_tier(
        UnrollScope,
        widths=[(16,), (256,), (256, 1024)],
        batch_sizes=[(8,), (256,), (256,)],
        unrolls=[(3,), (3, 5, 10, 20), (2, 3, 4, 5, 8, 20, 40)],
        rounds=[2, 15, 15],
        seconds=[0.01, 0.3, 0.3],
    ),
    examples=("", "--unroll 3,10 --methods dni"),
)

# -- layer-parallel ---------------------------------------------------------------------------------------

LAYER_PARALLEL_METHODS = (
    *("backprop_eager", "backprop_compiled", "backprop_cudagraph"),
    *("layer_parallel", "layer_parallel_general"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParallelScope(Scope):
    """Parameters of ``bench layer-parallel``."""

    widths: tuple[int, ...] = widths()
    layers: tuple[int, ...] = layers(3)  # one at least between the first and the last
    batch_sizes: tuple[int, ...] = batch_sizes()
    methods: tuple[str, ...] = methods(LAYER_PARALLEL_METHODS)
    modes: tuple[str, ...] = _modes()
    rounds: int = rounds()
    learn: bool = option(False, help=_LEARN, kind=bool)
    seconds: float = 0.1
    schedule: str = "quick"


LAYER_PARALLEL = Declaration(
    "layer-parallel",
    "time of a step over depth: all layers in one batch, and backprop eager, compiled, in a CUDA graph",
    "layer_parallel",
    by_tier(
        LayerParallelScope,
        widths=[(16,), (64,), (64, 256, 1024)],
        layers=[(4,), (4, 16, 32), (4, 8, 16, 32, 64, 128)],
        batch_sizes=[(32,), (32,), (32, 256)],
        methods=[LAYER_PARALLEL_METHODS[:-1], LAYER_PARALLEL_METHODS[:-1], LAYER_PARALLEL_METHODS],
        modes=[_EAGER, _BOTH, _BOTH],
        rounds=[2, 15, 15],
        seconds=[0.01, 0.1, 0.3],
        schedule=["smoke", "quick", "quick"],
    ),
    examples=("", "--width 64 --layers 4,16,64", "--layers 16 --learn"),
)

# -- gpt --------------------------------------------------------------------------------------------------

GPT_METHODS = (
    *("backprop", "delayed", "cdni", "local_loss", "interlocked", "head_gradient", "late_correction"),
)


def _features() -> Any:
    return option(
        help="Features of a token, a multiple of twice the heads.",
        flag="--width",
        kind=int,
        listed=True,
        least=2,
    )


def _heads() -> Any:
    return option(help="Attention heads of a block.", kind=int, least=1)


def _contexts() -> Any:
    return option(help="Tokens of a sequence.", flag="--context", kind=int, listed=True, least=1)


def _vocabularies() -> Any:
    return option(
        help="Tokens that there are to choose from.", flag="--vocabulary", kind=int, listed=True, least=2
    )


def _sequences() -> Any:
    return option(help="Sequences in a batch.", flag="--batch-size", kind=int, listed=True, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GptScope(Scope):
    """Parameters of ``bench gpt``."""

    layers: tuple[int, ...] = option(help="Blocks.", kind=int, listed=True, least=2)
    widths: tuple[int, ...] = _features()
    heads: int = _heads()
    contexts: tuple[int, ...] = _contexts()
    vocabularies: tuple[int, ...] = _vocabularies()
    batch_sizes: tuple[int, ...] = _sequences()
    modules: tuple[int, ...] = option(
        help="Modules of equal numbers of blocks.", kind=int, listed=True, least=2
    )
    accumulate: tuple[int, ...] = option(
        help="Batches of an update; above 1 with backprop, and delayed by every number of versions of the weights.",
        kind=int,
        listed=True,
        least=1,
    )
    methods: tuple[str, ...] = methods(GPT_METHODS)
    precision: str = _precision()
    rounds: int = rounds("Updates that are timed, in turns with one of the loop.")


GPT = Declaration(
    "gpt",
    "time of a step and memory of every rule on a GPT, over a hand-written backprop loop",
    "gpt",
    by_tier(
        GptScope,
        layers=[(4,), (4,), (12,)],
        widths=[(16,), (128,), (768,)],
        heads=[2, 4, 12],
        contexts=[(8,), (64,), (1024,)],
        vocabularies=[(20,), (65,), (50_304,)],
        batch_sizes=[(4,), (32,), (8,)],
        modules=[(2,), (2, 4), (2, 4)],
        accumulate=(1, 4),
        rounds=[2, 15, 10],
    ),
    examples=(
        "",
        "--modules 4 --methods local_loss,late_correction --accumulate 1",
        "--width 256 --context 128",
    ),
)

# -- token-head -------------------------------------------------------------------------------------------

HEAD_METHODS = ("whole_logits", "token_head")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHeadScope(Scope):
    """Parameters of ``bench token-head``."""

    vocabularies: tuple[int, ...] = _vocabularies()
    widths: tuple[int, ...] = _features()
    heads: int = _heads()
    contexts: tuple[int, ...] = _contexts()
    batch_sizes: tuple[int, ...] = _sequences()
    blocks: tuple[int, ...] = option(help="Private blocks of the head.", kind=int, listed=True, least=0)
    num_chunks: tuple[int, ...] = option(
        help="Parts in which the token head makes its logits.",
        flag="--chunks",
        kind=int,
        listed=True,
        least=1,
    )
    methods: tuple[str, ...] = methods(HEAD_METHODS)
    rounds: int = rounds("Steps that are timed.")


TOKEN_HEAD = Declaration(
    "token-head",
    "logits that the head of a language model holds at once, beside a head that makes them as a whole",
    "token_head",
    by_tier(
        TokenHeadScope,
        vocabularies=[(500,), (50_000,), (50_000, 128_000)],
        widths=[(32,), (768,), (768,)],
        heads=[2, 12, 12],
        contexts=[(64,), (1024,), (1024,)],
        batch_sizes=[(2,), (2,), (8,)],
        blocks=(0, 1),
        num_chunks=[(4, 16), (16,), (16,)],
        rounds=[2, 3, 10],
    ),
    examples=("", "--blocks 1 --chunks 4,16,64"),
)

# -- plan -------------------------------------------------------------------------------------------------

#: What the planner is held against.
PLAN_PARTS = ("public", "scale", "records", "new", "cuts")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanScope(Scope):
    """Parameters of ``bench plan``."""

    what: tuple[str, ...] = option(
        help="What is predicted: figures that others published, large networks over many links, records of bench "
        "pipeline, settings that no record has, or cuts.",
        listed=True,
        choices=PLAN_PARTS,
    )
    records: str | None = option(
        None, help="Folders of bench pipeline with what was measured.", metavar="DIR,DIR", default="none"
    )
    costs: str | None = option(
        None,
        help="Folders of bench pipeline with one-process lines of this machine, for new settings.",
        metavar="DIR,DIR",
        default="none",
    )
    settings: str = option("1", help="Which set of new settings.", choices=("1", "2"), default="1")
    rounds: int = rounds("Rounds in which cuts take turns.")


PLAN = Declaration(
    "plan",
    "what the planner predicts, beside what was measured here and elsewhere",
    "plan.bench",
    by_tier(
        PlanScope,
        what=[("public",), ("public", "scale"), ("public", "scale", "cuts")],
        rounds=[2, 5, 7],
    ),
    examples=(
        "",
        "--what records --records results/bench_pipeline,results/bench_pipeline_round_trips",
        "--what cuts",
    ),
    cpu_only=True,
)

# -- networks ---------------------------------------------------------------------------------------------

NETWORK_METHODS = ("plain", "in_process", "stages", "layer_parallel")

#: The networks of the zoo, in its order.
NETWORKS = (
    *("MLP", "residual CNN", "DenseNet", "TransformerEncoder, padding mask", "LSTM classifier"),
    *("two inputs", "dict output", "ResNet-18", "ViT", "Swin", "ConvNeXt", "EfficientNet", "GPT-2"),
    *("GPT-2, tied embeddings", "Llama", "BERT", "ResNet-18 (timm)", "ViT (timm)"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworksScope(Scope):
    """Parameters of ``bench networks``."""

    methods: tuple[str, ...] = methods(NETWORK_METHODS, help="Engines that train the networks.")
    arch: str | None = option(
        None,
        help="One network alone.",
        metavar="NAME",
        choices=NETWORKS,
        default="all; MLP and an encoder in the smoke tier",
    )
    batch_size: int = option(8, help="Examples in the largest batches.", kind=int, least=2)
    rounds: int = rounds("Steps of each training.")
    names: tuple[str, ...] = NETWORKS


NETWORKS_BENCH = Declaration(
    "networks",
    "which networks each engine trains exactly as backpropagation does, and which it refuses",
    "networks.bench",
    by_tier(NetworksScope, rounds=5, names=[("MLP", "TransformerEncoder, padding mask"), NETWORKS, NETWORKS]),
    examples=("", "--arch BERT --methods in_process,stages"),
    cpu_only=True,
)

# -- survival ---------------------------------------------------------------------------------------------

KILLED_METHODS = ("backprop", "cdni", "delayed", "dni")
FAULTS = ("killed", "frozen", "raises")


@dataclass(frozen=True, slots=True, kw_only=True)
class KillsScope(Scope):
    """Parameters of ``bench kills``."""

    methods: tuple[str, ...] = methods(KILLED_METHODS, help="Methods whose runs are killed.")
    rounds: int = rounds("Kills of all runs together.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DamageScope(Scope):
    """Parameters of ``bench damage``."""

    methods: tuple[str, ...] = ("reader",)
    rounds: int = rounds("Damaged inputs of all sorts together.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultsScope(Scope):
    """Parameters of ``bench faults``."""

    methods: tuple[str, ...] = methods(FAULTS, help="Faults that happen.")
    stages: tuple[int, ...] = option(help="Processes of a run.", kind=int, listed=True, least=2)


KILLS = Declaration(
    "kills",
    "runs killed at random moments and resumed, held bit by bit against runs that were not",
    "survival.kills",
    by_tier(KillsScope, rounds=[10, 200, 2000]),
    examples=("", "--methods delayed --rounds 40"),
    cpu_only=True,
)
DAMAGE = Declaration(
    "damage",
    "damaged data, texts, records, snapshots, parcels and command lines: refused, told, or gone on with",
    "survival.damage",
    by_tier(DamageScope, rounds=[200, 10_000, 100_000]),
    examples=("", "--rounds 500"),
    cpu_only=True,
)
FAULTS_BENCH = Declaration(
    "faults",
    "one rank of a run on stages is killed, frozen or raises: how long until the others end, and what they say",
    "survival.faults",
    by_tier(FaultsScope, "smoke", "quick", methods=[("killed",), FAULTS], stages=[(2,), (2, 3)]),
    examples=("", "--stages 2 --methods frozen"),
    cpu_only=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosScope(Scope):
    """Parameters of ``bench chaos``."""

    stages: tuple[int, ...] = option(help="Processes of a run.", kind=int, listed=True, least=2)
    methods: tuple[str, ...] = methods(
        ("stages", "1f1b_restarts"),
        help="Stages that go on, with and without faults; 1F1B that torchrun starts again.",
    )
    rules: tuple[str, ...] = option(
        ("cdni",), help="Rules at the ends of stages.", listed=True, choices=("cdni", "local_loss")
    )
    arch: str = option(
        "fcn", help="Network: fully connected, or a GPT.", choices=("fcn", "gpt"), default="fcn"
    )
    synthetic: bool = True
    width: int = 128
    layers: int = 8
    batch_size: int = 64
    period_ms: float = 20.0
    data: str = "mnist"
    rounds: int = 1


_CHAOS_FCN = by_tier(
    ChaosScope,
    stages=[(3,), (4,), (4,)],
    seconds=[30.0, 900.0, 900.0],
    width=[16, 128, 512],
    data=["mnist-10k", "mnist", "mnist"],
)
_CHAOS_GPT = by_tier(
    ChaosScope,
    arch="gpt",
    stages=[(2,), (4,), (4,)],
    seconds=[30.0, 900.0, 900.0],
    rules=("local_loss",),
    synthetic=False,
    width=[16, 128, 256],
    layers=[2, 4, 8],
    batch_size=[8, 32, 32],
    period_ms=[40.0, 200.0, 800.0],
    data=["shakespeare-50k", "shakespeare", "shakespeare"],
)
CHAOS = Declaration(
    "chaos",
    "stages are killed, frozen and cut off, and the others go on: pace, time to return, and error",
    "survival.chaos",
    _CHAOS_FCN,
    networks={"fcn": _CHAOS_FCN, "gpt": _CHAOS_GPT},
    examples=("", "--stages 3", "--arch gpt --methods stages"),
    cpu_only=True,
)

ABSENT = ("none", "lower", "middle", "upper")
_ABSENCE_RULES = ("cdni", "dni", "local_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsenceScope(Scope):
    """Parameters of ``bench absence``."""

    methods: tuple[str, ...] = methods(ABSENT, help="The stage that is dead for the middle third of the run.")
    rules: tuple[str, ...] = option(
        _ABSENCE_RULES,
        help="Rules at the ends of stages.",
        listed=True,
        choices=_ABSENCE_RULES,
    )
    inputs: tuple[str, ...] = option(
        ("real", "synthetic"),
        help="What a stage does without the one below: wait for real inputs, or train on synthetic ones.",
        listed=True,
        choices=("real", "synthetic"),
    )
    settle: int = option(
        0,
        help="Answers of a stage that has come back from which the one below does not learn.",
        kind=int,
        metavar="N",
        least=0,
        default="0",
    )
    fresh: bool = option(
        False, help="Let the process that takes the place begin with fresh weights.", kind=bool
    )
    stages: int = 4
    width: int = 128
    layers: int = 8
    batch_size: int = 64
    data: str = "mnist"
    rounds: int = rounds("Steps that a stage can make in the time of a run.")


ABSENCE = Declaration(
    "absence",
    "one stage is dead for a third of a run: what the others learn without it, by rule",
    "survival.absence",
    by_tier(
        AbsenceScope,
        rounds=[96, 3_000, 9_000],
        width=[16, 128, 512],
        data=["mnist-10k", "mnist", "mnist"],
        rules=[("cdni",), _ABSENCE_RULES, _ABSENCE_RULES],
        inputs=[("synthetic",), ("real", "synthetic"), ("real", "synthetic")],
    ),
    examples=(
        "",
        "--seeds 0,1,2",
        "--rules cdni --inputs synthetic --methods upper",
        "--rules cdni --methods upper --fresh --settle 100",
    ),
    cpu_only=True,
)

#: The benchmarks by name, in the order of lists.
BENCHMARKS: Mapping[str, Declaration] = {
    each.name: each
    for each in (
        *(STEP, MEMORY, UNROLL, LAYER_PARALLEL, PIPELINE, CODECS, GPT, TOKEN_HEAD, PLAN, NETWORKS_BENCH),
        *(KILLS, DAMAGE, FAULTS_BENCH, CHAOS, ABSENCE),
    )
}
