"""What a clocked network refuses, and how it says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import synthgrad as sg
from synthgrad.core import ConfigError, CutError, DivergedError, ShapeError
from synthgrad.engines.clocked import Clocked, Edge, Node
from synthgrad.rules import NoBackprop, TrueGradient
from tests.engines.clocked_toys import WIDTH, B, Cell, criterion, edge, made, sgd

X = {"A": torch.randn(B, WIDTH, dtype=torch.float64)}
Y = torch.zeros(B, dtype=torch.long)


def build(
    nodes: list[Node] | None = None, edges: list[Edge] | None = None, losses: Any = None, **options: Any
) -> Clocked:
    """Return A → B; B ticks at every second step."""
    a, b = made(Cell("input"), Cell("A"))
    return Clocked(
        [Node("A", a), Node("B", b, 2)] if nodes is None else nodes,
        [edge("A", "B", sg.SyntheticGradient())] if edges is None else edges,
        {"A": criterion} if losses is None else losses,
        sgd,
        **{"example": X, **options},
    )


CELL = made(Cell("input"))[0]


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([], "no nodes were given"),
        ([Node("A", CELL), Node("A", CELL)], "two nodes are named 'A'"),
        (
            [Node("A", CELL), Node("B", CELL)],
            "parameter 'weights.input.weight' of node 'B' belongs to node 'A'",
        ),
        ([Node("A", CELL, 0)], "node 'A': period=0, expected a whole number from 1"),
        ([Node("A", CELL, 1.5)], "period=1.5"),  # type: ignore[arg-type]
        ([Node("A", CELL, True)], "period=True"),
        ([Node("A", CELL, 1, 0)], "node 'A': unroll=0"),
        ([Node("", CELL)], "node name ''"),
        ([Node("input", CELL)], "is not 'input'"),
        ([Node("A.1", CELL)], "node name 'A.1'"),
        ([Node("A:1", CELL)], "node name 'A:1'"),
        ([Node("A->", CELL)], "node name 'A->'"),
        ([Node("values", CELL)], "'values' is taken"),
        ([Node("A", CELL, state_rule=TrueGradient())], "its state_rule makes it wait"),
        ([Node("A", CELL, state_rule="none")], "state_rule of node 'A': got a str, expected a rule"),  # type: ignore[arg-type]
        (
            [Node("A", CELL, state_rule=sg.SyntheticGradient(error_to_h=True))],
            "state_rule of node 'A': its rule lets its error flow into h",
        ),
    ],
)
def test_nodes_that_cannot_be(nodes: list[Node], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(nodes, [], {}, example={})


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([edge("A", "C", NoBackprop())], r"edge 'A->C' names the node 'C', expected one of \['A', 'B'\]"),
        ([edge("C", "A", NoBackprop())], "names the node 'C'"),
        ([edge("A", "B", NoBackprop()), edge("A", "B", NoBackprop())], "edge 'A->B' is given twice"),
        ([edge("A", "B", "dni")], "edge 'A->B': got a str, expected a rule"),  # type: ignore[arg-type]
        ([edge("A", "B", sg.SyntheticGradient(error_to_h=True))], "edge 'A->B': its rule lets its error"),
        ([edge("A", "B", sg.HandOver(NoBackprop(), warm_up=1))], "a HandOver decides with every message"),
        ([edge("A", "B", NoBackprop()), edge("B", "A", NoBackprop())], "'B->A': node 'A' runs before 'B'"),
        ([edge("A", "A", NoBackprop())], "'A->A': node 'A' runs before 'A'"),
    ],
)
def test_edges_that_cannot_be(edges: list[Edge], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(edges=edges)


@pytest.mark.parametrize("what", ["losses", "example"])
def test_names_that_there_are_none_of(what: str) -> None:
    with pytest.raises(ConfigError, match=r"the name 'C' is unknown, expected one of \['A', 'B'\]"):
        build(**{what: {"C": criterion if what == "losses" else X["A"]}})


class Returns(nn.Module):
    """Returns what it was given; ``later`` from its second tick on."""

    def __init__(self, first: Any, later: Any = None) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH).double()
        self.first, self.later = first, first if later is None else later
        self.ticks = 0

    def forward(self, inputs: Any, state: Any) -> Any:
        self.ticks += 1
        return self.first if self.ticks == 1 else self.later


H = torch.zeros(B, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize(
    ("returned", "output", "words"),
    [
        (H, None, "the module of node 'A' returned a Tensor, expected the pair"),
        ((H, H, H), None, "returned a tuple, expected the pair"),
        ((H.long(), None), None, "edge 'A->B': got a message of shape .* and dtype torch.int64"),
        ((torch.zeros(()), None), None, r"got a message of shape \(\)"),
        (("h", None), None, "got a message of str"),
        (({"h": H}, None), None, r"carries the output None of node 'A', which returned \['h'\]"),
        (({"h": H}, None), "g", "carries the output 'g' of node 'A'"),
        ((H, None), "h", "carries the output 'h', and node 'A' returned a Tensor"),
        ((H, H.long()), None, "the example of a state has a part of dtype torch.int64"),
        ((H, ()), None, "the example of a state holds nothing"),
    ],
)
def test_modules_that_do_not_return_what_they_should(returned: Any, output: Any, words: str) -> None:
    nodes = [Node("A", Returns(returned)), Node("B", made(Cell("A"))[0])]
    with pytest.raises(ShapeError, match=words):
        build(nodes, [Edge("A", "B", NoBackprop(), output)])


@pytest.mark.parametrize(
    ("first", "later", "words"),
    [
        ((H, H), (H, (H, H)), r"the state that node 'A' returned has the structure \(\*, \*\), expected \*"),
        ((H, H), (H, None), "expected floating tensors|structure"),
        ((H, H), (H, H[:, 1:]), r"parts of shape \(4, 4\), expected \(B, 5\)"),
        ((H, H), (H, H[1:]), "has a batch of 3, expected 4"),
        ((H, None), (H, H), "the state that node 'A' returned is a Tensor, expected None"),
        ((H, H), (H[:, 1:], H), r"edge 'A->B': got a message of shape \(4, 4\), expected \(4, 5\)"),
        ((H, H), (H[1:], H), r"got a message of shape \(3, 5\), expected \(4, 5\)"),
    ],
)
def test_modules_that_change_what_they_return(first: Any, later: Any, words: str) -> None:
    module = Returns(first, later)
    trainer = build([Node("A", module), Node("B", made(Cell("A"))[0])], [Edge("A", "B", NoBackprop())])
    trainer.step(X)
    with pytest.raises(ShapeError, match=words):
        trainer.step(X)


def test_a_state_rule_needs_a_state() -> None:
    with pytest.raises(ConfigError, match="node 'A' has a state_rule and no state"):
        build([Node("A", Returns((H, None)), state_rule=NoBackprop())], [])


def test_what_is_read_before_the_first_message_has_its_shape() -> None:
    wrong = Edge("B", "A", NoBackprop(), initial=torch.zeros(1, WIDTH, dtype=torch.float64))
    nodes = [Node("A", Returns((H, None))), Node("B", Returns((H, None)))]
    with pytest.raises(ShapeError, match=r"edge 'B->A': initial has the shape \(1, 5\), expected \(5,\)"):
        build(nodes, [Edge("A", "B", NoBackprop()), wrong])


def test_a_rule_that_sees_the_receiver_needs_one_with_a_state() -> None:
    nodes = [Node("A", made(Cell("input"))[0]), Node("B", Returns((H, None)))]
    with pytest.raises(CutError, match="'A->B': its rule is to see the state of the receiving module"):
        build(nodes, [edge("A", "B", sg.SyntheticGradient(receiver=True))])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inputs": {"C": X["A"]}}, "inputs: the name 'C' is unknown"),
        ({"inputs": X, "targets": {"C": Y}}, "targets: the name 'C' is unknown"),
        (
            {"inputs": X, "context": {"B->A": Y}},
            r"context: the name 'B->A' is unknown, expected one of \['A->B'\]",
        ),
        ({"inputs": X, "targets": {"B": Y}}, "a target is given for node 'B', which has no criterion"),
    ],
)
def test_steps_with_names_that_there_are_none_of(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build().step(**arguments)


def test_a_target_at_a_step_without_output() -> None:
    trainer = build(losses={"B": criterion})
    with pytest.raises(
        ConfigError, match=r"node 'B' in step 0 of the episode, in which it does not tick \(period 2\)"
    ):
        trainer.step(X, {"B": Y})
    trainer.step(X, {"B": None})
    trainer.step(X, {"B": Y})


def test_a_batch_that_changes() -> None:
    trainer = build()
    trainer.step(X)
    with pytest.raises(ShapeError, match="the inputs of node 'A' have a batch of 3, expected 4"):
        trainer.step({"A": X["A"][:3]})
    trainer.step(X, last=True)
    trainer.step({"A": X["A"][:3]})


def test_a_loss_that_is_not_finite() -> None:
    trainer = build()
    trainer.step(X, {"A": Y})
    with pytest.raises(DivergedError, match="the loss was not finite at step 1"):
        trainer.step({"A": X["A"] * torch.nan}, {"A": Y})
    trainer.step(X, {"A": Y})  # the next step begins anew
    quiet = build(guard=False)
    assert quiet.step({"A": X["A"] * torch.nan}, {"A": Y}).loss.isnan()  # type: ignore[union-attr]


def test_a_message_back_that_is_not_finite() -> None:
    """The loss is zero, and its gradient 0 · ∞."""
    rule = sg.SyntheticGradient()
    trainer = build(
        edges=[edge("A", "B", rule)], losses={"B": lambda out, _: (out["report"] * 0).sum().sqrt()}
    )
    trainer.step(X)
    with pytest.raises(DivergedError, match="the message at interface 'A->B' was not finite at step 1"):
        trainer.step(X, {"B": Y})
