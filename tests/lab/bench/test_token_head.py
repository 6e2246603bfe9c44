"""``bench token-head``: the count of logits catches them in every form, both heads learn alike, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.core import ConfigError
from synthgrad.lab.bench.base import choose
from synthgrad.lab.bench.declarations import TOKEN_HEAD, TokenHeadScope
from synthgrad.lab.bench.logits import LogitsBytes
from synthgrad.lab.bench.token_head import HeadCase, HeadSize, TokenHeadBench, make, observe

SMOKE: TokenHeadScope = choose(TOKEN_HEAD, "smoke")
SIZE = HeadSize(seed=0, vocabulary=101, width=8, context=12, batch_size=4, blocks=0)
WHOLE = HeadCase("whole_logits")

N, D, V = 48, 8, 101
LOGITS = N * V * 4


# The count


def head() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(D, V, bias=False), torch.randn(N, D, requires_grad=True), torch.randint(V, (N,))


def counter(layer: nn.Module, *others: Tensor) -> LogitsBytes:
    return LogitsBytes(V, [*layer.parameters(), *others])


def test_whole_logits_exist_twice_forward_and_three_times_backward() -> None:
    layer, x, y = head()
    with counter(layer, x) as seen:
        scores = layer(x)
        assert seen.now == seen.peak == LOGITS
        loss = F.cross_entropy(scores, y)
        assert (seen.now, seen.peak) == (2 * LOGITS, 2 * LOGITS)  # with the logarithms that are kept
        del scores
        assert seen.now == LOGITS
        loss.backward()
        assert seen.peak == 3 * LOGITS
        del loss
        assert seen.now == 0


def test_neither_weights_nor_their_gradients_nor_views_of_them_count() -> None:
    layer, x, _ = head()
    with counter(layer, x) as seen:
        layer(x)
        seen.peak = 0
        assert layer.weight.t().shape == (D, V)
        (torch.ones(V, N) @ x.detach()).clone()  # the shape of the weight, made anew
        assert (seen.now, seen.peak) == (0, LOGITS)  # the ones alone


def parts_of_rows(layer: nn.Linear, x: Tensor) -> Any:
    return [layer(part) for part in x.chunk(16)]


def parts_of_the_vocabulary(layer: nn.Linear, x: Tensor) -> Any:
    return [x @ part.t() for part in layer.weight[:100].chunk(4)]


def transposed(layer: nn.Linear, x: Tensor) -> Any:
    return layer.weight @ x.t()


def as_sequences(layer: nn.Linear, x: Tensor) -> Any:
    return layer(x.view(4, 12, D))


def flattened(layer: nn.Linear, x: Tensor) -> Any:
    return torch.empty(N * V).copy_(layer(x).flatten())


def in_place(layer: nn.Linear, x: Tensor) -> Any:
    scores = torch.empty(4, 12, V)
    for row, part in zip(scores, x.view(4, 12, D), strict=True):
        row.copy_(layer(part))
    return scores


@pytest.mark.parametrize("form", [parts_of_rows, transposed, as_sequences, flattened, in_place])
def test_logits_are_counted_in_every_form(form: Any) -> None:
    layer, x, _ = head()
    with torch.no_grad(), counter(layer, x) as seen:
        kept = form(layer, x)
        assert seen.now == LOGITS
        del kept
        assert seen.now == 0


def test_parts_of_the_vocabulary_are_counted_where_they_are_of_equal_size() -> None:
    layer, x, _ = head()
    with torch.no_grad(), LogitsBytes(100, [*layer.parameters(), x]) as seen:
        kept = parts_of_the_vocabulary(layer, x)
        assert seen.now == N * 100 * 4
    del kept


def test_parts_that_are_made_one_after_the_other_are_counted_one_at_a_time() -> None:
    layer, x, _ = head()
    with torch.no_grad(), counter(layer, x) as seen:
        for part in x.chunk(16):
            layer(part)
    assert seen.peak == LOGITS // 16


def test_activations_do_not_count() -> None:
    layer, x, _ = head()
    with counter(layer, x) as seen:
        ((x * 2).exp() @ torch.ones(D, 4 * D)).sum().backward()
    assert seen.peak == 0


# A true peer


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("num_chunks", [1, 5, 16])
def test_both_heads_have_the_same_gradients(blocks: int, num_chunks: int) -> None:
    found: list[list[Tensor]] = []
    for case in (WHOLE, HeadCase("token_head", num_chunks)):
        step, parameters, _ = make(case, replace(SIZE, blocks=blocks), heads=2)
        step()
        delta = step()  # the gradients of one step, not of two
        found.append([delta, *(p.grad for p in parameters if p.grad is not None)])
    whole, parts = found
    assert len(whole) == len(parts) > blocks * 8 + 3
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# Figures


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize(("num_chunks", "share"), [(16, 1 / 16), (4, 1 / 4), (1, 1.0)])
def test_the_token_head_has_one_part_of_the_logits_at_once(
    blocks: int, num_chunks: int, share: float
) -> None:
    found = observe(
        replace(SMOKE, rounds=1), replace(SIZE, blocks=blocks), HeadCase("token_head", num_chunks)
    )
    assert found["largest_logits_share"] == share
    assert found["logits_bytes_peak"] == LOGITS * share


def test_a_part_more_or_less_is_rounded_up() -> None:
    found = observe(replace(SMOKE, rounds=1), SIZE, HeadCase("token_head", 10))
    assert found["logits_bytes_peak"] == 5 * V * 4  # 48 tokens in parts of five


def test_the_whole_head_has_all_logits_and_more() -> None:
    found = observe(replace(SMOKE, rounds=1), SIZE, WHOLE)
    assert found["largest_logits_share"] == 3
    assert set(found) == {
        *("saved_bytes_peak", "peak_bytes", "step_ms_median", "step_ms_p10", "step_ms_p90"),
        *("logits_bytes_peak", "largest_logits_share"),
    }
    parts = observe(replace(SMOKE, rounds=1), SIZE, HeadCase("token_head", 16))
    assert parts["saved_bytes_peak"] < found["saved_bytes_peak"]


# Lines


def test_lines_of_a_setting() -> None:
    settings = TokenHeadBench().settings(SMOKE)
    cells = [
        [(r.method, r.cell["blocks"], r.cell["num_chunks"]) for r in setting.lines] for setting in settings
    ]
    assert cells == [[("whole_logits", n, None), ("token_head", n, 4), ("token_head", n, 16)] for n in (0, 1)]
    line = settings[1].lines[2]
    assert line.cell == {
        **{"vocabulary": 500, "width": 32, "heads": 2, "context": 64, "batch_size": 2},
        **{"blocks": 1, "num_chunks": 16, "threads": 1},
    }
    assert (line.experiment, line.batch_size) == ("bench/token-head", 2)
    assert line.config == {"rounds": 2, "device": "cpu"}


def test_the_quick_tier_has_a_vocabulary_of_50_000() -> None:
    (cell,) = {
        tuple(line.cell[name] for name in ("vocabulary", "width", "context", "batch_size"))
        for setting in TokenHeadBench().settings(choose(TOKEN_HEAD))
        for line in setting.lines
    }
    assert cell == (50_000, 768, 1024, 2)


@pytest.mark.slow(reason="every line is measured in a process with a PyTorch of its own")
def test_lines_are_compared_with_whole_logits() -> None:
    (setting,) = TokenHeadBench().settings(choose(TOKEN_HEAD, "smoke", blocks=(0,), num_chunks=(16,)))
    whole, parts = setting.measure()
    assert (whole.status, parts.status) == ("ok", "ok")
    assert whole.metrics["ratio_to_whole_logits"] == 1
    assert parts.metrics["ratio_to_whole_logits"] < 1
    assert parts.metrics["largest_logits_share"] == 1 / 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"widths": (30,)}, "width 30 with 2 heads: expected a multiple of 4"),
        (
            {"vocabularies": (64,)},
            r"--vocabulary 64: .* 128 tokens of 32 features .* take another, such as 65",
        ),
        # The number of features is no multiple of it, the attention of a block is.
        ({"vocabularies": (49,), "contexts": (7,)}, "--vocabulary 49: .* such as 50"),
        ({"num_chunks": (129,)}, "--chunks 129: expected at most 128, the tokens of a batch of 2 × 64"),
        ({"methods": ("linear",)}, "method 'linear' is unknown to bench token-head"),
    ],
)
def test_what_cannot_be_measured(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TokenHeadBench().settings(choose(TOKEN_HEAD, "smoke", **given))
