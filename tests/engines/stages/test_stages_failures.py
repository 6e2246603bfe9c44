"""What goes wrong between ranks: late and wrong messages, ranks that raise, hang, are gone or end early."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import Credit, Info, Message
from synthgrad.engines import Stages
from synthgrad.engines.stages.wire import ParcelKind
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_rank_that_raises_stops_the_others_with_its_cause(three: InMemory, who: int) -> None:
    found = three.outcomes(programs.raises_at, 3, who, 5)
    assert (found[who].error or "").startswith("ValueError: the data is on fire")
    for rank, outcome in enumerate(found):
        if rank != who:
            assert (
                outcome.error
                == f"StageError: stage {who} (rank {who}) stopped: ValueError: the data is on fire"
            )
    # … and leaves them able to work
    assert three.run(programs.delayed, 3, 0, 3, 0.0)


def test_two_hundred_random_delays_end_without_deadlock(three: InMemory) -> None:
    for windows in three.run(programs.delayed, 3, 7, 220, 0.008)[:2]:
        assert all(2 <= w <= 64 for w in windows)


def test_a_narrow_window_takes_delays_too(three: InMemory) -> None:
    assert all(three.run(_narrow))


def _narrow(place: Place) -> bool:
    programs.delayed(place, 3, 8, 60, 0.01, window=1, observe_prob=0.5)
    return True


def test_answers_that_come_late_are_learned_from_together(three: InMemory) -> None:
    heard, differs = three.run(_late)[0]
    # Stage 0 takes no time. It stops at step 6, whose window begins with batch 0; by then the others have answered three
    # batches and rest. It goes on to step 9, which waits for batch 3, and hears of all that it has sent meanwhile.
    assert heard == [*((6, k) for k in range(3)), *((9, k) for k in range(3, 10)), (11, 10)]
    assert not differs


class _Noting(SyntheticGradient):
    """Notes in which of its batches' steps it hears of which batch, and what."""

    def __init__(self) -> None:
        super().__init__(context=programs.CLASSES)
        self.now = -1
        self.heard: list[tuple[int, int, Tensor]] = []

    def credit(self, h: Tensor, info: Info) -> Credit:
        self.now += 1
        return super().credit(h, info)

    def observe(self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()) -> Tensor:
        assert info.step is not None
        self.heard.append((self.now, info.step, message.gradient.clone()))
        return super().observe(h, info, message, pending)

    def observe_grad(self, *args: Any) -> None:
        """Have no closed form, so that all messages come by `observe`."""


def _late(place: Place) -> tuple[list[tuple[int, int]], list[str]]:
    """Train, all stages but the first resting for a while; return who was heard of when, and what has gone wrong.

    What is right is a loop by hand, which is given the messages as they came: the first stage and its rule, which
    learns the mean over the messages that came together.
    """
    plain, data = programs.network(3, "cdni").model, programs.batches(12)
    net = decouple(plain, ["0", "1"], _Noting(), data[0][0])
    twin = copy.deepcopy(net)
    with Stages(
        net, programs.per_example, programs.sgd, window=6, timeout_s=20, transport=place.transport
    ) as stages:
        for k, (x, y) in enumerate(data):
            if k == 3 and place.rank:
                place.sleep(0.3)
            if k == 11:
                place.sleep(0.5)
            stages.step(x if place.rank == 0 else None, y)
    heard: list[tuple[int, int, Tensor]] = net.interfaces["0"].rule.heard  # pyright: ignore
    if place.rank:
        return [], []
    module, rule = twin.model.get_submodule("0"), twin.interfaces["0"].rule
    optimizer = programs.sgd([*module.parameters(), *rule.parameters()])
    crossed: list[tuple[Tensor, Info]] = []
    for k, (x, y) in enumerate(data):
        out, info = module(x), Info(y, None, k, x)
        crossed.append((out.detach(), info))
        credit = rule.credit(out.detach(), info)
        optimizer.zero_grad()
        assert credit.delta is not None
        out.backward(credit.delta / programs.BATCH)
        losses = [rule.observe(*crossed[batch], Message(g)) for now, batch, g in heard if now == k]
        if losses:
            torch.stack([loss for loss in losses if loss is not None]).mean().backward()
        optimizer.step()
    ours, theirs = net.state_dict(), twin.state_dict()
    own = [name for name in ours if name.startswith(("model.0.", "rules.0."))]
    differs = [n for n in own if not torch.allclose(ours[n], theirs[n], rtol=1e-9, atol=1e-12)]
    return [(now, batch) for now, batch, _ in heard], differs


def test_an_out_of_date_message_is_refused(three: InMemory) -> None:
    found = three.outcomes(_repeats_itself)
    assert "expected the message for batch" in (found[0].error or "")
    assert (found[1].error or "").startswith("StageError: stage 0 (rank 0) stopped") or "ended" in (
        found[1].error or ""
    )


def _repeats_itself(place: Place) -> None:
    net = programs.network(3, "cdni")
    with Stages(
        net, programs.per_example, programs.adam, window=2, timeout_s=20, transport=place.transport
    ) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            stages.step(x if place.rank == 0 else None, y)
            if place.rank == 1 and k == 4:
                below = stages._links.below
                assert below is not None
                below.answer(1, torch.zeros(programs.BATCH, programs.WIDTH, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [{0: 16}, {0: -16}, {1: 0}, {1: 10}, {3: -5}, {4: 9}, {4: -1}, {4: 1}, {8: 7}, {9: 1 << 40}],
    ids=[
        "size",
        "no size",
        "kind 0",
        "kind 10",
        "rows",
        "slots",
        "no slots",
        "an empty slot",
        "shape",
        "a large shape",
    ],
)
def test_a_header_that_nobody_agreed_upon_is_refused(three: InMemory, change: dict[int, int]) -> None:
    found = three.outcomes(_writes_nonsense, change)
    assert "which nobody agreed upon" in (found[0].error or "")


def _writes_nonsense(place: Place, change: dict[int, int]) -> None:
    net = programs.network(3, "cdni")
    with Stages(
        net, programs.per_example, programs.adam, window=2, timeout_s=20, transport=place.transport
    ) as stages:
        if place.rank == 1:
            below = stages._links.below
            assert below is not None
            header = [
                0,
                int(ParcelKind.MESSAGE),
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
                0,
            ]  # the answer to batch 0, but for the change
            for k, number in change.items():
                header[k] = number
            if change.keys() <= {8, 9}:
                header[4] = 1
            below.outgoing.sender.send(header, None, 0)
        for x, y in programs.batches(12):
            stages.step(x if place.rank == 0 else None, y)


def test_a_stage_that_hangs_is_given_up(three: InMemory) -> None:
    found = three.outcomes(_hangs)
    assert "within 2 s" in "".join(outcome.error or "" for outcome in found)
    assert all(outcome.error for outcome in found)


def _hangs(place: Place) -> None:
    net = programs.network(3, "cdni")
    with Stages(
        net, programs.per_example, programs.adam, window=2, timeout_s=2, transport=place.transport
    ) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            if place.rank == 1 and k == 4:
                place.sleep(5)
            stages.step(x if place.rank == 0 else None, y)


def _of_lengths(place: Place, lengths: tuple[int, ...], window: int | None = 2) -> None:
    options = {"window": window, "timeout_s": 5, "transport": place.transport}
    with Stages(
        programs.network(len(lengths), "cdni"), programs.per_example, programs.adam, **options
    ) as stages:
        for x, y in programs.batches(lengths[place.rank]):
            stages.step(x if place.rank == 0 else None, y)


@pytest.mark.parametrize(
    ("lengths", "who", "other"),
    [
        ((9, 8, 8), "stage 1 (rank 1) ended after 8 batches", "stage 0 (rank 0) has sent 9"),
        ((8, 9, 9), "stage 0 (rank 0) ended after 8 batches", "stage 1 (rank 1) has begun batch 9"),
        ((8, 8, 9), "stage 1 (rank 1) ended after 8 batches", "stage 2 (rank 2) has begun batch 9"),
        ((12, 12, 0), "stage 2 (rank 2) ended after 0 batches", "stage 1 (rank 1) has sent"),
    ],
)
def test_unequal_numbers_of_batches_are_told_as_such(
    three: InMemory, lengths: tuple[int, ...], who: str, other: str
) -> None:
    found = three.outcomes(_of_lengths, lengths)
    assert len({outcome.error for outcome in found}) == 1  # one sentence, in all ranks
    assert (found[0].error or "").startswith(f"StageError: {who}, and {other}")
    assert "give all ranks the same number of batches" in (found[0].error or "")


def _leaves(place: Place, who: int, k: int) -> None:
    """Return from the program in the middle of training, as a process does that is killed."""
    net = programs.network(3, "cdni")
    stages = Stages(
        net, programs.per_example, programs.adam, window=2, timeout_s=5, transport=place.transport
    )
    for step, (x, y) in enumerate(programs.batches(12)):
        if place.rank == who and step == k:
            return
        stages.step(x if place.rank == 0 else None, y)
        place.sleep(1 / 8)
    stages.close()


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_rank_that_is_gone_is_named_by_all_others(three: InMemory, who: int) -> None:
    found = three.outcomes(_leaves, who, 4)
    for rank in {0, 1, 2} - {who}:
        assert (found[rank].error or "").startswith(
            f"StageError: stage {who} (rank {who}) has ended without a word"
        )


def _waits_in_turn(place: Place) -> None:
    """The last stage hangs; the first waits for the second, which waits for it."""
    net = programs.network(3, "true")
    options = {"window": 0, "deterministic": True, "timeout_s": 2, "transport": place.transport}
    with Stages(net, programs.per_example, programs.adam, **options) as stages:
        for step, (x, y) in enumerate(programs.batches(6)):
            if place.rank == 2 and step == 3:
                place.sleep(10)
            stages.step(x if place.rank == 0 else None, y)


def test_the_rank_that_all_wait_for_in_the_end_is_named(three: InMemory) -> None:
    for outcome in three.outcomes(_waits_in_turn):
        assert (outcome.error or "").startswith("StageError: stage 2 (rank 2) has not answered within 2 s")
        assert "a step takes longer than timeout_s" in (outcome.error or "")


def _predicts_alone(place: Place) -> None:
    net = programs.network(2, "cdni")
    with Stages(
        net, programs.per_example, programs.adam, window=1, timeout_s=2, transport=place.transport
    ) as stages:
        for x, y in programs.batches(3):
            stages.step(x if place.rank == 0 else None, y)
        if place.rank == 1:
            stages.predict()


def test_a_prediction_that_one_rank_does_not_make_is_told_as_such(two: InMemory) -> None:
    for outcome in two.outcomes(_predicts_alone):
        assert "stage 0 (rank 0) ended after 3 batches, and stage 1 (rank 1) is about to predict" in (
            outcome.error or ""
        )
