"""Penalties: terms of the loss that do not depend on the network's output, one for each module.

A weight penalty depends on every parameter of the network; a balancing loss was left in an attribute by one
module. The modules of a decoupled network learn at different times, so each module has a term of its own,
which is added to its credit. With the true gradient as credit, the sum is the gradient of ``criterion + Σ
penalties``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..core import ConfigError, Decoupled
from .optimizers import Parameters
from .watch import leaves_of

__all__ = ["Penalties", "Penalty", "Term"]

#: Takes the parameters of a module (a list that knows their names); returns a scalar, or None for no penalty.
Term = Callable[[Parameters], Tensor | None]

#: One term for all modules, or a mapping from a module's name (the cut at its end, or ``"output"``) to its term.
Penalty = Term | Mapping[str, Term]


class Penalties:
    """The penalties of a network's modules.

    Args:
        net: the network.
        penalty: the user's penalty; None for no penalty.

    Raises:
        ConfigError: if a name is not the name of a module, or a term cannot be called.
    """

    def __init__(self, net: Decoupled, penalty: Penalty | None) -> None:
        modules = {m.name: m for m in net.graph.modules}
        terms: dict[str, Term] = {}
        if isinstance(penalty, Mapping):
            terms = dict(penalty)
        elif penalty is not None:
            terms = dict.fromkeys(modules, penalty)
        for name, term in terms.items():
            if name not in modules:
                raise ConfigError(f"penalty names the module '{name}', expected some of {list(modules)}")
            if not callable(term):
                raise ConfigError(
                    f"penalty={term!r}: expected a function of a module's parameters, such as "
                    "lambda own: 1e-4 * sum(p.square().sum() for p in own), or one for each module's name"
                )
        self._terms = terms
        self._checked: set[str] = set()
        self._own = {
            name: Parameters([(n, net.model.get_parameter(n)) for n in modules[name].parameters], name)
            for name in terms
        }
        self._others = {name: _names_of_others(own, net) for name, own in self._own.items()}

    def function(self, module: str) -> Callable[[], Tensor | None] | None:
        """Return a function that computes the penalty of a module, as `compute` does.

        None if the module has none.
        """
        return (lambda: self.compute(module)) if module in self._terms else None

    def __bool__(self) -> bool:
        return bool(self._terms)

    def compute(self, module: str) -> Tensor | None:
        """Compute the penalty of a module: a scalar with its graph; None if there is none.

        Raises:
            ConfigError: if it is not a scalar, or depends on a parameter of another module.
        """
        term = self._terms.get(module)
        found = None if term is None else term(self._own[module])
        if found is None or not isinstance(found, Tensor) or not found.requires_grad:
            return None
        if found.ndim:
            raise ConfigError(
                f"the penalty of module '{module}' has shape {tuple(found.shape)}, expected a scalar; sum it"
            )
        if module not in self._checked:
            self._check(module, found)
        return found

    def _check(self, module: str, found: Tensor) -> None:
        """Refuse a penalty that depends on a parameter of another module.

        Done once, since it walks the whole graph.
        """
        others = self._others[module]
        for variable in leaves_of(found, ()):
            if id(variable) in others:
                raise ConfigError(
                    f"the penalty of module '{module}' depends on parameter '{others[id(variable)]}', which is not that "
                    "module's; make it of the parameters that it is given, not of net.parameters()"
                )
        self._checked.add(module)


def _names_of_others(own: Parameters, net: Decoupled) -> dict[int, str]:
    """Return the names of all parameters of a network except some, by ``id``."""
    known = set(map(id, own))
    return {id(p): n for n, p in net.named_parameters() if id(p) not in known}
