"""A forward method that says what the wrapped model takes: trainers look at it to know which columns of a batch to pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

__all__ = ["with_signature_of_model"]


class with_signature_of_model:
    """Make a method of a module with an attribute ``model`` show the signature of that model's ``forward``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__name__ = method.__name__

    def __get__(self, net: Any, owner: type) -> Any:
        return self._of_class(owner) if net is None else _Bound(self._method, net)

    def _of_class(self, owner: type) -> Any:
        """Return the plain function; of a class that is made for a model's, with the signature of that one's forward."""
        model: Any = getattr(owner, "model_class", None)
        if model is None:
            return self._method
        twin = FunctionType(
            self._method.__code__, self._method.__globals__, self.__name__, None, self._method.__closure__
        )
        twin.__kwdefaults__ = self._method.__kwdefaults__
        twin.__doc__ = self.__doc__
        own = inspect.signature(self._method)
        try:
            theirs = inspect.signature(model.forward)
        except (TypeError, ValueError):  # a forward that is not written in Python
            return self._method
        itself = next(iter(own.parameters.values()))
        twin.__signature__ = _joined(own, [*theirs.parameters.values()][1:], itself)  # pyright: ignore[reportFunctionMemberAccess]
        return twin


class _Bound:
    """The method of one network."""

    def __init__(self, method: Callable[..., Any], net: Any) -> None:
        self._method = method
        self._net = net
        self.__name__ = method.__name__
        self.__doc__ = method.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(self._net, *args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self._method)
        return _joined(own, list(inspect.signature(self._net.model.forward).parameters.values()))


def _joined(
    own: inspect.Signature, parameters: Sequence[inspect.Parameter], *first: inspect.Parameter
) -> inspect.Signature:
    """Return a model's parameters with the context; the method's own where the model has one of that name.

    Args:
        own: signature of the method, as a function.
        parameters: of the model's forward, bound.
        first: what goes before them: ``self``, of a function.
    """
    if any(p.name == "context" for p in parameters):
        return own.replace(parameters=[*first, *list(own.parameters.values())[1:]])
    context = own.parameters["context"]
    last = parameters[-1:] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
    return inspect.Signature([*first, *parameters[: len(parameters) - len(last)], context, *last])
