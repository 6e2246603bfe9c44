"""Clocked networks against backpropagation: without cuts they are it, and with exact credit they equal it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import Info, Message
from synthgrad.engines.clocked import Clocked, Edge, Node
from synthgrad.rules import Oracle, Recording, TrueGradient
from tests.engines.clocked_toys import (
    WIDTH,
    B,
    Blockwise,
    Cell,
    Fused,
    assert_same,
    criterion,
    edge,
    made,
    sgd,
    stream,
    twins,
)

T, BLOCKS = 3, 3
TARGETS = {"A": T, "B": T * T}
LOSSES = {"A": criterion, "B": criterion}


def detached(state: Any) -> Any:
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def locked_by_hand(a: nn.Module, b: nn.Module, data: Any, *, back: bool, step: Any) -> Recording:
    """Backpropagation through both networks, over blocks of T² steps: written out, without the engine.

    A ticks at every step, B at every T-th on A's message; with ``back`` A reads B's latest message too.

    Args:
        a, b: trained in place.
        data: inputs and targets of each step.
        back: is there an edge from B to A?
        step: called at the end of each block, when gradients are there.

    Returns:
        The gradient of every message that is read, and of A's state at the end of each of its unrolls of T.
    """
    recording = Recording()
    state_a = state_b = None
    from_b = torch.zeros(B, WIDTH, dtype=torch.float64)
    for start in range(0, len(data), T * T):
        loss = torch.zeros((), dtype=torch.float64)
        kept: dict[tuple[str, int], Tensor] = {}
        for t in range(start, start + T * T):
            x, y = data[t]
            inputs = {"input": x["A"]} | ({"B": from_b} if back else {})
            out, state_a = a(inputs, state_a)
            if "A" in y:
                loss = loss + criterion(out, y["A"])
            if (t + 1) % T == 0:
                if isinstance(state_a, Tensor):
                    state_a = state_a.view_as(state_a)  # what goes on, apart from what the heads see
                    state_a.retain_grad()
                    kept["A:state", t] = state_a
                message = out["message"]
                message.retain_grad()
                kept["A->B", t] = message
                out, state_b = b({"A": message}, state_b)
                if "B" in y:
                    loss = loss + criterion(out, y["B"])
                from_b = out["message"]
                if back:
                    from_b.retain_grad()
                    kept["B->A", t] = from_b
        loss.backward()
        for key, h in kept.items():
            recording.messages[key] = (torch.zeros_like(h) if h.grad is None else h.grad.detach()) * B
        step()
        state_a, state_b, from_b = detached(state_a), detached(state_b), from_b.detach()
    return recording


def reference(a: nn.Module, b: nn.Module, data: Any, *, back: bool = False) -> Recording:
    optimizer = sgd([*a.parameters(), *b.parameters()])

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return locked_by_hand(a, b, data, back=back, step=step)


@pytest.mark.parametrize("back", [False, True], ids=["one way", "cycle"])
@pytest.mark.parametrize("kind", [Cell, Fused])
def test_waiting_on_every_edge_is_backpropagation_through_the_whole_graph(kind: Any, back: bool) -> None:
    fused = kind is Fused
    a, b = made(Fused() if fused else Cell(*(("input", "B") if back else ("input",))), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(BLOCKS * T * T, ["A"], TARGETS)
    reference(plain_a, plain_b, data, back=back)
    edges = [edge("A", "B", TrueGradient())]
    edges += [edge("B", "A", TrueGradient(), back=True)] if back else []
    nodes = [Node("A", a, 1, T, batch_dim=int(fused)), Node("B", b, T, T)]
    trainer = Clocked(nodes, edges, LOSSES, sgd, example=data[0][0])
    updated = [trainer.step(x, y).updated for x, y in data]
    assert_same(a, plain_a)
    assert_same(b, plain_b)
    assert updated == ([[]] * (T * T - 1) + [["A", "B"]]) * BLOCKS


def exact(recording: Recording, data: Any, a: nn.Module, b: nn.Module, *, rule: Any = Oracle) -> Clocked:
    """A cut on the message and at the end of each of A's unrolls, with the recorded gradients as credit."""
    nodes = [Node("A", a, 1, T, rule(recording)), Node("B", b, T, T)]
    calls = {id(next(a.parameters())): T, id(next(b.parameters())): 1}
    trainer = Clocked(
        nodes,
        [edge("A", "B", rule(recording))],
        LOSSES,
        lambda p: Blockwise(p, calls[id(p[0])]),  # A has T updates in a block: constant weights in between
        example=data[0][0],
    )
    for x, y in data:
        trainer.step(x, y)
    return trainer


def test_exact_credit_gives_the_gradients_of_backpropagation() -> None:
    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(BLOCKS * T * T, ["A"], TARGETS)
    recording = reference(plain_a, plain_b, data)
    exact(recording, data, a, b)
    assert_same(a, plain_a)
    assert_same(b, plain_b)


@pytest.mark.parametrize("wrong", [("A->B", T - 1), ("A:state", T - 1)])
def test_a_wrong_gradient_is_noticed(wrong: tuple[str, int]) -> None:
    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(BLOCKS * T * T, ["A"], TARGETS)
    recording = reference(plain_a, plain_b, data)
    assert recording.messages[wrong].abs().max() > 0
    recording.messages[wrong] *= 1 + 1e-6
    exact(recording, data, a, b)
    with pytest.raises(AssertionError, match="differs"):
        assert_same(a, plain_a)


def test_what_comes_back_is_the_recorded_gradient() -> None:
    """With exact credit bootstrapped messages are true ones, late as they are."""
    seen: list[tuple[str, int]] = []

    class Listening(Oracle):
        listens = True

        def __deepcopy__(self, memo: dict[int, Any]) -> Listening:
            return Listening(self._recording)

        def observe(self, h: Tensor, info: Info, message: Message, pending: Any = ()) -> None:
            assert info.step is not None
            key = self.name, info.step
            if self.name == "A:state" and (info.step + 1) % (T * T) == 0:
                return  # there the recorded run was truncated
            expected = self._recording.messages[key]
            assert torch.allclose(message.gradient, expected, rtol=1e-9, atol=1e-13), key
            seen.append(key)

    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(BLOCKS * T * T, ["A"], TARGETS)
    recording = reference(plain_a, plain_b, data)
    exact(recording, data, a, b, rule=Listening)
    messages = [("A->B", t) for t in range(T - 1, len(data), T)]
    states = [("A:state", t) for t in range(T - 1, len(data), T) if (t + 1) % (T * T)]
    assert sorted(seen) == sorted(messages + states)


def test_the_network_itself_is_the_plain_network() -> None:
    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(T * T, ["A"], TARGETS)
    trainer = Clocked(
        [Node("A", a), Node("B", b, T)],
        [edge("A", "B", sg.SyntheticGradient())],
        LOSSES,
        sgd,
        example=data[0][0],
    )
    outputs = trainer.net([x for x, _ in data])
    assert [list(o) for o in outputs] == [["A"], ["A"], ["A", "B"]] * T
    judged = [criterion(o[n], y[n]) for o, (_, y) in zip(outputs, data, strict=True) for n in y]
    torch.stack(judged).sum().backward()

    def check() -> None:
        for ours, theirs in zip((a, b), (plain_a, plain_b), strict=True):
            for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                assert (p.grad is None) == (q.grad is None), name
                assert p.grad is None or torch.allclose(p.grad, q.grad, rtol=0, atol=1e-12), name  # type: ignore[arg-type]

    locked_by_hand(plain_a, plain_b, data, back=False, step=check)


def test_a_gradient_is_shrunk_on_an_edge_that_shrinks() -> None:
    """`TrueGradient(shrink)` between nodes that learn together: what goes back along that edge is scaled."""
    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(2, ["A"], {"B": 2})
    trainer = Clocked(
        [Node("A", a, 1, 2), Node("B", b, 2, 1)],
        [edge("A", "B", TrueGradient(shrink=0.25))],
        LOSSES,
        sgd,
        example=data[0][0],
    )
    state = None
    for x, _ in data:
        out, state = plain_a({"input": x["A"]}, state)
    h = out["message"].detach().requires_grad_()
    criterion(plain_b({"A": h}, None)[0], data[1][1]["B"]).backward()
    assert h.grad is not None
    out["message"].backward(h.grad * 0.25)
    for module in (plain_a, plain_b):
        sgd(module.parameters()).step()
    for x, y in data:
        trainer.step(x, y)
    assert_same(a, plain_a)
    assert_same(b, plain_b)


def test_a_cut_edge_beside_one_that_is_not() -> None:
    """A sends to B, with which it is locked, and to C, from which it is cut: both credits reach A together."""
    a, b, c = made(Cell("input"), Cell("A"), Cell("A"))
    plain_a, plain_b, plain_c = twins(a, b, c)
    data = stream(2, ["A"], {"B": 2, "C": 1})
    constant = torch.linspace(-1, 1, B * WIDTH, dtype=torch.float64).view(B, WIDTH)

    class Constant(sg.NoBackprop):
        def credit(self, h: Tensor, info: Info) -> Any:
            return sg.core.Credit(constant * (1 + (info.step or 0)))

    trainer = Clocked(
        [Node("A", a), Node("B", b, 2), Node("C", c)],
        [edge("A", "B", TrueGradient()), edge("A", "C", Constant())],
        {"B": criterion, "C": criterion},
        sgd,
        example=data[0][0],
    )
    assert [trainer.step(x, y).updated for x, y in data] == [["C"], ["A", "B", "C"]]
    # by hand: A and B by backpropagation, A with two constant gradients besides; C on detached messages
    state, optimizer_c, state_c = None, sgd(plain_c.parameters()), None
    for t, (x, y) in enumerate(data):
        out, state = plain_a({"input": x["A"]}, state)
        out["message"].backward(constant * (1 + t) / B, retain_graph=True)
        if t == 1:
            criterion(plain_b({"A": out["message"]}, None)[0], y["B"]).backward()
        out_c, state_c = plain_c({"A": out["message"].detach()}, state_c)
        optimizer_c.zero_grad()
        criterion(out_c, y["C"]).backward()
        optimizer_c.step()
        state_c = state_c.detach()
    sgd([*plain_a.parameters(), *plain_b.parameters()]).step()
    for ours, theirs in ((a, plain_a), (b, plain_b), (c, plain_c)):
        assert_same(ours, theirs)


def test_edges_can_carry_the_only_output() -> None:
    """Outputs may be one tensor, and a module may have no state."""

    class Layer(nn.Module):
        def __init__(self, source: str) -> None:
            super().__init__()
            self.source, self.linear = source, nn.Linear(WIDTH, WIDTH)

        def forward(self, inputs: dict[str, Tensor], state: None) -> tuple[Tensor, None]:
            return torch.tanh(self.linear(inputs[self.source])), None

    a, b = made(Layer("input"), Layer("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(4, ["A"], {})
    square = lambda output, _: output.square().mean(1)  # noqa: E731
    trainer = Clocked(
        [Node("A", a), Node("B", b)],
        [Edge("A", "B", TrueGradient())],
        {"B": square},
        sgd,
        example=data[0][0],
    )
    optimizer = sgd([*plain_a.parameters(), *plain_b.parameters()])
    for x, _ in data:
        trainer.step(x, {"B": True})
        optimizer.zero_grad()
        h = plain_a({"input": x["A"]}, None)[0]
        square(plain_b({"A": h}, None)[0], None).mean().backward()
        optimizer.step()
    assert_same(a, plain_a)
    assert_same(b, plain_b)
