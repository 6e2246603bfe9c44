"""Marks on the links: what was under way is kept, taken before what comes later, and saved with the state of the links."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from synthgrad.core import ConfigError
from synthgrad.engines import Stages
from synthgrad.engines.stages import Link
from synthgrad.engines.stages.connect import connect
from synthgrad.engines.stages.coordinator import Coordinator
from synthgrad.engines.stages.layout import RankLayout
from synthgrad.engines.stages.settings import StageSettings
from synthgrad.engines.stages.wire import ParcelKind, ParcelSlot
from synthgrad.rules import TrueGradient
from tests.engines.stages import programs
from tests.engines.stages.places import InMemory, Place
from tests.engines.stages.test_late import unlocked

LINKS = [Link(), Link(1 / 8), Link(1 / 8, 4096.0)]


def _trained(place: Place, drain_at: tuple[int, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Train, and empty the wires after some steps."""
    net = programs.network(3, "cdni")
    with Stages(net, programs.per_example, programs.adam, transport=place.transport, **options) as stages:
        kept = list[int]()
        for k, (x, y) in enumerate(programs.batches(16)):
            stages.step(x if place.rank == 0 else None, y)
            if k in drain_at:
                stages._links.drain()
                kept.append(sum(len(link.inbox.state_dict()) for link in stages._links.links))
        output = stages.predict(programs.batches(1)[0][0] if place.rank == 0 else None)
        stages.gather()
    return {"weights": programs.weights(net), "kept": kept, "output": output}


@pytest.mark.parametrize("link", LINKS, ids=["no delay", "delay", "delay and rate"])
@pytest.mark.parametrize("drain_at", [(4,), (3, 4, 5, 15)])
def test_a_run_that_drains_learns_what_one_that_does_not_learns(
    three: InMemory, link: Link, drain_at: tuple[int, ...]
) -> None:
    options = {"window": 3, "deterministic": True, "observe_prob": 0.7}
    plain = three.over(link).run(_trained, (), options)
    found = three.over(link).run(_trained, drain_at, options)
    for a, b in zip(plain, found, strict=True):
        for name, value in a["weights"].items():
            torch.testing.assert_close(b["weights"][name], value, rtol=0, atol=0, msg=name)
    assert torch.equal(found[-1]["output"], plain[-1]["output"])
    # The answers of three batches are late; every one was sent before the mark. Activations are not: each stage has taken its own.
    assert [f["kept"] for f in found] == [[3] * len(drain_at)] * 2 + [[0] * len(drain_at)]


def test_a_stage_that_does_something_else_is_told(two: InMemory) -> None:
    first, last = two.outcomes(_drains_alone)
    assert "got mark 0, expected activation 3" in (last.error or "")
    assert first.error is not None


def _drains_alone(place: Place) -> None:
    net = programs.network(2, "cdni")
    options = {"window": 2, "timeout_s": 20, "transport": place.transport}
    with Stages(net, programs.per_example, programs.adam, **options) as stages:
        for k, (x, y) in enumerate(programs.batches(8)):
            if k == 3 and place.rank == 0:
                stages._links.drain()
            stages.step(x if place.rank == 0 else None, y)


# Synthetic inputs: what is late lies on the wire


def _late(place: Place, drains: bool) -> dict[str, Any]:
    """Have the lower stage be slower, so that activations are on the wire or still to be made, and drain in the middle."""
    with Stages(
        unlocked(), programs.per_example, programs.adam, window=6, transport=place.transport, timeout_s=20
    ) as stages:
        learned = list[int]()
        late = stages._stage.late
        if late is not None:
            learn = late._learn
            late._learn = lambda batch, h, checksum: (learned.append(batch), learn(batch, h, checksum))[1]  # type: ignore[method-assign,assign]  # pyright: ignore
        kept = 0
        for k, (x, y) in enumerate(programs.batches(12)):
            if place.rank == 0:
                place.sleep(1 / 8)
            stages.step(x, y)
            if drains and k == 5:
                stages._links.drain()
                kept = sum(len(link.inbox.state_dict()) for link in stages._links.links)
            if k == 5 and place.rank == 1:
                place.sleep(1.0)  # more has come when the next step looks
        return {"learned": learned, "kept": kept, "synthetic": stages.num_synthetic}


@pytest.mark.parametrize(
    ("link", "num_learned", "num_synthetic"),
    [
        (LINKS[0], 12, 6),
        (LINKS[1], 12, 6),
        (LINKS[2], 8, 10),
    ],  # over a slow link not all have come after the rest
    ids=["no delay", "delay", "delay and rate"],
)
def test_late_activations_are_kept_in_order(
    two: InMemory, link: Link, num_learned: int, num_synthetic: int
) -> None:
    _, last = two.over(link).run(_late, True)
    # The stage above has waited for batch 0, to know of the window, and run ahead. The other five were sent before the mark.
    assert last["kept"] == 5
    # It learns from each once, in order: what was kept comes before what was sent later.
    assert last["learned"] == list(range(num_learned))
    assert last["synthetic"] == num_synthetic


# State of the links


def _messages(place: Place, upto: int, state: Any = None) -> tuple[Any, list[tuple[int, float, bool]]]:
    """Send batches up and answers down over bare links; drain; take the rest, or save and go on from there in another run."""
    assert place.transport is not None
    layout = RankLayout.of(place.rank, 2, 2)
    rule = TrueGradient() if place.rank == 0 else None
    links = connect(
        Coordinator.of(place.transport, layout),
        layout,
        [ParcelSlot((3,), torch.float32)],
        rule,
        StageSettings(window=8, observe_prob=1.0),
        {},
        torch.device("cpu"),
        [ParcelSlot((None,), torch.int64, shape_only=True)],
    )
    taken: list[tuple[int, float, bool]] = []

    def take(step: int) -> None:
        assert links.below is not None
        arrived = links.below.receive(ParcelKind.BATCH, step)
        assert arrived.inputs[0].shape == (2, 5)
        taken.append((step, float(arrived.h[0, 0]), not any(arrived.inputs[0].stride())))

    def send(step: int) -> None:
        assert links.above is not None
        h = torch.full((2, 3), float(step))
        links.above.send(
            ParcelKind.BATCH,
            step,
            h,
            None,
            8,
            inputs=[torch.zeros(2, 5, dtype=torch.int64)],
            checksum=step + 1,
        )

    saved = None
    if state is None:
        if place.rank == 0:
            for step in range(upto):
                send(step)
        else:
            take(0)
        links.drain()
        saved = links.state_dict()
        if place.rank == 1:
            assert links.below is not None
            assert len(saved["below"]["parcels"]) == upto - 1
    else:
        links.load_state_dict(state[place.rank])
        if place.rank == 0:
            send(upto)
        else:
            assert links.below is not None
            assert links.below.window == 8
    if place.rank == 1:
        for step in range(1, upto + (state is not None)):
            take(step)
    links.close(upto)
    return saved, taken


@pytest.mark.parametrize("link", LINKS, ids=["no delay", "delay", "delay and rate"])
def test_parcels_under_way_are_saved_and_loaded(two: InMemory, link: Link) -> None:
    found = two.over(link).run(_messages, 4)
    saved = [state for state, _ in found]
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)  # plain containers of tensors
    assert found[1][1] == [(0, 0.0, True), (1, 1.0, True), (2, 2.0, True), (3, 3.0, True)]
    # In another run they come before what is sent there.
    _, taken = two.over(link).run(_messages, 4, loaded)[1]
    assert taken == [(1, 1.0, True), (2, 2.0, True), (3, 3.0, True), (4, 4.0, True)]


def test_a_state_shares_no_memory_with_what_is_trained_from_it(two: InMemory) -> None:
    for before, after in two.run(_changes_what_it_takes)[:1]:
        assert before.abs().max() > 0
        assert torch.equal(before, after)


def _changes_what_it_takes(place: Place) -> tuple[Tensor, Tensor] | None:
    options = {"window": 3, "deterministic": True, "transport": place.transport}
    with Stages(programs.network(2, "cdni"), programs.per_example, programs.adam, **options) as stages:
        for x, y in programs.batches(4):
            stages.step(x if place.rank == 0 else None, y)
        links = stages._links
        links.drain()
        if links.above is None:
            return None
        state = links.state_dict()
        saved = state["above"]["parcels"][0]["tensors"][0]
        before = saved.clone()
        for _ in range(2):  # what was kept, and what was loaded
            (answer,) = links.above.receive_answers(1, 1, deterministic=True, on_step_time=lambda us: None)
            assert answer.gradient is not None
            answer.gradient.zero_()
            links.load_state_dict(state)
        return before, saved


def test_the_draws_go_on_where_they_were(two: InMemory) -> None:
    first, again = two.run(_draws)[1]
    assert first == again
    assert len(set(first)) == 2


def _draws(place: Place) -> tuple[list[bool], list[bool]] | None:
    options = {"window": 3, "observe_prob": 0.5, "transport": place.transport}
    with Stages(programs.network(2, "cdni"), programs.per_example, programs.adam, **options) as stages:
        links = stages._links
        links.drain()
        if links.below is None:
            return None
        links.below.draw()
        state = links.state_dict()
        first = [links.below.draw() for _ in range(20)]
        links.load_state_dict(state)
        return first, [links.below.draw() for _ in range(20)]


def test_the_state_of_another_stage_is_refused(two: InMemory) -> None:
    for rank, outcome in enumerate(two.outcomes(_loads_anothers)):
        assert (outcome.value or "").startswith(
            f"stage {rank} of 2 was given the state of stage {1 - rank} of 2"
        )


def _loads_anothers(place: Place) -> str:
    options = {"window": 1, "transport": place.transport}
    with Stages(programs.network(2, "cdni"), programs.per_example, programs.adam, **options) as stages:
        state = stages._links.state_dict()
        with pytest.raises(ConfigError) as caught:
            stages._links.load_state_dict({**state, "stage": (1 - place.rank, 2)})
        return str(caught.value)


def test_the_window_remembers_how_long_steps_took(two: InMemory) -> None:
    assert two.over(Link(1 / 8)).run(_window) == [(10, 10), (2, 2)]


def _window(place: Place) -> tuple[int, int]:
    net = programs.network(2, "cdni")

    def made() -> Stages:
        return Stages(net, programs.per_example, programs.adam, transport=place.transport)

    with made() as stages:
        stages.module.register_forward_pre_hook(lambda *_: place.sleep(1 / 32))
        for x, y in programs.batches(3):
            stages.step(x if place.rank == 0 else None, y)
        stages._links.drain()
        before, state = stages.window, stages._links.state_dict()["window"]
    with made() as stages:
        assert stages.window == 2
        stages._links.window.load_state_dict(state)
        return before, stages.window
