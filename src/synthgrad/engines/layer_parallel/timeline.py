"""Converts a batched step into events of a timeline, all events of a kind together."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import Timeline
from .backend import BackendOutput

__all__ = ["log_step"]


def log_step(
    timeline: Timeline,
    names: Sequence[str],
    step: int,
    output: BackendOutput,
    observed: int,
    observe_lag: int,
    updated: Sequence[str],
) -> None:
    """Add the events of a step.

    Args:
        timeline: the timeline to add to.
        names: the names of the modules; each but the last is also the name of the interface at which the
            module ends.
        step: the number of the step; module ``k`` worked on the batch that entered ``k`` steps before.
        output: the output of the backend.
        observed: the number of interfaces, from the bottom, whose rules observed messages; 0 if no rule
            listens.
        observe_lag: the number of steps that these messages had waited.
        updated: the names of the modules that have been updated.
    """
    top = len(names) - 1
    reached = range(min(step, top) + 1)
    backward = [k for k in reached if k == top or output.credits.delta is not None]
    for k in reached:
        timeline.add("forward", names[k], step, step - k)
    for k in reached[:top]:
        timeline.add("credit", names[k], step, step - k)
    for k in backward:
        timeline.add("backward", names[k], step, step - k)
    for k in backward if output.messages is not None else ():
        if k:  # the message is for the batch that crossed the interface below one step before
            timeline.add("message", names[k - 1], step, step - k)
    for k in range(observed):
        timeline.add("observe", names[k], step, step - k - 1 - observe_lag)
    for k in reached:
        if names[k] in updated:
            timeline.add("update", names[k], step, step - k)
