"""``bench token-head``: what a head with a large vocabulary holds, if it makes its logits in parts or as a whole.

A step is that of a local loss at one cut: the gradient of the message, and those of the head. No optimizer takes part.
Both heads have the same private blocks, the same unembedding and the same weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...core import ConfigError, Info, Site
from ...rules import LocalLoss
from ...rules.heads import token_head
from ..tasks.gpt import Block, gpt
from .declarations import TOKEN_HEAD, TokenHeadScope
from .logits import LogitsBytes
from .memory.probe import Memory, OwnProcessBench, probe

__all__ = ["BENCHMARK", "HeadCase", "HeadSize", "TokenHeadBench", "make", "observe"]

_WHOLE = "whole_logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSize:
    """The size of a head and of its batches.

    Attributes:
        seed: seed of weights, messages and tokens.
        vocabulary: tokens ``V``.
        width: features ``D``.
        context: tokens of a sequence, ``T``.
        batch_size: sequences ``B``.
        blocks: private blocks.
    """

    seed: int
    vocabulary: int
    width: int
    context: int
    batch_size: int
    blocks: int

    @property
    def logits_bytes(self) -> int:
        """Bytes of the logits ``(B T, V)`` in float32."""
        return self.batch_size * self.context * self.vocabulary * 4


@dataclass(frozen=True, slots=True)
class HeadCase:
    """What a line measures.

    Attributes:
        method: ``token_head`` or ``whole_logits``.
        num_chunks: parts in which logits are made; None where they are whole.
    """

    method: str
    num_chunks: int | None = None


def observe(scope: TokenHeadScope, size: HeadSize, case: HeadCase) -> dict[str, Any]:
    """Measure in this process: logits at once in one step; bytes held, time and highest memory of steps before it."""
    torch.set_num_threads(scope.threads)
    tiny = HeadSize(seed=0, vocabulary=2, width=2 * scope.heads, context=2, batch_size=2, blocks=size.blocks)
    make(case, tiny, heads=scope.heads, device=scope.device)[
        0
    ]()  # what is loaded at first use is nobody's cost
    memory = Memory(scope.device)
    step, parameters, batch = make(case, size, heads=scope.heads, device=scope.device)
    found = probe(step, [*parameters, *batch], memory, scope.rounds)
    with LogitsBytes(size.vocabulary, [*parameters, *batch]) as logits:
        step()
    return found | {
        "logits_bytes_peak": logits.peak,
        "largest_logits_share": logits.peak / size.logits_bytes,
    }


def make(
    case: HeadCase, size: HeadSize, *, heads: int, device: str = "cpu"
) -> tuple[Callable[[], Tensor], list[Tensor], list[Tensor]]:
    """Build a head.

    Returns:
        A function that computes all gradients anew and returns that of the message, ``(B, T, D)``; the head's
        parameters; and messages ``(B, T, D)`` with tokens ``(B, T)``.
    """
    torch.manual_seed(size.seed)
    shape = (size.batch_size, size.context, size.width)
    below = Block(size.width, heads, size.context).to(device)
    factory = token_head(size.blocks, num_chunks=case.num_chunks or 1)
    rule = LocalLoss(size.vocabulary, factory).bind(
        Site("cut", shape, torch.float32, torch.device(device), below)
    )
    h = torch.randn(shape, device=device)
    y = torch.randint(size.vocabulary, shape[:2], device=device)
    parameters: list[Tensor] = list(rule.parameters())

    def in_parts() -> Tensor:
        rule.zero_grad()
        credit = rule.credit(h, Info(context=y))
        assert credit.delta is not None
        assert credit.loss is not None
        credit.loss.backward()
        return credit.delta / len(h)  # of the mean over the batch, as below

    def whole() -> Tensor:
        rule.zero_grad()
        leaf = h.detach().requires_grad_()
        F.cross_entropy(rule.head(leaf).flatten(0, 1), y.flatten()).backward()
        assert leaf.grad is not None
        return leaf.grad

    return whole if case.method == _WHOLE else in_parts, parameters, [*below.buffers(), *rule.buffers(), h, y]


class TokenHeadBench(OwnProcessBench[TokenHeadScope, HeadSize, HeadCase]):
    """A local loss on random messages and tokens; nothing is updated."""

    declared = TOKEN_HEAD
    axes = {
        **{"seed": "seeds", "vocabulary": "vocabularies", "width": "widths", "context": "contexts"},
        **{"batch_size": "batch_sizes", "blocks": "blocks"},
    }
    size = HeadSize
    optimizer = ""
    reference = _WHOLE
    observe = staticmethod(observe)

    def check(self, scope: TokenHeadScope) -> None:
        for width in scope.widths:
            with torch.device("meta"):
                gpt(1, width=width, blocks=1, heads=scope.heads, context=1)
        for size in self.sizes(scope):
            tokens = size.batch_size * size.context
            # Features, a block's three and four times as wide, and its attention.
            sizes = (12 * tokens * size.width, tokens * size.context * scope.heads)
            if any(each % size.vocabulary == 0 for each in sizes):
                other = next(
                    n for n in itertools.count(size.vocabulary + 1) if all(each % n for each in sizes)
                )
                raise ConfigError(
                    f"--vocabulary {size.vocabulary}: the numbers of a block on {tokens} tokens of {size.width} features are a "
                    f"multiple of it, so that logits could not be told from them; take another, such as {other}"
                )
            for num in scope.num_chunks:
                if num > tokens:
                    raise ConfigError(
                        f"--chunks {num}: expected at most {tokens}, the tokens of a batch of {size.batch_size} × {size.context}"
                    )

    def cases(self, scope: TokenHeadScope, size: HeadSize) -> Sequence[HeadCase]:
        """Return the reference first, then the token head in every number of parts."""
        parts = [HeadCase("token_head", num) for num in scope.num_chunks if "token_head" in scope.methods]
        return [HeadCase(_WHOLE), *parts]

    def cell(self, scope: TokenHeadScope, size: HeadSize, case: HeadCase) -> Mapping[str, Any]:
        shape = {"vocabulary": size.vocabulary, "width": size.width, "heads": scope.heads}
        batch = {"context": size.context, "batch_size": size.batch_size}
        made = {"blocks": size.blocks, "num_chunks": case.num_chunks}
        return {**shape, **batch, **made, "threads": scope.threads}

    def label(self, scope: TokenHeadScope, size: HeadSize) -> str:
        parts = [f"vocabulary {size.vocabulary}", f"width {size.width}", f"private blocks {size.blocks}"]
        return ", ".join([*parts, f"{size.batch_size} × {size.context} tokens"])


BENCHMARK = TokenHeadBench()
