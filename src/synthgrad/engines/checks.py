"""Checks whether a decoupled network can be trained without locks."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import nn

from ..core import ConfigError, Decoupled, Rule
from ..core.given import brief, mismatch, takes
from .base import ForwardArgs

__all__ = [
    "check_criterion",
    "check_draws",
    "check_first_batch",
    "check_unlockable",
    "refuse_output_error",
    "warn_of_evaluation",
]


def check_criterion(criterion: Any) -> None:
    """Refuse a criterion that cannot be used.

    Raises:
        ConfigError: if it is a class, or cannot be called with an output and a target.
    """
    if inspect.isclass(criterion):
        raise ConfigError(
            f"criterion={criterion.__name__} is a class, expected a function of output and target; call it, as in "
            f"{criterion.__name__}()"
        )
    if not callable(criterion) or isinstance(criterion, torch.optim.Optimizer):
        raise ConfigError(
            f"criterion={brief(criterion)}: expected a function of output and target that returns the loss, such as "
            "torch.nn.functional.cross_entropy"
        )
    if not takes(criterion.forward if isinstance(criterion, nn.Module) else criterion, None, None):
        raise ConfigError(
            f"criterion={brief(criterion)} cannot be called with two arguments, expected a function of output and target; "
            "the order is net, criterion, optimizer, and a criterion that needs no target takes it all the same"
        )


def check_draws(update_prob: Any, generator: Any) -> None:
    """Refuse an update probability or a generator of a wrong type or value.

    Raises:
        ConfigError: naming the argument.
    """
    if not isinstance(update_prob, int | float) or not 0 < update_prob <= 1:
        raise ConfigError(f"update_prob={update_prob!r}: expected a probability over 0 and up to 1")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ConfigError(
            f"generator={brief(generator)}: expected a torch.Generator, as in torch.Generator().manual_seed(0)"
        )


def check_first_batch(net: nn.Module, passed: ForwardArgs) -> None:
    """Refuse a first batch that the network cannot take, and a step without gradients.

    Raises:
        ConfigError: saying what was given and what is expected.
    """
    if not torch.is_grad_enabled():
        raise ConfigError(
            "step() was called without gradients (under torch.no_grad or torch.inference_mode), and nothing can learn "
            "so; call it outside"
        )
    model = net.model if isinstance(net, Decoupled) else net
    args, kwargs = passed
    if not takes(model.forward, *args, **kwargs) or not any(map(torch.is_tensor, (*args, *kwargs.values()))):
        why = mismatch(model, args, kwargs)
        if why is not None:
            raise ConfigError(f"the batch cannot be run through the network: {why}")


def check_unlockable(net: Decoupled, *, tied: bool = False) -> None:
    """Refuse a network whose modules cannot learn independently.

    Args:
        net: the network.
        tied: whether several modules may use a parameter, because it is updated apart from them.

    Raises:
        ConfigError: naming the parameter, the module or the interface.
    """
    if net.units.loss_scale is not None:
        raise ConfigError(
            "the network was decoupled with loss_scale, which is for the plain training loop: here modules "
            "learn from credit that no loss was scaled for; decouple it without"
        )
    owner: dict[str, str] = {}
    for module in net.graph.modules:
        if module.hides_parameters:
            raise ConfigError(
                f"module '{module.name}' runs a part under activation checkpointing with use_reentrant=True, "
                "which hides its parameters; use use_reentrant=False, or train in the plain loop"
            )
        for name in module.parameters:
            if name in owner and not tied:
                raise ConfigError(
                    f"parameter '{name}' is used by two modules, '{owner[name]}' and '{module.name}': "
                    "without locks each would update it behind the other's back; untie it, cut so that both "
                    "uses fall into one module, or train in the plain loop; InProcess and Stages update it from both with "
                    "tied_lag=…"
                )
            owner[name] = module.name
    for name, interface in net.interfaces.items():
        if interface.rule.error_to_h:
            raise ConfigError(
                f"the rule at interface '{name}' lets its error flow into h, which arrives after the module "
                "below has updated; use error_to_h=False, or train in the plain loop"
            )
        if interface.rule.needs_output_error:
            _check_output_error(net, name)
        if interface.rule.waits and interface.rule.corrects:
            raise ConfigError(
                f"the rule at interface '{name}' both waits for the message and corrects its credit by it; a rule does one "
                "of the two"
            )
        if interface.rule.corrects and interface.input_rule is not None:
            raise ConfigError(
                f"the rule at interface '{name}' corrects its credit by the message, and the message there belongs to a "
                "synthetic input; use one of the two"
            )
        if interface.rule.waits and interface.input_rule is not None:
            raise ConfigError(
                f"the rule at interface '{name}' has the module below wait for its true message, but the message "
                "there belongs to a synthetic input; use one of the two"
            )


def _check_output_error(net: Decoupled, name: str) -> None:
    """Refuse a rule that needs the output error, if it or a rule above gives credit before that is known."""
    graph, waiting, seen = net.graph, [name], set[str]()
    while waiting:
        end = waiting.pop()
        if end in seen:
            continue
        seen.add(end)
        rule = net.interfaces[end].rule
        if not rule.waits:
            who = "it" if end == name else f"the {type(rule).__name__} at interface '{end}' above"
            raise ConfigError(
                f"the rule at interface '{name}' needs the network's output error, and {who} gives credit before that is "
                "known; take rules that wait (waits = True) there and at every interface above, or train in the plain loop"
            )
        waiting += [e for k in graph.consumers(end) for e in graph.modules[k].ends if e in graph.sites]


def refuse_output_error(rule: Rule, name: str, why: str) -> None:
    """Refuse a rule that needs the network's output error, in an engine that cannot provide it.

    Args:
        rule: the rule.
        name: the name of the interface.
        why: why the engine cannot provide it, for the error.

    Raises:
        ConfigError: naming the interface.
    """
    if rule.needs_output_error:
        raise ConfigError(
            f"the rule at interface '{name}' needs the network's output error, and {why}; use InProcess, Stages or the "
            "plain loop"
        )


def warn_of_evaluation(net: Decoupled) -> None:
    """Warn if a network is about to be trained in evaluation mode."""
    if not net.training:
        warnings.warn(
            "the network is in evaluation mode, as from_pretrained leaves a model: it is trained without Dropout and with "
            "BatchNorm's running statistics; call net.train() first if that is not what you want",
            stacklevel=3,
        )
