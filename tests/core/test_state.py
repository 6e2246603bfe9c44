"""States as flat tensors: both ways, with gradients, for the states of every kind of recurrent module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from synthgrad.core import ShapeError
from synthgrad.core.state import StateLayout

B = 3


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


STATES: dict[str, tuple[Any, int, int]] = {
    "cell": (rand(B, 5), 0, 5),
    "LSTM cell": ((rand(B, 5), rand(B, 5)), 0, 10),
    "GRU of two layers": (rand(2, B, 5), 1, 10),
    "LSTM of two layers": ((rand(2, B, 5), rand(2, B, 5)), 1, 20),
    "memory": (rand(B, 2, 4, 5), 0, 40),
    "nested": ({"rnn": [rand(B, 2), (rand(B, 3), rand(B))], "memory": rand(B, 2, 2)}, 0, 10),
    "batch last": (rand(2, 4, B), 2, 8),
    "no example": ((rand(2, 0, 5), rand(2, 0, 5)), 1, 20),
}
every_state = pytest.mark.parametrize("name", STATES)


@every_state
def test_there_and_back(name: str) -> None:
    state, batch_dim, features = STATES[name]
    layout = StateLayout(state, batch_dim)
    flat = layout.pack(state)
    batch = 0 if name == "no example" else B
    assert flat.shape == (batch, features) == (layout.batch_size, layout.num_features)
    back = layout.unpack(flat)
    assert pytree.tree_structure(back) == pytree.tree_structure(state)
    for ours, theirs in zip(pytree.tree_leaves(back), pytree.tree_leaves(state), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.is_contiguous()
    layout.check(back, "the state", batch)


@every_state
def test_an_example_of_the_batch_keeps_its_row(name: str) -> None:
    """Row ``k`` of the flat tensor is example ``k``, not a mixture of several."""
    state, batch_dim, _ = STATES[name]
    marked = pytree.tree_map(
        lambda t: (
            torch.arange(t.shape[batch_dim], dtype=t.dtype)
            .view(*[-1 if d == batch_dim else 1 for d in range(t.ndim)])
            .expand_as(t)
        ),
        state,
    )
    flat = StateLayout(state, batch_dim).pack(marked)
    assert torch.equal(flat, torch.arange(flat.shape[0], dtype=flat.dtype).view(-1, 1).expand_as(flat))


@pytest.mark.parametrize("name", [n for n in STATES if n != "no example"])
def test_gradients_flow_both_ways(name: str) -> None:
    state, batch_dim, _ = STATES[name]
    layout = StateLayout(state, batch_dim)
    leaves = [t.clone().requires_grad_() for t in pytree.tree_leaves(state)]
    spec = pytree.tree_structure(state)

    def round_trip(*parts: Tensor) -> Tensor:
        packed = layout.pack(pytree.tree_unflatten(list(parts), spec)).sin()
        return sum((t.square().sum() for t in pytree.tree_leaves(layout.unpack(packed))), torch.zeros(()))

    assert torch.autograd.gradcheck(round_trip, leaves)


def test_one_flat_tensor_is_itself() -> None:
    state = rand(B, 5)
    layout = StateLayout(state)
    assert layout.pack(state) is state
    assert layout.unpack(state) is state


def test_parts_lie_side_by_side_in_order() -> None:
    h, c = rand(B, 2), rand(B, 3)
    assert torch.equal(StateLayout((h, c)).pack((h, c)), torch.cat([h, c], 1))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_another_batch_size_and_the_modules_own_states(kind: Any) -> None:
    module = kind(4, 5, num_layers=2, batch_first=True).double()
    _, example = module(rand(B, 7, 4))
    layout = StateLayout(example, batch_dim=1)
    _, state = module(rand(6, 7, 4))
    layout.check(state, "the state")
    x = rand(6, 2, 4)
    expected, _ = module(x, state)
    found, _ = module(x, layout.unpack(layout.pack(state)))
    assert torch.equal(found, expected)


LSTM = (rand(2, B, 5), rand(2, B, 5))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (rand(2, B, 5), r"the state of node 'A' has the structure \*, expected \(\*, \*\)"),
        ([rand(2, B, 5), rand(2, B, 5)], r"structure \[\*, \*\], expected \(\*, \*\)"),
        ((rand(2, B, 5), rand(2, B, 6)), r"parts of shape \(2, 3, 5\), \(2, 3, 6\), expected \(2, B, 5\)"),
        ((rand(1, B, 5), rand(1, B, 5)), r"expected \(2, B, 5\), \(2, B, 5\)"),
        ((rand(2, 4, 5), rand(2, B, 5)), "batches of 3 and 4 along dimension 1"),
        ((rand(2, 4, 5), rand(2, 4, 5)), "has a batch of 4, expected 3"),
        ((rand(2, B, 5), torch.zeros(2, B, 5, dtype=torch.long)), "a part of dtype torch.int64"),
        ((rand(2, B, 5), None), "a part of type NoneType"),
        ((rand(2, B, 5), rand(2, B, 5).float()), "dtypes torch.float32 and torch.float64"),
        ((rand(2), rand(2)), "expected one with a dimension 1 for the batch"),
    ],
)
def test_states_that_do_not_fit(state: Any, words: str) -> None:
    layout = StateLayout(LSTM, batch_dim=1)
    with pytest.raises(ShapeError, match=words):
        layout.check(state, "the state of node 'A'", B)


@pytest.mark.parametrize(
    ("example", "batch_dim", "words"),
    [
        ((), 0, "holds nothing"),
        (None, 0, "type NoneType"),
        (torch.zeros(B, 2, dtype=torch.long), 0, "dtype torch.int64"),
        (rand(B), 1, "with a dimension 1 for the batch"),
        (rand(B), -1, "batch_dim=-1"),
        ((rand(B, 2), rand(4, 2)), 0, "batches of 3 and 4"),
    ],
)
def test_examples_that_are_no_states(example: Any, batch_dim: int, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        StateLayout(example, batch_dim)
