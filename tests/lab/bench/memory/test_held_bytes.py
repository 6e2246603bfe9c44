"""Bytes that graphs hold, against what arithmetic says of a stack of linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synthgrad.lab.bench.memory.held_bytes import HeldBytes

BATCH, WIDTH, CLASSES = 16, 32, 10
LAYER = BATCH * WIDTH * 4  # one activation in float32


def stack(layers: int) -> nn.Sequential:
    """Return Linear–ReLU layers, each ``WIDTH`` wide, and a linear output."""
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(WIDTH, CLASSES))


def counter(model: nn.Module, *batch: Tensor) -> HeldBytes:
    return HeldBytes([*model.parameters(), *model.buffers(), *batch])


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_a_stack_holds_one_activation_of_each_layer(layers: int) -> None:
    # ReLU keeps its output, and the next layer its input: the same storage. The first input is the batch.
    model, x = stack(layers), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held:
        output = model(x)
        assert held.now == held.peak == layers * LAYER
        output.sum().backward()
        assert held.now == 0
    assert held.peak == layers * LAYER


def test_cross_entropy_adds_its_logarithms_and_a_weight() -> None:
    model, x, y = stack(1), torch.randn(BATCH, WIDTH), torch.randint(CLASSES, (BATCH,))
    with counter(model, x, y) as held:
        F.cross_entropy(model(x), y).backward()
    assert held.peak == LAYER + BATCH * CLASSES * 4 + 4
    assert held.now == 0


def test_what_is_not_excluded_is_counted() -> None:
    model, x = stack(1), torch.randn(BATCH, WIDTH)
    output_weight = model[2].weight
    with HeldBytes([p for p in model.parameters() if p is not output_weight]) as held:
        kept = model(x)
        assert held.now == LAYER + x.nbytes + output_weight.nbytes
    del kept


def test_a_view_counts_as_its_whole_storage_once() -> None:
    whole = torch.randn(4, BATCH)
    a, b = (whole[k].clone().requires_grad_() for k in (0, 1))
    with HeldBytes([a, b]) as held:
        kept = whole[1] * a + whole[2] * b  # both products keep a row
        assert held.now == whole.nbytes
    del kept


def test_a_graph_that_is_dropped_holds_nothing() -> None:
    model, x = stack(3), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held:
        output = model(x)
        del output
        assert held.now == 0
        kept = model(x)
    assert held.now == held.peak == 3 * LAYER
    del kept  # also after the block
    assert held.now == 0


def test_no_graph_no_bytes() -> None:
    model, x = stack(3), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held, torch.no_grad():
        model(x)
    assert held.peak == 0


def test_nothing_is_counted_after_the_block() -> None:
    model, x = stack(2), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held:
        pass
    kept = model(x)
    assert held.peak == 0
    del kept


def test_an_exception_ends_the_counting() -> None:
    model, x = stack(2), torch.randn(BATCH, WIDTH)
    held = counter(model, x)
    kept: list[Tensor] = []

    def fail() -> None:
        with held:
            kept.append(model(x))
            model(torch.randn(BATCH, WIDTH + 1))

    with pytest.raises(RuntimeError, match="shapes"):
        fail()
    assert held.now == 2 * LAYER
    after = model(x)
    assert held.now == 2 * LAYER
    kept.clear()
    del after
    assert held.now == 0


def test_two_graphs_share_what_both_hold() -> None:
    below, left, right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 3)
    both = nn.ModuleList([below, left, right])
    x = torch.randn(BATCH, WIDTH)
    with counter(both, x) as held:
        h = below(x).relu().detach()
        first, second = left(h).sum(), right(h).sum()
        assert held.now == LAYER
        first.backward()
        assert held.now == LAYER  # the other still needs it
        second.backward()
        assert held.now == 0
    assert held.peak == LAYER


def test_two_graphs_of_their_own_add_up() -> None:
    model, x = stack(2), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held:
        first, second = model(x).sum(), model(x).sum()
        assert held.now == 4 * LAYER
        first.backward()
        assert held.now == 2 * LAYER
        second.backward()
    assert (held.now, held.peak) == (0, 4 * LAYER)


def test_of_nested_counters_the_inner_one_counts() -> None:
    model, x = stack(2), torch.randn(BATCH, WIDTH)
    with counter(model, x) as outer:
        first = model(x)
        with counter(model, x) as inner:
            second = model(x)
        third = model(x)
    assert (outer.now, inner.now) == (4 * LAYER, 2 * LAYER)
    del first, second, third
    assert (outer.now, inner.now) == (0, 0)


def doubled(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def test_what_hooks_inside_make_of_a_tensor_is_counted() -> None:
    """An engine's hooks keep the weights of a forward pass; PyTorch asks those alone, not the counter's."""
    model, x = stack(1), torch.randn(BATCH, WIDTH)
    with counter(model, x) as held:
        with torch.autograd.graph.saved_tensors_hooks(doubled, lambda kept: kept):
            output = model(x)
        # Copies of the input, of the ReLU's output, which is saved twice, and of the output's weight.
        assert held.now == x.nbytes + 2 * LAYER + model[2].weight.nbytes
        plain = model(x)
        assert held.now == x.nbytes + 3 * LAYER + model[2].weight.nbytes
        output.sum().backward()
        assert held.now == LAYER
    del plain
    assert held.now == 0


def test_hooks_inside_that_keep_no_tensor_are_left_alone() -> None:
    model, x = stack(1), torch.randn(BATCH, WIDTH)
    with (
        counter(model, x) as held,
        torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy(), torch.from_numpy),
    ):
        model(x).sum().backward()
    assert held.peak == 0
    assert model[0].weight.grad is not None


def test_hooks_outside_are_pytorchs_own_again_whatever_happens() -> None:
    before = torch.autograd.graph.saved_tensors_hooks

    def fail() -> None:
        with HeldBytes([]):
            assert torch.autograd.graph.saved_tensors_hooks is not before
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.autograd.graph.saved_tensors_hooks is before


def test_gradients_are_the_same_under_the_counter() -> None:
    model, x = stack(2).double(), torch.randn(BATCH, WIDTH, dtype=torch.float64)

    def second_order() -> list[Tensor]:
        model.zero_grad()
        output = model(x).tanh().sum()  # tanh keeps its own output
        grads = torch.autograd.grad(output, list(model.parameters()), create_graph=True)
        torch.stack([g.square().sum() for g in grads]).sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = second_order()
    with counter(model, x):
        counted = second_order()
        with torch.autograd.graph.saved_tensors_hooks(doubled, lambda kept: kept):
            copied = second_order()
    assert len(plain) == len(counted) == len(copied) > 0
    for a, b, c in zip(plain, counted, copied, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a, c, rtol=0, atol=0)
