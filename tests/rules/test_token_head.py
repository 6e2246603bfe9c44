"""Targets for each token: credits and gradients in closed form, ragged masks, and scores that are never whole."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import synthgrad as sg
from synthgrad.core import ConfigError, ContextError, CutError, Info, Message, ShapeError, Site
from synthgrad.rules import heads
from synthgrad.rules.token_head import TokenHead

B, T, D, V = 3, 5, 6, 7
IGNORED = -100


class Block(nn.Module):
    """Something of the block's kind, with parameters that can be drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).tanh()


def bound(rule: sg.Rule, module: nn.Module | None = None, shape: tuple[int, ...] = (B, T, D)) -> Any:
    torch.manual_seed(0)
    return rule.bind(Site("cut", shape, torch.float64, torch.device("cpu"), module or Block()))


def message() -> Tensor:
    return torch.randn(B, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def ragged() -> Tensor:
    """Return targets of which rows have 5, 2 and 0."""
    y = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(2))
    y[1, 2:] = IGNORED
    y[2] = IGNORED
    return y


def per_example(scores: Tensor, y: Tensor) -> Tensor:
    """Return the mean loss over the tokens of each example that have a target; zero where none has."""
    rows = [
        F.cross_entropy(s[t != IGNORED], t[t != IGNORED]) if (t != IGNORED).any() else s.sum() * 0
        for s, t in zip(scores, y, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("blocks", [0, 1, 2])
@pytest.mark.parametrize("num_chunks", [1, 4, 16, 100])
def test_credit_and_gradients_are_those_of_the_mean_over_unmasked_tokens(
    blocks: int, num_chunks: int
) -> None:
    rule = bound(sg.LocalLoss(V, heads.token_head(blocks, num_chunks=num_chunks)))
    h, y = message(), ragged()
    credit = rule.credit(h, Info(context=y))
    credit.loss.backward()
    ours = {name: p.grad for name, p in rule.named_parameters()}
    rule.zero_grad()
    leaf = h.clone().requires_grad_()
    losses = per_example(rule.head(leaf), y)
    losses.mean().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(credit.loss, losses.mean())
    torch.testing.assert_close(credit.delta, leaf.grad * B)  # in per-example units
    assert torch.equal(credit.delta[2], torch.zeros(T, D))  # an example without a target teaches nothing
    for name, p in rule.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, msg=name)


def test_a_critic_takes_tokens_too() -> None:
    rule = bound(sg.Sobolev(V, head=heads.token_head(0)))
    for p in rule.parameters():
        nn.init.normal_(p)
    h, y = message(), ragged()
    credit = rule.credit(h, Info(context=y))
    leaf = h.clone().requires_grad_()
    losses = per_example(rule.head(leaf), y)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    torch.testing.assert_close(credit.value, losses.detach())
    torch.testing.assert_close(credit.delta, gradient)
    rule.observe(h, Info(context=y), Message(torch.ones_like(h)), credit.pending).backward()
    assert all(p.grad is not None for p in rule.parameters())


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor):
                self.numel = max(self.numel, value.numel())
        return found


def test_the_scores_are_never_whole() -> None:
    """With 64 rows of 32 tokens and a vocabulary of 500 the scores have a million numbers; a sixteenth is held."""
    torch.manual_seed(0)
    site = Site("cut", (64, 32, 8), torch.float32, torch.device("cpu"), nn.Identity())
    rule = sg.LocalLoss(500, heads.token_head(0)).bind(site)
    h, y = torch.randn(64, 32, 8), torch.randint(0, 500, (64, 32))
    with Largest() as seen:
        rule.credit(h, Info(context=y))
    assert seen.numel == 64 * 32 * 500 // 16


def test_a_block_is_like_the_one_below_and_drawn_anew() -> None:
    torch.manual_seed(5)
    below = Block()
    head = bound(sg.LocalLoss(V, heads.token_head(2)), below).head
    first, second = head.layers[0]
    assert type(first) is type(second) is Block
    weights = [first.inner.weight, second.inner.weight, below.inner.weight.double()]
    assert not any(torch.equal(a, b) for k, a in enumerate(weights) for b in weights[k + 1 :])
    assert isinstance(head, TokenHead)


def test_a_block_of_ones_own() -> None:
    head = bound(sg.LocalLoss(V, heads.token_head(1, block=lambda site: nn.Linear(site.shape[2], D)))).head
    assert isinstance(head.layers[0][0], nn.Linear)


def test_it_trains_a_language_model_without_a_message() -> None:
    """A cut network with a token head learns to copy the token before; the head's targets are the network's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(V, D), Block(), Block(), nn.Linear(D, V))
    x = torch.randint(0, V, (64, T))
    net = sg.decouple(model, ["1"], sg.LocalLoss(V, heads.token_head(1)), x)

    def criterion(scores: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(scores.flatten(0, 1), y.flatten())

    trainer = sg.engines.InProcess(net, criterion, lambda p: torch.optim.Adam(p, 1e-2))
    losses = [trainer.step(x, x).loss for _ in range(150)]
    assert losses[-1] is not None
    assert losses[-1] < 0.1 < losses[0]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (
            torch.zeros(B, T + 1).long(),
            "got labels of shape (3, 6) and dtype torch.int64 for a message of shape (3, 5, 6), expected class indices (3, 5)",
        ),
        (torch.zeros(B).long(), "give a token for each position of the message"),
        (None, "needs labels as context and got none"),
    ],
)
def test_targets_that_do_not_fit(y: Tensor | None, words: str) -> None:
    rule = bound(sg.LocalLoss(V, heads.token_head(0)))
    with pytest.raises(ContextError, match=re.escape(words)):
        rule.check(message(), Info(context=y))


def test_a_token_outside_the_vocabulary() -> None:
    rule = bound(sg.LocalLoss(V, heads.token_head(0)))
    y = ragged()
    y[0, 0] = V
    with pytest.raises(ContextError, match=f"got class index {V}, expected 0 to {V - 1}"):
        rule.credit(message(), Info(context=y))


def test_tokens_for_a_head_of_classes_are_told_what_to_take() -> None:
    rule = bound(sg.LocalLoss(V))
    with pytest.raises(ContextError, match=re.escape("give the rule head=heads.token_head()")):
        rule.check(message(), Info(context=ragged()))


def test_messages_and_blocks_that_do_not_fit() -> None:
    with pytest.raises(CutError, match=r"needs messages \(B, T, D\), the example has \(3, 6\)"):
        bound(sg.LocalLoss(V, heads.token_head(0)), shape=(B, D))
    with pytest.raises(CutError, match="a copy of the block below the cut returned"):
        bound(sg.LocalLoss(V, heads.token_head(1)), nn.Linear(D, D + 1))
    with pytest.raises(CutError, match="a copy of the block below the cut cannot be run"):
        bound(sg.LocalLoss(V, heads.token_head(1)), nn.Embedding(V, D))
    rule = bound(sg.LocalLoss(V, heads.token_head(0)))
    with pytest.raises(ShapeError, match=r"expects \(B, T, 6\)"):
        rule.check(torch.zeros(B, T, D + 1), Info(context=ragged()))
    with pytest.raises(ConfigError, match="blocks=-1"):
        heads.token_head(-1)
    with pytest.raises(ConfigError, match="block=3: expected a factory"):
        heads.token_head(block=3)  # type: ignore[arg-type]


def test_trying_a_block_out_leaves_its_statistics_alone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(D)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    head = bound(sg.LocalLoss(V, heads.token_head(1)), Normed()).head
    assert head.layers[0][0].norm.num_batches_tracked == 0


def test_an_empty_batch_has_an_empty_credit() -> None:
    rule = bound(sg.LocalLoss(V, heads.token_head(1)))
    credit = rule.credit(message()[:0], Info(context=ragged()[:0]))
    assert credit.delta.shape == (0, T, D)
    assert credit.loss == 0


@pytest.mark.parametrize("wrap", [False, True])
def test_a_head_that_leaves_out_other_tokens_than_the_criterion_is_refused(wrap: bool) -> None:
    model = nn.Sequential(nn.Embedding(V, D), Block(), nn.Linear(D, V))
    rule: sg.Rule = sg.LocalLoss(V, heads.token_head(0), ignore_index=0)
    rule = sg.HandOver(rule, warm_up=1) if wrap else rule
    x = torch.randint(0, V, (B, T))
    sg.decouple(model, ["1"], rule, x)
    sg.decouple(model, ["1"], rule, x, reduction="tokens", ignore_index=0)
    with pytest.raises(
        ConfigError, match="leaves out tokens whose label is 0, and reduction='tokens' those whose"
    ):
        sg.decouple(model, ["1"], rule, x, reduction="tokens")
