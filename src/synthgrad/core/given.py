"""Checks of what users pass in: each raises one sentence that says what was given, what was expected, what to do."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .errors import ConfigError, CutError

__all__ = [
    "brief",
    "check_factory",
    "check_whole",
    "cut_names",
    "example_arguments",
    "instance_of",
    "mismatch",
    "numbers_by_name",
    "similar",
    "takes",
    "widths_of",
]

T = TypeVar("T")


def brief(value: object) -> str:
    """Return a short description of a value for an error: its ``repr`` where that is short, else its type."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    text, name = repr(value), type(value).__name__
    return text if len(text) <= 40 and "\n" not in text else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def check_whole(name: str, value: object, least: int, what: str) -> None:
    """Refuse what is no whole number of at least ``least``.

    Args:
        name: of the argument.
        value: what was given.
        least: smallest number that is allowed.
        what: what the number is, such as ``"number of classes"``.

    Raises:
        ConfigError: if it is something else; a float or a tensor that holds a whole number is told how to be one.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return
    remedy = ""
    if isinstance(value, float) and value.is_integer() and value >= least:
        remedy = f"; write {int(value)}"
    elif not isinstance(value, bool | int | float) and hasattr(value, "__index__"):
        remedy = f"; write int({name})"
    raise ConfigError(f"{name}={brief(value)}: expected the {what}, at least {least}, as an int{remedy}")


def widths_of(hidden: object, name: str = "hidden") -> tuple[int, ...]:
    """Return the widths of hidden layers.

    Args:
        hidden: a sequence of whole numbers from 1; ``()`` for no hidden layer.
        name: of the argument.

    Raises:
        ConfigError: if it is a single number, or holds something that is no width.
    """
    if isinstance(hidden, int) and not isinstance(hidden, bool):
        raise ConfigError(
            f"{name}={hidden}: expected a sequence with the width of each hidden layer; for one layer write "
            f"{name}=({hidden},), for a linear model {name}=()"
        )
    found = tuple(hidden) if isinstance(hidden, Iterable) and not isinstance(hidden, str) else None
    if found is None or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in found):
        raise ConfigError(f"{name}={brief(hidden)}: expected widths of at least 1, or () for linear")
    return found


def check_factory(name: str, factory: object, what: str) -> None:
    """Refuse what cannot make a module, in particular a module itself.

    Args:
        name: of the argument.
        factory: what was given; None is allowed.
        what: a call that would be right.

    Raises:
        ConfigError: if it is a module, or not callable.
    """
    if factory is None or (callable(factory) and not isinstance(factory, nn.Module)):
        return
    raise ConfigError(
        f"{name}={brief(factory)}: expected a factory, which makes one for each interface, such as {what}; wrap a module "
        "of your own in a function"
    )


def instance_of(kind: type[T], given: object, name: str, example: str) -> T:
    """Return the rule that was given, if it is one.

    Args:
        kind: the base class of such rules.
        given: by the user.
        name: of the argument.
        example: an expression that would be right.

    Raises:
        ConfigError: if it is something else; a class in place of an object is told to be called.
    """
    if isinstance(given, kind):
        return given
    if inspect.isclass(given) and issubclass(given, kind):
        raise ConfigError(
            f"{name}={given.__name__} is a class, expected an object of it; call it, as in {name}={given.__name__}(...)"
        )
    raise ConfigError(
        f"{name}={brief(given)}: expected a rule, an object of synthgrad.{kind.__name__}, such as {name}={example}"
    )


def cut_names(model: nn.Module, at: object) -> list[str]:
    """Return the names of cuts.

    Raises:
        CutError: if it is one name, no list, or holds something else than names.
    """
    if isinstance(at, str):
        raise CutError(f"at={at!r}: expected a list of names, as in at=[{at!r}]")
    if not isinstance(at, Iterable):
        raise CutError(f"at={brief(at)}: expected a list of names of submodules, as in at=['{at}']")
    found = list(at)
    for name in found:
        if isinstance(name, str):
            continue
        own = next((n for n, m in model.named_modules() if m is name), None)
        remedy = (
            f"write {own or str(name)!r}" if own or isinstance(name, int) else "give its name as a string"
        )
        raise CutError(
            f"at=[{brief(name)}, …]: expected names of submodules, as in named_modules(); {remedy}"
        )
    return found


def similar(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'layer1'?)`` where a known name is similar, else nothing."""
    close = get_close_matches(name, list(known), 1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def numbers_by_name(text: str, keys: Sequence[str], what: str, example: str) -> dict[str, float]:
    """Return the numbers of a text such as ``rtt_ms=50,mbit_s=1000`` by name.

    Args:
        text: what was given.
        keys: names that may stand in it.
        what: what it describes, for errors.
        example: how it is written, for errors.

    Raises:
        ConfigError: if a name is unknown or given twice, or a value is not a number.

    >>> numbers_by_name("a=1,b=2.5", ("a", "b"), "numbers", "a=1")
    {'a': 1.0, 'b': 2.5}
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise ConfigError(f"{what} '{text}': '{part.strip()}' is not key=value; write it as in {example}")
        if key not in keys:
            known = " or ".join(keys) if len(keys) < 3 else f"one of {', '.join(keys)}"
            raise ConfigError(f"{what} '{text}': unknown key '{key}'; expected {known}")
        if key in found:
            raise ConfigError(f"{what} '{text}': {key} is given twice; give it once")
        try:
            found[key] = float(value)
        except ValueError:
            raise ConfigError(
                f"{what} '{text}': {key}='{value}' is not a number; write it as in {example}"
            ) from None
    return found


def example_arguments(example: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example batch stands for.

    Raises:
        CutError: if it is no tensor, sequence or mapping.
    """
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if not isinstance(example, Sequence) or isinstance(example, str):
        remedy = "give one batch of inputs"
        if hasattr(example, "__array__"):
            remedy = "convert it by torch.as_tensor"
        elif hasattr(example, "__iter__"):
            remedy = "give the inputs of one of its batches, without the targets"
        raise CutError(
            f"got {brief(example)} as example, expected a tensor, a sequence of positional arguments or a mapping of "
            f"keyword arguments; {remedy}"
        )
    return tuple(example), {}


def takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Can a function be called so, as far as its signature tells?"""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a function of C has none
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def mismatch(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Return in words why a model cannot have run on a batch, where its arguments alone tell; None where they do not.

    To be asked when it has failed: a model may well move or convert what it is given.

    Args:
        model: that has failed.
        args: positional arguments of the batch.
        kwargs: keyword arguments of it.
    """
    name = type(model).__name__
    if not takes(model.forward, *args, **kwargs):
        wanted = [str(p) for p in inspect.signature(model.forward).parameters.values()]
        given = f"{len(args)} positional argument{'' if len(args) == 1 else 's'}"
        given += f" and the keywords {sorted(kwargs)}" if kwargs else ""
        return (
            f"{name}.forward takes ({', '.join(wanted)}) and got {given}; give the model's inputs alone, several as a "
            "tuple, and the labels by context="
        )
    tensors = [t for t in pytree.tree_leaves((tuple(args), dict(kwargs))) if isinstance(t, Tensor)]
    parameters = list(model.parameters())
    if not tensors:
        whole = ", ".join(brief(a) for a in args) or "nothing"
        return f"{name} got {whole}, expected a tensor; convert inputs by torch.as_tensor"
    devices = {p.device for p in parameters}
    if len(devices) == 1 and (apart := {t.device for t in tensors} - devices):
        return (
            f"the model is on {_listed(devices)} and the batch has tensors on {_listed(apart)}; move one of them, as in "
            f"x.to('{_listed(devices)}')"
        )
    floating = {p.dtype for p in parameters if p.is_floating_point()}
    others = {t.dtype for t in tensors if t.is_floating_point()} - floating
    if len(floating) == 1 and others and not torch.is_autocast_enabled(tensors[0].device.type):
        return (
            f"the model is in {_listed(floating)} and the batch has tensors in {_listed(others)}; convert one of them, as "
            f"in x.to({_listed(floating)})"
        )
    return None


def _listed(values: Iterable[object]) -> str:
    return " and ".join(sorted(map(str, values)))
