"""One process gives the bits of a process for each stage: with stages as threads that take turns, and in process."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import LocalLoss, SyntheticGradient, decouple
from synthgrad.core import ConfigError
from synthgrad.engines import InProcess, Lag, Stages
from synthgrad.engines.codecs import blocks, subspace, top_k
from synthgrad.rules import LateCorrection, SyntheticInput, TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place
from tests.engines.stages.processes import Processes

RULES: dict[str, Any] = {
    "cdni": lambda: SyntheticGradient(context=programs.CLASSES),
    "local_loss": lambda: LocalLoss(programs.CLASSES),
    "true": TrueGradient,
}
CODECS: dict[str, dict[str, Any]] = {
    "8 bits": {"codec": blocks(8)},
    "subspace and the largest": {"codec": subspace(6, inner=blocks(8)), "message_codec": top_k(0.25)},
}


def trained(place: Place, rule: str, codecs: str) -> dict[str, Tensor]:
    """Train a network with dropout, with codecs and updates of several steps, as one of two stages."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(programs.INPUTS, 8), nn.ReLU(), nn.Dropout(0.25))
    model = nn.Sequential(first, nn.Sequential(nn.Dropout(0.1), nn.Linear(8, programs.CLASSES)))
    data = [(x.float(), y) for x, y in programs.batches(14)]
    net = decouple(model, ["0"], RULES[rule](), data[0][0])
    how: dict[str, Any] = {"window": 2, "deterministic": True, "accumulate": 3, "clip_norm": 1.0}
    with Stages(
        net, programs.per_example, programs.fed_back, transport=place.transport, **how, **CODECS[codecs]
    ) as stages:
        for x, y in data:
            stages.step(x if place.rank == 0 else None, y)
        stages.gather()
    return programs.weights(net)


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("rule", RULES)
def test_threads_give_the_bits_of_processes(
    two: InMemory, two_processes: Processes, rule: str, codecs: str
) -> None:
    (twin, _), (found, _) = two.run(trained, rule, codecs), two_processes.run(trained, rule, codecs)
    for name, value in twin.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    torch.manual_seed(0)
    start = nn.Linear(programs.INPUTS, 8).weight
    assert not torch.equal(twin["model.0.0.weight"], start)


STEPS = 14


def in_stages(place: Place, rule: str, codecs: str, accumulate: int) -> dict[str, Tensor]:
    net, data = programs.network(3, rule), programs.batches(STEPS)
    how: dict[str, Any] = {"window": 1, "deterministic": True, "accumulate": accumulate}
    with Stages(
        net, programs.per_example, programs.adam, transport=place.transport, **how, **CODECS[codecs]
    ) as stages:
        for x, y in data:
            stages.step(x if place.rank == 0 else None, y)
        stages.gather()
    return programs.weights(net)


def in_process(rule: str, codecs: str, accumulate: int, saved_after: int = STEPS) -> dict[str, Tensor]:
    """Train three modules in one process; after some steps go on from what was saved."""

    def made(net: Any) -> InProcess:
        lags = {name: Lag(observe=1) for name in net.interfaces}
        how: dict[str, Any] = {"lags": lags, "accumulate": accumulate}
        return InProcess(net, programs.per_example, programs.adam, **how, **CODECS[codecs])

    net, data = programs.network(3, rule), programs.batches(STEPS)
    engine = made(net)
    for x, y in data[:saved_after]:
        engine.step(x, y)
    if saved_after < STEPS:
        file = io.BytesIO()
        torch.save({"net": net.state_dict(), "engine": engine.state_dict()}, file)
        saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        net = programs.network(3, rule)
        net.load_state_dict(saved["net"])
        engine = made(net)
        engine.load_state_dict(saved["engine"])
        for x, y in data[saved_after:]:
            engine.step(x, y)
    return programs.weights(net)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("rule", ["cdni", "dni", "local_loss", "sobolev", "true"])
def test_the_in_process_engine_loses_what_a_wire_loses(
    three: InMemory, rule: str, codecs: str, accumulate: int
) -> None:
    expected = three.run(in_stages, rule, codecs, accumulate)[0]
    found = in_process(rule, codecs, accumulate)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
    without = programs.in_process(3, rule, STEPS, 1, accumulate=accumulate)["weights"]
    assert not torch.equal(without["model.2.weight"], found["model.2.weight"])


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("rule", ["cdni", "true"])
def test_a_run_with_codecs_that_is_saved_goes_on_bit_by_bit(rule: str, codecs: str) -> None:
    through, resumed = in_process(rule, codecs, 1), in_process(rule, codecs, 1, saved_after=7)
    for name, value in through.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)


def test_a_module_that_waits_is_built_again_from_what_the_wire_has_made() -> None:
    """Also where nobody below it wants its message."""

    def made(weights: Any = None, state: Any = None) -> tuple[Any, InProcess]:
        plain, (x, _) = programs.network(3, "local_loss").model, programs.batches(1)[0]
        rules = {"0": LocalLoss(programs.CLASSES), "1": TrueGradient()}
        net = decouple(plain, ["0", "1"], rules, x)
        if weights is not None:
            net.load_state_dict(weights)
        lags = {"1": Lag(observe=2)}
        engine = InProcess(net, programs.per_example, programs.adam, lags=lags, codec=blocks(4))
        if state is not None:
            engine.load_state_dict(state)
        return net, engine

    (net, engine), data = made(), programs.batches(10)
    for x, y in data[:5]:
        engine.step(x, y)
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "engine": engine.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    other, resumed = made(saved["net"], saved["engine"])
    for x, y in data[5:]:
        engine.step(x, y)
        resumed.step(x, y)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0, msg=name)


def test_a_late_correction_hears_of_the_wire() -> None:
    """What is lost on the way is part of the message, and so of the correction."""
    found = [_corrected(codec) for codec in (None, blocks(4))]
    names = [name for name in found[0] if name.startswith("model.0")]
    assert any(not torch.equal(found[0][name], found[1][name]) for name in names)


def _corrected(codec: Any) -> dict[str, Tensor]:
    net, data = programs.network(2, "local_loss"), programs.batches(STEPS)
    net = decouple(net.model, ["0"], LateCorrection(LocalLoss(programs.CLASSES), 0.5), data[0][0])
    engine = InProcess(net, programs.per_example, programs.adam, lags={"0": Lag(observe=2)}, codec=codec)
    for x, y in data:
        engine.step(x, y)
    return programs.weights(net)


@pytest.mark.parametrize("what", ["codec", "message_codec"])
def test_what_is_no_codec_is_refused_in_process(what: str) -> None:
    options: dict[str, Any] = {what: "8 bits"}
    with pytest.raises(ConfigError, match=f"{what}='8 bits': expected a codec, such as codecs.blocks"):
        InProcess(programs.network(2, "cdni"), programs.per_example, programs.adam, **options)


def test_a_subspace_wider_than_the_messages_is_refused(two: InMemory) -> None:
    said = "subspace of 9 features.* was given messages of 8 features"
    with pytest.raises(ConfigError, match=said):
        InProcess(programs.network(2, "cdni"), programs.per_example, programs.adam, codec=subspace(9))
    for outcome in two.outcomes(_too_wide):
        assert re.search(f"ConfigError: codec '{said}", outcome.error or "")


def _too_wide(place: Place) -> None:
    net = programs.network(2, "cdni")
    Stages(net, programs.per_example, programs.adam, codec=subspace(9), transport=place.transport).close()


def test_codecs_with_synthetic_inputs_are_refused_in_process() -> None:
    net, data = programs.network(2, "cdni"), programs.batches(1)
    rule = SyntheticGradient(context=programs.CLASSES)
    net = decouple(net.model, ["0"], rule, data[0][0], inputs=SyntheticInput())
    with pytest.raises(ConfigError, match="interface '0' has synthetic inputs, and a codec was given"):
        InProcess(net, programs.per_example, programs.adam, codec=blocks(8))
