"""How fast a step could be: its operations and bytes, and how many of each this machine does in a second."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

from ..training.machine import synchronize

__all__ = ["Machine", "Work", "dense_work", "measure_machine"]

_FLOAT_BYTES = 4
#: Of a parameter: value, gradient and Adam's two moments read; the same written.
_PARAMETER_ACCESSES = 8
#: Of a unit: its output, written once and read by the layer above and by two products backward; its gradient, the same.
_UNIT_ACCESSES = 8
#: Of a unit that has a prediction: the credit and the error to learn from, written and read.
_PREDICTION_ACCESSES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a step must do at the least, if a cache held nothing from one use to the next.

    Attributes:
        flop: operations of its matrix products.
        moved_bytes: read and written.
    """

    flop: int
    moved_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine does in a second.

    Attributes:
        flop_per_s: in a large matrix product.
        bytes_per_s: read and written by an addition of arrays.
    """

    flop_per_s: float
    bytes_per_s: float

    def least_ms(self, work: Work) -> float:
        """Return the time of a step that reaches the nearer of both limits (roofline model, Williams et al. 2009)."""
        return 1e3 * max(work.flop / self.flop_per_s, work.moved_bytes / self.bytes_per_s)


def dense_work(
    inputs: int, classes: int, layers: int, width: int, batch_size: int, *, decoupled: bool
) -> Work:
    """Return the work of a step of Linear–BatchNorm–ReLU layers, float32, Adam.

    Args:
        inputs: of an example.
        classes: outputs, and rows of the table of a linear ``M``.
        layers: weight layers, the output layer included.
        width: units of a hidden layer.
        batch_size: ``B``.
        decoupled: with a linear ``M`` above every hidden layer, in the layer-parallel engine, where it is asked
            for credit and, one step later, predicts once more to learn.
    """
    hidden = layers - 1
    above = (hidden - 1) * width * width + width * classes  # weights that a gradient goes back through
    products = 2 * (inputs * width + above) + above
    parameters = inputs * width + above + hidden * 3 * width + classes
    accesses = hidden * width * _UNIT_ACCESSES
    if decoupled:
        products += 3 * hidden * width * width
        parameters += hidden * (width + classes) * width
        accesses += hidden * width * _PREDICTION_ACCESSES
    moved = parameters * _PARAMETER_ACCESSES + batch_size * (accesses + 2 * inputs)
    return Work(2 * batch_size * products, _FLOAT_BYTES * moved)


@cache
def measure_machine(device: str, threads: int, working_bytes: int) -> Machine:
    """Measure a machine: the best of some tries.

    Args:
        device: ``cpu`` or ``cuda``.
        threads: that PyTorch has now; so that another number is measured anew.
        working_bytes: what the step holds: smaller arrays fit into a faster cache.
    """
    n = 768 if device == "cpu" else 8192
    a = torch.ones(n, n, device=device)
    product = torch.empty_like(a)
    flop_per_s = 2 * n**3 / _best_s(lambda: torch.mm(a, a, out=product), device)
    size = max(working_bytes // (3 * _FLOAT_BYTES), 1024)
    x, y, z = (torch.ones(size, device=device) for _ in range(3))
    return Machine(flop_per_s, 3 * _FLOAT_BYTES * size / _best_s(lambda: torch.add(x, y, out=z), device))


def _best_s(run: object, device: str, tries: int = 15) -> float:
    assert callable(run)
    best = float("inf")
    for _ in range(tries):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best
