"""`decouple` and `recouple`: put interfaces into any network, and take them out again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .copies import copied, refuse_lazy
from .decoupled import Decoupled, decoupled_class
from .errors import ConfigError, CutError
from .given import brief, cut_names, example_arguments, instance_of, mismatch
from .graph import trace
from .input_rule import InputRule
from .layout import Dim
from .proposals import propose
from .rule import Rule
from .units import LossScale, Reduction, Units

__all__ = ["CutPlan", "decouple", "propose_cuts", "recouple"]

M = TypeVar("M", bound=nn.Module)


class CutPlan(Protocol):
    """A plan that says where to cut, such as one of `synthgrad.planner`."""

    @property
    def cuts(self) -> Sequence[str]:
        """Names of the submodules after which to cut."""
        ...


def decouple(
    model: M,
    at: Sequence[str] | CutPlan,
    rule: Rule | Mapping[str, Rule],
    example: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    reduction: Reduction = "mean",
    loss_scale: LossScale | None = None,
    inputs: InputRule | Mapping[str, InputRule] | None = None,
    batch_dim: Dim = None,
    features_dim: Dim = None,
    ignore_index: int = -100,
) -> Decoupled[M]:
    """Cut a network into modules that learn without waiting for each other (DNI §2).

    Args:
        model: any network. It is copied, not changed.
        at: names of the submodules after which to cut, dotted for nested ones; or a plan, whose ``cuts`` are taken.
        rule: what credit the module below a cut gets; every cut receives a fresh copy. Or a rule for
            each name.
        example: one batch to learn the shapes from: a tensor, a sequence of positional arguments, or
            a mapping of keyword arguments. On the device and in the dtype of training.
        reduction: how the criterion reduces the losses of a batch: ``"mean"``, ``"sum"``, ``"tokens"`` or
            ``"next_tokens"`` (the mean over all labels ``(B, T)`` of the batch that are not ignored, which a causal
            language model shifts by one), or a callable that takes ``h`` and returns the divisor; see `Units`.
        loss_scale: callable that returns the factor by which the loss is multiplied before
            ``backward`` (``scaler.get_scale``; ``lambda: 1 / accumulation_steps``).
        inputs: what a module above a cut is fed with in training, in place of what the module below makes
            (complete unlock, DNI §2): every cut receives a fresh copy. Or an input rule for some of the
            names. For engines; the plain training loop runs modules in order anyway.
        batch_dim: which dimension of a message is the batch: a number for all cuts, or one for some names. None to find
            out, by running the example with one example more: 1 for ``(T, B, F)``. Rules see the batch first.
        features_dim: which dimension of a message holds the features (channels), counted in the message as it is; a
            number, or one for some names. None to find out from the layers below the cut: 1 after a convolution, the
            last after a linear layer.
        ignore_index: the label that means none, where ``reduction`` counts tokens.

    Returns:
        The decoupled network. ``net(x, context=y)`` in place of ``model(x)`` is all that a training
        loop changes.

    Raises:
        CutError: if a cut cannot be made (unknown name, a submodule called twice or never, a skip
            connection that crosses it, an output without just one floating tensor that a gradient flows through, a
            part under activation checkpointing, a lazy module), or the example does not fit the model.
        ConfigError: if a rule is no `Rule` (its class, say), or another setting is out of its range.

    >>> import torch, synthgrad as sg
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
    >>> net = sg.decouple(model, at=["1"], rule=sg.SyntheticGradient(context=3), example=x)
    >>> torch.nn.functional.cross_entropy(net(x, context=y), y).backward()
    >>> net.model[0].weight.grad.abs().max().item()  # the first synthetic gradients are zero
    0.0
    """
    if isinstance(model, Decoupled):
        raise CutError("the model is decoupled already; recouple it first, or name all cuts at once")
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise CutError(
            f"got {what} as model, expected a torch.nn.Module; {'call it first' if callable(model) else 'give one'}"
        )
    at = cut_names(model, getattr(at, "cuts", at))
    rules = dict(rule) if isinstance(rule, Mapping) else dict.fromkeys(at, rule)
    if set(rules) != set(at):
        raise CutError(f"rules are given for {sorted(rules)}, cuts for {sorted(at)}; give one for each cut")
    for given in rules.values():
        instance_of(Rule, given, "rule", "synthgrad.SyntheticGradient(...)")
    units = Units(reduction, loss_scale, ignore_index=ignore_index)
    args, kwargs = example_arguments(example)
    supplies = dict(inputs) if isinstance(inputs, Mapping) else dict.fromkeys(at, inputs)
    if unknown := set(supplies) - set(at):
        raise CutError(
            f"input rules are given for {sorted(unknown)}, where there is no cut; cuts are {sorted(at)}"
        )
    for supply in supplies.values():
        if supply is not None:
            instance_of(InputRule, supply, "inputs", "synthgrad.SyntheticInput(...)")
    refuse_lazy(model)
    model = copied(model)
    graph = trace(model, at, args, kwargs, batch_dim=batch_dim, features_dim=features_dim)
    bound = {name: rules[name].bind(site) for name, site in graph.sites.items()}
    _check_tokens(units, bound)
    fed = {n: rule.bind(graph.sites[n]) for n, rule in supplies.items() if rule is not None}
    kept = pytree.tree_map_only(
        Tensor, Tensor.detach, (args, kwargs)
    )  # a form for batches; it has no history
    net: Decoupled[M] = decoupled_class(type(model))(model, bound, graph, units, fed, kept)  # pyright: ignore[reportAssignmentType]
    # Not net.train(): it would put parts into training mode that were frozen with eval().
    net.training = model.training
    net.rules.train(model.training)
    net.inputs.train(model.training)
    return net


def _check_tokens(units: Units, rules: Mapping[str, Rule]) -> None:
    """Refuse rules that leave out other tokens than the criterion, and note if rules take next tokens as context."""
    if not units.counts_tokens:
        return
    for name, rule in rules.items():
        # Among the modules, because a rule may be wrapped by another one.
        parts: list[Any] = [part for part in rule.modules() if getattr(part, "mean_of_tokens", False)]
        units.shifted_context |= bool(parts)
        for part in parts:
            ignored = getattr(part, "ignore_index", units.ignore_index)
            if ignored != units.ignore_index:
                raise ConfigError(
                    f"interface '{name}': its rule leaves out tokens whose label is {ignored}, and reduction="
                    f"{units.reduction!r} those whose label is {units.ignore_index}; give rule and decouple the "
                    "ignore_index of the criterion"
                )


def recouple(net: Decoupled[M]) -> M:
    """Return the plain model again, with the weights as trained; ``net`` is not changed.

    Raises:
        CutError: if ``net`` is not a decoupled network.
    """
    if not isinstance(net, Decoupled):
        raise CutError(f"recouple got a {type(net).__name__}, expected what synthgrad.decouple returned")
    # Interfaces refer to the whole network: they are not copied along, only parted from.
    memo: dict[int, Any] = {id(interface): None for interface in net.interfaces.values()}
    model = copied(net.model, memo)
    for name in net.interfaces:
        # torch removes a hook by its handle only, and handles do not survive a copy.
        hooks = model.get_submodule(name)._forward_hooks  # pyright: ignore[reportPrivateUsage]
        for key in [key for key, hook in hooks.items() if hook is None]:
            del hooks[key]
    return model


def propose_cuts(model: nn.Module, example: Tensor | Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """Propose cuts, in the order of the forward pass: after each block of a network that has lists of equal blocks.

    Layers of Transformers, residual blocks: containers are opened at whatever level these are, and of blocks within
    blocks the innermost are taken that can be cut apart. Another network is cut after its children with parameters, from the
    top level down, one container in another being opened. The last module keeps the true gradient, so nothing is
    proposed after it.

    What is proposed is possible, not wise: each cut costs a rule and some accuracy, so take every second or third.

    Args:
        model: any network.
        example: one batch, as `decouple` takes it.

    Raises:
        CutError: if no cut can be made at all.

    >>> import torch
    >>> block = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
    >>> propose_cuts(torch.nn.Sequential(block(), block(), torch.nn.Linear(4, 2)), torch.ones(8, 4))
    ['0', '1']
    """
    if not isinstance(model, nn.Module):
        raise CutError(f"got {brief(model)} as model, expected a torch.nn.Module")
    args, kwargs = example_arguments(example)
    try:
        names = propose(model, args, kwargs)
    except RuntimeError as error:
        why = mismatch(model, args, kwargs)
        if why is None:
            raise
        raise CutError(f"the example could not be run through the model: {why}") from error
    if not names:
        raise CutError(
            f"no cut could be proposed for {type(model).__name__}: none of its children with parameters, and no block in "
            "a list, returns one floating tensor on which all above it depends; name the cuts yourself"
        )
    return names
