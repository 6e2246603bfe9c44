"""Splits a decoupled network into modules that run alone, and compares them with the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core import ConfigError, CutError, Decoupled
from ...core.copies import copied
from ...core.outputs import tensors_in
from ...core.owners import owners
from ..base import ForwardArgs
from ..checks import check_unlockable
from .forward import ForwardPart
from .inputs import InputSpec
from .sequences import sequences
from .side_effects import SideEffects, find_side_effects, repeatable

__all__ = ["Part", "SequencePart", "check_nothing_crosses", "check_parts", "split_network"]


class SequencePart(nn.Sequential):
    """Some children of an ``nn.Sequential``, shared with the network."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module that runs alone.

    Attributes:
        module: takes the message at the cut below, and the network's input tensors unless ``inputs`` is None.
        inputs: the network's inputs, which are sent along; None if the part needs nothing but the message.
        buffers: the names of the network's buffers that the part writes to.
        attributes: where the part stores floating tensors that are not buffers: pairs of a submodule's and an
            attribute's name.
    """

    module: nn.Module
    inputs: InputSpec | None
    buffers: frozenset[str] = frozenset()
    attributes: frozenset[tuple[str, str]] = frozenset()

    def __call__(self, h: Tensor | None, tensors: Sequence[Tensor]) -> Any:
        """Run the part on a message, ``(B, ...)``; the first part of a Sequential runs on the input."""
        if self.inputs is None:
            return self.module(tensors[0] if h is None else h)
        return self.module(h, tensors)


def split_network(net: Decoupled, example: ForwardArgs | None = None, *, tied: bool = False) -> list[Part]:
    """Split a decoupled network into parts that run alone, in order.

    An ``nn.Sequential`` is split into its children. Of any other network, each part runs the network's own
    forward. In both cases the parts, run one after the other on the example, must give the network's output.

    Args:
        net: a decoupled network.
        example: a batch of arguments that is representative of all; None for the example that `decouple` was
            given.
        tied: whether several modules may use a parameter.

    Raises:
        ConfigError: if modules branch, share parameters, or cannot learn independently.
        CutError: if something besides the message crosses a cut, or the parts do not give the network's
            output.
    """
    check_unlockable(net, tied=tied)
    if not net.graph.is_chain:
        raise ConfigError(
            "the network's modules are not a chain: two batches would meet where branches join, and a part cannot run "
            "alone; cut it elsewhere, or use InProcess"
        )
    passed = net.example if example is None else example
    effects = find_side_effects(net, passed)
    try:
        sequence = _sequence(net, effects)
        check_parts(net, lambda twin: _sequence(twin, effects), passed)
        return sequence
    except (ConfigError, CutError):
        pass  # try with the network's own forward
    tensors = InputSpec(passed).tensor_specs
    whole = [True] * len(tensors)
    indices = [not spec.dtype.is_floating_point for spec in tensors]
    tries = [[False] * len(tensors), indices, whole]
    for k, needed in enumerate(tries):
        inputs = InputSpec(passed, needed)
        try:
            check_parts(net, lambda twin, i=inputs: _forward(twin, i, effects), passed)
        except CutError:
            if k == len(tries) - 1:
                raise
        except (
            Exception
        ) as error:  # the user's code may raise anything when it runs on tensors without values
            if k == len(tries) - 1:
                lines = str(error).splitlines()
                raise CutError(
                    "the network cannot be run in parts: its forward pass failed when the tensors below a part were absent "
                    f"({type(error).__name__}: {lines[0][:200] if lines else ''}); cut elsewhere, or use InProcess"
                ) from error
        else:
            return _forward(net, inputs, effects)
    raise AssertionError("the last try returns or raises")


def check_nothing_crosses(net: Decoupled) -> bool:
    """Refuse a network that uses its inputs above a cut, besides the message.

    This is for modules above a cut that work on another batch than those below: they would see inputs of the
    wrong batch.

    Returns:
        Whether not even the sizes of the inputs are used above a cut: the network is an ``nn.Sequential``.

    Raises:
        ConfigError: if inputs are used above a cut, or the network cannot be split.
    """
    try:
        parts = split_network(net)
    except CutError as error:
        raise ConfigError(f"modules cannot work on different batches (a forward lag): {error}") from error
    inputs = parts[0].inputs
    if inputs is not None and any(spec.needed for spec in inputs.tensor_specs):
        raise ConfigError(
            "modules cannot work on different batches (a forward lag): above a cut the network uses something computed from "
            "its inputs (a mask, positions), which would belong to another batch; make it a part of the message, or use "
            "observe lags only"
        )
    return inputs is None


def _sequence(net: Decoupled, effects: SideEffects) -> list[Part]:
    if any(layout.batch_dim for layout in net.graph.layouts.values()):
        raise ConfigError("an interface transposes a message whose batch dimension is not the first")
    modules = [SequencePart(*module) for module in sequences(net, "engine")]
    own = _own_buffers(net, effects.buffers)
    return [Part(m, None, b, a) for m, b, a in zip(modules, own, effects.attributes, strict=True)]


def _forward(net: Decoupled, inputs: InputSpec, effects: SideEffects) -> list[Part]:
    own = _own_buffers(net, effects.buffers)
    return [
        Part(
            ForwardPart(net, k, inputs, set().union(*effects.buffers[:k]), own[k]),
            inputs,
            own[k],
            effects.attributes[k],
        )
        for k in range(len(net.graph.modules))
    ]


def check_parts(net: Decoupled, make: Callable[[Decoupled], list[Part]], passed: ForwardArgs) -> None:
    """Run the parts one after the other on a batch, and compare with the network.

    Runs copies, so nothing changes.

    Args:
        net: the network.
        make: splits a copy of the network.
        passed: the batch.

    Raises:
        CutError: if the outputs differ.
    """
    first, second = copied(net), copied(net)
    with repeatable(net) as repeat:
        repeat()
        expected = tensors_in(first.model(*passed[0], **passed[1]))
        repeat()
        h: Any = None
        tensors = InputSpec(passed).tensors(passed)
        for part in make(second):
            h = part(h, tensors)
    found = tensors_in(h)
    if len(found) != len(expected) or not all(map(_close, found, expected)):
        raise CutError(
            "the parts of the network, run one after the other on the example, do not give its own output: something "
            "runs between them that no part does, or differs from run to run; cut elsewhere, or use InProcess"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.dtype.is_floating_point:
        return bool((a == b).all())
    tolerance = 100 * torch.finfo(a.dtype).eps
    largest = float(b[b.isfinite()].abs().max()) if b.isfinite().any() else 0.0
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * largest, equal_nan=True)


def _own_buffers(net: Decoupled, changed: Sequence[frozenset[str]]) -> list[frozenset[str]]:
    """Return the buffers of each module.

    These are the buffers that it writes to, and those of its submodules, which it may write to later.
    """
    known = {n: k for k, m in enumerate(net.graph.modules) for n in m.parameters}
    known |= {n: k for k, names in enumerate(changed) for n in names}
    names = [
        f"{path}.{n}" if path else n
        for path, module in net.model.named_modules()
        for n in (*module._parameters, *module._buffers)  # pyright: ignore[reportPrivateUsage]
    ]
    found, _ = owners(names, known)
    buffers = dict(net.model.named_buffers())
    return [
        names | {n for n, j in found.items() if j == k and n in buffers} for k, names in enumerate(changed)
    ]
