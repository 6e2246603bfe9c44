"""What modules return: the tensors in it, and the one that is the message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from .errors import CutError, ShapeError

__all__ = ["Slot", "find_slot", "message_in", "output_of", "tensors_in", "with_message"]

#: Where in an output the message is: None if it is the output itself, else the place among its tensors and other leaves.
Slot = int | None


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors in an output: in tuples, mappings, dataclasses and what PyTorch knows as trees.

    Objects of other classes are not opened.
    """
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            found += [t for f in fields(leaf) for t in tensors_in(getattr(leaf, f.name, None))]
        elif isinstance(leaf, Mapping):
            found += [t for v in leaf.values() for t in tensors_in(v)]
    return found


def output_of(output: Any) -> Tensor:
    """Return the tensor whose gradient is the output error of a network: the only one that a gradient flows through.

    Raises:
        CutError: if there is none, or more than one.
    """
    found = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    if len(found) == 1 or isinstance(output, Tensor):
        return found[0] if found else output
    raise CutError(
        f"a rule needs the network's output error, and the network returns {len(found)} floating tensors with a gradient "
        f"(in a {type(output).__name__}); let it return one, and compute the loss outside of it"
    )


def find_slot(name: str, output: Any) -> Slot:
    """Return where the message is in what the submodule ``name`` has returned in the example.

    It is the only floating tensor that a gradient flows through.

    Raises:
        CutError: if there is none, or more than one.
    """
    if isinstance(output, Tensor):
        if not output.is_floating_point():
            raise CutError(
                f"cannot cut after '{name}': it returns {output.dtype}, and gradients need a "
                "floating type; cut later, where the values are floating"
            )
        return None
    leaves = pytree.tree_leaves(output)
    places = [
        k
        for k, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad
    ]
    if len(places) != 1:
        what = f"{len(places)} floating tensors with a gradient" if places else "no floating tensor"
        raise CutError(
            f"cannot cut after '{name}': it returns a {type(output).__name__} with {what}, and a message "
            "is one tensor; cut after a submodule that returns one tensor (wrap this one if need be)"
        )
    return places[0]


def message_in(name: str, output: Any, slot: Slot) -> Tensor:
    """Return the message that an output holds.

    Raises:
        ShapeError: if the output is not like that of the example.
    """
    found = output if slot is None else None
    if slot is not None:
        leaves = pytree.tree_leaves(output)
        found = leaves[slot] if slot < len(leaves) else None
    if not isinstance(found, Tensor):
        raise ShapeError(
            f"interface '{name}': its submodule returned a {type(output).__name__} without the tensor that was the "
            "message in the example; outputs must have one form in all batches"
        )
    return found


def with_message(output: Any, slot: Slot, message: Tensor) -> Any:
    """Return an output with another message in it."""
    if slot is None:
        return message
    leaves, spec = pytree.tree_flatten(output)
    leaves[slot] = message
    return pytree.tree_unflatten(leaves, spec)
