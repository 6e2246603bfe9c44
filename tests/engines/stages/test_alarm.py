"""Which sentence becomes of what is known."""

from __future__ import annotations

import pytest

from synthgrad.core import StageError
from synthgrad.engines.stages.alarm import Alarm
from synthgrad.engines.stages.layout import RankLayout
from synthgrad.engines.stages.transport import BrokenLine, PeerStatus


class _Known:
    """Peers of whom a test says what is known, and a clock of its own."""

    def __init__(self, **pulses: PeerStatus) -> None:
        self.texts: dict[str, str] = {}
        self.pulses = {int(name[1:]): pulse for name, pulse in pulses.items()}
        self.time = 0.0

    def announce_wait(self, rank: int | None) -> None: ...

    def leave(self) -> None: ...

    def publish(self, key: str, value: str) -> None:
        self.texts.setdefault(key, value)

    def lookup(self, key: str) -> str | None:
        return self.texts.get(key)

    def status(self, rank: int) -> PeerStatus:
        return self.pulses.get(rank, PeerStatus())

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def _alarm(**pulses: PeerStatus) -> tuple[Alarm, _Known]:
    """Return the alarm of stage 0, replica 0, of two stages of two replicas."""
    known = _Known(**pulses)
    return Alarm(known, known, RankLayout.of(0, 4, 2, 2)), known


FROZEN, GONE = PeerStatus(silent_s=3.0), PeerStatus(is_gone=True, silent_s=2.13)


@pytest.mark.parametrize(
    ("pulse", "sentence"),
    [
        (FROZEN, "stage 1 (rank 2) has not answered within 3 s: it is frozen, or cut off from the network"),
        (
            PeerStatus(has_left=True),
            "stage 1 (rank 2) has not answered within 3 s: it has closed its engine already",
        ),
        (PeerStatus(), "stage 1 (rank 2) has not answered within 3 s: it lives, so a step takes longer"),
        (PeerStatus(waits_for=0), "stage 0 (rank 0) and stage 1 (rank 2) have waited for each other for 3 s"),
    ],
)
def test_who_is_late_is_told_with_the_reason(pulse: PeerStatus, sentence: str) -> None:
    alarm, known = _alarm(r2=pulse)
    assert str(alarm.late_error(2, 3.0)).startswith(sentence)
    assert known.texts["cause"].startswith(sentence)  # all others say the same


def test_the_end_of_a_chain_of_waits_is_to_blame() -> None:
    alarm, _ = _alarm(r2=PeerStatus(waits_for=3), r3=FROZEN)
    assert str(alarm.late_error(2, 3.0)).startswith("stage 1 (rank 3) has not answered")


@pytest.mark.parametrize(
    "error",
    [
        BrokenLine(2, "[third_party/gloo/…] Connection reset by peer"),
        RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error"),
        RuntimeError("Application timeout caused pair closure"),
    ],
)
def test_what_gloo_says_becomes_the_cause(error: Exception) -> None:
    assert str(_alarm(r3=GONE)[0].explain(error, 3.0)) == (
        "stage 1 (rank 3) has ended without a word 2.1 s ago: its process was killed, or it crashed"
    )
    assert "stage 0 (rank 1) has not answered within 3 s" in str(_alarm(r1=FROZEN)[0].explain(error, 3.0))
    alarm, known = _alarm()
    assert "broke at stage 0 (rank 0), and the processes at both ends live" in str(alarm.explain(error, 3.0))
    assert known.time > 1.0  # it was given a moment


def test_errors_of_the_program_stay_what_they_are() -> None:
    alarm, known = _alarm(r3=GONE)
    for error in (RuntimeError("shapes differ"), ValueError("gloo"), StageError("another's")):
        assert alarm.explain(error, 3.0) is error
    alarm.ring(ValueError("an echo"))
    assert not known.texts  # the one that is gone was first


def test_the_first_cause_stays() -> None:
    alarm, known = _alarm()
    alarm.ring(ValueError("the data is on fire\nand more"))
    alarm.ring(ValueError("again"))
    assert known.texts == {"cause": "stage 0 (rank 0) stopped: ValueError: the data is on fire"}
    assert str(alarm.late_error(2, 3.0)) == known.texts["cause"]
