"""The clocked engine on small graphs, against autograd written out by hand; and what it says and keeps."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import synthgrad as sg
from synthgrad.core import Timeline
from synthgrad.core.in_flight import InFlight
from synthgrad.engines.clocked import Clocked, Node
from synthgrad.rules import NoBackprop, TrueGradient
from tests.engines.clocked_toys import (
    CLASSES,
    WIDTH,
    B,
    Cell,
    Keep,
    Told,
    assert_same,
    criterion,
    edge,
    made,
    sgd,
    stream,
    twins,
)

T = 4


def test_a_cycle_through_time_fan_out_and_fan_in_by_hand() -> None:
    """A → B, A → C, B → C, C → A: every node ticks and learns at every step, from credit that is made up."""
    a, b, c = made(Cell("input", "C"), Cell("A"), Cell("A", "B"))
    plain = dict(zip("ABC", twins(a, b, c), strict=True))
    data = stream(4, ["A"], {"A": 1, "C": 1})

    def told(name: str, step: int, h: Tensor) -> Tensor:
        return h * (1 + step) + {"A->B": 0.5, "A->C": -1.0, "B->C": 2.0, "C->A": 0.25}[name]

    rule = Told(told)
    edges = [
        edge("A", "B", rule),
        edge("A", "C", rule),
        edge("B", "C", rule),
        edge("C", "A", rule, back=True),
    ]
    trainer = Clocked(
        [Node("A", a), Node("B", b), Node("C", c)],
        edges,
        {"A": criterion, "C": criterion},
        sgd,
        example=data[0][0],
    )
    sent: dict[str, Tensor] = {"C->A": torch.zeros(B, WIDTH, dtype=torch.float64)}
    states: dict[str, Any] = dict.fromkeys("ABC")
    optimizers = {n: sgd(m.parameters()) for n, m in plain.items()}
    born = {"C->A": -1}
    expected: dict[tuple[str, int], Tensor] = {}
    for t, (x, y) in enumerate(data):
        record = trainer.step(x, y)
        for name in "ABC":
            leaves = {e.name: sent[e.name].detach().requires_grad_() for e in edges if e.receiver == name}
            inputs = {key.split("->")[0]: leaf for key, leaf in leaves.items()}
            inputs |= {"input": x[name]} if name in x else {}
            out, state = plain[name](inputs, states[name])
            states[name] = state.detach()
            loss = criterion(out, y[name]) if name in y else torch.zeros((), dtype=torch.float64)
            if name in y:
                assert torch.equal(record.losses[name], loss.detach())
            for e in edges:
                if e.sender == name:
                    sent[e.name], h = out["message"].detach(), out["message"]
                    loss = loss + (h * told(e.name, t, h.detach())).sum() / B
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            for key, leaf in leaves.items():
                assert leaf.grad is not None
                expected[key, born[key]] = leaf.grad * B
            born |= {e.name: t for e in edges if e.sender == name}
    for name, module in zip("ABC", (a, b, c), strict=True):
        assert_same(module, plain[name])
    found = {(name, step): g for name in rule.heard for step, g in rule.messages(name).items()}
    del expected["C->A", -1]  # nobody sent it
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        assert torch.allclose(gradient, expected[key], rtol=0, atol=1e-12), key


@pytest.mark.parametrize("unroll", [1, 2, 3, 8])
@pytest.mark.parametrize("order", ["slow first", "fast first"])
def test_a_message_read_several_times_has_the_sum_of_what_comes_back(unroll: int, order: str) -> None:
    """S ticks every 4 steps, F at every step and learns every ``unroll``: four reads, in several backward passes."""
    slow, fast = made(Cell("input"), Cell("S"))
    data = stream(25, ["S"], {"F": 1})
    rule = Told()
    first = order == "slow first"
    nodes = [Node("S", slow, T), Node("F", fast, 1, unroll)]
    trainer = Clocked(
        nodes if first else nodes[::-1],
        [edge("S", "F", rule, back=not first)],
        {"F": criterion},
        Keep,
        example=data[0][0],
    )
    for x, y in data:
        trainer.step(x, y)
    # by hand: one leaf for each message; its gradient adds up over F's unrolls
    leaf = torch.zeros(B, WIDTH, dtype=torch.float64)
    leaves: dict[int, Tensor] = {}
    state_s = state_f = None
    loss = torch.zeros((), dtype=torch.float64)
    learned: dict[int, int] = {}  # reads of each message that a backward pass has been through
    read: list[int] = []
    sent = -1
    for t, (x, y) in enumerate(data):
        for name in ("S", "F") if first else ("F", "S"):
            if name == "S" and (t + 1) % T == 0:
                out, state_s = slow({"input": x["S"]}, state_s)
                leaves[t] = leaf = out["message"].detach().requires_grad_()
                sent = t
            elif name == "F":
                out, state_f = fast({"S": leaf}, state_f)
                loss = loss + criterion(out, y["F"])
                read.append(sent)
                if (t + 1) % unroll == 0:
                    loss.backward()
                    loss, state_f = torch.zeros((), dtype=torch.float64), state_f.detach()
                    for step in read:
                        learned[step] = learned.get(step, 0) + 1
                    read = []
    complete = [step for step, times in learned.items() if times == T and step >= 0]
    assert len(complete) >= 4
    found = rule.messages("S->F")
    assert list(found) == complete
    for step, gradient in found.items():
        expected = leaves[step].grad
        assert expected is not None
        assert torch.allclose(gradient, expected * B, rtol=0, atol=1e-12), step


def test_messages_that_nobody_reads_get_no_credit() -> None:
    a, b = made(Cell("input"), Cell("A"))
    rule = Told(lambda *_: None)
    data = stream(12, ["A"], {})
    trainer = Clocked([Node("A", a), Node("B", b, T)], [edge("A", "B", rule)], {}, sgd, example=data[0][0])
    for x, y in data:
        trainer.step(x, y)
    assert [info.step for info in rule.asked["A->B"]] == [3, 7, 11]


def test_a_rule_is_told_context_ids_inputs_and_the_state_of_the_receiver() -> None:
    a, b = made(Cell("input"), Cell("A"))
    rule = Told()
    data = stream(3, ["A"], {"B": 1})
    trainer = Clocked(
        [Node("A", a, state_rule=rule), Node("B", b)], [edge("A", "B", rule)], {"B": criterion}, Keep,
        example=data[0][0],
    )  # fmt: skip
    contexts, ids = [torch.full((B,), t) for t in range(3)], torch.arange(B)
    states: list[Tensor] = [torch.zeros(B, WIDTH, dtype=torch.float64)]  # before the first tick
    state_a = state_b = None
    for t, (x, y) in enumerate(data):
        trainer.step(x, y, context={"A->B": contexts[t]}, ids=ids)
        out, state_a = a({"input": x["A"]}, state_a)
        _, state_b = b({"A": out["message"]}, state_b)
        states.append(state_b.detach())
    for t, info in enumerate(rule.asked["A->B"]):
        assert info.context is contexts[t]
        assert info.ids is ids
        assert info.inputs is data[t][0]["A"]
        assert info.receiver is not None
        assert torch.allclose(info.receiver, states[t], rtol=0, atol=1e-12)
        assert not info.receiver.requires_grad
    assert [info.context for info in rule.asked["A:state"]] == [None] * 3
    heard = [step for step, _, _ in rule.heard["A->B"]]
    assert heard == [0, 1, 2]


def two(b_period: int, rule: sg.Rule, timeline: Timeline | None = None) -> Clocked:
    """Return A at every step and B at every so many; both learn after two ticks."""
    a, b = made(Cell("input"), Cell("A"))
    return Clocked(
        [Node("A", a, 1, 2), Node("B", b, b_period, 2)],
        [edge("A", "B", rule)],
        {"A": criterion, "B": criterion},
        sgd,
        example=stream(1, ["A"], {})[0][0],
        timeline=timeline,
    )


def check_loss_once(b_period: int, rule: sg.Rule) -> Timeline:
    timeline = Timeline()
    trainer = two(b_period, rule, timeline)
    for x, y in stream(16, ["A"], {"A": 2, "B": 2 * b_period}):
        trainer.step(x, y)
    return timeline


def updates(timeline: Timeline, name: str) -> list[int]:
    return [e.step for e in timeline.events if e.kind == "update" and e.where == name]


@pytest.mark.parametrize("period", [2, 4, 8])
def test_a_updates_when_its_own_unroll_ends_whatever_the_period_of_b(period: int) -> None:
    timeline = check_loss_once(period, sg.SyntheticGradient(receiver=True))
    assert updates(timeline, "A") == list(range(1, 16, 2))
    assert updates(timeline, "B") == list(range(2 * period - 1, 16, 2 * period))
    first_b = timeline.order().index("forward B")
    assert timeline.order()[:first_b].count("update A") == period // 2  # B has not run at all


@pytest.mark.parametrize("period", [2, 4, 8])
def test_locked_it_updates_when_the_slowest_does(period: int) -> None:
    timeline = check_loss_once(period, TrueGradient())
    assert updates(timeline, "A") == updates(timeline, "B") == list(range(2 * period - 1, 16, 2 * period))


def test_a_updates_though_b_never_runs() -> None:
    """Nothing of B is waited for: here it raises, and A's update stays."""
    a, b = made(Cell("input"), Cell("A"))
    trainer = Clocked(
        [Node("A", a), Node("B", b)], [edge("A", "B", sg.SyntheticGradient())], {"A": criterion}, sgd,
        example=stream(1, ["A"], {})[0][0],
    )  # fmt: skip
    before = a.report.weight.clone()  # type: ignore[operator,union-attr]

    def refuse(module: nn.Module, args: Any) -> None:
        raise RuntimeError("B does not run")

    b.register_forward_pre_hook(refuse)
    ((x, y),) = stream(1, ["A"], {"A": 1})
    with pytest.raises(RuntimeError, match="does not run") as raised:
        trainer.step(x, y)
    assert "node 'B'" in raised.value.__notes__[0]
    assert not torch.equal(a.report.weight, before)  # type: ignore[arg-type,union-attr]


def live() -> tuple[int, int]:
    gc.collect()
    objects = gc.get_objects()
    return sum(type(o) is Tensor for o in objects), sum(type(o) is InFlight for o in objects)


@pytest.mark.slow(reason="takes hundreds of steps, and collects garbage between them")
@pytest.mark.parametrize(
    "rule", [sg.SyntheticGradient((6,), receiver=True), TrueGradient(), NoBackprop()], ids=repr
)
def test_nothing_grows(rule: sg.Rule) -> None:
    a, b, c = made(Cell("input", "C"), Cell("A"), Cell("B"))
    state_rule = sg.SyntheticGradient()
    trainer = Clocked(
        [Node("A", a, 1, 2, state_rule), Node("B", b, 2, 2, state_rule), Node("C", c, 4)],
        [edge("A", "B", rule), edge("B", "C", rule), edge("C", "A", rule, back=True)],
        {"A": criterion, "C": criterion},
        sgd,
        example=stream(1, ["A"], {})[0][0],
        monitor=sg.Monitor(every=1_000_000),
    )
    data = stream(8 * T, ["A"], {"A": 1, "C": T})

    def run() -> tuple[int, int]:
        for x, y in data:
            trainer.step(x, y)
        return live()

    run()  # the optimizers have their state now
    first = run()
    assert run() == first == run()


def learned(rule: sg.Rule, episodes: int = 250) -> tuple[float, float | None]:
    """Return the last losses and the cosine of the credit where A learns from what B says of its messages alone."""
    torch.manual_seed(0)
    a, b = made(Cell("input"), Cell("A"))
    monitor = sg.Monitor(every=1)
    trainer = Clocked(
        [Node("A", a, 1, 2), Node("B", b, 2, 2)],
        [edge("A", "B", rule)],
        {"B": criterion},
        lambda p: torch.optim.Adam(p, 1e-2),
        example=stream(1, ["A"], {})[0][0],
        monitor=monitor,
    )
    generator = torch.Generator().manual_seed(1)
    losses: list[float] = []
    for _ in range(episodes):
        x = torch.randn(4, 64, WIDTH, generator=generator, dtype=torch.float64)
        y = x.sum(0)[:, :CLASSES].argmax(1)
        for t in range(4):
            record = trainer.step({"A": x[t]}, {"B": y if t == 3 else None}, context=y, last=t == 3)
        assert record.loss is not None
        losses.append(record.loss.item())
    found = monitor.collect()
    return sum(losses[-30:]) / 30, found["A->B"].cosine if found else None


def test_a_node_learns_from_what_a_synthetic_gradient_says_of_its_messages() -> None:
    """Half of what B is to know is in the first message: A must put it there, and B's own learning is not enough."""
    by_rule, cosine = learned(sg.SyntheticGradient((16,), context=CLASSES, norm=False, receiver=True))
    alone, _ = learned(NoBackprop())
    assert by_rule < 0.6 * alone
    assert cosine is not None
    assert cosine > 0.4


def test_the_record_of_a_step() -> None:
    trainer = two(2, sg.SyntheticGradient())
    data = stream(4, ["A"], {"A": 2, "B": 4})
    records = [trainer.step(x, y) for x, y in data]
    assert [r.step for r in records] == [0, 1, 2, 3]
    assert [list(r.losses) for r in records] == [[], ["A"], [], ["A", "B"]]
    assert [list(r.outputs) for r in records] == [["A"], ["A", "B"]] * 2
    assert records[0].loss is None
    total = sum(records[3].losses.values())
    assert records[3].loss is not None
    assert torch.equal(records[3].loss, torch.as_tensor(total))
    assert [r.updated for r in records] == [[], ["A"], [], ["A", "B"]]
    assert not any(t.requires_grad for r in records for o in r.outputs.values() for t in o.values())
