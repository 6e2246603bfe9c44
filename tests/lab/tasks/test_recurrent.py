"""Recurrent reference networks compared with PyTorch's cells, and with an unroll cut in two."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from synthgrad.core import ConfigError, ShapeError, StateLayout
from synthgrad.lab.tasks import RecurrentNetwork, recurrent_network
from synthgrad.lab.tasks.recurrent import CellKind

KINDS: tuple[CellKind, ...] = ("lstm", "gru", "rnn")
CELLS: dict[str, type[nn.RNNCellBase]] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}

each_kind = pytest.mark.parametrize("kind", KINDS)


def _net(kind: CellKind, **settings: Any) -> RecurrentNetwork:
    torch.manual_seed(0)
    return recurrent_network(kind, **{"inputs": 5, "classes": 4, "width": 6, **settings}).double()


def _tokens(batch: int = 3, steps: int = 8, inputs: int = 5) -> torch.Tensor:
    return torch.randint(inputs, (batch, steps), generator=torch.Generator().manual_seed(1))


@each_kind
@pytest.mark.parametrize("embed", [False, True])
def test_shapes(kind: CellKind, embed: bool) -> None:
    net = recurrent_network(kind, inputs=5, classes=4, width=6, layers=2, embed=embed)
    state = net.initial_state(3)
    assert len(state) == (2 if kind == "lstm" else 1)
    features, after = net.features(_tokens(), state)
    assert features.shape == (3, 8, 6)
    for part in (*state, *after):
        assert (part.shape, part.dtype) == ((3, 2, 6), torch.float32)
    outputs, again = net(_tokens(), state)
    assert torch.equal(outputs, net.head(features))
    assert outputs.shape == (3, 8, 4)
    for a, b in zip(after, again, strict=True):
        assert torch.equal(a, b)


@each_kind
@pytest.mark.parametrize("embed", [False, True])
def test_network_equals_a_loop_over_cells(kind: CellKind, embed: bool) -> None:
    net, x = _net(kind, embed=embed), _tokens()
    cell = CELLS[kind](6 if embed else 5, 6).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in net.core.state_dict().items()})
    z = net.embedding(x) if net.embedding is not None else torch.eye(5, dtype=torch.float64)[x]
    state = tuple(torch.randn(3, 1, 6, dtype=torch.float64) for _ in net.initial_state(1))
    flat: Any = tuple(part[:, 0] for part in state)
    flat = flat if kind == "lstm" else flat[0]
    expected = []
    for t in range(8):
        flat = cell(z[:, t], flat)
        expected.append(flat[0] if kind == "lstm" else flat)
    outputs, after = net(x, state)
    torch.testing.assert_close(outputs, net.head(torch.stack(expected, 1)))
    for part, last in zip(after, flat if kind == "lstm" else (flat,), strict=True):
        torch.testing.assert_close(part[:, 0], last)


def test_state_has_the_layers_in_order() -> None:
    net, x = _net("lstm", layers=2), _tokens()
    features, (h, c) = net.features(x, net.initial_state(3))
    torch.testing.assert_close(h[:, 1], features[:, -1])  # the last layer's is what the head reads
    _, (h_core, c_core) = net.core(torch.eye(5, dtype=torch.float64)[x])
    torch.testing.assert_close(h.transpose(0, 1), h_core)
    torch.testing.assert_close(c.transpose(0, 1), c_core)


@each_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_two_unrolls_equal_one_of_twice_the_length(kind: CellKind, layers: int) -> None:
    whole, x = _net(kind, layers=layers), _tokens(steps=10)
    cut = copy.deepcopy(whole)
    outputs, after = whole(x, whole.initial_state(3))
    (outputs.square().sum() + after[-1].sum()).backward()
    first, state = cut(x[:, :5], cut.initial_state(3))
    second, end = cut(x[:, 5:], state)
    ((first.square().sum() + second.square().sum()) + end[-1].sum()).backward()
    torch.testing.assert_close(torch.cat([first, second], 1), outputs)
    for a, b in zip(end, after, strict=True):
        torch.testing.assert_close(a, b)
    for (name, a), (_, b) in zip(cut.named_parameters(), whole.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, name=name: f"{name}: {m}")


@each_kind
def test_state_is_attached_at_both_ends(kind: CellKind) -> None:
    net = _net(kind)
    state = tuple(part.requires_grad_() for part in net.initial_state(3))
    _, after = net.features(_tokens(), state)
    for part in after:
        for grad in torch.autograd.grad(part.sum(), state, retain_graph=True):
            assert (grad != 0).all()


@each_kind
def test_state_can_be_laid_out_flat(kind: CellKind) -> None:
    net = _net(kind, layers=2)
    _, state = net.features(_tokens(), net.initial_state(3))
    layout = StateLayout(state)
    assert layout.num_features == 12 * len(state)
    outputs, _ = net(_tokens(), layout.unpack(layout.pack(state)))
    assert torch.equal(outputs, net(_tokens(), state)[0])


def test_one_hot_tokens_equal_their_features() -> None:
    net, x = _net("gru"), _tokens()
    features = nn.functional.one_hot(x, 5).double()
    assert torch.equal(net(x, net.initial_state(3))[0], net(features, net.initial_state(3))[0])


def test_seed_decides_the_weights() -> None:
    for (name, a), (_, b) in zip(
        _net("lstm").named_parameters(), _net("lstm").named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_initial_state_is_of_the_weights_unless_told() -> None:
    net = _net("lstm")
    assert net.initial_state(2)[0].dtype == torch.float64
    other = net.initial_state(2, torch.device("meta"), torch.float32)
    assert {(part.dtype, part.device.type) for part in other} == {(torch.float32, "meta")}
    assert all(part.count_nonzero() == 0 for part in net.initial_state(2))


@each_kind
def test_state_keeps_its_precision_under_autocast(kind: CellKind) -> None:
    net = _net(kind).float()
    state = net.initial_state(3)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            outputs, state = net(_tokens(), state)
    assert {part.dtype for part in state} == {torch.float32}
    assert outputs.dtype == torch.bfloat16


def test_number_of_parameters() -> None:
    # Four gates of 6·(5 + 6) weights and twice 6 biases; 6·4 + 4 of the output.
    assert sum(p.numel() for p in _net("lstm").parameters()) == 4 * (66 + 12) + 28
    assert sum(p.numel() for p in _net("lstm", embed=True).parameters()) == 5 * 6 + 4 * (72 + 12) + 28


@pytest.mark.parametrize("name", ["inputs", "classes", "width", "layers"])
@pytest.mark.parametrize("size", [0, -2])
def test_size_that_is_not_positive_is_refused(name: str, size: int) -> None:
    with pytest.raises(ConfigError, match=f"{name}={size}: expected at least 1"):
        _net("lstm", **{name: size})


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="kind 'lstn' is unknown; accepted: lstm, gru, rnn"):
        _net("lstn")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("x", "embed", "words"),
    [
        (torch.zeros(3, 8, 5), True, r"expected tokens \(B, T\) int64"),
        (torch.zeros(3, 8, 4), False, r"expected \(B, T, 5\)"),
        (torch.zeros(3, 8), False, r"expected \(B, T, 5\)"),
        (torch.zeros(3, 8, dtype=torch.uint8), False, "dtype torch.uint8, expected tokens"),
        (torch.zeros(3, dtype=torch.int64), False, r"shape \(3,\).*expected tokens"),
        (torch.tensor([[0, 4], [1, 5]]), False, "tokens from 0 to 5, expected 0 to 4"),
        (torch.tensor([[0, 4], [1, -1]]), True, "tokens from -1 to 4, expected 0 to 4"),
    ],
    ids=["features embedded", "width", "2-d", "bytes", "1-d", "unknown token", "unknown embedded"],
)
def test_input_that_does_not_fit_is_refused(x: torch.Tensor, embed: bool, words: str) -> None:
    net = _net("lstm", embed=embed)
    with pytest.raises(ShapeError, match=words):
        net(x, net.initial_state(len(x)))


@pytest.mark.parametrize(
    "state",
    [(), (torch.zeros(3, 1, 6),), (torch.zeros(1, 3, 6),) * 2, (torch.zeros(2, 1, 6),) * 2],
    ids=["none", "one part", "PyTorch's order", "batch"],
)
def test_state_that_does_not_fit_is_refused(state: tuple[torch.Tensor, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected 2 of \(3, 1, 6\); begin with initial_state\(3\)"):
        _net("lstm")(_tokens(), state)
