"""Where a model can be cut into stages: each place that `decouple` accepts and that leaves every stage something to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..core import ConfigError, CutError, Decoupled, Graph, propose_cuts
from ..core.given import brief, example_arguments
from ..core.graph import OUTPUT, trace

__all__ = ["check_candidates", "find_candidates"]


def find_candidates(model: nn.Module, example: Tensor | Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Return the names of submodules after which stages can end, in the order of the forward pass.

    In each ``nn.Sequential`` this is the last module before a further one with weights, so that an activation, a
    normalisation or a pooling belongs to the stage below; of other networks what `propose_cuts` proposes (the blocks of a
    Transformer, else children with parameters). Of these, those are kept that can be made together, with parameters in every
    stage, and none of them in two.

    Args:
        model: any network; copies of it are run.
        example: one batch, as `decouple` takes it.

    Raises:
        CutError: if there is none, with the reason, or the model is none.

    >>> import torch
    >>> layer = lambda: (torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> find_candidates(torch.nn.Sequential(*layer(), *layer(), torch.nn.Linear(4, 2)), torch.ones(8, 4))
    ['1', '3']
    """
    if isinstance(model, Decoupled):
        raise CutError("the model is decoupled already; give the plain model, or synthgrad.recouple(net)")
    if not isinstance(model, nn.Module):
        raise CutError(f"got {brief(model)} as model, expected a torch.nn.Module")
    args, kwargs = example_arguments(example)
    reasons: list[str] = []
    try:
        proposed = propose_cuts(model, example)
    except CutError as error:
        proposed = []
        reasons.append(str(error))
    search = _Search(model, args, kwargs, reasons)
    blocks = tuple(f"{n}." for n in proposed if not isinstance(model.get_submodule(n), nn.Sequential))
    search.add([name for name in _ends(model) if not name.startswith(blocks)])
    search.add([name for name in proposed if name not in search.kept])
    if not search.kept:
        raise CutError(
            f"{type(model).__name__} cannot be cut into stages: {reasons[-1] if reasons else 'it is one piece'}"
        )
    return list(search.order)


def check_candidates(graph: Graph) -> None:
    """Refuse cuts between which there are no stages that train apart.

    Raises:
        ConfigError: if modules branch, share a parameter, or have none.
    """
    why = _obstacle(graph)
    if why is not None:
        raise ConfigError(f"the cuts {list(graph.sites)} make no stages: {why}")


class _Search:
    """Gathers names that can be cuts together.

    Attributes:
        kept: the names so far.
        order: the same in the order of the forward pass.
    """

    def __init__(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], reasons: list[str]
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self._reasons = reasons
        self.kept: list[str] = []
        self.order: list[str] = []

    def add(self, names: Sequence[str]) -> None:
        """Add those names that fit: all at once if they do, else one half after the other."""
        if not names:
            return
        try:
            graph = trace(
                self._model, [*self.kept, *names], self._args, self._kwargs, batch_dim=0, features_dim=-1
            )
            why = _obstacle(graph)
        except CutError as error:
            why = str(error)
        else:
            if why is None:
                self.kept += names
                self.order = list(graph.sites)
                return
        if len(names) == 1:
            self._reasons.append(why)
            return
        middle = len(names) // 2
        self.add(names[:middle])
        self.add(names[middle:])


def _obstacle(graph: Graph) -> str | None:
    """Return in words why the modules of a graph are no stages; None if they are."""
    if not graph.is_chain:
        return "its modules branch; cut where one message carries all that is above"
    owners: dict[str, str] = {}
    for module in graph.modules:
        end = "the output" if module.name == OUTPUT else f"'{module.name}'"
        if module.hides_parameters:
            return (
                f"the part that ends in {end} runs under activation checkpointing with use_reentrant=True, which hides its "
                "parameters; use use_reentrant=False"
            )
        if not module.parameters:
            return f"the part that ends in {end} has no parameters; cut where there are some below and above"
        for name in module.parameters:
            other = owners.setdefault(name, end)
            if other != end:
                return (
                    f"parameter '{name}' is used in the part that ends in {other} and in the one that ends in {end}, and "
                    "stages share no weights; untie them (tie_word_embeddings=False in transformers), or cut elsewhere"
                )
    return None


# -- sequences -----------------------------------------------------------------------------------------------


def _ends(model: nn.Module) -> Iterator[str]:
    """Yield the names after which the sequences of a model can be cut, those in other sequences included."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.Sequential) or path.startswith(tuple(inside)):
            continue
        prefix = f"{path}." if path else ""
        yield from _ends_of(module, prefix)
        if not path:
            return  # all others are inside
        inside.append(prefix)
        yield path


def _ends_of(sequence: nn.Sequential, prefix: str) -> Iterator[str]:
    """Yield the last member before each further one with weights, and the same of members that are sequences."""
    last, begun = "", False
    for name, child in sequence.named_children():
        if _has_weights(child):
            if begun:
                yield last
            if isinstance(child, nn.Sequential):
                yield from _ends_of(child, f"{prefix}{name}.")
            begun = True
        last = prefix + name


def _has_weights(module: nn.Module) -> bool:
    """Has a module a matrix or more? The scales and biases of a normalisation are none."""
    return any(p.ndim > 1 for p in module.parameters())
