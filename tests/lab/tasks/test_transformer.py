"""The Transformer with a memory: what a step attends to, and that the length of unrolls does not change the forward pass."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from synthgrad.core import ConfigError, ShapeError
from synthgrad.lab.tasks import MemoryTransformer

MEMORY = 3


def _net(**settings: Any) -> MemoryTransformer:
    torch.manual_seed(0)
    sizes = {"inputs": 5, "classes": 4, "width": 8, "layers": 2, "heads": 2, "memory": MEMORY}
    return MemoryTransformer(**{**sizes, **settings}).double()


def _tokens(steps: int = 10) -> torch.Tensor:
    return torch.randint(5, (2, steps), generator=torch.Generator().manual_seed(1))


def _memory(net: MemoryTransformer, batch: int = 2) -> tuple[torch.Tensor]:
    return (torch.randn_like(net.initial_state(batch)[0]),)


def test_shapes() -> None:
    net = _net()
    state = net.initial_state(2)
    outputs, after = net(_tokens(), state)
    assert outputs.shape == (2, 10, 4)
    assert [part.shape for part in (*state, *after)] == [(2, 2, MEMORY, 8)] * 2
    features, _ = net.features(_tokens(), state)
    assert features.shape == (2, 10, 8)
    assert torch.equal(net.head(features), outputs)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_sees_itself_and_what_its_window_reaches(layers: int) -> None:
    net = _net(layers=layers, embed=False)
    x = torch.randn(1, 12, 5, dtype=torch.float64, requires_grad=True)
    outputs, _ = net(x, _memory(net, 1))
    for t in range(12):
        (grad,) = torch.autograd.grad(outputs[0, t].square().sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, t - layers * MEMORY), t + 1))


@pytest.mark.parametrize("t", [1, 5, 9])
def test_later_inputs_leave_earlier_outputs(t: int) -> None:
    net, x = _net(), _tokens()
    state = _memory(net)
    changed = x.clone()
    changed[:, t:] = (changed[:, t:] + 1) % 5
    a, b = net(x, state)[0], net(changed, state)[0]
    assert torch.equal(a[:, :t], b[:, :t])
    assert not torch.isclose(a[:, t], b[:, t]).any()


def test_attention_equals_a_loop_over_steps() -> None:
    net = _net(layers=1, embed=False)
    block: Any = net.core[0]
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    memory = torch.randn(2, MEMORY, 8, dtype=torch.float64)
    with torch.no_grad():
        block.by_distance.copy_(torch.randn_like(block.by_distance))
        now = block.before_attention(x)
        seen = torch.cat([memory, now], 1)
        key, value = block.key_value(seen).chunk(2, -1)
        query = block.query(now)
        read = torch.zeros_like(x)
        for b in range(2):
            for t in range(6):
                for head, part in enumerate((slice(0, 4), slice(4, 8))):
                    window = range(t, t + MEMORY + 1)  # positions in `seen`: M steps back, up to itself
                    scores = torch.stack(
                        [
                            query[b, t, part] @ key[b, j, part] / math.sqrt(4)
                            + block.by_distance[head, MEMORY + t - j]
                            for j in window
                        ]
                    )
                    weights = scores.softmax(0)
                    read[b, t, part] = sum(
                        w * value[b, j, part] for w, j in zip(weights, window, strict=True)
                    )
        expected = x + block.output(read)
        expected = expected + block.layers(block.before_layers(expected))
        outputs, after = block(x, memory)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(after, now[:, -MEMORY:])


@pytest.mark.parametrize("steps", [1, 2, 5], ids=lambda n: f"unrolls of {n}")
def test_cut_in_unrolls_equals_the_whole(steps: int) -> None:
    whole, x = _net(), _tokens()  # unrolls shorter than the memory, and longer
    cut = copy.deepcopy(whole)
    outputs, after = whole(x, whole.initial_state(2))
    (outputs.square().sum() + after[0].sin().sum()).backward()
    parts, state = [], cut.initial_state(2)
    for start in range(0, 10, steps):
        part, state = cut(x[:, start : start + steps], state)
        parts.append(part)
    (torch.cat(parts, 1).square().sum() + state[0].sin().sum()).backward()
    torch.testing.assert_close(torch.cat(parts, 1), outputs)
    torch.testing.assert_close(state[0], after[0])
    for (name, a), (_, b) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")


def test_every_parameter_learns() -> None:
    net = _net()
    net(_tokens(), net.initial_state(2))[0].square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert p.grad.count_nonzero() > 0, name


def test_gradient_flows_into_every_step_and_layer_of_the_memory() -> None:
    net = _net()
    (memory,) = net.initial_state(2)
    net(_tokens(), (memory.requires_grad_(),))[0].square().sum().backward()
    assert memory.grad is not None
    assert (memory.grad.abs().sum(-1) > 0).all()
    # Of the scale of the memory itself, though it is zero: no division by the norm of nothing.
    assert memory.grad.abs().max() < 10


def test_gradient_with_respect_to_the_memory_is_right() -> None:
    net = _net(width=4, memory=2)
    (memory,) = _memory(net)

    def run(memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, (after,) = net(_tokens(1), (memory,))
        return outputs, after

    assert torch.autograd.gradcheck(run, (memory.requires_grad_(),))


def test_memory_of_zeros_adds_nothing_but_takes_attention() -> None:
    net = _net(layers=1)
    block: Any = net.core[0]
    with torch.no_grad():
        assert block.key_value(torch.zeros(1, 8, dtype=torch.float64)).count_nonzero() == 0
    x = _tokens(1)
    zeros = net(x, net.initial_state(2))[0]
    with torch.no_grad():
        block.by_distance[:, 1:] = -math.inf  # as if there were no memory at all
    assert not torch.isclose(zeros, net(x, net.initial_state(2))[0]).any()


def test_features_pass_a_linear_layer() -> None:
    net = _net(embed=False)
    one_hot = torch.eye(5, dtype=torch.float64)[_tokens()]
    assert torch.equal(net(_tokens(), net.initial_state(2))[0], net(one_hot, net.initial_state(2))[0])


def test_seed_decides_the_weights() -> None:
    for (name, a), (_, b) in zip(_net().named_parameters(), _net().named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_memory_keeps_its_precision_under_autocast() -> None:
    net = _net().float()
    state = net.initial_state(2)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            outputs, state = net(_tokens(), state)
    assert (state[0].dtype, outputs.dtype) == (torch.float32, torch.bfloat16)


def test_initial_state_is_of_the_weights_unless_told() -> None:
    net = _net()
    assert net.initial_state(1)[0].dtype == torch.float64
    (other,) = net.initial_state(1, torch.device("meta"), torch.float32)
    assert (other.dtype, other.device.type) == (torch.float32, "meta")


@pytest.mark.parametrize("name", ["inputs", "classes", "width", "layers", "heads", "memory"])
def test_size_that_is_not_positive_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}=0: expected at least 1"):
        _net(**{name: 0})


def test_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="width=9: expected a multiple of heads=2"):
        _net(width=9)


def test_features_where_tokens_are_embedded_are_refused() -> None:
    net = _net()
    with pytest.raises(ShapeError, match=r"expected tokens \(B, T\) int64"):
        net(torch.zeros(2, 10, 5), net.initial_state(2))


def test_memory_of_another_batch_is_refused() -> None:
    net = _net()
    with pytest.raises(ShapeError, match=r"shape \(3, 2, 3, 8\), expected 1 of \(2, 2, 3, 8\)"):
        net(_tokens(), net.initial_state(3))
