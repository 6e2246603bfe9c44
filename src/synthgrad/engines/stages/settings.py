"""The settings of an engine of stages, and which rules it can train with under them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...core import ConfigError, Decoupled, Rule
from ...core.given import brief, check_whole
from ...core.port import refuse_network_reader
from ...rules import HandOver
from ..codecs import Codec, cast, check_codecs
from ..ties import TiedParameter, check_tied_lag
from .layout import RankLayout

__all__ = ["StageSettings", "WindowPlan", "check_corrections", "check_rules", "check_tied_ends", "check_ties"]
__all__ += ["ON_LOSS", "check_continues", "learning_delays", "planned_window", "usual_accumulate"]

#: What a stage does without its neighbours.
ON_LOSS = ("stop", "continue")


#: A bit of a header for each.
_MOST_TIED = 60


class WindowPlan(Protocol):
    """A plan that says how late answers may be, such as one of `synthgrad.planner`."""

    @property
    def window(self) -> int | None:
        """The number of steps; None to adapt it to the link."""
        ...


def planned_window(given: int | WindowPlan | None) -> int | None:
    """Return the window that was given, or that of a plan.

    Raises:
        ConfigError: if it is no whole number.
    """
    found: object = getattr(given, "window", given)
    if found is None or (isinstance(found, int) and not isinstance(found, bool)):
        return found
    whose = "the plan's " if found is not given else ""
    raise ConfigError(
        f"{whose}window={brief(found)}: expected a number of steps from 0, a plan that has one, or None to adapt it to the "
        "link"
    )


@dataclass(frozen=True, slots=True)
class StageSettings:
    """How stages communicate.

    Attributes:
        window: the number of steps that an answer may be late; None to adapt it to the link.
        deterministic: whether lags are counted in steps: the answer of step ``t − window`` is received in
            step ``t``.
        observe_prob: the share of the true messages that are sent.
        wire_dtype: the dtype in which activations and messages are sent; None for that of the network, or if
            there is a codec.
        target: a batch of targets, if these are sent along with the activations; None if each process has its
            own.
        timeout_s: how long a stage waits for another, in seconds.
        seed: the seed of the draws for ``observe_prob``.
        codec: the codec of activations and messages; None to use ``wire_dtype``.
        message_codec: the codec of messages; None for that of activations.
        accumulate: the number of steps of which an update is made; None for as many as an answer is late for which a stage
            waits.
        observe_rows: the share of a batch's rows for which messages are sent.
        tied_lag: after how many updates gradients of tied parameters are applied; None if there are none.
        on_loss: what a stage does without its neighbours, ``stop`` or ``continue``.
        patience_s: how long a stage that continues waits for a neighbour until it takes it for gone, in seconds.
        settle_steps: answers that are not learned from when the stage above has come back.
        copy_share: of the bytes that are sent to a neighbour, how many copies of this stage's state may add; 0 for no copies.
    """

    window: int | None = None
    deterministic: bool = False
    observe_prob: float = 1.0
    wire_dtype: torch.dtype | None = None
    target: Tensor | None = None
    timeout_s: float = 300.0
    seed: int = 0
    codec: Codec | None = None
    accumulate: int | None = None
    message_codec: Codec | None = None
    observe_rows: float = 1.0
    tied_lag: int | None = None
    on_loss: str = "stop"
    patience_s: float = 1.0
    settle_steps: int = 0
    copy_share: float = 0.0

    @property
    def continues(self) -> bool:
        """Whether stages go on without each other."""
        return self.on_loss == "continue"

    @property
    def wire(self) -> Codec | None:
        """The codec of activations; None to send them as they are."""
        return self.codec if self.wire_dtype is None else cast(self.wire_dtype)

    @property
    def message_wire(self) -> Codec | None:
        """The codec of messages; None to send them as they are."""
        return self.wire if self.message_codec is None else self.message_codec

    def check(self) -> None:
        """Refuse settings that are out of range or contradict each other.

        Raises:
            ConfigError: naming the setting.
        """
        if self.window is not None and self.window < 0:
            raise ConfigError(
                f"window={self.window}: expected a number of steps from 0, or None to adapt it to the link"
            )
        if self.deterministic and self.window is None:
            raise ConfigError(
                "deterministic=True needs a window: lags are counted in steps then, so say how many, as in window=2"
            )
        if self.accumulate is not None:
            check_whole("accumulate", self.accumulate, 1, "number of steps of an update")
        if self.on_loss not in ON_LOSS:
            raise ConfigError(f"on_loss={brief(self.on_loss)}: expected 'stop' or 'continue'")
        if isinstance(self.patience_s, bool) or not 0 < self.patience_s < math.inf:
            raise ConfigError(f"patience_s={brief(self.patience_s)}: expected seconds over 0")
        check_whole("settle_steps", self.settle_steps, 0, "number of answers")
        share = self.copy_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(
                f"copy_share={brief(share)}: expected a share of the bytes that are sent, from 0 to 1"
            )
        if share and not self.continues:
            raise ConfigError(
                f"copy_share={share:g} with on_loss='stop', where nobody takes a place; give on_loss='continue'"
            )
        if not 0 <= self.observe_prob <= 1:
            raise ConfigError(f"observe_prob={self.observe_prob}: expected a probability from 0 to 1")
        rows = self.observe_rows
        if isinstance(rows, bool) or not isinstance(rows, int | float) or not 0 < rows <= 1:
            raise ConfigError(
                f"observe_rows={brief(rows)}: expected a share of the rows of a batch, above 0 up to 1; for no messages give "
                "observe_prob=0"
            )
        if self.wire_dtype not in (None, torch.float32, torch.bfloat16, torch.float64):
            raise ConfigError(
                f"wire_dtype={self.wire_dtype}: expected torch.float32, torch.bfloat16, or None for that of the network"
            )
        if self.codec is not None and self.wire_dtype is not None:
            raise ConfigError(
                f"wire_dtype={self.wire_dtype} is the short form of a codec, and codec='{self.codec.name}' was given too: "
                "give one of them"
            )
        check_codecs(codec=self.codec, message_codec=self.message_codec)
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s}: expected seconds over 0")


def usual_accumulate(net: Decoupled, delays: Sequence[int]) -> int:
    """Return the smallest number of steps of an update with which no gradient is more than one update late.

    A rule that hands over waits at first only, so it does not count: its modules would make fewer updates ever after.

    Args:
        net: the decoupled network.
        delays: of its stages, as from `learning_delays`.
    """
    hands_over = any(isinstance(interface.rule, HandOver) for interface in net.interfaces.values())
    return 1 if hands_over else max(1, *delays)


def learning_delays(net: Decoupled, window: int | None) -> list[int]:
    """Return for each stage the steps from its forward pass until its own gradient is known, at the most.

    A stage whose rule gives credit at once has 0. Where rules wait, the windows add up on the way down, unless stages answer
    ahead.

    Args:
        net: the decoupled network.
        window: the number of steps that an answer may be late; None for a window that adapts, with which no rule waits.
    """
    found, sends = [0], 0  # of the last stage: when it learns, and when it answers
    for interface in reversed(list(net.interfaces.values())):
        rule = interface.rule
        found.insert(0, sends + (window or 0) if rule.waits else 0)
        sends = found[0] if rule.waits and not rule.sends_ahead else 0
    return found


def check_tied_ends(tied: Sequence[TiedParameter], layout: RankLayout) -> None:
    """Refuse tied parameters of other stages than the first and the last, which have a line to each other.

    Raises:
        ConfigError: naming the parameter.
    """
    if len(tied) > _MOST_TIED:
        raise ConfigError(
            f"the first and the last stage share {len(tied)} parameters, expected at most {_MOST_TIED}; untie them, or use "
            "InProcess"
        )
    ends = (0, layout.num_stages - 1)
    for parameter in tied:
        if parameter.users != ends:
            where = ", ".join(map(str, parameter.users))
            raise ConfigError(
                f"parameter '{parameter.name}' is used by stages {where}: with tied_lag expected the first and the last alone; "
                "cut elsewhere, or untie it"
            )


def check_ties(net: Decoupled, settings: StageSettings, replicas: int, others: Mapping[str, object]) -> None:
    """Refuse what does not go together with tied parameters.

    Args:
        net: the network.
        settings: of the stages.
        replicas: number of copies of every stage.
        others: by name, arguments that must be None.

    Raises:
        ConfigError: naming the argument.
    """
    check_tied_lag(settings.tied_lag)
    if settings.tied_lag is None:
        return
    given = [name for name, value in others.items() if value is not None]
    given += ["replicas"] if replicas > 1 else []
    given += ["synthetic inputs"] if any(i.input_rule is not None for i in net.interfaces.values()) else []
    if given:
        raise ConfigError(
            f"tied_lag={settings.tied_lag} together with {given[0]}: stages do not support that; untie the parameter, or leave "
            f"{given[0]} out"
        )


def _refuse_sending_ahead(rule: Rule, name: str, replicas: int) -> None:
    if rule.sends_ahead and replicas > 1:
        raise ConfigError(
            f"the rule at interface '{name}', {type(rule).__name__}, answers before the module below has learned, which data "
            f"parallel replicas cannot do, and replicas={replicas}: use one replica"
        )


def check_corrections(
    net: Decoupled, settings: StageSettings, replicas: int, clip_norm: float | None
) -> None:
    """Refuse what does not go together with rules that correct their credit.

    Raises:
        ConfigError: naming the interface and the setting.
    """
    for name, interface in net.interfaces.items():
        rule = interface.rule
        if not rule.corrects:
            continue
        unfit = {
            "window=None: corrections hold answers back, so say how many steps, as in window=4": settings.window
            is None,
            f"observe_prob={settings.observe_prob:g}: use 1": settings.observe_prob != 1,
            f"observe_rows={settings.observe_rows:g}: use 1": settings.observe_rows != 1,
            f"replicas={replicas}: use 1": replicas > 1,
            f"clip_norm={clip_norm}: leave it out": clip_norm is not None,
            "its graphs are made anew: give recompute=False": rule.recomputes,
            "the rule inside learns from messages: take one that learns from a loss of its own, such as LocalLoss, or use "
            "synthgrad.engines.InProcess": rule.learns_from_messages,
            "its share of the messages is below 1: give share=1, or use synthgrad.engines.InProcess": getattr(
                rule, "share", 1.0
            )
            != 1,
        }
        for reason, is_so in unfit.items():
            if is_so:
                raise ConfigError(
                    f"the rule at interface '{name}', {type(rule).__name__}, corrects its credit when a message has come, and "
                    f"stages cannot do that with {reason}"
                )


def check_continues(
    net: Decoupled, settings: StageSettings, replicas: int, others: Mapping[str, object], *, can_renew: bool
) -> None:
    """Refuse what stages cannot do that go on without each other.

    Args:
        net: the network.
        settings: how stages communicate.
        replicas: copies of every stage.
        others: further settings by name; all must be None.
        can_renew: whether the transport makes lines anew.

    Raises:
        ConfigError: naming the setting.
    """
    if settings.continues != can_renew:
        raise ConfigError(
            "on_loss='continue' needs links that can be made anew: give transport=stages.ElasticGloo(stage, stages, store)"
            if settings.continues
            else "a transport whose links are made anew was given, and on_loss='stop': give on_loss='continue', or no transport"
        )
    if not settings.continues:
        return
    unfit = [name for name, value in others.items() if value is not None]
    unfit += ["deterministic=True"] if settings.deterministic else []
    unfit += [f"replicas={replicas}"] if replicas > 1 else []
    unfit += [f"tied_lag={settings.tied_lag}"] if settings.tied_lag is not None else []
    if settings.accumulate not in (None, 1):
        raise ConfigError(
            f"on_loss='continue' with accumulate={settings.accumulate}: where batches are skipped, an update would be made of more "
            "or fewer of them than its mean is taken over; leave accumulate out, and give larger batches"
        )
    if unfit:
        raise ConfigError(
            f"on_loss='continue' together with {unfit[0]}, which needs all stages; leave it out"
        )
    for name, interface in net.interfaces.items():
        if interface.rule.waits:
            raise ConfigError(
                f"on_loss='continue' with the rule at interface '{name}', {type(interface.rule).__name__}, without whose message "
                "the module below learns nothing: take a rule that gives credit at once, such as SyntheticGradient or LocalLoss; "
                "or LateCorrection around one, which learns from the message too, as long as there is somebody to send it"
            )


def _check_inputs(net: Decoupled, settings: StageSettings, replicas: int) -> None:
    supplied = [name for name, interface in net.interfaces.items() if interface.input_rule is not None]
    if not supplied:
        return
    where = f"interface '{supplied[0]}' has synthetic inputs"
    if settings.deterministic:
        raise ConfigError(
            f"{where}, which are used when the real ones are late, so runs differ, and deterministic=True was given; use "
            "one of the two, or InProcess"
        )
    if replicas > 1 or settings.target is not None or any(i.rule.waits for i in net.interfaces.values()):
        raise ConfigError(
            f"{where}: not together with replicas, targets that travel or rules that wait; leave these out, or decouple "
            "without inputs"
        )


def check_rules(net: Decoupled, settings: StageSettings, replicas: int) -> None:
    """Refuse rules that stages cannot train with under these settings.

    Raises:
        ConfigError: naming the interface.
    """
    _check_inputs(net, settings, replicas)
    for name, interface in net.interfaces.items():
        rule = interface.rule
        _refuse_sending_ahead(rule, name, replicas)
        refuse_network_reader(rule, name)
        if rule.listens and rule.learns_at_once and not rule.corrects:
            raise ConfigError(
                f"the rule at interface '{name}', {type(rule).__name__}, learns from a loss of its own and from messages: a "
                "stage supports rules that do one of the two; use synthgrad.engines.InProcess"
            )
        if not rule.waits:
            continue
        if settings.window is None:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its message: say how many steps, as in "
                "window=0 (backpropagation) or window=2 (delayed gradients)"
            )
        if settings.observe_prob != 1:
            raise ConfigError(
                f"observe_prob={settings.observe_prob}: the rule at interface '{name}' waits for every message; use 1"
            )
        if settings.observe_rows != 1:
            raise ConfigError(
                f"observe_rows={settings.observe_rows:g}: the module below interface '{name}' waits for its message, which has "
                "to be that of all rows; use 1"
            )
        if settings.window and replicas > 1:
            raise ConfigError(
                f"the rule at interface '{name}' waits, and with window={settings.window} several graphs are kept, "
                "which data parallel replicas cannot average; use window=0 or one replica"
            )
