"""Creates the optimizers of each module with the user's factory, and steps them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..core import ConfigError, Decoupled, Module
from ..core.given import brief
from ..core.graph import OUTPUT
from ..core.site import AtInterface
from ..optim import ErrorFeedback

__all__ = [
    "Named",
    "OptimizerFactory",
    "Parameters",
    "check_optimizer",
    "clear_autocast_cache",
    "has_gradient",
    "make_optimizers",
    "parameters_by_role",
    "step_optimizers",
    "zero_grad",
]

#: A parameter and its name.
Named = tuple[str, Tensor]

#: Takes `Parameters`, a list of tensors, and returns an optimizer for them. It may return several optimizers as a list
#: (Muon for matrices, AdamW for the rest), with None in place of one that has no parameters.
OptimizerFactory = Callable[[Any], "Optimizer | Sequence[Optimizer | None]"]


class Parameters(list[Tensor]):
    """The parameters of one module: a list of tensors that also knows their names.

    Args:
        named: names, as in ``net.named_parameters()`` of the plain model, and parameters.
        module: the name of the module.

    >>> import torch
    >>> own = Parameters([("0.weight", torch.ones(2))], "0")
    >>> len(own), [name for name, p in own.named_parameters()]
    (1, ['0.weight'])
    """

    def __init__(self, named: Iterable[Named], module: str = "") -> None:
        self._named = list(named)
        self.module = module
        super().__init__(p for _, p in self._named)

    def named_parameters(self) -> Iterator[Named]:
        """Yield names and parameters, like the method of ``nn.Module``."""
        yield from self._named

    def parameters(self) -> Iterator[Tensor]:
        """Yield the parameters, like the method of ``nn.Module``."""
        yield from self


def make_optimizers(
    factory: OptimizerFactory,
    module: str,
    *parts: tuple[Iterable[Named], Mapping[str, Any] | None],
    late: bool | None = None,
) -> list[Optimizer]:
    """Create the optimizers for the parameters of a module and of the rules that are updated with it.

    The factory is called once, with all parameters as one flat list, so that it can look at shapes and names.
    Parameters with options of their own are then moved into parameter groups of their own.

    Args:
        factory: the user's factory.
        module: the name of the module, for errors.
        parts: for each part, names and parameters, and the options of its group such as ``{"lr": 1e-3}``.
            Frozen parameters are left out. The first part is that of the module itself.
        late: whether the gradients of the module itself come an update or more late, for `ErrorFeedback`; None if the
            engine does not know, and `ErrorFeedback` is refused.

    Returns:
        The optimizers; an empty list if there is nothing to train.

    Raises:
        ConfigError: if the factory fails or returns something else, if an optimizer needs a closure, or if a
            parameter is left out or is in two optimizers.
    """
    for _, options in parts:
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(
                f"options of a parameter group are {brief(options)}, expected a mapping such as {{'lr': 1e-3}}"
            )
    kept = [([(n, p) for n, p in named if p.requires_grad], options) for named, options in parts]
    given = Parameters([pair for named, _ in kept for pair in named], module)
    if not given:
        return []
    optimizers = _made(factory, given)
    for k, (named, options) in enumerate(kept):
        theirs = {id(p) for _, p in named}
        if options and named:
            _set_options(optimizers, theirs, options)
        extrapolating = [o for o in optimizers if isinstance(o, ErrorFeedback)]
        if extrapolating and late is None:
            raise _no_error_feedback(extrapolating[0])
        if named:  # rules learn from messages as they come, or from losses of their own: never late
            _set_options(extrapolating, theirs, {"late": bool(late) and k == 0})
    return optimizers


def check_optimizer(factory: Any) -> None:
    """Refuse an optimizer factory that cannot be called, in particular an optimizer itself.

    Raises:
        ConfigError: if it is an optimizer, or several, or not callable.
    """
    if callable(factory) and not isinstance(factory, Optimizer):
        return
    made = next(iter(factory), None) if isinstance(factory, Sequence) else factory
    name = type(made).__name__ if isinstance(made, Optimizer) else "Adam"
    raise ConfigError(
        f"optimizer={brief(factory)}: expected a function that creates one, since each module has its own; write "
        f"lambda params: torch.optim.{name}(params, 3e-4)"
    )


def _made(factory: OptimizerFactory, given: Parameters) -> list[Optimizer]:
    check_optimizer(factory)
    try:
        made = factory(given)
    except (ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ConfigError(
            f"the optimizer factory failed for module '{given.module}' with {len(given)} parameters "
            f"({_some(n for n, _ in given.named_parameters())}): {type(error).__name__}: {error}; it is called once for "
            "each module, with a list of its parameters (and named_parameters()); of several optimizers leave out, as "
            "None, one that has none of them"
        ) from error
    several = isinstance(made, Sequence)
    optimizers: list[Any] = [o for o in made if o is not None] if several else [made]
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"the optimizer factory returned a {type(optimizer).__name__}, expected a torch.optim.Optimizer or a list "
                "of them, as in lambda params: torch.optim.Adam(params, 3e-4)"
            )
        _refuse_closure(optimizer)
    _check_complete(optimizers, given)
    return optimizers


def _refuse_closure(optimizer: Optimizer) -> None:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ConfigError(
            f"{type(optimizer).__name__} needs a closure that computes the loss again, and an engine has one gradient for "
            "each module and step; take an optimizer whose step() needs none, or train net in a loop of your own"
        )


def _no_error_feedback(optimizer: ErrorFeedback) -> ConfigError:
    return ConfigError(
        "the optimizer factory returned ErrorFeedback, which extrapolates gradients that come one update late, and this "
        "engine does not say which of its gradients do: fresh ones would be extrapolated too; give the engine the "
        f"{type(optimizer.optimizer).__name__} itself, or use synthgrad.engines.InProcess or Stages, which say it"
    )


def _check_complete(optimizers: Sequence[Optimizer], given: Parameters) -> None:
    """Refuse optimizers that leave a parameter out, share one, or hold one that the factory was not given."""
    names = {id(p): n for n, p in given.named_parameters()}
    taken: set[int] = set()
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if id(p) not in names:
                raise ConfigError(
                    f"the optimizer of module '{given.module}' holds a parameter of shape {tuple(p.shape)} that the "
                    "factory was not given; make it of the parameters that the factory gets, not of net.parameters()"
                )
            if id(p) in taken:
                raise ConfigError(
                    f"parameter '{names[id(p)]}' is in two optimizers of module '{given.module}'; give it to one"
                )
            taken.add(id(p))
    left = [n for n, p in given.named_parameters() if id(p) not in taken]
    if left:
        raise ConfigError(
            f"the optimizer factory left out {_some(left)} of module '{given.module}', which would never learn; give "
            "every parameter to an optimizer, or freeze it with requires_grad_(False)"
        )


def _set_options(optimizers: Sequence[Optimizer], theirs: set[int], options: Mapping[str, Any]) -> None:
    """Move some parameters into parameter groups of their own, with their own options."""
    for optimizer in optimizers:
        for group in list(optimizer.param_groups):
            apart = [k for k, p in enumerate(group["params"]) if id(p) in theirs]
            if not apart:
                continue
            if len(apart) == len(group["params"]):
                group.update(options)
                continue
            settings = {k: _own(v) for k, v in group.items() if k not in ("params", "param_names")} | dict(
                options
            )
            for key in ("params", "param_names"):
                if key in group:
                    settings[key] = [group[key][k] for k in apart]
                    group[key] = [v for k, v in enumerate(group[key]) if k not in apart]
            optimizer.add_param_group(settings)


def _own(setting: Any) -> Any:
    """Return a copy of a setting, since a learning rate may be a tensor that is changed in place."""
    return setting.clone() if isinstance(setting, Tensor) else setting


def _some(names: Iterable[str]) -> str:
    found = [f"'{name}'" for name in names]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def step_optimizers(optimizers: Iterable[Optimizer]) -> None:
    """Step the optimizers of a module, then drop its gradients."""
    for optimizer in optimizers:
        optimizer.step()
        zero_grad(optimizer)


def zero_grad(optimizer: Optimizer) -> None:
    """Drop all gradients. The optimizer's own method does the same, but its profiling hooks cost time."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = None


def has_gradient(optimizers: Iterable[Optimizer]) -> bool:
    """Return whether any parameter of these optimizers has a gradient."""
    return any(p.grad is not None for o in optimizers for group in o.param_groups for p in group["params"])


def clear_autocast_cache() -> None:
    """Clear the cache of an autocast around the whole loop: its casts of weights are outdated."""
    if torch.is_autocast_cache_enabled():
        torch.clear_autocast_cache()


def parameters_by_role(
    net: Decoupled, module: Module, position: int, *, but: Container[str] = ()
) -> tuple[Sequence[Named], ...]:
    """Return names and parameters of a module, of its rules and of its input rules.

    All that is updated with the module.

    A rule that learns from messages is updated with the module that sends them; if an interface feeds several
    modules, with the last of them. A rule that learns from its own loss alone is updated with the module
    below its interface. So is an input rule, which learns from the output of that module.

    Args:
        net: the decoupled network.
        module: one of ``net.graph.modules``.
        position: its position there.
        but: names of parameters of the module to leave out.
    """
    interfaces, consumers = net.interfaces, net.graph.consumers
    ends = [n for n in module.ends if n != OUTPUT]
    rules = [interfaces[n].rule for n in ends if not interfaces[n].rule.learns_from_messages]
    rules += [
        interfaces[n].rule
        for n in module.inputs
        if interfaces[n].rule.learns_from_messages and consumers(n)[-1] == position
    ]
    supplies = [rule for n in ends if (rule := interfaces[n].input_rule) is not None]
    own = [(n, net.model.get_parameter(n)) for n in module.parameters if n not in but]
    return own, _named(rules, "rules"), _named(supplies, "inputs")


def _named(rules: Sequence[AtInterface], what: str) -> list[Named]:
    """Return names, as in the decoupled network, and parameters of rules."""
    return [
        (f"{what}.{rule.name.replace('.', '_')}.{n}", p) for rule in rules for n, p in rule.named_parameters()
    ]
