"""The names of benchmarks and of their methods, for shells to complete."""

from __future__ import annotations

from ..names import RECURRENT as _RECURRENT

__all__ = ["BENCHMARKS", "METHODS_OF_BENCHMARKS", "MODES"]

RECURRENT = tuple(_RECURRENT)
BENCHMARKS = (
    "step",
    "memory",
    "unroll",
    "layer-parallel",
    "pipeline",
    "networks",
    "kills",
    "damage",
    "faults",
)
#: Benchmarks that measure other things than all methods.
METHODS_OF_BENCHMARKS = {
    "memory": ("backprop", "checkpointing", "in_process"),
    "unroll": RECURRENT,
    "layer-parallel": (
        *("backprop_eager", "backprop_compiled", "backprop_cudagraph"),
        *("layer_parallel", "layer_parallel_general"),
    ),
    "pipeline": (
        *("backprop", "backprop_all_threads", "backprop_microbatches", "independent", "ddp"),
        *("gpipe", "1f1b", "zero_bubble"),
        *("stages", "stages_sparse", "stages_local", "stages_bfloat16", "stages_sparse_bfloat16"),
    ),
    "networks": ("plain", "in_process", "stages", "layer_parallel"),
    "kills": ("backprop", "cdni", "delayed", "dni"),
    "damage": ("reader",),
    "faults": ("killed", "frozen", "raises"),
}
MODES = ("eager", "compiled")
