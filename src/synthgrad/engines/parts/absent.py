"""Absent tensors: results of another process, of which this process knows shape, dtype and device only.

A stage runs the user's own forward from the beginning. Everything below its part is the work of other
processes, so the weights there are absent. Whatever is computed from absent tensors is absent too, at almost
no cost. What is computed from the network's inputs alone (masks, positions) is computed as usual, since parts
above may need it. At the cut the received message replaces the absent one. From then on, an operation on an
absent tensor means that something besides the message has crossed the cut, and raises an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ...core import CutError

__all__ = ["AbsentScope", "AbsentTensor", "make_absent"]

_aten = torch.ops.aten

#: Operations whose results depend only on the shape of their argument: these are computed.
_KNOWN = {
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
    _aten.new_empty.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.empty_like.default,
}


class AbsentScope:
    """The part of a forward pass whose results are absent.

    Args:
        below: what computes these results, for errors.
        cut: the name of the cut at which the part ends.

    Attributes:
        open: whether that part of the forward pass is still running.
    """

    def __init__(self, below: str, cut: str) -> None:
        self.below = below
        self.cut = cut
        self.open = True

    def error(self, what: str) -> CutError:
        """Return the error for an operation that needs the values of an absent tensor."""
        if self.open:
            return CutError(
                f"the part of the network below the cut '{self.cut}' cannot be left to {self.below}: its code needs the "
                f"values of what it has computed ({what}), to decide what it does or to fill another tensor; let that "
                "depend on the network's inputs only, cut elsewhere, or use InProcess"
            )
        return CutError(
            f"{what} uses a tensor that {self.below} makes of its weights and that does not pass through the cut "
            f"'{self.cut}'; only the message crosses a link: let it be a part of the message, make it of the network's "
            "inputs, give a loss that a module leaves in an attribute as penalty=…, cut elsewhere, or use InProcess"
        )


class AbsentTensor(torch.Tensor):
    """A tensor without values.

    Attributes:
        meta: a tensor on the meta device with the same shape and strides.
        scope: the part of the forward pass that it is a result of.
    """

    meta: Tensor
    scope: AbsentScope

    @staticmethod
    def __new__(
        cls: type[AbsentTensor], meta: Tensor, device: torch.device, scope: AbsentScope
    ) -> AbsentTensor:
        made = torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=device,
            requires_grad=False,
        )
        made.meta, made.scope = meta, scope
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> AbsentTensor:
        return AbsentTensor(self.meta, self.device, self.scope)

    def __reduce_ex__(self, proto: Any) -> Any:
        return _without_values, (tuple(self.shape), self.dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Absent({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            # All kernels of attention give the same shape, so there is no need to choose one.
            return _attended(*args, **kwargs)
        # The default would turn every result into this class, even results that have values.
        with torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        absent = _first_absent((args, kwargs))
        scope = absent.scope
        if not scope.open:
            raise scope.error(str(func))
        if func in _KNOWN:
            kwargs.setdefault("device", absent.device)
            kwargs.setdefault("dtype", absent.dtype)
            bare = [a.meta if isinstance(a, AbsentTensor) else a for a in args]
            return func(*bare, **kwargs)
        if _writes_to_real(func, args, kwargs):
            raise scope.error(f"{func} writes into a tensor that has values")
        device = kwargs.get("device")
        device = absent.device if device is None else torch.device(device)
        if "device" in kwargs:
            kwargs["device"] = torch.device("meta")
        if func is _aten.index.Tensor:
            args = (args[0], [j for i in args[1] for j in _indices(i)])
        same: dict[int, AbsentTensor] = {}

        def without_values(value: Any) -> Any:
            if isinstance(value, AbsentTensor):
                same[id(value.meta)] = value
                return value.meta
            return value.to("meta") if isinstance(value, Tensor) else value

        try:
            bare_args, bare_kwargs = pytree.tree_map(without_values, (tuple(args), kwargs))
            found = func(*bare_args, **bare_kwargs)
        except CutError:
            raise
        except (
            Exception
        ) as error:  # an operation that needs values fails on the meta device with various errors
            raise scope.error(str(func)) from error

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.device.type != "meta":
                return value
            known = same.get(id(value))
            return AbsentTensor(value, device, scope) if known is None else known

        return pytree.tree_map(wrapped, found)


def _indices(index: Any) -> Sequence[Any]:
    """Convert a mask with values into indices: their number determines the shape of the result."""
    if isinstance(index, Tensor) and not isinstance(index, AbsentTensor) and index.dtype == torch.bool:
        return index.nonzero(as_tuple=True)
    return (index,)


def _without_values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return what is saved in place of an absent tensor: a tensor of NaN."""
    return torch.full(shape, float("nan"), dtype=dtype)


def make_absent(tensor: Tensor, scope: AbsentScope) -> AbsentTensor:
    """Return an absent tensor with the shape, dtype and device of another tensor."""
    if isinstance(tensor, AbsentTensor):
        return tensor
    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return AbsentTensor(meta, tensor.device, scope)


def _first_absent(value: Any) -> AbsentTensor:
    return next(leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, AbsentTensor))


def _writes_to_real(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Return whether an operation writes into a tensor that has values."""
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[k] if k < len(args) else kwargs.get(argument.name)
        if any(isinstance(t, Tensor) and not isinstance(t, AbsentTensor) for t in pytree.tree_leaves(given)):
            return True
    return False


def _attended(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    scope = _first_absent((query, key, value, args, kwargs)).scope
    if not scope.open:
        raise scope.error("scaled_dot_product_attention")
    shape = (*query.shape[:-1], value.shape[-1])
    meta = torch.empty(shape, dtype=query.dtype, device="meta")
    return AbsentTensor(meta, query.device, scope)
