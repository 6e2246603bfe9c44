"""Takes a decoupled network apart into modules that run alone, and checks that they are the network."""

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
    """Parts of an nn.Sequential, shared with the network."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module that runs alone.

    Attributes:
        module: takes what crossed the cut below, and the network's input tensors if ``inputs`` is there.
        inputs: of the network, which travel along; None where a part needs nothing but the message.
        buffers: names of the buffers of the network that it writes to.
        attributes: where it leaves floating tensors that are no buffers: names of a submodule and of an attribute.
    """

    module: nn.Module
    inputs: InputSpec | None
    buffers: frozenset[str] = frozenset()
    attributes: frozenset[tuple[str, str]] = frozenset()

    def __call__(self, h: Tensor | None, tensors: Sequence[Tensor]) -> Any:
        """Run it on a message, ``(B, ...)``; in the first part of a Sequential on the input."""
        if self.inputs is None:
            return self.module(tensors[0] if h is None else h)
        return self.module(h, tensors)


def split_network(net: Decoupled, example: ForwardArgs | None = None) -> list[Part]:
    """Return the modules of a decoupled network, in order, as parts that run alone.

    A Sequential is taken apart as it is. Of any other network the own forward is run in each part. Either way the parts,
    run one after the other on the example, must give the network's own output.

    Args:
        net: a decoupled network.
        example: a batch of arguments, as a form for all; None for that which the network was decoupled with.

    Raises:
        ConfigError: if modules branch, share parameters, or cannot learn alone.
        CutError: if something besides the message crosses a cut, or the parts are not the network.
    """
    check_unlockable(net)
    if not net.graph.is_chain:
        raise ConfigError(
            "the network's modules are no chain: where branches join, two batches would meet, and a part of it cannot run "
            "alone; cut it elsewhere, or use InProcess"
        )
    passed = net.example if example is None else example
    effects = find_side_effects(net, passed)
    try:
        sequence = _sequence(net, effects)
        check_parts(net, lambda twin: _sequence(twin, effects), passed)
        return sequence
    except (ConfigError, CutError):
        pass  # its own forward tells what runs
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
        except Exception as error:  # the code of any network, run without its values
            if k == len(tries) - 1:
                lines = str(error).splitlines()
                raise CutError(
                    "the network cannot be run in parts: its forward pass failed where what lies below a part is absent "
                    f"({type(error).__name__}: {lines[0][:200] if lines else ''}); cut elsewhere, or use InProcess"
                ) from error
        else:
            return _forward(net, inputs, effects)
    raise AssertionError("the last try returns or raises")


def check_nothing_crosses(net: Decoupled) -> bool:
    """Refuse a network of whose inputs something is used above a cut, beside the message.

    Where the parts above a cut work on another batch than those below, it would be that of the wrong batch.

    Returns:
        Whether not even the inputs' sizes are used above: the network is a Sequential.

    Raises:
        ConfigError: if something is used, or the network cannot be taken apart.
    """
    try:
        parts = split_network(net)
    except CutError as error:
        raise ConfigError(f"modules cannot work on different batches (a forward lag): {error}") from error
    inputs = parts[0].inputs
    if inputs is not None and any(spec.needed for spec in inputs.tensor_specs):
        raise ConfigError(
            "modules cannot work on different batches (a forward lag): above a cut the network uses something made of its "
            "inputs (a mask, positions), which would be that of another batch; let it be a part of the message, or use "
            "observe lags only"
        )
    return inputs is None


def _sequence(net: Decoupled, effects: SideEffects) -> list[Part]:
    if any(layout.batch_dim for layout in net.graph.layouts.values()):
        raise ConfigError("a message whose batch is not first is moved by its interface")
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
    """Run the parts one after the other on a batch, and compare with the network. Copies are run; nothing changes.

    Args:
        net: the network.
        make: takes a copy apart.
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
    """Return the buffers of each module: those that it writes to, and those of its submodules, which it may yet write to."""
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
