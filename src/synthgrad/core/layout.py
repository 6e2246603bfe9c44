"""Which dimension of a message is the batch, and which holds the features: found by running the example.

::

    1. the example runs once more with one example added: the dimension of ``h`` that has grown is the batch
    2. it runs with its graph: the slices of ``h`` that depend on one channel only of the last convolution,
       normalisation or linear layer below the cut are slices along the features

Neither can be read off a shape: ``(T, B, F)`` and ``(B, T, F)`` look the same, as do ``(B, C, L)`` and ``(B, L, C)``.
What the user says is not looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .copies import copied
from .errors import CutError
from .outputs import Slot, message_in

__all__ = ["Dim", "Layout", "Met", "dims_of", "find_layouts"]

#: A dimension for all cuts, or one for each name; None where it is to be found.
Dim = int | Mapping[str, int] | None

_CHANNELS_FIRST = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
    | nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm | nn.GroupNorm
    | nn.InstanceNorm1d | nn.InstanceNorm2d | nn.InstanceNorm3d
)  # fmt: skip
_FEATURES_LAST = nn.Linear | nn.Bilinear | nn.Embedding | nn.LayerNorm | nn.RMSNorm | nn.RNNBase

#: Layers below a cut that are asked for their features, from the last one down.
_MOST_ASKED = 8


@dataclass(frozen=True, slots=True)
class Met:
    """A message as it was met in the example.

    Attributes:
        shape: of ``h``, as it is.
        slot: where it is in what its submodule returns.
    """

    shape: tuple[int, ...]
    slot: Slot


@dataclass(frozen=True, slots=True)
class Layout:
    """The dimensions of one message.

    Attributes:
        batch_dim: the dimension of ``h``, as it is, that is the batch.
        features_dim: the dimension that holds the features, counted with the batch first; None where it is not known.
    """

    batch_dim: int = 0
    features_dim: int | None = None


def dims_of(dim: Dim, names: Sequence[str], met: Mapping[str, Met], what: str) -> dict[str, int]:
    """Return what the user has said of one dimension, by cut, as numbers from 0.

    Raises:
        CutError: if a name is no cut, or a message has no such dimension.
    """
    given = dict(dim) if isinstance(dim, Mapping) else {} if dim is None else dict.fromkeys(names, dim)
    for name, value in given.items():
        if name not in met:
            raise CutError(f"{what} names '{name}', where there is no cut; cuts are {sorted(met)}")
        ndim = len(met[name].shape)
        if isinstance(value, bool) or not isinstance(value, int) or not -ndim <= value < ndim:
            raise CutError(
                f"{what}={value!r} for the cut after '{name}', whose message has the shape {met[name].shape}; expected a "
                f"dimension from {-ndim} to {ndim - 1}"
            )
        given[name] = value % ndim
    return given


def find_layouts(
    model: nn.Module,
    met: Mapping[str, Met],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batch_dim: Dim = None,
    features_dim: Dim = None,
) -> dict[str, Layout]:
    """Find the batch and the features of every message.

    Args:
        model: the network; copies of it are run.
        met: the messages of the example.
        args: the example's positional arguments.
        kwargs: its keyword arguments.
        batch_dim: what the user says.
        features_dim: what the user says, counted in ``h`` as it is.

    Raises:
        CutError: if what the user says does not fit, or two dimensions are the same.
    """
    names = list(met)
    batch = dims_of(batch_dim, names, met, "batch_dim")
    features = dims_of(features_dim, names, met, "features_dim")
    open_batch = [n for n in names if n not in batch and len(met[n].shape) > 2]
    if open_batch:
        batch |= _grown(model, {n: met[n] for n in open_batch}, args, kwargs)
    batch |= {n: 0 for n in names if n not in batch}
    for name, dim in features.items():
        if dim == batch[name]:
            raise CutError(
                f"dimension {dim} of the message after '{name}', of shape {met[name].shape}, is both the batch and the "
                "features; say with batch_dim and features_dim which is which"
            )
    open_features = [n for n in names if n not in features and len(met[n].shape) > 2]
    if open_features and any(isinstance(m, _CHANNELS_FIRST) for m in model.modules()):
        features |= _by_dependence(model, {n: met[n] for n in open_features}, batch, args, kwargs)
    return {n: Layout(batch[n], _batch_first(features.get(n), batch[n])) for n in names}


def _batch_first(dim: int | None, batch_dim: int) -> int | None:
    """Return the number of a dimension once the batch is moved to the front."""
    return dim if dim is None or dim > batch_dim else dim + 1


# -- the batch ---------------------------------------------------------------------------------------------


def _grown(
    model: nn.Module, met: Mapping[str, Met], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, int]:
    """Return the dimension that grows with the batch, for the messages of which one does."""
    times = _times(model, args, kwargs)
    found, sequence_first = _grow(model, met, args, kwargs, 0, times)
    if sequence_first:  # the first dimension of the inputs was time
        found, _ = _grow(model, met, args, kwargs, 1, times)
    for name in met:
        if times and name not in found:
            raise CutError(
                f"the message after '{name}' has the shape {met[name].shape}, the network has layers that take the time "
                f"first ('{next(iter(times))}'), and which dimension is the batch could not be found out by running the "
                "example with one more; say batch_dim=0 for (B, T, F) or batch_dim=1 for (T, B, F)"
            )
    return found


def _grow(
    model: nn.Module,
    met: Mapping[str, Met],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dim: int,
    seen: Mapping[str, int],
) -> tuple[dict[str, int], bool]:
    """Run with one example more along a dimension of the inputs; also return whether that was a recurrent layer's time."""
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    first = next((t for t in leaves if isinstance(t, Tensor) and t.ndim > dim), None)
    if first is None or not first.shape[dim]:
        return {}, False
    size = first.shape[dim]

    def longer(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.ndim > dim and leaf.shape[dim] == size:
            return torch.cat([leaf.detach(), leaf.detach().narrow(dim, 0, 1)], dim)
        return leaf

    twin = copied(model)
    shapes: dict[str, tuple[int, ...]] = {}
    handles = [twin.get_submodule(n).register_forward_hook(_noting(n, m, shapes)) for n, m in met.items()]
    grown_args, grown_kwargs = pytree.tree_unflatten([longer(leaf) for leaf in leaves], spec)
    times: dict[str, int] = {}
    handles += _watch_times(twin, times)
    try:
        with torch.no_grad():
            twin(*grown_args, **grown_kwargs)
    except Exception:  # a network may be made for one size: what was seen before it failed is enough
        pass
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, int] = {}
    for name, shape in shapes.items():
        before = met[name].shape
        changed = [k for k, (a, b) in enumerate(zip(before, shape, strict=False)) if a != b]
        if len(changed) == 1 and len(before) == len(shape):
            found[name] = changed[0]
    return found, any(times.get(name, size) > size for name, size in seen.items())


def _times(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, int]:
    """Return how long the sequences are that layers with the time first are fed with."""
    found: dict[str, int] = {}
    if not any(map(_is_time_first, model.modules())):
        return found
    twin = copied(model)
    handles = _watch_times(twin, found)
    try:
        with torch.no_grad():
            twin(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _watch_times(model: nn.Module, found: dict[str, int]) -> list[Any]:
    def watch(name: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].ndim == 3:
                found[name] = args[0].shape[0]

        return note

    return [m.register_forward_pre_hook(watch(n)) for n, m in model.named_modules() if _is_time_first(m)]


def _is_time_first(module: nn.Module) -> bool:
    """Does a layer take ``(T, B, F)``? A Transformer layer says it by its attention."""
    flags = (getattr(m, "batch_first", None) for m in (module, getattr(module, "self_attn", None)))
    return any(flag is False for flag in flags)


def _noting(name: str, met: Met, shapes: dict[str, tuple[int, ...]]) -> Any:
    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        shapes[name] = tuple(message_in(name, output, met.slot).shape)

    return note


# -- the features ------------------------------------------------------------------------------------------


def _by_dependence(
    model: nn.Module,
    met: Mapping[str, Met],
    batch: Mapping[str, int],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, int]:
    """Return the dimension of the features, for the messages of which a layer below the cut tells it."""
    twin = copied(model)
    for p in twin.parameters():
        if p.is_floating_point():
            p.requires_grad_()
    layers: list[tuple[Tensor, int]] = []
    found: dict[str, int] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        y = output[0] if isinstance(output, tuple) and output else output
        if isinstance(y, Tensor) and y.ndim > 2 and y.requires_grad:
            layers.append((y, 1 if isinstance(module, _CHANNELS_FIRST) else y.ndim - 1))

    def ask(name: str) -> Any:
        def answer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            dim = _features_of(message_in(name, output, met[name].slot), batch[name], layers)
            if dim is not None:
                found[name] = dim

        return answer

    known = (m for m in twin.modules() if isinstance(m, _CHANNELS_FIRST | _FEATURES_LAST))
    handles = [m.register_forward_hook(keep) for m in known]
    handles += [twin.get_submodule(n).register_forward_hook(ask(n)) for n in met]
    try:
        with torch.enable_grad():
            twin(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _features_of(h: Tensor, batch_dim: int, layers: Sequence[tuple[Tensor, int]]) -> int | None:
    """Return the dimension of ``h`` along which one slice depends on the fewest channels of the last layer that tells."""
    if not h.requires_grad:
        return None
    dims = [d for d in range(h.ndim) if d != batch_dim and h.shape[d] > 1]
    for y, channels in reversed(layers[-_MOST_ASKED:]):
        if y.shape[channels] < 2:
            continue
        counts = {d: _num_channels(h, d, y, channels) for d in dims}
        if any(n == 0 for n in counts.values()):
            continue  # h does not depend on it, or its gradient is zero here
        fewest = [d for d, n in counts.items() if n == min(counts.values())]
        if len(fewest) == 1 and counts[fewest[0]] < y.shape[channels]:
            return fewest[0]
    return None


def _num_channels(h: Tensor, dim: int, y: Tensor, channels: int) -> int:
    """Return on how many channels of ``y`` a slice of ``h`` along a dimension depends."""
    most = 0
    for place in (0, h.shape[dim] - 1):
        weights = torch.rand_like(h.select(dim, place).detach())  # a plain sum can cancel (normalisations)
        (g,) = torch.autograd.grad(
            (h.select(dim, place) * weights).sum(), [y], retain_graph=True, allow_unused=True
        )
        if g is not None:
            used = g.abs().sum([d for d in range(g.ndim) if d != channels])
            most = max(most, int((used > 0).sum()))
    return most
