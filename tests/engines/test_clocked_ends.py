"""Where runs of clocked networks end and go on: ends of episodes, and saved states."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

import synthgrad as sg
from synthgrad.core import ConfigError, Timeline
from synthgrad.engines.clocked import Clocked, Node
from synthgrad.rules import NoBackprop
from tests.engines.clocked_toys import (
    CLASSES,
    WIDTH,
    B,
    Cell,
    Keep,
    Told,
    criterion,
    edge,
    made,
    stream,
    twins,
)

T = 4


def ten(name: str, step: int, h: Tensor) -> Tensor:
    return torch.full_like(h, 10.0)


@pytest.mark.parametrize("slow_first", [False, True])
def test_an_episode_ends_with_no_credit_from_beyond(slow_first: bool) -> None:
    """Five steps where A's unroll is 2 and B's period 2: what has not been read by then gets zero, not credit."""
    a, b = made(
        Cell("input", "B") if slow_first else Cell("input"), Cell("A") if not slow_first else Cell("input")
    )
    data = stream(5, ["A", "B"] if slow_first else ["A"], {"A": 1})
    rule = Told(lambda name, step, h: torch.full_like(h, 10.0))
    if slow_first:  # B's message is read by A in four steps, the last of which do not come
        nodes = [Node("B", b, 4), Node("A", a, 1, 2)]
        edges = [edge("B", "A", rule)]
    else:
        nodes = [Node("A", a, 1, 3), Node("B", b, 2)]
        edges = [edge("A", "B", rule)]
    trainer = Clocked(nodes, edges, {"A": criterion}, Keep, example=data[0][0])
    records = [trainer.step(x, y, last=t == 4) for t, (x, y) in enumerate(data)]
    if slow_first:
        # sent at 3, read at 3 (in A's second unroll) and 4 (in its last, of one tick)
        leaf, state, state_b = torch.zeros(B, WIDTH, dtype=torch.float64), None, None
        for t, (x, y) in enumerate(data):
            if t == 3:
                leaf = b({"input": x["B"]}, state_b)[0]["message"].detach().requires_grad_()
            out, state = a({"input": x["A"], "B": leaf}, state)
            if t >= 3:
                criterion(out, y["A"]).backward(retain_graph=True)
            if t in (1, 3):
                state = state.detach()
        assert leaf.grad is not None
        assert list(rule.messages("B->A")) == [3]
        assert torch.allclose(rule.messages("B->A")[3], leaf.grad * B, rtol=0, atol=1e-12)
        assert records[-1].updated == ["A"]  # B has not ticked
    else:
        assert list(rule.messages("A->B")) == [1, 3]  # that of step 4 is not read, and gets no credit
        assert all(g.abs().max() == 0 for g in rule.messages("A->B").values())  # B has no loss
        assert [r.updated for r in records] == [[], [], ["A"], [], ["A"]]
    # the next episode begins as the first did
    again = [trainer.step(x, y, last=t == 4) for t, (x, y) in enumerate(data)]
    for one, two in zip(records, again, strict=True):
        assert torch.equal(one.losses["A"], two.losses["A"])


def test_the_credit_of_a_message_that_is_not_read_any_more_is_void() -> None:
    """A's message of step 2 is to be read by B in step 3; the episode ends before."""
    a, b = made(Cell("input"), Cell("A"))
    (plain,) = twins(a)
    data = stream(3, ["A"], {"A": 1})
    rule = Told(lambda name, step, h: torch.full_like(h, 10.0))
    trainer = Clocked(
        [Node("B", b, 2), Node("A", a, 1, 8)], [edge("A", "B", rule, back=True)], {"A": criterion}, Keep,
        example=data[0][0],
    )  # fmt: skip
    for t, (x, y) in enumerate(data):
        trainer.step(x, y, last=t == 2)
    state = None
    for t, (x, y) in enumerate(data):
        out, state = plain({"input": x["A"]}, state)
        loss = criterion(out, y["A"])
        if t == 0:  # read by B in step 1
            loss = loss + out["message"].sum() * 10 / B
        loss.backward(retain_graph=True)
    assert [info.step for info in rule.asked["A->B"]] == [0]
    (kept,) = trainer.optimizers[1].kept  # type: ignore[attr-defined]
    for found, (name, p) in zip(kept, plain.named_parameters(), strict=True):
        assert found is not None
        assert p.grad is not None
        assert torch.allclose(found, p.grad, rtol=0, atol=1e-12), name


def test_what_is_not_read_before_the_end_has_no_credit_and_a_gradient_of_zero() -> None:
    """A sends in steps 2 and 5, B reads in 3 and would read in 7: the episode ends after 6."""
    a, b = made(Cell("input"), Cell("A"))
    plain_a, plain_b = twins(a, b)
    data = stream(7, ["A"], {"A": 3, "B": 4})
    rule = Told(ten)
    trainer = Clocked(
        [Node("A", a, 3, 8), Node("B", b, 4)],
        [edge("A", "B", rule)],
        {"A": criterion, "B": criterion},
        Keep,
        example=data[0][0],
    )
    for t, (x, y) in enumerate(data):
        trainer.step(x, y, last=t == 6)
    out, state = plain_a({"input": data[2][0]["A"]}, None)
    leaf = out["message"].detach().requires_grad_()
    criterion(plain_b({"A": leaf}, None)[0], data[3][1]["B"]).backward()
    loss = criterion(out, data[2][1]["A"]) + out["message"].sum() * 10 / B
    loss = loss + criterion(plain_a({"input": data[5][0]["A"]}, state)[0], data[5][1]["A"])
    loss.backward()
    assert [info.step for info in rule.asked["A->B"]] == [2, 5]
    found = rule.messages("A->B")
    assert list(found) == [2, 5]
    assert leaf.grad is not None
    assert torch.allclose(found[2], leaf.grad * B, rtol=0, atol=1e-12)
    assert found[5].abs().max() == 0
    (kept,) = trainer.optimizers[0].kept  # type: ignore[attr-defined]
    for gradient, (name, p) in zip(kept, plain_a.named_parameters(), strict=True):
        assert gradient is not None
        assert p.grad is not None
        assert torch.allclose(gradient, p.grad, rtol=0, atol=1e-12), name


def test_a_node_reads_its_own_message_in_the_step_after() -> None:
    (a,) = made(Cell("input", "A"))
    (plain,) = twins(a)
    data = stream(3, ["A"], {"A": 1})
    rule = Told(ten)
    trainer = Clocked(
        [Node("A", a)], [edge("A", "A", rule, back=True)], {"A": criterion}, Keep, example=data[0][0]
    )
    for t, (x, y) in enumerate(data):
        trainer.step(x, y, last=t == 2)
    assert [info.step for info in rule.asked["A->A"]] == [0, 1]  # that of the last step is not read
    leaf, state = torch.zeros(B, WIDTH, dtype=torch.float64), None
    for t, (x, y) in enumerate(data):
        leaf = leaf.detach().requires_grad_()
        out, state = plain({"input": x["A"], "A": leaf}, state)
        loss = criterion(out, y["A"]) + (out["message"].sum() * 10 / B if t < 2 else 0)
        plain.zero_grad()
        loss.backward()
        state = state.detach()
        kept = trainer.optimizers[0].kept[t]  # type: ignore[attr-defined]
        for gradient, (name, p) in zip(kept, plain.named_parameters(), strict=True):
            assert (gradient is None) == (p.grad is None), name
            if gradient is not None:
                assert torch.allclose(gradient, p.grad, rtol=0, atol=1e-12), name  # type: ignore[arg-type]
        if t:
            assert leaf.grad is not None
            assert torch.allclose(rule.messages("A->A")[t - 1], leaf.grad * B, rtol=0, atol=1e-12)
        leaf = out["message"]


def test_no_message_comes_back_to_a_rule_that_does_not_listen() -> None:
    a, b = made(Cell("input"), Cell("A"))
    timeline = Timeline()
    trainer = Clocked(
        [Node("A", a), Node("B", b)],
        [edge("A", "B", NoBackprop())],
        {"B": criterion},
        Keep,
        example=stream(1, ["A"], {})[0][0],
        timeline=timeline,
    )
    for t, (x, y) in enumerate(stream(4, ["A"], {"B": 1})):
        trainer.step(x, y, last=t == 3)
    assert timeline.order("backward") == ["backward B"] * 4
    assert timeline.order("message", "observe") == []


def pair(seed: int = 0, *, slow_first: bool = False) -> Clocked:
    """Return A at every step and B at every second (every fourth where B comes first), with edges both ways."""
    torch.manual_seed(seed)
    a, b = made(Cell("input", "B"), Cell("A"))
    rule = sg.SyntheticGradient((6,), receiver=True)
    if slow_first:
        nodes = [Node("B", b, 4), Node("A", a, 1, 1, sg.SyntheticGradient())]
    else:
        nodes = [Node("A", a, 1, 2, sg.SyntheticGradient()), Node("B", b, 2, 2)]
    return Clocked(
        nodes,
        [edge("A", "B", rule, back=slow_first), edge("B", "A", rule, back=not slow_first)],
        {"A": criterion, "B": criterion},
        lambda p: torch.optim.Adam(p, 1e-2),
        example=stream(1, ["A"], {})[0][0],
        monitor=sg.Monitor(),
    )


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("after", [0, 4, 12])
@pytest.mark.parametrize("slow_first", [False, True])
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(after: int, slow_first: bool) -> None:
    """With messages under way or learned from in part, and states that have been credited."""
    data = stream(24, ["A"], {"A": 2, "B": 4})
    whole, half = pair(slow_first=slow_first), pair(slow_first=slow_first)
    assert whole.interval == 4
    for x, y in data:
        whole.step(x, y)
    for x, y in data[:after]:
        half.step(x, y)
    state = through_a_file({"net": half.net.state_dict(), "engine": half.state_dict()})
    fresh = pair(1, slow_first=slow_first)
    fresh.net.load_state_dict(state["net"])
    fresh.load_state_dict(state["engine"])
    for x, y in data[after:]:
        record = fresh.step(x, y)
    assert record.step == 23
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, fresh.net.state_dict()[name]), name


@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_run_resumed_between_updates_goes_on_without_what_was_in_graphs(after: int) -> None:
    data = stream(24, ["A"], {"A": 2, "B": 4})
    half = pair()
    for x, y in data[: 4 + after]:
        half.step(x, y)
    assert not half.can_save
    with pytest.raises(
        ConfigError, match=f"step {4 + after} of the episode lies inside an unroll.*multiple of 4 steps"
    ):
        half.state_dict()
    state = through_a_file({"net": half.net.state_dict(), "engine": half.state_dict(strict=False)})
    fresh = pair(seed=1)
    fresh.net.load_state_dict(state["net"])
    fresh.load_state_dict(state["engine"])
    # states and messages are there: what comes next is the same
    x, y = data[4 + after]
    one, two = half.step(x, y), fresh.step(x, y)
    for node, output in one.outputs.items():
        for name, value in output.items():
            assert torch.equal(value, two.outputs[node][name]), (node, name)
    for x, y in data[5 + after :]:
        fresh.step(x, y)
    assert all(v.isfinite().all() for v in fresh.net.state_dict().values())


def test_reset_drops_what_is_under_way() -> None:
    data = stream(3, ["A"], {"A": 2})
    trainer = pair()
    first = trainer.step(*data[0])
    trainer.reset()
    again = trainer.step(*data[0])
    assert torch.equal(first.outputs["A"]["report"], again.outputs["A"]["report"])
    assert (first.step, again.step) == (0, 1)
    trainer.reset()
    other = {"A": torch.randn(B + 3, WIDTH, dtype=torch.float64)}  # another batch size
    assert trainer.step(other).outputs["A"]["report"].shape == (B + 3, CLASSES)


def test_the_gradient_of_a_message_that_was_half_read_when_the_run_was_saved_is_not_learned_from() -> None:
    """F learns after steps 2, 5, 8 …: saved after step 4, it has read S's message of step 3 in a graph that is gone."""
    slow, fast = made(Cell("input"), Cell("S"))
    rule = Told()

    def build() -> Clocked:
        return Clocked(
            [Node("S", slow, T), Node("F", fast, 1, 3)],
            [edge("S", "F", rule)],
            {"F": criterion},
            Keep,
            example=data[0][0],
        )

    data = stream(24, ["S"], {"F": 1})
    whole = build()
    for x, y in data:
        whole.step(x, y)
    expected = rule.messages("S->F")
    assert {3, 7, 11, 15} <= expected.keys()
    half, fresh, ended = build(), build(), build()
    for x, y in data[:5]:
        half.step(x, y)
    rule.heard.clear()
    saved = through_a_file(half.state_dict(strict=False))
    fresh.load_state_dict(saved)
    for x, y in data[5:]:
        fresh.step(x, y)
    found = rule.messages("S->F")
    assert 3 not in found  # what would come back is not all
    assert {7, 11} <= found.keys()
    rule.heard.clear()
    ended.load_state_dict(saved)
    ended.step(*data[5], last=True)  # here it would be what came back from one of three reads
    assert not rule.messages("S->F")


def test_what_a_message_has_brought_is_dropped_when_its_rule_has_learned() -> None:
    trainer = pair()
    for x, y in stream(4, ["A"], {"A": 2, "B": 4}):
        trainer.step(x, y)
    done = trainer.state_dict()["episode"]["latest"]
    assert (done["A->B"]["missing"], done["A->B"]["credited"], done["A->B"]["part"]) == (0, False, None)
    assert (done["B->A"]["missing"], done["B->A"]["credited"]) == (2, True)  # A has yet to read this one


class Stamped(sg.Rule):
    """Leaves its parameter pending, and notes what of it comes back."""

    def build(self, site: sg.core.Site) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.noted: list[bool] = []

    def credit(self, h: Tensor, info: sg.core.Info) -> sg.core.Credit:
        return sg.core.Credit(torch.zeros_like(h), pending=(self.weight * 1.0,))

    def observe(
        self, h: Tensor, info: sg.core.Info, message: sg.core.Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor:
        if pending:
            assert pending[0].item() == self.weight.item(), "the prediction is one of earlier parameters"
        self.noted.append(bool(pending))
        return (pending[0] if pending else self.weight) * 1.0


def test_a_prediction_is_used_again_only_while_its_parameters_are_the_same() -> None:
    a, b = made(Cell("input"), Cell("A"))
    trainer = Clocked(
        [Node("A", a, 1, 2, Stamped()), Node("B", b, 1, 3)],
        [edge("A", "B", Stamped())],
        {"A": criterion, "B": criterion},
        lambda p: torch.optim.SGD(p, 0.1),
        example=stream(1, ["A"], {})[0][0],
    )
    for x, y in stream(12, ["A"], {"A": 1, "B": 1}):
        trainer.step(x, y)
    # B reads a message in the step in which it is sent, and its rule changes only when B has learned from it.
    assert trainer.net.rules["A->B"].noted == [True] * 12  # type: ignore[union-attr,comparison-overlap]
    # A's own rule changes between the end of one unroll and that of the next.
    assert trainer.net.rules["A:state"].noted == [False] * 5  # type: ignore[union-attr,comparison-overlap]


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    """Gradients of the half that has run must not add to those of the next step."""
    a, b = made(Cell("input"), Cell("A"))
    trainer = Clocked(
        [Node("A", a, 1, 2), Node("B", b)],
        [edge("A", "B", sg.rules.LocalLoss(CLASSES))],
        {"A": criterion},
        Keep,
        example=stream(1, ["A"], {})[0][0],
    )
    ((x, y),) = stream(1, ["A"], {})
    labels = torch.zeros(B, dtype=torch.long)

    def refuse(*_: Any) -> None:
        raise RuntimeError("B fails")

    handle = b.register_forward_pre_hook(refuse)
    with pytest.raises(RuntimeError, match="B fails"):
        trainer.step(x, y, context=labels)  # the local loss of A's message has run backward by then
    assert all(p.grad is None for p in trainer.net.parameters())
    handle.remove()
    assert trainer.step(x, y, context=labels).step == 0
