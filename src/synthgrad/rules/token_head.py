"""A head on sequences: scores of a vocabulary at every position, behind private blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..core import ConfigError, CutError, Site
from ..core.given import brief, check_whole, similar
from .cross_entropy import cross_entropy_in_parts
from .head import Head

__all__ = ["BlockFactory", "NetworkUnembedding", "TokenHead", "token_head"]

#: ``block(site)``: a module from ``(B, T, D)`` to ``(B, T, D)``.
BlockFactory = Callable[[Site], nn.Module]

#: Where nothing else is said, this share of the positions has its scores made at once.
_CHUNKS = 16


class NetworkUnembedding(nn.Module):
    """The unembedding of the network itself: read as it is now, not trained from here, and not saved with the rule.

    Args:
        name: of the module in the network, for errors and prints.
        module: has a weight ``(V, D)``, and perhaps a bias ``(V,)``.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name = name
        # A tuple, so that it is no submodule. It is the module and not the weight, because moving a network, or loading
        # with assign=True, may put another tensor in the place of that. A copy of the network copies both alike.
        self._source = (module,)

    def extra_repr(self) -> str:
        return f"'{self.name}'"

    @property
    def weight(self) -> Tensor:
        """The weight, ``(V, D)``, detached."""
        return self._source[0].weight.detach()  # pyright: ignore[reportCallIssue, reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        """The bias, ``(V,)``, detached; None if it has none."""
        bias = getattr(self._source[0], "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def forward(self, features: Tensor) -> Tensor:
        """Return the scores, ``(..., V)``."""
        bias = self.bias
        weight = self.weight.to(features.dtype)
        return F.linear(features, weight, None if bias is None else bias.to(features.dtype))


class TokenHead(Head):
    """Private blocks, a normalisation and an unembedding.

    Args:
        blocks: modules from ``(B, T, D)`` to ``(B, T, D)``.
        width: features ``D``.
        unembedding: from ``(..., D)`` to scores ``(..., V)``; one linear layer.
        num_chunks: number of parts in which the scores are made, one after the other, where their losses are wanted.
        shape: shape of a message without its batch dimension.
    """

    per_token = True

    def __init__(
        self,
        blocks: nn.Module,
        width: int,
        unembedding: nn.Linear | NetworkUnembedding,
        num_chunks: int,
        shape: tuple[int, ...],
    ) -> None:
        super().__init__(nn.Sequential(blocks, nn.LayerNorm(width), unembedding), shape)
        self.num_chunks = num_chunks

    @property
    def unembedding(self) -> nn.Linear | NetworkUnembedding:
        """The last layer."""
        return self.layers[2]  # pyright: ignore[reportIndexIssue]

    @property
    def reads_network(self) -> bool:
        """Is the last layer the network's own?"""
        return isinstance(self.unembedding, NetworkUnembedding)

    def check(self, h: Tensor, name: str) -> None:
        if h.ndim != 3 or h.shape[2] != self.shape[1]:
            raise self.shape_error(h, ["T", self.shape[1]], name)

    def losses(self, h: Tensor, targets: Tensor, ignore_index: int, *, learns: bool = True) -> Tensor:
        """Return the cross entropy at every position, ``(B, T)``, at least in float32; zero where the target is ignored.

        The scores ``(B T, V)`` are never there as a whole: they are made in ``num_chunks`` parts, and once more in the
        backward pass, a part at a time. It can be differentiated once.

        Args:
            h: ``(B, T, D)``.
            targets: ``(B, T)`` integers from 0 to ``V - 1``, or ``ignore_index``.
            ignore_index: the target that means none.
            learns: False where nobody asks for the gradient of the unembedding, which then costs nothing.
        """
        blocks, norm, _ = self.layers.children()
        weight, bias = self.unembedding.weight, self.unembedding.bias
        if not learns:
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        features = norm(blocks(h)).flatten(0, 1)  # (B T, D)
        wanted = targets.flatten().long()  # (B T,)
        found = cross_entropy_in_parts(features, weight, bias, wanted, self.num_chunks, ignore_index)
        return found.view(targets.shape)


@dataclass(frozen=True)
class _Tokens:
    blocks: int
    block: BlockFactory | None
    num_chunks: int
    unembedding: str | None

    def __call__(self, site: Site, classes: int) -> Head:
        if len(site.shape) != 3:
            raise CutError(
                f"interface '{site.name}': a token head needs messages (B, T, D), the example has {site.shape}; use "
                "heads.linear_head"
            )
        made = nn.Sequential(*(self._block(site) for _ in range(self.blocks)))
        return TokenHead(
            made, site.shape[2], self._unembedding(site, classes), self.num_chunks, site.shape[1:]
        )

    def _unembedding(self, site: Site, classes: int) -> nn.Linear | NetworkUnembedding:
        name, shape = self.unembedding, (classes, site.shape[2])
        if name is None:
            return nn.Linear(shape[1], shape[0], bias=False)
        where = f"interface '{site.name}': unembedding='{name}'"
        if site.network is None:
            raise CutError(
                f"{where} is a module of the network, which this engine does not show its rules; leave it out, and the head "
                "has an unembedding of its own"
            )
        modules = dict(site.network.named_modules())
        if name not in modules:
            fitting = [n for n, m in modules.items() if _has_weight(m, shape)]
            raise CutError(
                f"{where}: the network has no module of that name{similar(name, modules)}; with a weight {shape} it has "
                f"{', '.join(fitting) or 'none'}"
            )
        module = modules[name]
        if not _has_weight(module, shape):
            weight = getattr(module, "weight", None)
            got = f"a weight of shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else "no weight"
            raise CutError(
                f"{where} is a {type(module).__name__} with {got}, expected a Linear or an Embedding with a weight "
                f"{shape}: the rule's classes, and the features of its messages"
            )
        return NetworkUnembedding(name, module)

    def _block(self, site: Site) -> nn.Module:
        made = _like_below(site) if self.block is None else self.block(site)
        # What a block of the user's own takes and returns is tried out, because the first batch comes much later.
        example = torch.zeros(site.shape, dtype=site.dtype, device=site.device)
        what = "a copy of the block below the cut" if self.block is None else "block="
        try:
            with torch.no_grad():  # a copy, because a block may have statistics or a state
                found = copy.deepcopy(made).to(site.device, site.dtype)(example)
        except Exception as error:
            raise CutError(
                f"interface '{site.name}': {what} cannot be run on a message of shape {site.shape} "
                f"({type(error).__name__}: {error}); give token_head(block=factory), which makes a module from "
                "(B, T, D) to (B, T, D)"
            ) from error
        if not isinstance(found, Tensor) or found.shape != example.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CutError(
                f"interface '{site.name}': {what} returned {got} for a message of shape {site.shape}, expected the same "
                "shape; give token_head(block=factory), which makes a module from (B, T, D) to (B, T, D)"
            )
        return made


def _has_weight(module: nn.Module, shape: tuple[int, int]) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.is_floating_point() and tuple(weight.shape) == shape


def _like_below(site: Site) -> nn.Module:
    """Return a block like the one after which the cut lies, with parameters drawn anew where it knows how to."""
    made = copy.deepcopy(site.module)
    for part in made.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return made.requires_grad_()


def token_head(
    blocks: int = 1,
    *,
    block: BlockFactory | None = None,
    num_chunks: int = _CHUNKS,
    unembedding: str | None = None,
) -> Callable[[Site, int], Head]:
    """Return a factory of heads for language models: they score a vocabulary at every position of ``(B, T, D)``.

    A head has private blocks, a normalisation and an unembedding. It learns with its interface and is thrown away after
    training. Its targets are tokens ``(B, T)``; positions with the rule's ``ignore_index`` count for nothing.

    Args:
        blocks: number of private blocks; 0 for a linear head.
        block: ``block(site)`` makes one, a module from ``(B, T, D)`` to ``(B, T, D)``; None for one like the block below
            the cut, with parameters drawn anew by the ``reset_parameters`` of its parts.
        num_chunks: number of parts in which the scores of a local loss are made: at most one part is held at a time. A
            graph of the whole network (``torch.compile(fullgraph=True)``) holds them all.
        unembedding: name of a module of the network with a weight ``(V, D)``, a Linear or an Embedding, that is used
            in place of an unembedding of the head's own: as it is at the time, with its bias if it has one. The head
            does not train it, and its state dict does not hold it. For engines that have the whole network in one
            process.

    Raises:
        ConfigError: if a number is out of its range, or ``unembedding`` is no name.
    """
    check_whole("blocks", blocks, 0, "number of private blocks")
    check_whole("num_chunks", num_chunks, 1, "number of parts")
    if block is not None and not callable(block):
        raise ConfigError(f"block={block!r}: expected a factory, block(site) -> module, or None")
    if unembedding is not None and (not isinstance(unembedding, str) or not unembedding):
        raise ConfigError(
            f"unembedding={brief(unembedding)}: expected the name of a module of the network, such as 'output.scores', or "
            "None"
        )
    return _Tokens(blocks, block, num_chunks, unembedding)
