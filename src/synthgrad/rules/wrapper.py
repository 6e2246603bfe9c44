"""The base of rules around another rule: what they do not answer themselves, the rule inside does."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from ..core import ConfigError, Credit, Info, Message, Rule, Site
from ..core.given import instance_of

__all__ = ["Wrapper"]


class Wrapper(Rule):
    """Hands everything on to the rule inside. A subclass calls `_adopt` at the end of its constructor.

    Args:
        rule: the rule inside.

    Raises:
        ConfigError: if it is no rule, or one that sends ahead of what it learns from, or corrects its credit later.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        instance_of(Rule, rule, "rule", "synthgrad.SyntheticGradient(...)")
        kind = type(self).__name__
        if rule.sends_ahead or rule.corrects:
            raise ConfigError(
                f"{kind} around {type(rule).__name__}: a rule that sends ahead of what it learns from, or corrects its credit "
                "later, cannot be wrapped; use it as it is, or wrap the rule inside it"
            )
        self.rule = rule

    def _adopt(self, rule: Rule) -> None:
        """Say of itself what engines ask of a rule, by the rule inside: when it is given, and when it has been bound."""
        self.listens = rule.listens
        self.error_to_h = rule.error_to_h
        self.needs_output_error = rule.needs_output_error
        self.waits = rule.waits
        self.needs_network = rule.needs_network
        self.learns_at_once = not rule.learns_from_messages

    def bind(self, site: Site) -> Self:
        bound = super().bind(site)
        bound.rule = self.rule.bind(site)
        bound._adopt(bound.rule)
        return bound

    def check(self, h: Tensor, info: Info) -> None:
        self.rule.check(h, info)

    def credit(self, h: Tensor, info: Info) -> Credit:
        return self.rule.credit(h, info)

    def observe(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...] = ()
    ) -> Tensor | None:
        return self.rule.observe(h, info, message, pending)

    def observe_grad(
        self, h: Tensor, info: Info, message: Message, pending: tuple[Tensor, ...]
    ) -> tuple[Tensor | None, ...] | None:
        return self.rule.observe_grad(h, info, message, pending)

    def accept(self, message: Message, info: Info) -> Tensor:
        return self.rule.accept(message, info)
