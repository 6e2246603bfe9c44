"""The counting task compared with counts made one by one, and the reference networks in the clocked engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import synthgrad as sg
from synthgrad.core import ConfigError
from synthgrad.engines import Clocked, Edge, Node
from synthgrad.lab.tasks import Split
from synthgrad.lab.tasks.counting import DigitStream, counting_networks, report_accuracy

T, B = 3, 5


def digits(n: int = 60) -> Split:
    """Return images whose every pixel says which image it is, so that images and labels can be told apart."""
    y = torch.randint(10, (n,), generator=torch.Generator().manual_seed(0))
    return Split(torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous(), y)


def task(seed: int = 0, split: Split | None = None, period: int = T) -> DigitStream:
    return DigitStream(split or digits(), B, period, torch.Generator().manual_seed(seed))


def test_a_block_holds_images_with_their_digits_and_the_counts_of_these() -> None:
    split = digits()
    for period in (1, 2, 3, 4):
        block = task(split=split, period=period).block()
        assert len(block) == period**2
        assert block.x.shape == (period**2, B, 1, 2, 2)
        for b in range(B):
            seen: list[int] = []
            for t in range(period**2):
                which = int(block.x[t, b, 0, 0, 0])
                assert int(block.digits[t, b]) == int(split.y[which])
                seen.append(int(split.y[which]))
            for k in range(period):
                assert int(block.odd[k, b]) == sum(d % 2 for d in seen[k * period : (k + 1) * period])
            assert int(block.threes[b]) == seen.count(3)


def test_steps_have_targets_when_a_report_is_due() -> None:
    block = task().block()
    steps = list(block.steps())
    assert [sorted(targets) for _, targets in steps] == [[], [], ["A"]] * 2 + [[], [], ["A", "B"]]
    for t, (inputs, targets) in enumerate(steps):
        assert torch.equal(inputs["A"], block.x[t])
        if "A" in targets:
            assert torch.equal(targets["A"], block.odd[t // T])
    assert torch.equal(steps[-1][1]["B"], block.threes)


def test_digits_are_drawn_by_the_generator_alone_each_by_itself() -> None:
    one, two, other = task(), task(), task(seed=1)
    torch.manual_seed(99)
    first = one.block()
    assert torch.equal(first.x, two.block().x)
    assert not torch.equal(first.x, other.block().x)
    assert not torch.equal(first.x, one.block().x)  # the next block is another
    state = one.state_dict()
    after = one.block()
    other.load_state_dict(state)
    assert torch.equal(other.block().x, after.x)
    wide = DigitStream(digits(), 4000, T, torch.Generator().manual_seed(0)).block()
    assert len(wide.x[:, :, 0, 0, 0].unique()) == 60
    assert (wide.x[:, 0] != wide.x[:, 1]).any()


@pytest.mark.parametrize(
    "wrong",
    [{"batch_size": 0}, {"period": 0}, {"split": Split(torch.zeros(0, 1, 2, 2), torch.zeros(0).long())}],
)
def test_sizes_that_cannot_be(wrong: dict[str, Any]) -> None:
    given = {"split": digits(), "batch_size": B, "period": T, "generator": torch.Generator()}
    with pytest.raises(ConfigError, match="expected at least 1"):
        DigitStream(**given | wrong)


@pytest.mark.parametrize("wrong", [{"period": 0}, {"width": 0}])
def test_networks_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected at least 1"):
        counting_networks((1, 2, 2), **{"period": T, "width": 4} | wrong)


def test_the_networks_report_every_count_there_can_be() -> None:
    a, b = counting_networks((1, 2, 2), T, 6)
    outputs, state = a({"input": torch.zeros(B, 1, 2, 2)}, None)
    assert (outputs["message"].shape, outputs["report"].shape) == ((B, 6), (B, T + 1))
    assert torch.equal(outputs["message"], state[0])
    again, _ = a({"input": torch.zeros(B, 1, 2, 2)}, state)
    assert not torch.equal(again["message"], outputs["message"])  # it remembers
    outputs, state = b({"A": outputs["message"]}, None)
    assert outputs["report"].shape == (B, T * T + 1)
    # 4·6+6 of the hidden layer, 4·6·(6+6)+2·4·6 of each LSTM, 6·4+4 and 6·10+10 of the reports
    assert sum(p.numel() for p in a.parameters()) == 30 + 336 + 28
    assert sum(p.numel() for p in b.parameters()) == 336 + 70


def test_accuracy_is_the_share_of_right_reports() -> None:
    block = task().block()

    def reports(target: Tensor, right: int, counts: int) -> dict[str, Tensor]:
        said = target.clone()
        said[right:] = (said[right:] + 1) % counts
        return {"report": F.one_hot(said, counts).double()}

    outputs: list[dict[str, dict[str, Tensor]]] = []
    for t, (_, targets) in enumerate(block.steps()):
        made = {"A": reports(targets["A"], t // T, T + 1)} if "A" in targets else {}
        made |= {"B": reports(targets["B"], 4, T * T + 1)} if "B" in targets else {}
        outputs.append(made)
    assert report_accuracy(outputs, block) == pytest.approx({"A": (0 + 1 + 2) / (3 * B), "B": 4 / B})


@pytest.mark.parametrize(
    "rule", [sg.SyntheticGradient(receiver=True), sg.TrueGradient()], ids=["dni", "locked"]
)
def test_the_networks_learn_to_count_what_is_easily_told(rule: sg.Rule) -> None:
    """With digits of one pixel each, reports of odd digits soon beat the most frequent count."""
    split = Split(torch.eye(10).view(10, 1, 1, 10), torch.arange(10))
    stream = DigitStream(split, 64, 2, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    a, b = counting_networks((1, 1, 10), 2, 16)
    report = lambda outputs, y: F.cross_entropy(outputs["report"], y)  # noqa: E731
    trainer = Clocked(
        [Node("A", a, 1, 2), Node("B", b, 2, 2)],
        [Edge("A", "B", rule, "message")],
        {"A": report, "B": report},
        lambda p: torch.optim.Adam(p, 1e-2),
        example={"A": split.x},
    )
    for _ in range(150):
        for inputs, targets in stream.block().steps():
            trainer.step(inputs, targets)
    # In one stream, as it was trained: several blocks after another, of which the last are judged.
    blocks = [stream.block() for _ in range(6)]
    with torch.no_grad():
        outputs = trainer.net.eval()([inputs for block in blocks for inputs, _ in block.steps()])
    found = report_accuracy(outputs[-4:], blocks[-1])
    assert found["A"] > 0.75  # 0.5 by always saying one
    assert 0 <= found["B"] <= 1
