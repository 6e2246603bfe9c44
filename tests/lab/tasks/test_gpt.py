"""The reference GPT: causal, aware of relative positions, of the size that it says, and exact under every cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError, ShapeError
from synthgrad.lab.tasks.gpt import Block, gpt, gpt_cuts


def model(*, tied: bool = False, blocks: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return gpt(11, width=16, blocks=blocks, heads=2, context=8, tied=tied).double()


def tokens(rows: int = 4, steps: int = 8) -> torch.Tensor:
    return torch.randint(0, 11, (rows, steps), generator=torch.Generator().manual_seed(1))


def test_a_score_depends_on_earlier_tokens_only() -> None:
    net, x = model(), tokens()
    before = net(x)
    changed = x.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    after = net(changed)
    torch.testing.assert_close(after[:, :5], before[:, :5], rtol=0, atol=1e-12)
    assert (after[:, 5:] - before[:, 5:]).abs().amax(-1).min() > 1e-6


def test_rotary_positions_are_relative() -> None:
    """Of a product of query and key only the distance counts: attention over a constant sequence is the same anywhere."""
    attention = Block(16, 2, 8).double().attention
    z = torch.randn(1, 2, 1, 8, dtype=torch.float64).expand(1, 2, 8, 8)
    query, key = attention._rotated(z), attention._rotated(z)
    products = query @ key.transpose(-1, -2)  # (1, heads, T, T)
    for distance in range(8):
        along = products.diagonal(-distance, -2, -1)
        torch.testing.assert_close(along, along[..., :1].expand_as(along))
    assert (products[..., 0, 0] - products[..., 5, 0]).abs().min() > 1e-6


def test_its_size_and_its_first_loss() -> None:
    net = model()
    block = 2 * 2 * 16 + 4 * 16 * 16 + 2 * 4 * 16 * 16 + 5 * 16
    assert sum(p.numel() for p in net.parameters()) == 2 * 11 * 16 + 3 * block + 2 * 16
    assert sum(p.numel() for p in model(tied=True).parameters()) == 11 * 16 + 3 * block + 2 * 16
    x = tokens(64)
    loss = F.cross_entropy(net(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).item()
    assert loss == pytest.approx(torch.tensor(11.0).log().item(), abs=0.05)  # it knows nothing yet


@pytest.mark.parametrize("modules", [2, 3])
def test_with_the_true_gradient_cut_training_is_backpropagation(modules: int) -> None:
    x = tokens()
    plain, cut = model(), model()
    net = sg.decouple(cut, gpt_cuts(3, modules), sg.TrueGradient(), x[:, :-1])

    def criterion(scores: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(scores.flatten(0, 1), y.flatten())

    trainer = sg.engines.InProcess(net, criterion, lambda p: torch.optim.Adam(p, 1e-2))
    optimizer = torch.optim.Adam(plain.parameters(), 1e-2)
    for _ in range(3):
        trainer.step(x[:, :-1], x[:, 1:])
        optimizer.zero_grad()
        criterion(plain(x[:, :-1]), x[:, 1:]).backward()
        optimizer.step()
    trained = dict(sg.recouple(net).named_parameters())
    for name, p in plain.named_parameters():
        torch.testing.assert_close(trained[name], p, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_cuts_divide_the_blocks_equally() -> None:
    assert gpt_cuts(8, 2) == ["block4"]
    assert gpt_cuts(8, 4) == ["block2", "block4", "block6"]
    assert gpt_cuts(3, 1) == []
    with pytest.raises(ConfigError, match="4 modules of 3 blocks: expected 1 to 3"):
        gpt_cuts(3, 4)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"width": 0}, "width 0: expected at least 1"),
        ({"blocks": 0}, "blocks 0: expected at least 1"),
        ({"width": 12, "heads": 4}, "width 12 with 4 heads: expected a multiple of 8"),
    ],
)
def test_sizes_that_cannot_be(sizes: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        gpt(11, **sizes)


@pytest.mark.parametrize("context", [1, 4])
def test_longer_sequences_than_it_was_made_for_are_refused(context: int) -> None:
    net = gpt(11, width=16, blocks=1, heads=2, context=context)
    with pytest.raises(ShapeError, match=f"got sequences of 8 tokens, and the model was made for {context}"):
        net(tokens())


def test_under_autocast_on_a_cpu_attention_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    attend = F.scaled_dot_product_attention

    def recorded(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        seen.extend([query.dtype, key.dtype, value.dtype])
        return attend(query, key, value, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    net, x = model().float(), tokens()
    full = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = net(x)
    assert set(seen) == {torch.float32}
    assert half.dtype == torch.bfloat16  # of the last linear layer, so the others were not left out
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.02)
    assert len(seen) == 2 * 3 * 3  # twice, in three blocks
