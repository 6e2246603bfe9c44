"""Compiles a whole step of all layers into one graph, from the batch to the gradients or the update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...core import ConfigError
from .adam import RowAdam
from .backend import FullStep, Observation, StepBackend, StepOutput, full_step
from .rules import InterfaceRows

__all__ = ["check_compilable", "make_full_step"]

# Options for a narrow network on a CPU: the graph is called from C++ rather than Python, and since its inputs always have
# the same sizes and alignment, these are not checked.
_QUICK = {"cpp_wrapper": True, "size_asserts": False, "alignment_asserts": False}
_INPUTS = ("x", "below", "rows", "target", "observation")


def make_full_step(
    backend: StepBackend, options: bool | Mapping[str, Any], update: RowAdam | None = None
) -> FullStep:
    """Return a function that runs a step once a batch has reached every layer.

    Args:
        backend: computes the step.
        options: True to compile, or keywords of ``torch.compile``; False not to compile.
        update: the update at the end of the step. The gradients are then not kept; None to keep them.

    Raises:
        ConfigError: if the step is to be compiled and the rules are asked one by one, which no graph can
            hold; or if CUDA graphs are asked for.
    """

    def run(
        x: Tensor, below: InterfaceRows, rows: InterfaceRows, target: Any, observation: Observation
    ) -> StepOutput:
        if update is None:
            return full_step(backend, x, below, rows, target, observation)
        for stacked_parameter in update.stacked:
            stacked_parameter.fresh = torch.zeros_like(stacked_parameter.values)
        result = full_step(backend, x, below, rows, target, observation)
        update.apply([stacked_parameter.out for stacked_parameter in update.stacked], result.total)
        for stacked_parameter in update.stacked:
            stacked_parameter.fresh = None
        return result

    if options is False:
        return run
    check_compilable(backend)
    # Imported here, because the compiler takes long to load.
    from torch._dynamo import config
    from torch._dynamo.exc import Unsupported
    from torch._inductor import list_mode_options

    given: dict[str, Any] = dict(options) if isinstance(options, Mapping) else {}
    # torch.compile takes either a mode, which stands for some options, or options.
    mode = given.pop("mode", None)
    of_mode = list_mode_options(mode) if mode is not None else {}
    quick = _QUICK if backend.stacked and given.get("backend", "inductor") == "inductor" else {}
    quick = quick if backend.stacked and backend.stacked[0].values.is_cpu else {}
    given["options"] = {
        "guard_filter_fn": _about_inputs,
        **quick,
        **of_mode,
        **(given.get("options") or {}),
    }
    if given["options"].get("triton.cudagraphs") or given.get("backend") == "cudagraphs":
        raise ConfigError(
            f"compile={options!r} asks for CUDA graphs: they write each step's results over those of the step before, "
            "which all layers still read; use compile=True, or mode='max-autotune-no-cudagraphs'"
        )
    # torch.compile caches graphs by code object. Since there are no guards on what the code refers to, a second engine
    # with the same code object would get the graph of the first; so each engine has a copy of the code.
    run.__code__ = run.__code__.replace()
    compiled = torch.compile(run, fullgraph=True, dynamic=False, **given)

    def run_compiled(
        x: Tensor, below: InterfaceRows, rows: InterfaceRows, target: Any, observation: Observation
    ) -> StepOutput:
        try:
            return compiled(x, below, rows, target, observation)
        except Unsupported:
            # Backward passes inside a graph must be enabled. To enable them takes too long to be done in every step, so
            # it is done only when compiling has failed without.
            with config.patch(trace_autograd_ops=True):
                return compiled(x, below, rows, target, observation)

    return run_compiled


def check_compilable(backend: StepBackend) -> None:
    """Refuse a step that no graph can hold.

    Raises:
        ConfigError: if the rules are asked one by one.
    """
    if backend.rules.sequential:
        raise ConfigError(
            "compile is set, and rules of this type are asked one by one, in ordinary Python; leave it out, or use "
            "SyntheticGradient, LocalLoss or NoBackprop"
        )


def _about_inputs(guards: Sequence[Any]) -> list[bool]:
    """Keep only the guards on the inputs of a step.

    Everything else stays as it is, and would need a hundred guards.
    """
    return [g.name == "" or g.name.split(".")[0].split("[")[0] in _INPUTS for g in guards]
