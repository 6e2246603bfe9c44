"""The names that the command line takes, for shells to complete and for defaults.

Written out, because the registries that hold them load PyTorch, and a shell asks at every press of a key.
A test compares them with the registries.
"""

from __future__ import annotations

__all__ = [
    "ARCHS",
    "BENCHMARKS",
    "COMPARED",
    "DATA",
    "DEVICES",
    "ENGINES",
    "EXPERIMENTS",
    "METHODS",
    "METHODS_OF_BENCHMARKS",
    "MODES",
    "PRECISIONS",
    "RECURRENT",
    "TEXTS",
    "TIERS",
]

EXPERIMENTS = (
    *(
        "compare",
        "table1",
        "sparse",
        "stale",
        "unlock",
        "copy",
        "repeat_copy",
        "charlm",
        "multinet",
        "two_stages",
        "lag",
    ),
    *("dni_search", "unlock_search", "multinet_search", "copy_search", "cnn_search"),
)
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
METHODS = (
    *("backprop", "no_bprop", "dni", "cdni", "stale", "local_loss", "sobolev", "delayed"),
    *("dni_unlock", "cdni_unlock"),
)
#: Methods of recurrent networks.
RECURRENT = ("bptt", "dni", "dni_aux", "dni_ls", "dni_ls_aux")
#: What ``compare`` compares unless methods are named.
COMPARED = ("backprop", "no_bprop", "dni", "cdni")
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
ARCHS = ("fcn", "cnn")
DATA = ("mnist-10k", "mnist", "cifar10")
TEXTS = ("ptb", "shakespeare", "shakespeare-50k")
TIERS = ("smoke", "quick", "full")
DEVICES = ("auto", "cpu", "cuda")
ENGINES = ("in-process", "layer-parallel", "plain", "stages")
MODES = ("eager", "compiled")
PRECISIONS = ("float32", "bfloat16")
