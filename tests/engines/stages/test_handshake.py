"""What is refused before anything is trained: peers that differ, ranks that do not come, settings out of range."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn

from synthgrad import SyntheticGradient, decouple
from synthgrad.core import ConfigError, StageError
from synthgrad.engines import Stages
from synthgrad.engines.codecs import top_k
from synthgrad.engines.stages import coordinator
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place

# Peers that differ


def _with_width(place: Place, widths: tuple[int, ...]) -> None:
    width = widths[place.rank]
    model = nn.Sequential(
        nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )
    net = decouple(model, ["1", "3"], SyntheticGradient(), torch.randn(4, 6))
    Stages(net, nn.CrossEntropyLoss(), programs.adam, timeout_s=20, transport=place.transport).close()


def test_another_model_is_refused_in_every_process(three: InMemory) -> None:
    for outcome in three.outcomes(_with_width, (8, 9, 8)):
        assert "ConfigError: rank 0 and rank 1 differ in the network: model.0.weight (8, 6)" in (
            outcome.error or ""
        )


def _with_settings(place: Place, settings: tuple[dict[str, Any], ...]) -> None:
    Stages(
        programs.network(3, "cdni"),
        nn.CrossEntropyLoss(),
        programs.adam,
        timeout_s=20,
        transport=place.transport,
        **settings[place.rank],
    ).close()


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        (({}, {}, {"observe_prob": 0.5}), "rank 0 and rank 2 differ in observe_prob: 1.0 against 0.5"),
        (({"wire_dtype": torch.bfloat16}, {}, {}), "rank 0 and rank 1 differ in wire_dtype"),
        (({}, {"seed": 1}, {}), "rank 0 and rank 1 differ in seed: 0 against 1"),
        (({}, {"window": 3}, {}), "rank 0 and rank 1 differ in window: None against 3"),
        (({}, {}, {"clip_norm": 1.0}), "rank 0 and rank 2 differ in clip_norm: None against 1.0"),
        (
            ({}, {}, {"message_codec": top_k(0.5)}),
            "rank 0 and rank 2 differ in message_codec: None against largest 50 % with error feedback",
        ),
        (({}, {"observe_rows": 0.5}, {}), "rank 0 and rank 1 differ in observe_rows: 1.0 against 0.5"),
        (({}, {"accumulate": 2}, {}), "rank 0 and rank 1 differ in accumulate: 1 against 2"),
    ],
)
def test_other_settings_are_refused(
    three: InMemory, settings: tuple[dict[str, Any], ...], differs: str
) -> None:
    for outcome in three.outcomes(_with_settings, settings):
        assert differs in (outcome.error or "")


def _with_world(place: Place, num_modules: int, replicas: int) -> None:
    Stages(
        programs.network(num_modules, "cdni"),
        nn.CrossEntropyLoss(),
        programs.adam,
        replicas=replicas,
        transport=place.transport,
    )


@pytest.mark.parametrize(("num_modules", "replicas"), [(2, 1), (4, 1), (3, 2), (3, 0)])
def test_another_layout_is_refused(three: InMemory, num_modules: int, replicas: int) -> None:
    for outcome in three.outcomes(_with_world, num_modules, replicas):
        assert f"3 processes for {num_modules} stages × {replicas} replicas" in (outcome.error or "")


def _without_one(place: Place) -> None:
    if place.rank != 1:
        Stages(
            programs.network(3, "cdni"),
            nn.CrossEntropyLoss(),
            programs.adam,
            timeout_s=1,
            transport=place.transport,
        )


def test_a_process_that_does_not_come_is_named(three: InMemory) -> None:
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
    from synthgrad.engines.stages.settings import StageSettings, check_rules

    settings = StageSettings(**options)
    settings.check()
    check_rules(programs.network(2, rule), settings, 1)


def test_without_a_process_group_it_says_how_to_start() -> None:
    with pytest.raises(ConfigError, match="torchrun"):
        Stages(programs.network(2, "cdni"), nn.CrossEntropyLoss(), programs.adam)


def test_stage_errors_are_errors_of_the_package() -> None:
    assert issubclass(StageError, RuntimeError)


def _of_versions(place: Place) -> None:
    Stages(
        programs.network(3, "cdni"), nn.CrossEntropyLoss(), programs.adam, transport=place.transport
    ).close()


def test_another_version_is_refused_by_name(three: InMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    def greeting() -> str:
        return "synthgrad 9.0" if "rank 2" in threading.current_thread().name else "synthgrad 8.0"

    monkeypatch.setattr(coordinator, "greeting", greeting)
    for outcome in three.outcomes(_of_versions):
        assert "synthgrad 9.0, and rank" in (outcome.error or "") or "and rank 2 synthgrad 9.0" in (
            outcome.error or ""
        )
        assert (outcome.error or "").endswith("install the same version for all processes")
