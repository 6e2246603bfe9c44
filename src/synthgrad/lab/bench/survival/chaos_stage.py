"""A stage of ``bench chaos``: it trains at a steady pace, goes on without its neighbours, and writes down what it does.

It writes, a line of JSON each: when it came, where it began, every so often how many steps it has made, and its end.
"""

from __future__ import annotations

import itertools
import json
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ....core import Decoupled
from ....engines import Stages
from ....engines.stages import ElasticGloo
from ...training.machine import configure_process
from ...training.snapshot_file import DamagedSnapshotError, Fingerprint, read_snapshot, write_snapshot
from .chaos_story import Writer
from .work import Work, work_of

__all__ = [
    "ChaosStage",
    "as_arguments",
    "network_of",
    "owner_of",
    "weights_file",
    "work_for",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosStage:
    """What a process trains, and how.

    Attributes:
        stage, stages: its place.
        store: address of what outlives the stages.
        folder: where it writes.
        arch: ``fcn`` or ``gpt``.
        data, data_dir: the data set, and the directory of its files.
        width, layers, batch_size, seed: of the network and the data.
        rule: ``cdni`` or ``local_loss``.
        synthetic: whether stages have synthetic inputs.
        until: number of the batch before which it ends.
        period_s: the least time of a step, in seconds.
        snapshot_s: the time between two snapshots, in seconds.
        patience_s: see `Stages`.
        settle_steps: see `Stages`.
        copy_share: see `Stages`.
        rejoins: whether it takes the place of a process that was there before.
    """

    stage: int
    stages: int
    store: str
    folder: str
    arch: str
    data: str
    data_dir: str | None
    width: int
    layers: int
    batch_size: int
    seed: int
    rule: str
    synthetic: bool
    until: int
    period_s: float
    snapshot_s: float
    patience_s: float
    settle_steps: int = 0
    copy_share: float = 0.0
    rejoins: bool = False


def work_for(settings: ChaosStage) -> Work:
    """Return what a run trains."""
    s = settings
    return work_of(
        s.arch,
        s.data,
        s.data_dir,
        width=s.width,
        layers=s.layers,
        batch_size=s.batch_size,
        seed=s.seed,
    )


def network_of(settings: ChaosStage) -> Decoupled:
    """Return the network of a run; the same in every process."""
    return work_for(settings).decoupled(settings.stages, settings.rule, synthetic=settings.synthetic)


def owner_of(settings: ChaosStage, net: Decoupled, stage: int) -> Fingerprint:
    """Return what the snapshots of a stage are known by."""
    run = {"benchmark": "chaos", "arch": settings.arch, "seed": settings.seed, "rule": settings.rule}
    return Fingerprint(run, None, Fingerprint.tensor_forms(net), stage, settings.stages)


def weights_file(folder: str | Path, stage: int) -> Path:
    """Return the file of a stage's snapshot."""
    return Path(folder) / f"stage{stage}"


def main(settings: ChaosStage) -> None:
    """Train until the end."""
    configure_process(1)
    say = Writer(settings.folder, settings.stage)
    say(came=time.time())
    net = network_of(settings)
    work = work_for(settings)
    batch = work.batches()
    trainer = work.trainer(
        net,
        ElasticGloo(settings.stage, settings.stages, settings.store),
        patience_s=settings.patience_s,
        settle_steps=settings.settle_steps,
        copy_share=settings.copy_share,
        timeout_s=600.0,
    )
    saves = _Saves(settings, net, trainer)
    if settings.rejoins:
        say(snapshot=saves.load(), recovered=trainer.recover())
    counted = _facts(trainer)  # by the process that was here before
    gives_input = settings.stage == 0 or settings.synthetic
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    due = time.perf_counter()
    for count in itertools.count():
        number = next(trainer.turns(settings.until), None)
        if number is None or asked:
            break
        if not count:
            say(begins=number)
        x, y = batch(number)
        trainer.step(x if gives_input else None, y)
        say.now_and_then(steps=count + 1, number=number, **_facts(trainer, counted))
        saves.now_and_then()
        # The pace is that of a clock: who was kept waiting does not catch up.
        due = max(due + settings.period_s, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    saves.save()
    say(ended=time.time(), busy_s=trainer.busy_s, **_facts(trainer, counted))
    trainer.close()


def _facts(trainer: Stages, before: Mapping[str, int] | None = None) -> dict[str, int]:
    names = ("num_alone", "num_given_up", "num_skipped", "num_synthetic")
    return {name: getattr(trainer, name) - (before or {}).get(name, 0) for name in names}


class _Saves:
    """Saves what another process needs to take the place of this one."""

    def __init__(self, settings: ChaosStage, net: Decoupled, trainer: Stages) -> None:
        self._settings = settings
        self._net = net
        self._trainer = trainer
        self._saved_at = time.perf_counter()
        self._owner = owner_of(settings, net, settings.stage)

    def now_and_then(self) -> None:
        if time.perf_counter() - self._saved_at >= self._settings.snapshot_s:
            self.save()

    def save(self) -> None:
        self._saved_at = time.perf_counter()
        state = {"net": self._net.state_dict(), "trainer": self._trainer.state_dict()}
        write_snapshot(weights_file(self._settings.folder, self._settings.stage), self._owner, {}, state)

    def load(self) -> bool:
        """Load the last snapshot; return whether there was one."""
        path = weights_file(self._settings.folder, self._settings.stage)
        if not path.exists():
            return False
        try:
            _, state = read_snapshot(path, self._owner, "cpu")
        except DamagedSnapshotError:
            return False
        self._net.load_state_dict(state["net"])
        self._trainer.load_state_dict(state["trainer"])
        return True


def as_arguments(settings: ChaosStage) -> list[str]:
    """Return the command of a process."""
    return [sys.executable, "-m", __name__, json.dumps(asdict(settings))]


if __name__ == "__main__":
    main(ChaosStage(**json.loads(sys.argv[1])))
