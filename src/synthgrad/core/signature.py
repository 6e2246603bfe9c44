"""A forward method that says what the wrapped model takes: trainers look at it to know which columns of a batch to pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["with_signature_of_model"]


class with_signature_of_model:
    """Make a method of a module with an attribute ``model`` show the signature of that model's ``forward``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__
        self.__name__ = method.__name__

    def __get__(self, net: Any, owner: type) -> Any:
        return self._method if net is None else _Bound(self._method, net)


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
        parameters = list(inspect.signature(self._net.model.forward).parameters.values())
        if any(p.name == "context" for p in parameters):
            return own.replace(parameters=list(own.parameters.values())[1:])
        context = own.parameters["context"]
        last = parameters[-1:] if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD else []
        return inspect.Signature([*parameters[: len(parameters) - len(last)], context, *last])
