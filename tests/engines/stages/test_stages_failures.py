"""What goes wrong between processes: late and wrong messages, ranks that raise, peers that differ."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ConfigError, Credit, Info, Message, StageError
from synthgrad.engines import Stages
from tests.engines.stages import programs
from tests.engines.stages.processes import Processes


@pytest.mark.parametrize("who", [0, 1, 2])
def test_a_rank_that_raises_stops_the_others_with_its_cause(three: Processes, who: int) -> None:
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


def test_two_hundred_random_delays_end_without_deadlock(three: Processes) -> None:
    for windows in three.run(programs.delayed, 3, 7, 220, 0.008)[:2]:
        assert all(2 <= w <= 64 for w in windows)


def test_a_narrow_window_takes_delays_too(three: Processes) -> None:
    assert all(three.run(_narrow))


def _narrow(rank: int) -> bool:
    programs.delayed(rank, 3, 8, 60, 0.01, window=1, observe_prob=0.5)
    return True


def test_a_stage_does_not_run_farther_ahead_of_a_slow_one_than_it_must(three: Processes) -> None:
    first, *_ = three.run(_above_a_slow_one)
    # By its own step, of a millisecond or two, it would be 64 steps ahead: the step above takes 20 ms at least.
    assert 2 < first <= math.ceil(_ROUND_TRIP_S / 0.02) + 2


_ROUND_TRIP_S = 0.8


def _above_a_slow_one(rank: int) -> int:
    """Return the window at the end. The link is taken for a slow one, whatever was measured."""
    with Stages(programs.network(3, "cdni"), programs.per_example, programs.adam, timeout_s=20) as stages:
        stages._links.window._round_trip_s = _ROUND_TRIP_S
        if rank == 1:
            stages.module.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        for k, (x, y) in enumerate(programs.batches(12)):
            if k == 11 and rank == 0:
                time.sleep(0.5)  # until answers have come
            stages.step(x if rank == 0 else None, y)
        return stages.window


def test_answers_that_come_late_are_learned_from_together(three: Processes) -> None:
    heard, differs = three.run(_late)[0]
    # Stage 0 ran ahead while the others slept: the answers of several batches came between two of its steps.
    assert max(Counter(now for now, _ in heard).values()) > 1
    # Each is learned from once, in order: all but the last few, for which no step is left.
    batches = [batch for _, batch in heard]
    assert batches == list(range(len(batches)))
    assert len(batches) >= 12 - 6
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


def _late(rank: int) -> tuple[list[tuple[int, int]], list[str]]:
    """Train, all stages but the first resting for a while; return who was heard of when, and what has gone wrong.

    What is right is a loop by hand, which is given the messages as they came: the first stage and its rule, which
    learns the mean over the messages that came together.
    """
    plain, data = programs.network(3, "cdni").model, programs.batches(12)
    net = decouple(plain, ["0", "1"], _Noting(), data[0][0])
    twin = copy.deepcopy(net)
    with Stages(net, programs.per_example, programs.sgd, window=6, timeout_s=20) as stages:
        for k, (x, y) in enumerate(data):
            if k == 3 and rank:
                time.sleep(0.3)
            if k == 11:
                time.sleep(0.5)
            stages.step(x if rank == 0 else None, y)
    heard: list[tuple[int, int, Tensor]] = net.interfaces["0"].rule.heard  # pyright: ignore
    if rank:
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


def test_an_out_of_date_message_is_refused(three: Processes) -> None:
    found = three.outcomes(_repeats_itself)
    assert "expected the message for batch" in (found[0].error or "")
    assert (found[1].error or "").startswith("StageError: stage 0 (rank 0) stopped") or "ended" in (
        found[1].error or ""
    )


def _repeats_itself(rank: int) -> None:
    net = programs.network(3, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=2, timeout_s=20) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            stages.step(x if rank == 0 else None, y)
            if rank == 1 and k == 4:
                below = stages._links.below
                assert below is not None
                below.answer(1, torch.zeros(programs.BATCH, programs.WIDTH, dtype=torch.float64))


def test_a_header_that_nobody_agreed_upon_is_refused(three: Processes) -> None:
    found = three.outcomes(_writes_nonsense)
    assert "which nobody agreed upon" in (found[0].error or "")


def _writes_nonsense(rank: int) -> None:
    net = programs.network(3, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=2, timeout_s=20) as stages:
        if rank == 1:
            below = stages._links.below
            assert below is not None
            dist.send(torch.tensor([1, 0, -5, 9, 0, 0]), 0, group=below.outgoing.sender._group)  # pyright: ignore
        for x, y in programs.batches(12):
            stages.step(x if rank == 0 else None, y)


def test_a_stage_that_hangs_is_given_up(three: Processes) -> None:
    found = three.outcomes(_hangs)
    assert "within 2 s" in "".join(outcome.error or "" for outcome in found)
    assert all(outcome.error for outcome in found)


def _hangs(rank: int) -> None:
    net = programs.network(3, "cdni")
    with Stages(net, programs.per_example, programs.adam, window=2, timeout_s=2) as stages:
        for k, (x, y) in enumerate(programs.batches(12)):
            if rank == 1 and k == 4:
                time.sleep(5)
            stages.step(x if rank == 0 else None, y)


# Peers that differ


def _with_width(rank: int, widths: tuple[int, ...]) -> None:
    width = widths[rank]
    model = nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )
    net = decouple(model, ["1", "3"], SyntheticGradient(), torch.randn(4, 6))
    Stages(net, nn.CrossEntropyLoss(), programs.adam, timeout_s=20).close()


def test_another_model_is_refused_in_every_process(three: Processes) -> None:
    for outcome in three.outcomes(_with_width, (8, 9, 8)):
        assert "ConfigError: rank 0 and rank 1 differ in the network: model.0.weight (8, 6)" in (
            outcome.error or ""
        )


def _with_settings(rank: int, settings: tuple[dict[str, Any], ...]) -> None:
    Stages(
        programs.network(3, "cdni"), nn.CrossEntropyLoss(), programs.adam, timeout_s=20, **settings[rank]
    ).close()


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        (({}, {}, {"observe_prob": 0.5}), "rank 0 and rank 2 differ in observe_prob: 1.0 against 0.5"),
        (({"wire_dtype": torch.bfloat16}, {}, {}), "rank 0 and rank 1 differ in wire_dtype"),
        (({}, {"seed": 1}, {}), "rank 0 and rank 1 differ in seed: 0 against 1"),
    ],
)
def test_other_settings_are_refused(
    three: Processes, settings: tuple[dict[str, Any], ...], differs: str
) -> None:
    for outcome in three.outcomes(_with_settings, settings):
        assert differs in (outcome.error or "")


def _with_world(rank: int, num_modules: int, replicas: int) -> None:
    Stages(programs.network(num_modules, "cdni"), nn.CrossEntropyLoss(), programs.adam, replicas=replicas)


@pytest.mark.parametrize(("num_modules", "replicas"), [(2, 1), (4, 1), (3, 2), (3, 0)])
def test_another_layout_is_refused(three: Processes, num_modules: int, replicas: int) -> None:
    for outcome in three.outcomes(_with_world, num_modules, replicas):
        assert f"3 processes for {num_modules} stages × {replicas} replicas" in (outcome.error or "")


def _without_one(rank: int) -> None:
    if rank != 1:
        Stages(programs.network(3, "cdni"), nn.CrossEntropyLoss(), programs.adam, timeout_s=1)


def test_a_process_that_does_not_come_is_named(three: Processes) -> None:
    found = three.outcomes(_without_one)
    assert "rank 1 did not come to the handshake within 1 s" in (found[0].error or "")


# Without other processes


@pytest.mark.parametrize(
    ("rule", "options", "error"),
    [
        ("cdni", {"window": -1}, "window=-1"),
        ("cdni", {"deterministic": True}, "needs a window"),
        ("cdni", {"observe_prob": 1.5}, "observe_prob=1.5"),
        ("cdni", {"wire_dtype": torch.int8}, "wire_dtype"),
        ("cdni", {"timeout_s": 0}, "timeout_s"),
        ("true", {}, "say how many steps"),
        ("true", {"window": 1, "observe_prob": 0.5}, "waits for every message"),
    ],
)
def test_settings_are_checked(rule: str, options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=error) as caught:
        _one(rule, options)
    assert "\n" not in str(caught.value)


def _one(rule: str, options: dict[str, Any]) -> None:
    from synthgrad.engines.stages.checks import check_rules
    from synthgrad.engines.stages.connect import Settings

    settings = Settings(
        **{{"deterministic": "exact"}.get(k, k): v for k, v in options.items()}  # pyright: ignore[reportArgumentType]
    )
    settings.check()
    check_rules(programs.network(2, rule), settings, 1)


def test_without_a_process_group_it_says_how_to_start() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Stages(programs.network(2, "cdni"), nn.CrossEntropyLoss(), programs.adam)


def test_stage_errors_are_errors_of_the_package() -> None:
    assert issubclass(StageError, RuntimeError)
