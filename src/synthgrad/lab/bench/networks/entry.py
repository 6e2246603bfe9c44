"""What an entry of the zoo is: a network, its batches and its loss, all small and in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CLASSES", "SPREAD", "Batch", "Entry", "Inputs", "logits_of"]

#: Classes of every classifier.
CLASSES = 5

#: Standard deviation of what is added to every parameter at the start.
SPREAD = 0.05

#: What a network's forward takes: a tensor, positional arguments or keyword arguments.
Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Batch = tuple[Inputs, Tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """A network as users bring it.

    Attributes:
        name: as the table shows it.
        library: the package that it comes from, as it is imported.
        make: returns the network; takes the probability of dropout, DropPath and the like.
        inputs: returns the inputs of a batch; takes its size and where its random numbers come from.
        cuts: after these submodules, in the order of the forward pass; None for those that are proposed.
        drops: whether it has dropout or DropPath.
        of_tokens: whether there is a target for each token, ``(B, T)``, in place of one for each example.
    """

    name: str
    library: str
    make: Callable[[float], nn.Module]
    inputs: Callable[[int, torch.Generator], Inputs]
    cuts: tuple[str, ...] | None = None
    drops: bool = True
    of_tokens: bool = False

    def model(self, seed: int = 0, dropout: float = 0.0) -> nn.Module:
        """Return the network in float64 and training mode, the same for every seed.

        Normalisations start at one, and a little noise is added to every parameter: biases that start at zero, and
        scales that start near it, would leave parts of the network without a gradient to compare.
        """
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            model = self.make(dropout).double().train()
            with torch.no_grad():
                for part in model.modules():
                    if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                        part.reset_parameters()
                for p in model.parameters():
                    p.add_(torch.randn_like(p), alpha=SPREAD)
        return model

    def batches(self, sizes: tuple[int, ...], seed: int = 0) -> list[Batch]:
        """Return a batch of each size, all from one generator."""
        generator = torch.Generator().manual_seed(seed)
        return [self._batch(size, generator) for size in sizes]

    def _batch(self, size: int, generator: torch.Generator) -> Batch:
        inputs = self.inputs(size, generator)
        if self.of_tokens:
            assert isinstance(inputs, Mapping)
            return inputs, torch.roll(
                inputs["input_ids"], -1, 1
            )  # the next token; the last one's is the first
        return inputs, torch.randint(0, CLASSES, (size,), generator=generator)

    def criterion(self, output: Any, y: Tensor) -> Tensor:
        """Return the mean cross entropy of the logits, over examples or over tokens."""
        logits = logits_of(output)
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())


def logits_of(output: Any) -> Tensor:
    """Return the logits of what a network returned: themselves, or an entry or attribute of that name."""
    if isinstance(output, Tensor):
        return output
    return output["logits"] if isinstance(output, Mapping) else output.logits
