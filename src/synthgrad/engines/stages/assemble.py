"""Assembles the saved states of all stages, for one process or for another number of stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from ...core import ConfigError, Decoupled

__all__ = ["AssembledRun", "assemble", "optimizers_by_name"]


class _Trainer(Protocol):
    """An engine that trains a decoupled network step by step."""

    net: Decoupled

    @property
    def optimizers(self) -> Iterable[Optimizer]: ...
    def begin_at(self, step: int) -> None: ...


@dataclass(frozen=True, slots=True)
class AssembledRun:
    """The whole state of a run whose stages were saved after the same step.

    Attributes:
        net: the state dict of the decoupled network.
        optimizers: the optimizer state of each parameter, by the parameter's name in ``net``.
        step: the number of steps that the run has done.
    """

    net: dict[str, Tensor]
    optimizers: dict[str, dict[str, Any]]
    step: int

    def load_into(self, net: Decoupled) -> list[str]:
        """Load the weights into a network of the same model with any cuts.

        Return the names of rules that were not loaded.

        Rules are identified by the names of their cuts. A rule at a cut that the run did not have keeps its
        present weights.

        Raises:
            ConfigError: if it is another model.
        """
        ours = net.state_dict()
        for name, value in ours.items():
            saved = self.net.get(name)
            if saved is None and name.startswith(("rules.", "inputs.")):
                continue
            if saved is None or saved.shape != value.shape or saved.dtype != value.dtype:
                what = "nothing" if saved is None else f"{tuple(saved.shape)} {saved.dtype}"
                raise ConfigError(
                    f"the run has {what} for '{name}', and the network has {tuple(value.shape)} {value.dtype}: this is "
                    "another model; build the model with which the stages were trained"
                )
        unknown = [name for name in self.net if name not in ours and name.startswith("model.")]
        if unknown:
            raise ConfigError(
                f"the run has '{unknown[0]}', which the network lacks: this is another model; build the model with which "
                "the stages were trained"
            )
        known = {name: value for name, value in self.net.items() if name in ours}
        net.load_state_dict(known, strict=False)
        return sorted(
            {name.split(".")[1] for name in ours if name not in known and name.startswith("rules.")}
        )

    def hand_to(self, trainer: _Trainer) -> None:
        """Continue the run in an engine: set the state of its optimizers, and the number of steps.

        Messages that were in flight are lost, and so are gradients of an update that was not complete. With late messages,
        or updates of several steps, the run therefore gives other results than an uninterrupted one.

        Args:
            trainer: `Stages` or `InProcess`, built with optimizers of the same kinds, after `load_into`.
        """
        names = {id(p): name for name, p in trainer.net.named_parameters()}
        for optimizer in trainer.optimizers:
            state = optimizer.state_dict()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for number, p in enumerate(parameters):
                known = self.optimizers.get(names.get(id(p), ""))
                if known is not None:
                    state["state"][number] = known
            optimizer.load_state_dict(state)
        trainer.begin_at(self.step)


def optimizers_by_name(net: Decoupled, optimizers: Iterable[Optimizer]) -> dict[str, dict[str, Any]]:
    """Return the optimizer state of each parameter, by the parameter's name in a network."""
    names = {id(p): name for name, p in net.named_parameters()}
    return {names[id(p)]: dict(state) for optimizer in optimizers for p, state in optimizer.state.items()}


def assemble(saved: Sequence[Mapping[str, Any]]) -> AssembledRun:
    """Assemble what the stages of a run have saved, each ``{"net".

    Net.state_dict(), "trainer": state_dict()}``.

    Args:
        saved: one state for each stage, in any order; of replicas one is enough.

    Raises:
        ConfigError: if a stage is missing or there twice, or the stages were saved after different steps.

    ::

        whole = assemble([torch.load(f"stage{k}.pt", weights_only=True) for k in range(4)])
        whole.load_into(net)               # with the same cuts, or others
        plain = synthgrad.recouple(net)    # the trained model, or …
        trainer = Stages(net, …)           # … another number of stages
        whole.hand_to(trainer)
    """
    if not saved:
        raise ConfigError("got no states; give those of all stages of a run")
    by_stage: dict[int, Mapping[str, Any]] = {}
    num_stages = 0
    for state in saved:
        stage, num_stages = state["trainer"]["links"]["stage"]
        if stage in by_stage:
            raise ConfigError(f"got two states of stage {stage}; give one for each stage")
        by_stage[stage] = state
    missing = sorted(set(range(num_stages)) - set(by_stage))
    if missing or len(by_stage) != num_stages:
        raise ConfigError(
            f"got the states of stages {sorted(by_stage)} of a run with {num_stages}; give one for each stage"
        )
    steps = {stage: int(state["trainer"]["step"]) for stage, state in by_stage.items()}
    if len(set(steps.values())) > 1:
        raise ConfigError(
            f"the stages were saved after different steps, {', '.join(f'{s}: {n}' for s, n in sorted(steps.items()))}; give "
            "states of the same step"
        )
    net: dict[str, Tensor] = dict(by_stage[0]["net"])
    optimizers: dict[str, dict[str, Any]] = {}
    for state in by_stage.values():
        net |= {name: state["net"][name] for name in state["trainer"]["owned"]}
        optimizers |= state["trainer"]["by_name"]
    return AssembledRun(net, optimizers, steps[0])
