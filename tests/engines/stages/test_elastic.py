"""Stages that go on without each other: processes that die, freeze, are cut off and come back, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from synthgrad import LocalLoss, SyntheticGradient, SyntheticInput, decouple
from synthgrad.core import ConfigError, StageError
from synthgrad.engines import Stages
from synthgrad.engines.stages.copies import KeptCopy, saved_state, take_average
from synthgrad.engines.stages.transport.elastic_memory import Cut, ElasticMemory, ElasticWorld
from synthgrad.engines.stages.transport.world import Link, World
from synthgrad.rules import LateCorrection, TrueGradient
from tests.engines.stages import programs

STEP_S = 1 / 64
PATIENCE_S = 0.5


@dataclass
class Life:
    """What a process does.

    Attributes:
        stage: its stage.
        begin_s: when it comes.
        dies_at, freezes_at: at which batch.
        seconds: how long it freezes.
    """

    stage: int
    begin_s: float = 0.0
    dies_at: int | None = None
    freezes_at: int | None = None
    seconds: float = 0.0


@dataclass
class Story:
    """What a process has done.

    Attributes:
        numbers: batches that it has trained on.
        times_s: when each was done.
        facts: figures of its engine at the end.
        recovered: what `recover` has returned.
        began: its weights after `recover`.
        history: its weights after every number of steps, by that.
        error: what it has raised.
    """

    numbers: list[int] = field(default_factory=list[int])
    times_s: list[float] = field(default_factory=list[float])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    weights: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    recovered: int | None = None
    began: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    history: dict[int, dict[str, Tensor]] = field(default_factory=dict[int, dict[str, Tensor]])
    error: BaseException | None = None


def three(rule: Any = None, inputs: Any = None) -> Any:
    torch.manual_seed(0)
    widths = [programs.INPUTS, 8, 8]
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in zip(widths, widths[1:], strict=False)]
    model = nn.Sequential(*layers, nn.Linear(8, programs.CLASSES)).double()
    example = programs.batches(1)[0][0]
    return decouple(
        model, ["0", "1"], rule or SyntheticGradient(context=programs.CLASSES), example, inputs=inputs
    )


def lived(
    lives: Sequence[Life], until: int, *, link: Link | None = None, cuts: Sequence[Cut] = (), **how: Any
) -> list[Story]:
    """Let processes train; return what each has done."""
    world = World(len(lives), Link())
    shared = ElasticWorld(world, 3, link, cuts)
    stories = [Story() for _ in lives]
    net: Callable[[], Any] = how.pop("net", three)
    average: bool = how.pop("average", False)

    def serve(thread: int) -> Callable[[], None]:
        life, story = lives[thread], stories[thread]

        def run() -> None:
            transport = ElasticMemory(shared, thread, life.stage)
            transport.clock.sleep(life.begin_s)
            try:
                trains(transport, life, story)
            except BaseException as error:
                story.error = error
                transport.die()

        return run

    def trains(transport: ElasticMemory, life: Life, story: Story) -> None:
        given: dict[str, Any] = {"window": 2, "patience_s": PATIENCE_S, "timeout_s": 60.0, **how}
        optimizer = partial(torch.optim.SGD, lr=0.01)
        stages = Stages(
            net(), programs.per_example, optimizer, transport=transport, on_loss="continue", **given
        )
        gives_input = life.stage == 0 or stages.net.interfaces["0"].input_rule is not None
        data = programs.batches(until)

        def weights() -> dict[str, Tensor]:
            return {n: t.detach().clone() for n, t in stages.module.state_dict().items()}

        story.recovered = stages.recover(5.0, average=average)
        story.began = weights()
        if story.recovered is not None:
            story.history[story.recovered] = weights()
        for number in stages.turns(until):
            if number == life.dies_at:
                transport.die()
                return
            if number == life.freezes_at:
                transport.freeze(life.seconds)
            transport.clock.sleep(STEP_S)
            x, y = data[number]
            stages.step(x if gives_input else None, y)
            story.numbers.append(number)
            story.times_s.append(transport.clock.now())
            story.history[number + 1] = weights()
        names = ("num_alone", "num_given_up", "num_skipped", "num_synthetic", "sent_bytes", "waited_s")
        story.facts = {name: getattr(stages, name) for name in names}
        story.weights = weights()
        stages.close()

    world.time.run([serve(k) for k in range(len(lives))])
    return stories


def everybody() -> list[Life]:
    return [Life(stage) for stage in range(3)]


def raised(stories: Sequence[Story]) -> None:
    for story in stories:
        if story.error is not None:
            raise story.error


def test_without_a_fault_all_train_on_all_batches_and_learn_from_all_answers() -> None:
    stories = lived(everybody(), 30)
    raised(stories)
    for story in stories:
        assert story.numbers == list(range(30))
        assert [story.facts[name] for name in ("num_alone", "num_given_up", "num_skipped")] == [0, 0, 0]


@pytest.mark.parametrize("rule", [SyntheticGradient(context=programs.CLASSES), LocalLoss(programs.CLASSES)])
def test_without_a_fault_weights_are_those_of_stages_that_stop(rule: Any) -> None:
    from synthgrad.engines.stages import run_in_memory

    def stopping(transport: Any) -> dict[str, Tensor]:
        optimizer = partial(torch.optim.SGD, lr=0.01)
        with Stages(three(rule), programs.per_example, optimizer, transport=transport, window=2) as stages:
            for x, y in programs.batches(20):
                transport.clock.sleep(STEP_S)
                stages.step(x if transport.rank == 0 else None, y)
            return {n: t.detach().clone() for n, t in stages.module.state_dict().items()}

    stories = lived(everybody(), 20, net=lambda: three(rule))
    raised(stories)
    for story, other in zip(stories, run_in_memory(3, stopping), strict=True):
        assert story.weights.keys() == other.keys()
        if isinstance(rule, LocalLoss):  # answers, and so their lags, do not matter
            assert all(torch.equal(story.weights[name], t) for name, t in other.items())


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("inputs", [None, SyntheticInput()])
def test_at_the_beginning_all_wait_for_the_one_that_comes_last(late: int, inputs: Any) -> None:
    lives = everybody()
    lives[late].begin_s = 10 * PATIENCE_S
    stories = lived(lives, 30, net=lambda: three(inputs=inputs))
    raised(stories)
    for story in stories:
        assert story.numbers == list(range(30))
        assert [story.facts[name] for name in ("num_alone", "num_given_up", "num_skipped")] == [0, 0, 0]


@pytest.mark.parametrize("stage", [1, 2])
def test_without_the_stage_above_a_stage_goes_on(stage: int) -> None:
    """It dies at batch 10; another process takes its place a second later, and begins where the others are."""
    lives = [*everybody(), Life(stage, begin_s=2.0)]
    lives[stage].dies_at = 10
    stories = lived(lives, 200)
    raised(stories)
    below, dead, back = stories[stage - 1], stories[stage], stories[3]
    assert below.numbers == list(range(200))
    assert dead.numbers == list(range(10))
    assert back.numbers == list(range(back.numbers[0], 200))
    alone = below.facts["num_alone"]
    assert 90 <= alone <= 130
    # Of what was given up, the dead may have learned a part.
    assert 10 + alone <= back.numbers[0] <= 10 + alone + below.facts["num_given_up"]
    assert 0 < below.facts["num_given_up"] <= 3
    gaps = [b - a for a, b in zip(below.times_s, below.times_s[1:], strict=False)]
    assert max(gaps) <= STEP_S + 1e-9, "a process that has died keeps nobody waiting"


def test_the_stages_above_one_that_has_died_wait_for_it_and_go_on_where_it_is() -> None:
    lives = [*everybody(), Life(1, begin_s=2.0)]
    lives[1].dies_at = 10
    stories = lived(lives, 200)
    raised(stories)
    above, back = stories[2], stories[3]
    assert above.numbers == [*range(10), *back.numbers]
    assert above.facts["num_skipped"] == back.numbers[0] - 10
    assert above.facts["num_given_up"] == 0


def test_the_first_stage_comes_back_at_the_number_of_the_others() -> None:
    lives = [*everybody(), Life(0, begin_s=2.0)]
    lives[0].dies_at = 10
    stories = lived(lives, 60)
    raised(stories)
    back = stories[3]
    assert back.numbers == list(range(10, 60))
    for above in stories[1:3]:
        assert above.numbers == list(range(60))


def test_a_stage_that_freezes_is_waited_for_once() -> None:
    lives = everybody()
    lives[1] = Life(1, freezes_at=20, seconds=4.0)
    stories = lived(lives, 500)
    raised(stories)
    below, frozen, above = stories
    assert below.numbers == list(range(500))
    gaps = sorted(b - a for a, b in zip(below.times_s, below.times_s[1:], strict=False))
    assert gaps[-1] <= PATIENCE_S + 3 * STEP_S
    assert gaps[-2] <= STEP_S + 1e-9
    (jump,) = [
        k for k, (a, b) in enumerate(zip(frozen.numbers, frozen.numbers[1:], strict=False)) if b != a + 1
    ]
    later = frozen.numbers[jump + 1]
    assert frozen.numbers == [*range(jump + 1), *range(later, 500)]
    assert 20 <= jump <= 24, "what had come before it froze is there when it thaws"
    assert later > 20 + (4.0 - 2 * PATIENCE_S) / STEP_S
    assert set(above.numbers) < set(frozen.numbers), "what it learned before it found out, reached nobody"
    assert above.numbers[:20] == list(range(20))
    assert above.numbers[-200:] == list(range(300, 500))


def test_a_link_that_is_cut_is_made_anew() -> None:
    cut = Cut(lower=0, begin_s=1.0, end_s=3.0)
    stories = lived(everybody(), 400, cuts=[cut], link=Link(delay_s=1 / 32), window=8)
    raised(stories)
    below, middle, above = stories
    assert below.numbers == list(range(400))
    assert below.facts["num_alone"] > 40
    assert middle.numbers[-1] == above.numbers[-1] == 399
    assert middle.facts["num_skipped"] > 40
    jumps = [
        k for k, (a, b) in enumerate(zip(middle.numbers, middle.numbers[1:], strict=False)) if b != a + 1
    ]
    assert len(jumps) == 1


def test_with_synthetic_inputs_a_stage_goes_on_without_the_one_below() -> None:
    lives = [*everybody(), Life(0, begin_s=2.0)]
    lives[0].dies_at = 10
    stories = lived(lives, 300, net=lambda: three(inputs=SyntheticInput()))
    raised(stories)
    back, middle, above = stories[3], stories[1], stories[2]
    assert middle.numbers == above.numbers
    assert middle.numbers == sorted(set(middle.numbers))
    assert len(middle.numbers) >= 300 - 16, "where it was behind who came back, it has followed"
    assert 90 < middle.facts["num_synthetic"] < 150
    assert above.facts["num_synthetic"] == 0, "who is there is waited for"
    assert back.numbers == list(range(back.numbers[0], 300))
    assert back.numbers[0] >= 90
    assert back.facts["num_alone"] == 0


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_with_synthetic_inputs_a_stage_that_has_lost_time_goes_on_where_the_others_are(stage: int) -> None:
    lives = everybody()
    lives[stage] = Life(stage, freezes_at=20, seconds=4.0)
    stories = lived(lives, 800, net=lambda: three(inputs=SyntheticInput()), window=4)
    raised(stories)
    frozen_steps = round(4.0 / STEP_S)
    for story in stories:
        assert story.numbers[-300:] == list(range(500, 800)), "all train on the same batches again"
        assert story.facts["num_synthetic"] <= frozen_steps + 64
        assert story.facts["num_alone"] <= frozen_steps + 64
    assert stories[stage].facts["num_skipped"] > frozen_steps / 2


@pytest.mark.parametrize("lower", [0, 1])
def test_with_synthetic_inputs_a_cut_link_heals(lower: int) -> None:
    cut = Cut(lower=lower, begin_s=1.0, end_s=3.0)
    net: Callable[[], Any] = lambda: three(inputs=SyntheticInput())  # noqa: E731
    stories = lived(everybody(), 600, net=net, cuts=[cut], link=Link(delay_s=1 / 64), window=8)
    raised(stories)
    for story in stories:
        assert story.numbers[-200:] == list(range(400, 600))
        assert story.facts["num_synthetic"] <= 200
        gaps = sorted(b - a for a, b in zip(story.times_s, story.times_s[1:], strict=False))
        assert gaps[-8] <= 2 * STEP_S, "nobody is kept waiting again and again"


def test_answers_of_one_that_has_come_back_are_not_learned_from_at_once() -> None:
    lives = [*everybody(), Life(2, begin_s=2.0)]
    lives[2].dies_at = 10
    found = [lived(lives, 200, settle_steps=n) for n in (0, 50, 1000)]
    for stories in found:
        raised(stories)
    at_once, later, never = (stories[1].weights for stories in found)
    assert any(not torch.equal(a, b) for a, b in zip(at_once.values(), later.values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(later.values(), never.values(), strict=True))


def test_corrections_that_will_not_come_are_given_up_and_nobody_below_waits_for_them() -> None:
    lives = [*everybody(), Life(2, begin_s=2.0)]
    lives[2].dies_at = 10
    stories = lived(lives, 200, net=lambda: three(LateCorrection(LocalLoss(programs.CLASSES))), window=2)
    raised(stories)
    lowest, middle, back = stories[0], stories[1], stories[3]
    assert lowest.numbers == middle.numbers == list(range(200))
    assert middle.facts["num_alone"] > 60
    assert middle.facts["num_given_up"] > 0
    assert lowest.facts["num_alone"] == lowest.facts["num_given_up"] == 0
    assert back.numbers == list(range(back.numbers[0], 200))
    gaps = [b - a for a, b in zip(lowest.times_s, lowest.times_s[1:], strict=False)]
    assert max(gaps) <= 2 * STEP_S


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_neighbour_keeps_the_state_of_who_has_died(stage: int) -> None:
    lives = [*everybody(), Life(stage, begin_s=4.0)]
    lives[stage].dies_at = 100
    stories = lived(lives, 300, copy_share=0.5)
    raised(stories)
    dead, back = stories[stage], stories[3]
    assert back.recovered is not None
    assert 20 < back.recovered <= 100
    then, now = dead.history[back.recovered], back.history[back.recovered]
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], value) for name, value in now.items())
    assert back.numbers == list(range(back.numbers[0], 300))
    assert back.numbers[0] >= 100


@pytest.mark.parametrize("dies_at", [290, 450])
def test_a_state_that_was_given_back_is_not_taken_for_a_neighbours(dies_at: int) -> None:
    """Stage 1 is given its own state by stage 2, whose state it keeps; then stage 2 dies, soon after it or later."""
    lives = [*everybody(), Life(1, begin_s=4.0), Life(2, begin_s=8.0)]
    lives[1].dies_at, lives[2].dies_at = 100, dies_at
    stories = lived(lives, 700, copy_share=0.5)
    raised(stories)
    dead, back = stories[2], stories[4]
    assert stories[3].recovered is not None
    assert back.recovered is not None
    assert 256 < back.recovered <= dies_at
    then, now = dead.history[back.recovered], back.history[back.recovered]
    assert all(torch.equal(then[name], value) for name, value in now.items())


def test_a_process_whose_place_was_taken_while_it_was_frozen_ends_with_a_sentence() -> None:
    lives = [*everybody(), Life(1, begin_s=2.0)]
    lives[1] = Life(1, freezes_at=20, seconds=4.0)
    stories = lived(lives, 400)
    assert isinstance(stories[1].error, StageError)
    assert "another process has taken the place of stage 1" in str(stories[1].error)
    raised([stories[0], *stories[2:]])
    assert stories[0].numbers == list(range(400))
    assert stories[3].numbers == list(range(stories[3].numbers[0], 400))


def test_without_copies_there_is_none_and_nobody_waits_for_it() -> None:
    lives = [*everybody(), Life(1, begin_s=2.0)]
    lives[1].dies_at = 10
    stories = lived(lives, 200)
    raised(stories)
    assert [story.recovered for story in stories] == [None] * 4
    assert stories[3].times_s[0] < 2.5


def alike() -> Any:
    """Return three stages of which each has the same shapes."""
    torch.manual_seed(0)
    width = programs.INPUTS
    layers = [nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(3)]
    return decouple(
        nn.Sequential(*layers).double(),
        ["0", "1"],
        SyntheticGradient(context=programs.CLASSES),
        programs.batches(1)[0][0],
    )


def test_where_no_copy_is_left_a_stage_begins_with_the_average_of_its_neighbours() -> None:
    lives = [*everybody(), Life(1, begin_s=2.0)]
    lives[1].dies_at = 30
    stories = lived(lives, 300, net=alike, average=True)
    raised(stories)
    below, above, back = stories[0], stories[2], stories[3]
    last = above.numbers[above.numbers.index(back.numbers[0]) - 1] + 1
    assert back.recovered == last, "the one above has waited since then, and has made less steps"
    now, theirs = [*back.began.values()], [*above.history[last].values()]
    averages = [
        all(torch.equal((a + b) / 2, t) for a, b, t in zip(one.values(), theirs, now, strict=True))
        for one in below.history.values()
    ]
    assert sum(averages) == 1, "those of the one below after one of its steps"
    assert back.numbers == list(range(back.numbers[0], 300))


def test_the_last_stage_takes_the_weights_of_its_only_neighbour() -> None:
    lives = [*everybody(), Life(2, begin_s=2.0)]
    lives[2].dies_at = 30
    stories = lived(lives, 200, net=alike, average=True)
    raised(stories)
    below, back = stories[1], stories[3]
    assert back.recovered is not None
    then = below.history[back.recovered]
    assert all(torch.equal(a, b) for a, b in zip(then.values(), back.began.values(), strict=True))


def test_a_copy_is_better_than_an_average() -> None:
    lives = [*everybody(), Life(1, begin_s=4.0)]
    lives[1].dies_at = 100
    stories = lived(lives, 300, net=alike, copy_share=0.5, average=True)
    raised(stories)
    back = stories[3]
    assert back.recovered is not None
    then, now = stories[1].history[back.recovered], back.history[back.recovered]
    assert all(torch.equal(then[name], value) for name, value in now.items())


def test_an_average_of_other_shapes_is_refused() -> None:
    lives = [*everybody(), Life(1, begin_s=2.0)]
    lives[1].dies_at = 10
    stories = lived(lives, 100, average=True, timeout_s=3.0)
    assert isinstance(stories[3].error, StageError)
    assert "nobody keeps a copy of it, and no neighbour is made alike" in str(stories[3].error)


def test_copies_take_their_share_of_the_bytes() -> None:
    none, some = (lived(everybody(), 100, copy_share=share) for share in (0.0, 0.25))
    raised([*none, *some])
    for without, with_copies in zip(none[:2], some[:2], strict=True):
        more = with_copies.facts["sent_bytes"] - without.facts["sent_bytes"]
        assert more > 0
        # The least part, beside so small a batch, is 1 KiB.
        assert more <= 100 * (1024 + 256)
    for one, other in zip(none, some, strict=True):
        assert all(torch.equal(one.weights[name], t) for name, t in other.weights.items())


def test_who_waits_too_long_for_the_stage_below_says_so() -> None:
    lives = everybody()
    lives[0].dies_at = 5
    stories = lived(lives, 50, timeout_s=3.0)
    assert isinstance(stories[1].error, StageError)
    assert "stage 0 has been gone for 3 s" in str(stories[1].error)


def test_a_place_is_not_taken_while_its_stage_lives() -> None:
    stories = lived([*everybody(), Life(1, begin_s=1.0)], 200)
    assert isinstance(stories[3].error, ConfigError)
    assert "stage 1 is alive" in str(stories[3].error)
    raised(stories[:3])
    assert stories[1].numbers == list(range(200))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"deterministic": True}, "deterministic=True"),
        ({"clip_norm": 1.0}, "clip_norm"),
        ({"net": lambda: three(TrueGradient())}, "without whose message"),
        ({"patience_s": 0.0}, "patience_s=0.0"),
        ({"settle_steps": -1}, "settle_steps"),
        ({"accumulate": 2}, "accumulate=2"),
        ({"copy_share": 1.5}, "copy_share=1.5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_needs_all_stages_is_refused(how: dict[str, Any], says: str) -> None:
    for story in lived(everybody(), 3, **how):
        assert isinstance(story.error, ConfigError)
        assert says in str(story.error)


def test_weights_of_the_same_shapes_and_other_names_are_not_averaged() -> None:
    def kept(weights: dict[str, Tensor]) -> KeptCopy:
        copy = KeptCopy()
        copy.data, copy.step = saved_state(weights), 7
        return copy

    ours = {"layer3.scale": torch.zeros(2), "layer3.shift": torch.zeros(2)}
    other = kept({"layer1.shift": torch.ones(2), "layer1.scale": torch.full((2,), 5.0)})
    assert take_average(ours, [other]) is None
    alike = kept({"layer1.scale": torch.ones(2), "layer1.shift": torch.full((2,), 5.0)})
    assert take_average(ours, [other, alike]) == 7
    assert ours["layer3.scale"].tolist() == [1.0, 1.0]
    assert ours["layer3.shift"].tolist() == [5.0, 5.0]
    half = kept({"layer1.scale": torch.ones(2).half(), "layer1.shift": torch.ones(2).half()})
    assert take_average(ours, [half]) is None
