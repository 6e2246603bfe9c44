"""``bench chaos``: stages are killed, frozen and cut off every half minute, and the others go on.

Two lines are held against each other: a run with faults, which lasts a time, and one without, which has as many steps of the
last stage. Beside them stands 1F1B under the same faults, which torchrun starts again from snapshots. Every stage has a pace of
its own, so that one that is dead makes no other faster. Each stage is a process in a network of its own, and the store is
another. Faults are drawn by a seed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ....core import ConfigError
from ...training.snapshot_file import read_snapshot
from ...wan import Link, Network, emulated, unavailable_reason
from ..base import Bench, Figures
from ..declarations import CHAOS, ChaosScope
from .chaos_faults import Fault, drawn_faults
from .chaos_restarts import MICROBATCHES, agent_arguments, last_weights
from .chaos_stage import ChaosStage, as_arguments, network_of, owner_of, weights_file, work_for
from .chaos_story import Story, pid_of, story_of

__all__ = ["BENCHMARK", "ChaosBench", "ChaosSize"]

_PORT = 29_400
_PATIENCE_S = 0.4
_SNAPSHOT_S = 5.0
_COPY_SHARE = 0.05
#: How long processes may take to come, and to end, in seconds.
_LOADS_S, _ENDS_S = 120.0, 60.0
#: A link without a delay: cuts need a network of its own for each stage.
_LINK = Link()


@dataclass(frozen=True, slots=True)
class ChaosSize:
    """A run.

    Attributes:
        seed: of weights, data and faults.
        stages: number of processes.
        rule: ``cdni`` or ``local_loss``.
        synthetic: whether stages have synthetic inputs.
    """

    seed: int
    stages: int
    rule: str
    synthetic: bool


class ChaosBench(Bench[ChaosScope, ChaosSize, str]):
    """A fully connected network on MNIST, or a GPT on a text; every stage has at most a share of a core."""

    declared = CHAOS

    def check(self, scope: ChaosScope) -> None:
        if (reason := unavailable_reason()) is not None:
            raise ConfigError(reason)
        for stages in scope.stages:
            if not 2 <= stages <= scope.layers:
                raise ConfigError(
                    f"--stages {stages} of {scope.layers} layers: expected 2 to {scope.layers}, with a layer in each"
                )

    def sizes(self, scope: ChaosScope) -> Iterable[ChaosSize]:
        for seed in scope.seeds:
            for stages in scope.stages:
                for rule in scope.rules:
                    yield ChaosSize(seed, stages, rule, scope.synthetic)

    def cases(self, scope: ChaosScope, size: ChaosSize) -> Sequence[str]:
        own = ("with_faults", "without_faults") if "stages" in scope.methods else ()
        return (*own, *(("1f1b_restarts",) if "1f1b_restarts" in scope.methods else ()))

    def cell(self, scope: ChaosScope, size: ChaosSize, case: str) -> Mapping[str, Any]:
        arch = {"arch": scope.arch} if scope.arch != "fcn" else {}
        return {
            **arch,
            "width": scope.width,
            "layers": scope.layers,
            "batch_size": scope.batch_size,
            "stages": size.stages,
            "threads": 1,
            "rule": "backprop" if case == "1f1b_restarts" else size.rule,
            "synthetic_inputs": size.synthetic and case != "1f1b_restarts",
            "seconds": scope.seconds,
            "period_ms": scope.period_ms,
        }

    def config(self, scope: ChaosScope, size: ChaosSize, case: str) -> Mapping[str, Any]:
        work = work_for(_settings(scope, size))
        how: dict[str, Any] = {
            "data": scope.data,
            "optimizer": work.optimizer_name,
            "lr": work.lr,
            "snapshot_s": _SNAPSHOT_S,
        }
        if case == "1f1b_restarts":
            how["microbatches"] = MICROBATCHES
        else:
            how |= {"patience_s": _PATIENCE_S, "copy_share": _COPY_SHARE}
        if case == "without_faults":
            return how
        faults = drawn_faults(size.seed, size.stages, scope.seconds)
        return {**how, "faults": [asdict(fault) for fault in faults]}

    def label(self, scope: ChaosScope, size: ChaosSize) -> str:
        return f"{size.stages} stages, {size.rule}, faults for {scope.seconds:g} s, seed {size.seed}"

    def measure(self, scope: ChaosScope, size: ChaosSize, cases: Sequence[str]) -> Iterator[Figures]:
        faults = drawn_faults(size.seed, size.stages, scope.seconds)
        if "with_faults" in cases:
            hit = _lived(scope, size, _Stages, faults, until=None)
            calm = _lived(scope, size, _Stages, [], until=max(1, hit.steps_of(size.stages - 1)))
            pace = calm.steps_per_s()
            yield _figures(hit, faults, pace, scope.seconds)
            yield _figures(calm, [], pace)
        if "1f1b_restarts" in cases:
            story = _lived(scope, size, _Restarts, faults, until=None)
            # Its pace without faults is that before the first one.
            pace = story.steps_per_s(faults[0].begin_s if faults else None)
            yield _figures(story, faults, pace, scope.seconds)


def _figures(
    story: Story, faults: Sequence[Fault], pace: Sequence[float], lasted_s: float | None = None
) -> Figures:
    metrics = {**story.figures(faults, pace, lasted_s), **story.error}
    return Figures(metrics, story.failure, curve=story.timeline())


def _lived(
    scope: ChaosScope, size: ChaosSize, kind: type[_Stages], faults: Sequence[Fault], until: int | None
) -> Story:
    """Let stages train while faults happen to them; return what became of them.

    Args:
        scope: what to run.
        size: the run.
        kind: what trains.
        faults: what happens, by time.
        until: number of the batch before which they end; None to end after the time of the scope.
    """
    with tempfile.TemporaryDirectory() as folder, emulated(_LINK, size.stages + 1) as net:
        settings = replace(
            _settings(scope, size),
            store=f"{net.hosts[-1]}:{_PORT}",
            folder=folder,
            until=1 << 40 if until is None else until,
        )
        with kind(net, settings) as stages:
            stages.suffer(faults, None if until is not None else scope.seconds)
            failure = stages.end(hurry=until is None)
        story = story_of(Path(folder), size.stages, stages.began_at, failure)
        if failure is None:
            work = work_for(settings)
            whole = work.model()
            whole.load_state_dict(whole.state_dict() | stages.weights())
            story.error = {work.metric: work.error(whole)}
        return story


def _settings(scope: ChaosScope, size: ChaosSize) -> ChaosStage:
    """Return what the first stage of a run trains, without a place to be."""
    return ChaosStage(
        stage=0,
        stages=size.stages,
        store="",
        folder="",
        arch=scope.arch,
        data=scope.data,
        data_dir=scope.data_dir,
        width=scope.width,
        layers=scope.layers,
        batch_size=scope.batch_size,
        seed=size.seed,
        rule=size.rule,
        synthetic=size.synthetic,
        until=0,
        period_s=scope.period_ms * 1e-3,
        snapshot_s=_SNAPSHOT_S,
        patience_s=_PATIENCE_S,
        copy_share=_COPY_SHARE,
    )


class _Stages:
    """The processes of a run, each in a network of its own.

    Attributes:
        began_at: when all had begun to train, as `time.time` says.
        surroundings: variables of the environment of what is started.
    """

    surroundings: ClassVar[Mapping[str, str]] = {}

    def __init__(self, net: Network, settings: ChaosStage) -> None:
        self._net = net
        self._settings = settings
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._store: subprocess.Popen[bytes] | None = None
        self.began_at = 0.0

    def __enter__(self) -> _Stages:
        host, port = self._settings.store.split(":")
        command = [sys.executable, "-m", "synthgrad", "store", "--host", host, "--port", port]
        with (Path(self._settings.folder) / "store.stderr").open("ab") as said:
            self._store = subprocess.Popen(
                self._net.command(self._settings.stages, command),
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
            )
        assert self._store.stdout is not None
        self._store.stdout.readline()  # it listens
        self._store.stdout.close()
        for stage in range(self._settings.stages):
            self._start(stage)
        until = time.monotonic() + _LOADS_S
        while not all(self._has_begun(stage) for stage in range(self._settings.stages)):
            if time.monotonic() > until or any(p.poll() is not None for p in self._processes.values()):
                break
            time.sleep(0.1)
        self.began_at = time.time()
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self._processes.values(), *([] if self._store is None else [self._store])]:
            if process.poll() is None:
                process.kill()
            process.wait()

    def suffer(self, faults: Sequence[Fault], seconds: float | None) -> None:
        """Let faults happen, each at its time; and wait for the time to be over."""
        for fault in faults:
            _sleep_until(self.began_at + fault.begin_s)
            if fault.kind == "killed":
                self._kill(fault.stage)
            elif fault.kind == "frozen":
                frozen = self._pid(fault.stage)
                self._signal(frozen, signal.SIGSTOP)
                _sleep_until(self.began_at + fault.end_s)
                self._signal(frozen, signal.SIGCONT)
            else:
                self._net.cut(fault.stage, fault.stage + 1)
                _sleep_until(self.began_at + fault.end_s)
                self._net.mend(fault.stage, fault.stage + 1)
        if seconds is not None:
            _sleep_until(self.began_at + seconds)

    def weights(self) -> dict[str, Tensor]:
        """Return the last weights of all stages, after the end."""
        settings, net = self._settings, network_of(self._settings)
        weights: dict[str, Tensor] = {}
        for stage in range(settings.stages):
            owner = owner_of(settings, net, stage)
            _, state = read_snapshot(weights_file(settings.folder, stage), owner, "cpu")
            own = set(state["trainer"]["owned"])
            weights |= work_for(settings).weights_of(state["net"], own)
        return weights

    def end(self, *, hurry: bool) -> str | None:
        """Have all save and end; return what went wrong, or None."""
        if hurry:
            for process in self._processes.values():
                process.send_signal(signal.SIGTERM)
        for stage, process in self._processes.items():
            try:
                status = process.wait(_ENDS_S if hurry else None)
            except subprocess.TimeoutExpired:
                return f"stage {stage} has not ended within {_ENDS_S:g} s"
            if status:
                return f"stage {stage} ended with status {status}: {self._last_words(stage)}"
        return None

    def _pid(self, stage: int) -> int | None:
        """Return the number of the process that trains a stage; None if there is none at present."""
        return self._processes[stage].pid

    def _kill(self, stage: int) -> None:
        """Kill the process of a stage, and let another take its place."""
        self._processes[stage].kill()
        self._processes[stage].wait()
        self._start(stage, rejoins=True)

    @staticmethod
    def _signal(pid: int | None, number: signal.Signals) -> None:
        """Send a signal to a process, if it is still there."""
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _command(self, settings: ChaosStage) -> list[str]:
        """Return the command of a stage."""
        return as_arguments(settings)

    def _start(self, stage: int, *, rejoins: bool = False) -> None:
        settings = replace(self._settings, stage=stage, rejoins=rejoins)
        said = (Path(self._settings.folder) / f"stage{stage}.stderr").open("ab")
        environment = {
            **os.environ,
            "GLOO_SOCKET_IFNAME": self._net.interface,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            **self.surroundings,
        }
        with said:
            self._processes[stage] = subprocess.Popen(
                self._net.command(stage, self._command(settings)),
                stderr=said,
                env=environment,
                start_new_session=True,
            )

    def _has_begun(self, stage: int) -> bool:
        return any(
            "steps" in json.loads(line)
            for path in Path(self._settings.folder).glob(f"stage{stage}.*.jsonl")
            for line in path.read_text().splitlines()
        )

    def _last_words(self, stage: int) -> str:
        lines = (Path(self._settings.folder) / f"stage{stage}.stderr").read_text().strip().splitlines()
        return lines[-1][:200] if lines else "without a word"


class _Restarts(_Stages):
    """Stages of 1F1B, each with an agent of torchrun, which starts all again when one dies."""

    # Agents do not restart in step, and workers that met in the agents' store would find addresses of the dead there.
    surroundings: ClassVar[Mapping[str, str]] = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

    def weights(self) -> dict[str, Tensor]:
        found = last_weights(self._settings.folder, self._settings.stages)
        assert found is not None, "end has looked"
        return found

    def end(self, *, hurry: bool) -> str | None:
        # What was trained since the last snapshot is left out: five seconds at most.
        for stage, process in self._processes.items():
            if (status := process.poll()) is not None:
                return f"the agent of stage {stage} ended with status {status}: {self._last_words(stage)}"
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
        if last_weights(self._settings.folder, self._settings.stages) is None:
            return "1F1B has not come to its first snapshot"
        return None

    def _command(self, settings: ChaosStage) -> list[str]:
        return agent_arguments(settings, self._net.hosts[settings.stage])

    def _pid(self, stage: int) -> int | None:
        pid = pid_of(self._settings.folder, stage)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        # A number may be that of another program by now.
        return pid if self._settings.folder.encode() in command else None

    def _kill(self, stage: int) -> None:
        self._signal(self._pid(stage), signal.SIGKILL)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.time()))


BENCHMARK = ChaosBench()
