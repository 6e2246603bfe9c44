"""The decoupled graph of a record: modules, interfaces and rules, with long chains shortened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..records import Record
from .fields import number, part, text

__all__ = ["Graph", "Interface", "Module", "graph_of", "shortened"]

#: What rules that are no synthetic gradient give to the module below, and take from the one above. A
#: record may say so itself (``credit``, ``observes``); all other rules do both.
_GIVES_NOTHING = ("NoBackprop",)
_TAKES_NOTHING = ("NoBackprop", "LocalLoss")

_LONG = 6  # modules; of more, the middle of a chain is drawn as one
_MOST = 24  # modules in a picture, when chains have been shortened
_READ = 4000  # modules of a record that are looked at


@dataclass(frozen=True, slots=True)
class Module:
    """A part of the network that learns as one.

    Attributes:
        name: as in the record.
        ends: interfaces at which it ends; ``output`` stands for the network's output.
        inputs: interfaces that feed it; empty for one that is fed by the data alone.
        parts: submodules that it is made of.
        num_parameters: None if not known.
        num_hidden: how many modules it stands for; 0 for one that stands for itself.
        alike: are these all the same but for their names?
    """

    name: str
    ends: tuple[str, ...]
    inputs: tuple[str, ...]
    parts: tuple[str, ...]
    num_parameters: int | None
    num_hidden: int = 0
    alike: bool = False


@dataclass(frozen=True, slots=True)
class Interface:
    """What sits at a cut.

    Attributes:
        shape: of the activation of one example.
        rule: name and settings of its rule.
        num_parameters: of the rule; None if not known.
        gives: does the module below get a credit?
        takes: does the true message train the rule?
    """

    shape: tuple[int, ...]
    rule: str
    num_parameters: int | None
    gives: bool
    takes: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """Modules in the order of the forward pass, and the interfaces between them by name.

    Attributes:
        engine: ``backprop`` for a network that is not cut; it is drawn as a chain of its parts.
    """

    engine: str
    modules: tuple[Module, ...]
    interfaces: Mapping[str, Interface]


def graph_of(record: Record) -> Graph | None:
    """Return the graph that a record holds; None if it holds none that could be drawn."""
    found = part(record, "graph")
    engine = text(found.get("engine"), 30)
    listed = [m for m in _list(found.get("modules")) if isinstance(m, dict)]
    if not listed or len(listed) > _READ:
        return None
    modules: list[Module] = []
    names: set[str] = set()
    known: set[str] = set()
    for m in listed:
        name = text(m.get("name"), 200)
        ends = tuple(e for e in _names(m.get("ends"), name) if e not in known)
        if name in names or not ends:
            return None  # two modules of one name, or of one end, are no graph
        inputs = tuple(i for i in _names(m.get("inputs")) if i in known)
        modules.append(Module(name, ends, inputs, _names(m.get("parts")), _count(m)))
        names.add(name)
        known.update(ends)
    interfaces = {
        text(i.get("name"), 200): _interface(i) for i in _list(found.get("interfaces")) if isinstance(i, dict)
    }
    if engine == "backprop":
        modules = _chain(modules)
    return Graph(engine, tuple(modules), interfaces)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _names(value: Any, default: str | None = None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text(v, 200) for v in _list(value)[:_READ]))
    return names or ((default,) if default is not None else ())


def _count(values: Mapping[str, Any]) -> int | None:
    found = number(values, "num_parameters")
    return None if found is None else int(found)


def _interface(values: Mapping[str, Any]) -> Interface:
    rule = text(values.get("rule"), 300)
    kind = rule.partition("(")[0]
    shape = (number({"": n}, "") for n in _list(values.get("shape"))[:8])
    return Interface(
        shape=tuple(int(n) for n in shape if n is not None),
        rule=rule,
        num_parameters=_count(values),
        gives=bool(values.get("credit", kind not in _GIVES_NOTHING)),
        takes=bool(values.get("observes", kind not in _TAKES_NOTHING)),
    )


def _chain(modules: Sequence[Module]) -> list[Module]:
    """Return the parts of an uncut network as a chain, each of unknown size unless it is the only one."""
    parts = [(p, m) for m in modules for p in (m.parts or (m.name,))]
    size = modules[0].num_parameters if len(parts) == 1 else None
    names = [p for p, _ in parts]
    return [
        Module(name, (f"{k}",), (f"{k - 1}",) if k else (), (), size) for k, name in enumerate(names[:_READ])
    ]


def shortened(graph: Graph) -> Graph | None:
    """Return the graph with the middle of every long chain as one module; None if it is still too large."""
    if len(graph.modules) <= _LONG:
        return graph
    modules: list[Module] = []
    for run in _runs(graph):
        if len(run) > 5:
            modules += [*run[:2], _joined(graph, run[2:-2]), *run[-2:]]
        else:
            modules += run
    return replace(graph, modules=tuple(modules)) if len(modules) <= _MOST else None


def _runs(graph: Graph) -> list[list[Module]]:
    """Split the modules into chains: each module of a chain is fed by the one before it, which feeds no other."""
    consumers: dict[str, int] = {}
    for module in graph.modules:
        for name in module.inputs:
            consumers[name] = consumers.get(name, 0) + 1
    runs: list[list[Module]] = []
    for module in graph.modules:
        last = runs[-1][-1] if runs else None
        follows = last is not None and module.inputs == last.ends and consumers.get(last.ends[0]) == 1
        if follows and len(module.ends) == 1:
            runs[-1].append(module)
        else:
            runs.append([module])
    return runs


def _joined(graph: Graph, modules: Sequence[Module]) -> Module:
    """Return one module that stands for a chain of them."""
    like = {(m.num_parameters, _rule(graph, m)) for m in modules}
    alike = len(like) == 1 and modules[0].num_parameters is not None
    first, last = modules[0], modules[-1]
    return Module(
        name=f"{first.name} … {last.name}",
        ends=last.ends,
        inputs=first.inputs,
        parts=(),
        num_parameters=first.num_parameters if alike else None,
        num_hidden=len(modules),
        alike=alike,
    )


def _rule(graph: Graph, module: Module) -> str:
    found = [graph.interfaces[e].rule for e in module.ends if e in graph.interfaces]
    return "; ".join(found)
