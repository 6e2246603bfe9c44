"""Passes of a network in which the time of each of its modules is taken, with a leaf at each cut.

::

    x ──► module 1 ──h₁──► 1. mark, 2. a new leaf ──► module 2 ──h₂──► … ──► output, criterion, mark
          module 1 ◄─ its part of backward ── δ₁ ◄─ module 2 ◄─ …       one mark after each module's part
          module 1: optimizer step, between two marks of its own

So caches, allocator and clocks are in the state in which training finds them, and each module runs backward alone, as a stage
does. Passes of the whole batch take turns with passes of a quarter of it, so that a machine that slows down does so for both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import backward
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from ..core import ConfigError, Decoupled, Graph, Rule
from ..core.given import brief
from ..core.interface import Interface
from ..core.outputs import output_of, tensors_in
from .clock import Clock, HeldStorages
from .rule_costs import Answered, OptimizerFactory, make_optimizers, timed_step

__all__ = ["Criterion", "ExampleBatch", "Passes"]

#: Takes output and target, returns the loss: a scalar, or that of each example, ``(B,)``.
Criterion = Callable[[Any, Any], Tensor]

#: Passes before the first that is timed: they load code, and optimizers make their state.
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class ExampleBatch:
    """A batch, and where in it the examples are.

    Attributes:
        args, kwargs: of the network.
        target: of the criterion.
        size: the number of examples.
        dim: of the network's inputs that holds the examples.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    size: int
    dim: int = 0

    @classmethod
    def of(cls, graph: Graph, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any) -> ExampleBatch:
        """Return a batch of which a graph tells the size."""
        name, site = next(iter(graph.sites.items()))
        inputs = [t for t in tensors_in((args, kwargs)) if t.ndim]
        dim = graph.layouts[name].batch_dim if name in graph.layouts else 0
        if dim and (inputs[0].ndim <= dim or inputs[0].shape[dim] != site.shape[0]):
            dim = 0
        # A network that joins batch and time has more rows at a cut than examples.
        return cls(args, kwargs, target, inputs[0].shape[dim] if inputs else site.shape[0], dim)

    def quarter(self) -> ExampleBatch | None:
        """Return the first quarter of it; None if there are not two examples."""
        size = max(self.size // 4, 1)
        if size == self.size:
            return None

        def part(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for dim in {self.dim: None, 0: None}:
                rows = value.shape[dim] if value.ndim > dim else 0
                if rows and rows % self.size == 0:  # of labels that are joined, several for each example
                    return value.narrow(dim, 0, rows // self.size * size)
            return value

        args, kwargs, target = pytree.tree_map(part, (self.args, self.kwargs, self.target))
        return ExampleBatch(args, kwargs, target, size, self.dim)


# -- passes ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Crossing:
    """Marks the moments at which a forward pass reaches the cuts, and feeds the modules above with leaves.

    Attributes:
        clock: of the device.
        held: counts what graphs hold; None not to.
        marks: the beginning, two at each cut, and the end.
        ends: what each module has made, with its graph; the loss last.
        leaves: what the modules above the cuts are fed with.
    """

    clock: Clock
    held: HeldStorages | None = None
    marks: list[Any] = field(default_factory=list[Any])
    ends: list[Tensor] = field(default_factory=list[Tensor])
    leaves: list[Tensor] = field(default_factory=list[Tensor])

    @property
    def sizes(self) -> list[int]:
        """Bytes of what crosses the cuts, and 0 for the output."""
        return [*(leaf.numel() * leaf.element_size() for leaf in self.leaves), 0]

    def __call__(self, interface: Interface, h: Tensor) -> Tensor:
        self.marks.append(self.clock.mark())
        if self.held is not None:
            self.held.next_part()
        # Below what is frozen nobody wants a gradient.
        leaf = h.detach().requires_grad_(h.requires_grad)
        self.ends.append(h)
        self.leaves.append(leaf)
        self.marks.append(self.clock.mark())
        return leaf.clone() if interface.copies else leaf


class Passes:
    """Passes of a network with a leaf at each cut.

    Args:
        net: the network.
        criterion: the user's; None for a loss that the output has, or the mean square of it.
        optimizer: makes optimizers.
    """

    def __init__(self, net: Decoupled, criterion: Criterion | None, optimizer: OptimizerFactory) -> None:
        self.net = net
        self.clock = Clock.of(net.model)
        self._criterion = criterion
        own = [[(n, net.model.get_parameter(n)) for n in m.parameters] for m in net.graph.modules]
        self._bytes = [sum(p.numel() * p.element_size() for _, p in ps if p.requires_grad) for ps in own]
        self._optimizers: list[list[Optimizer]] = [make_optimizers(optimizer, ps) for ps in own]

    def measure(self, batch: ExampleBatch, repeats: int) -> list[dict[str, float]]:
        """Return the figures of each part, by the names of `StageCost`."""
        sizes, held = self._sizes(batch)
        quarter = self._if_it_runs(batch.quarter(), sizes)
        for _ in range(_WARM_UP):
            self._timed(batch)
        whole, small, inputs = [], [], []
        for _ in range(repeats):
            whole.append(self._timed(batch))
            if quarter is not None:
                small.append(self._timed(quarter))
            inputs.append(self._inputs_only(batch))
        self.clock.settle()
        found: list[dict[str, float]] = []
        for k, size in enumerate(sizes):
            forward_s, backward_s, optimizer_s = (
                self._median(p[which][k] for p in whole) for which in range(3)
            )
            part: dict[str, float] = {
                "forward_s": forward_s,
                "backward_s": backward_s,
                "optimizer_s": optimizer_s,
                "output_bytes": size,
                "held_bytes": held[k],
                "parameter_bytes": self._bytes[k],
                "backward_input_s": min(self._median(p[k] for p in inputs), backward_s),
            }
            if quarter is not None:
                small_s = [self._median(p[which][k] for p in small) for which in range(2)]
                part["forward_call_s"] = _call_s(forward_s, small_s[0], batch.size, quarter.size)
                part["backward_call_s"] = _call_s(backward_s, small_s[1], batch.size, quarter.size)
            found.append(part)
        return found

    def answers(self, batch: ExampleBatch, rules: Mapping[str, Rule]) -> dict[str, Answered]:
        """Return what crosses each cut, and what comes back for it."""
        crossing = _Crossing(self.clock)
        output, loss, values = self._forward(batch, crossing)
        found = output_of(output) if any(rule.needs_output_error for rule in rules.values()) else None
        if found is not None:
            found.retain_grad()
        self._backward(crossing, loss)
        answered: dict[str, Answered] = {}
        for (name, interface), leaf in zip(self._interfaces(), crossing.leaves, strict=True):
            h = interface.batch_first(leaf.detach())
            gradient = torch.zeros_like(h) if leaf.grad is None else interface.batch_first(leaf.grad)
            error = None
            if found is not None and found.grad is not None:
                error = self.net.units.to_example(found.grad, like=h)
            answered[name] = Answered(h, self.net.units.to_example(gradient), values, error)
        self.net.model.zero_grad()
        return answered

    def _interfaces(self) -> list[tuple[str, Interface]]:
        return [(name, self.net.interfaces[name]) for name in self.net.graph.sites]

    def _forward(self, batch: ExampleBatch, crossing: _Crossing) -> tuple[Any, Tensor, Tensor | None]:
        """Run forward; return the output, the loss, and the losses of examples if the criterion returns these."""
        torch.clear_autocast_cache()  # the casts of weights are of an earlier graph
        with self.net.crossed_by(crossing):
            crossing.marks.append(self.clock.mark())
            output = self.net.model(*batch.args, **batch.kwargs)
            loss = self._loss(output, batch.target)
            values = loss.detach() if loss.ndim else None
            if loss.ndim:
                loss = loss.mean()
            crossing.marks.append(self.clock.mark())
            self.net.check_crossed()
        crossing.ends.append(loss)
        return output, loss, values

    def _loss(self, output: Any, target: Any) -> Tensor:
        if self._criterion is not None:
            loss = self._criterion(output, target)
            if not isinstance(loss, Tensor) or loss.ndim > 1:
                raise ConfigError(
                    f"the criterion returned {brief(loss)}, expected a tensor: a scalar or the loss of each example (B,)"
                )
        else:
            loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if not isinstance(loss, Tensor) or loss.ndim:
                found = [t for t in tensors_in(output) if t.is_floating_point()]
                found = [t for t in found if t.requires_grad] or found
                if len(found) != 1:
                    raise ConfigError(
                        f"the model returns {len(found)} floating tensors in a {type(output).__name__} and no loss; give a "
                        "criterion that takes output and target"
                    )
                loss = found[0].square().mean()
        if not loss.requires_grad:
            raise ConfigError(
                "no gradient flows from the loss to a parameter: all of them are frozen, or it is detached"
            )
        return loss

    def _backward(
        self, crossing: _Crossing, loss: Tensor, each: Callable[[int, Any, Any], None] | None = None
    ) -> None:
        """Run backward module by module, from the top; ``each`` is told the number of the module and two marks."""
        for k in range(len(crossing.ends) - 1, -1, -1):
            is_last = k == len(crossing.leaves)
            gradient = None if is_last else crossing.leaves[k].grad
            start = self.clock.mark()
            if is_last:
                loss.backward()
            elif gradient is not None:
                backward([crossing.ends[k]], [gradient])
            if each is not None and (is_last or gradient is not None):
                each(k, start, self.clock.mark())

    def _timed(self, batch: ExampleBatch) -> tuple[list[Any], list[Any], list[Any]]:
        """Run a pass with its updates; return the marks around each module's forward, backward and update.

        None in place of marks where there was nothing to do.
        """
        crossing = _Crossing(self.clock)
        _, loss, _ = self._forward(batch, crossing)
        marks = crossing.marks
        forward = list(zip(marks[::2], marks[1::2], strict=True))
        backward_: list[Any] = [None] * len(forward)
        updates: list[Any] = [None] * len(forward)

        def each(k: int, start: Any, end: Any) -> None:
            backward_[k] = (start, end)
            if self._optimizers[k]:
                updates[k] = timed_step(self._optimizers[k], self.clock)

        self._backward(crossing, loss, each)
        self.net.model.zero_grad()
        return forward, backward_, updates

    def _inputs_only(self, batch: ExampleBatch) -> list[Any]:
        """Run a pass for the gradients of inputs alone; return the marks around each module's part."""
        found: list[Any] = [None] * len(self._bytes)
        crossing = _Crossing(self.clock)
        self._forward(batch, crossing)
        gradient: Tensor | None = None
        for k in range(len(crossing.leaves), 0, -1):
            leaf = crossing.leaves[k - 1]
            if not leaf.requires_grad:
                break
            start = self.clock.mark()
            (gradient,) = torch.autograd.grad(
                [crossing.ends[k]], [leaf], None if gradient is None else [gradient], allow_unused=True
            )
            if gradient is None:
                break
            found[k] = (start, self.clock.mark())
        return found

    def _sizes(self, batch: ExampleBatch) -> tuple[list[int], list[int]]:
        """Run forward; return the bytes of what crosses the cut above each module, and those that its graph holds."""
        model = self.net.model
        with HeldStorages([*model.parameters(), *model.buffers()]) as held:
            crossing = _Crossing(self.clock, held)
            self._forward(batch, crossing)
        return crossing.sizes, held.sizes

    def _if_it_runs(self, quarter: ExampleBatch | None, sizes: list[int]) -> ExampleBatch | None:
        """Return a part of the batch, if the network runs on it, and its messages are smaller."""
        if quarter is None:
            return None
        smaller = False
        try:
            for _ in range(_WARM_UP):
                crossing = _Crossing(self.clock)
                _, loss, _ = self._forward(quarter, crossing)
                self._backward(crossing, loss)
                self.net.model.zero_grad()
                smaller = all(a < b for a, b in zip(crossing.sizes[:-1], sizes[:-1], strict=True))
        except Exception:  # a network may be made for one size, and a criterion too
            self.net.model.zero_grad()
        return quarter if smaller else None

    def _median(self, spans: Iterable[tuple[Any, Any] | None]) -> float:
        return statistics.median(0.0 if span is None else self.clock.seconds(*span) for span in spans)


def _call_s(whole_s: float, small_s: float, whole: int, small: int) -> float:
    """Return ``c`` of ``T(n) = c + n·s``, from the seconds for two numbers of examples."""
    call_s = (small_s * whole - whole_s * small) / (whole - small)
    return min(max(call_s, 0.0), whole_s)
