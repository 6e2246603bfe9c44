"""``bench absence``: one stage is dead for the middle third of a run; what the network learns meanwhile, and in the end.

Stages are threads in virtual time, in which each step takes as long as another, so a run is the same every time and needs no
quiet machine. An observer measures the test error of all stages' weights at regular times: of a stage that is dead those that
it had last. The process that takes its place begins with these, or with fresh ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ....core import ConfigError
from ....engines.stages.transport.elastic_memory import ElasticMemory, ElasticWorld
from ....engines.stages.transport.world import Link, World
from ..base import Bench, Figures
from ..declarations import ABSENCE, AbsenceScope
from .work import Work, work_of

__all__ = ["BENCHMARK", "AbsenceBench", "AbsenceSize"]

#: The time of a step in virtual time, in seconds: a power of two, so that times stay exact.
_STEP_S = 1 / 64
#: Times at which the error is measured; a third of them while the stage is dead.
_POINTS = 24
_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class AbsenceSize:
    """What is compared.

    Attributes:
        seed: of weights and data.
        rule: ``cdni``, ``dni`` or ``local_loss``.
        synthetic: whether stages have synthetic inputs.
    """

    seed: int
    rule: str
    synthetic: bool


class AbsenceBench(Bench[AbsenceScope, AbsenceSize, str]):
    """A fully connected network on MNIST; methods are the stage that is dead, or none."""

    declared = ABSENCE

    def check(self, scope: AbsenceScope) -> None:
        if not 3 <= scope.stages <= scope.layers:
            raise ConfigError(
                f"--stages {scope.stages} of {scope.layers} layers: expected 3 to {scope.layers}, so that one is in the middle"
            )
        if scope.rounds < _POINTS:
            raise ConfigError(
                f"--rounds {scope.rounds}: expected {_POINTS} or more: a stage has to begin before it dies, at a third of the run"
            )

    def sizes(self, scope: AbsenceScope) -> Iterable[AbsenceSize]:
        for seed in scope.seeds:
            for rule in scope.rules:
                for inputs in scope.inputs:
                    yield AbsenceSize(seed, rule, inputs == "synthetic")

    def cases(self, scope: AbsenceScope, size: AbsenceSize) -> Sequence[str]:
        return scope.methods

    def cell(self, scope: AbsenceScope, size: AbsenceSize, case: str) -> Mapping[str, Any]:
        return {
            "width": scope.width,
            "layers": scope.layers,
            "batch_size": scope.batch_size,
            "stages": scope.stages,
            "rule": size.rule,
            "synthetic_inputs": size.synthetic,
            **({"settle_steps": scope.settle} if scope.settle else {}),
            **({"begins": "fresh"} if scope.fresh else {}),
        }

    def config(self, scope: AbsenceScope, size: AbsenceSize, case: str) -> Mapping[str, Any]:
        return {"data": scope.data, "lr": _work(scope, size.seed).lr}

    def label(self, scope: AbsenceScope, size: AbsenceSize) -> str:
        return f"{size.rule}{', synthetic inputs' if size.synthetic else ''}, seed {size.seed}"

    def measure(self, scope: AbsenceScope, size: AbsenceSize, cases: Sequence[str]) -> Iterator[Figures]:
        for case in cases:
            yield _Run(scope, size, _stage_of(case, scope.stages)).figures()


def _work(scope: AbsenceScope, seed: int) -> Work:
    return work_of(
        "fcn",
        scope.data,
        scope.data_dir,
        width=scope.width,
        layers=scope.layers,
        batch_size=scope.batch_size,
        seed=seed,
    )


def _stage_of(case: str, stages: int) -> int | None:
    return {"none": None, "lower": 0, "middle": stages // 2, "upper": stages - 1}[case]


@dataclass(slots=True)
class _Place:
    """What a stage is at present, and what it has done.

    Attributes:
        net: the weights of its process, or of the last one.
        owned: names of those that are its own.
        state: what its process had when it died.
        steps: that its processes have made.
        facts: figures of its engines, summed.
    """

    net: nn.Module
    owned: frozenset[str]
    state: Mapping[str, Any] | None
    steps: int
    facts: dict[str, int]


class _Run:
    """One run.

    Args:
        scope: what is measured.
        size: the run.
        absent: the stage that is dead for a third of it; None for none.
    """

    def __init__(self, scope: AbsenceScope, size: AbsenceSize, absent: int | None) -> None:
        self._scope = scope
        self._size = size
        self._absent = absent
        self._end_s = scope.rounds * _STEP_S
        self._work = _work(scope, size.seed)
        self._batch = self._work.batches()
        self._places: dict[int, _Place] = {}
        self._curve: list[dict[str, float]] = []

    def figures(self) -> Figures:
        """Train; return the errors on the way, and the steps of every stage."""
        lives = [(stage, 0.0) for stage in range(self._scope.stages)]
        if self._absent is not None:
            lives.append((self._absent, 2 * self._end_s / 3))
        world = World(len(lives) + 1, Link())
        shared = ElasticWorld(world, self._scope.stages)
        threads = [partial(self._live, shared, k, *life) for k, life in enumerate(lives)]
        world.time.run([*threads, partial(self._observe, world, len(lives))])
        at = {round(point["share_of_run"] * 3, 6): point["test_error_pct"] for point in self._curve}
        found: dict[str, Any] = {
            "error_before_pct": at[1.0],
            "error_alone_pct": at[2.0],
            "test_error_pct": at[3.0],
        }
        for stage, place in sorted(self._places.items()):
            found[f"steps_stage{stage}"] = place.steps
            found |= {f"{name}_stage{stage}": count for name, count in place.facts.items()}
        return Figures(found, curve=self._curve)

    def _live(self, shared: ElasticWorld, thread: int, stage: int, begin_s: float) -> None:
        """Be a process of a stage, from a moment on, until the run ends or its time has come."""
        transport = ElasticMemory(shared, thread, stage)
        transport.clock.sleep(begin_s)
        scope, size = self._scope, self._size
        net = self._work.decoupled(scope.stages, size.rule, synthetic=size.synthetic)
        trainer = self._work.trainer(
            net,
            transport,
            patience_s=_PATIENCE_S,
            timeout_s=2 * self._end_s,
            settle_steps=scope.settle,
        )
        before = self._places.get(stage)
        if before is not None and before.state is not None and not scope.fresh:
            net.load_state_dict(before.state["net"])
            trainer.load_state_dict(before.state["trainer"])
        owned = frozenset(trainer.state_dict()["owned"])
        place = _Place(net, owned, None, *((0, {}) if before is None else (before.steps, before.facts)))
        self._places[stage] = place
        dies_s = self._end_s / 3 if stage == self._absent and before is None else float("inf")
        gives_input = stage == 0 or size.synthetic
        for number in trainer.turns(1 << 40):
            if transport.clock.now() >= dies_s:
                place.state = {"net": net.state_dict(), "trainer": trainer.state_dict()}
                transport.die()
                break
            if transport.clock.now() >= self._end_s:
                break
            transport.clock.sleep(_STEP_S)
            x, y = self._batch(number)
            trainer.step(x if gives_input else None, y)
            place.steps += 1
        for name in ("num_alone", "num_synthetic"):
            place.facts[name] = place.facts.get(name, 0) + getattr(trainer, name)
        if place.state is None:
            trainer.close()

    def _observe(self, world: World, thread: int) -> None:
        """Measure the error of all stages' weights at regular times."""
        whole = self._work.model()
        for k in range(1, _POINTS + 1):
            world.time.sleep(thread, self._end_s / _POINTS)
            weights = whole.state_dict()
            for place in self._places.values():
                weights |= self._work.weights_of(place.net.state_dict(), place.owned)
            whole.load_state_dict(weights)
            error = self._work.error(whole)
            self._curve.append({"share_of_run": k / _POINTS, "test_error_pct": error})


BENCHMARK = AbsenceBench()
