"""The table of costs of a model: a row for each place where it can be cut, in memory and as a file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..core import ConfigError
from ..core.given import brief, check_whole, similar
from .costs import StageCost, total_cost

__all__ = ["CostTable", "ModuleCost"]

#: Of a file: the key of each figure, and the field that it fills. Times are in milliseconds there.
_KEYS = {
    f.name.removesuffix("_s") + "_ms" if f.name.endswith("_s") else f.name: f.name for f in fields(StageCost)
}
#: Figures without which a row has a hole. The last one needs none of bytes: nothing crosses after it.
_NEEDED = ("forward_ms", "backward_ms", "output_bytes")


@dataclass(frozen=True, slots=True)
class ModuleCost:
    """A row of a table.

    Attributes:
        name: the submodule after which a cut can be made; of the last row any name, such as ``"output"``.
        cost: of everything from the row before to here. Bytes of the output and seconds of the rule are those of a cut
            after this row.
    """

    name: str
    cost: StageCost


@dataclass(frozen=True, slots=True)
class CostTable:
    """What the parts of a model cost, from its input to its output.

    Attributes:
        modules: the rows, in the order of the forward pass; a cut can be made after each of them but the last.
        batch_size: examples of the batch that the costs are of.
        model: a name of the model, for tables; None without one.

    Raises:
        ConfigError: if there are no rows, or two of one name.
    """

    modules: tuple[ModuleCost, ...]
    batch_size: int
    model: str | None = None

    def __post_init__(self) -> None:
        check_whole("batch_size", self.batch_size, 1, "number of examples of a batch")
        if not self.modules:
            raise ConfigError("a table of costs without modules: expected one row or more")
        seen: set[str] = set()
        for module in self.modules:
            if module.name in seen:
                raise ConfigError(
                    f"module '{module.name}' has two rows in the table of costs: expected one for each"
                )
            seen.add(module.name)

    @property
    def names(self) -> list[str]:
        """Names of the submodules after which a cut can be made."""
        return [module.name for module in self.modules[:-1]]

    def stages(self, cuts: Sequence[str]) -> list[StageCost]:
        """Return the costs of the stages between cuts, from the bottom up; the last one has no rule and sends nothing up.

        Args:
            cuts: names from `names`, in the order of the forward pass; an empty sequence for one stage.

        Raises:
            ConfigError: if a name is unknown or given twice, or they are out of order.

        >>> row = lambda name: ModuleCost(name, StageCost(1.0, 2.0, output_bytes=8, credit_s=0.5))
        >>> table = CostTable((row("a"), row("b"), row("output")), batch_size=4)
        >>> tuple(stage.decoupled_s for stage in table.stages(["b"]))
        (6.5, 3.0)
        """
        ends = [*(self.position(name) + 1 for name in cuts), len(self.modules)]
        starts = [0, *ends[:-1]]
        for start, end in zip(starts, ends, strict=True):
            if end <= start:
                raise ConfigError(
                    f"cuts {list(cuts)}: expected each name once, in the order of the forward pass: {_listed(self.names)}"
                )
        costs = [total_cost(m.cost for m in self.modules[a:b]) for a, b in zip(starts, ends, strict=True)]
        costs[-1] = replace(costs[-1], output_bytes=0.0, credit_s=0.0, observe_s=0.0, local_s=0.0)
        return costs

    def position(self, cut: str) -> int:
        """Return the position of the row after which a cut lies.

        Raises:
            ConfigError: if the table has no such row, or it is the last one.
        """
        names = self.names
        if cut not in names:
            raise ConfigError(
                f"the table of costs has no cut '{cut}'{similar(cut, names)}; it has: {_listed(names) or 'none'}"
            )
        return names.index(cut)

    # -- as data ------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain containers, with times in milliseconds, as `write` writes it."""
        found: dict[str, Any] = {} if self.model is None else {"model": self.model}
        rows = [{"name": m.name, **_figures(m.cost)} for m in self.modules]
        return {**found, "batch_size": self.batch_size, "modules": rows}

    @classmethod
    def from_dict(cls, given: Any, where: str = "the table of costs") -> CostTable:
        """Return the table that `to_dict` describes.

        ``name``, ``forward_ms``, ``backward_ms`` and, except in the last row, ``output_bytes`` are needed; what else is
        missing is zero. ``backward_input_ms`` may be null.

        Args:
            given: what a file holds, or the like.
            where: it comes from, for errors.

        Raises:
            ConfigError: naming the module and the key, if a figure is missing, negative or no number, a key is unknown,
                or there are no modules or two of one name.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(
                f"{where} is {brief(given)}: expected an object with the keys batch_size and modules"
            )
        _check_keys(given, ("batch_size", "modules", "model"), where)
        for key, what in (
            ("batch_size", "the number of examples"),
            ("modules", "a list with a row for each module"),
        ):
            if key not in given:
                raise ConfigError(f"{where} has no {key}: expected {what}")
        rows, model = given["modules"], given.get("model")
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise ConfigError(f"{where}: modules={brief(rows)}: expected a list with a row for each module")
        if model is not None and not isinstance(model, str):
            raise ConfigError(f"{where}: model={brief(model)}: expected a name, or nothing")
        modules = [_row(row, k, last=k == len(rows) - 1, where=where) for k, row in enumerate(rows)]
        try:
            return cls(tuple(modules), given["batch_size"], model)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    @classmethod
    def read(cls, path: str | Path) -> CostTable:
        """Return the table in a JSON file.

        Raises:
            ConfigError: if the file cannot be read, is no JSON, or `from_dict` refuses it.
        """
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read ({error.strerror or error}); give a table of costs as a JSON file"
            ) from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{path} is no JSON ({error}); give a table of costs as CostTable.write makes it"
            ) from error
        return cls.from_dict(given, str(path))

    def write(self, path: str | Path) -> None:
        """Write the table to a JSON file.

        Raises:
            ConfigError: if the file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be written ({error.strerror or error}); give a file in a folder that exists"
            ) from error


def _figures(cost: StageCost) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for key, name in _KEYS.items():
        value = getattr(cost, name)
        found[key] = value if value is None or not key.endswith("_ms") else _digits(value * 1e3)
    return found


def _row(row: Any, number: int, *, last: bool, where: str) -> ModuleCost:
    if not isinstance(row, Mapping):
        raise ConfigError(
            f"{where}: module {number} is {brief(row)}: expected an object with name, forward_ms, …"
        )
    name = row.get("name")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: module {number}: name={brief(name)}: expected the name of a submodule")
    which = f"{where}: module '{name}'"
    _check_keys(row, ("name", *_KEYS), which)
    figures: dict[str, Any] = {}
    for key, field in _KEYS.items():
        if key not in row:
            if key in _NEEDED[: 2 if last else 3]:
                raise ConfigError(f"{which}: {key} is missing: expected {_accepted(key)}")
            continue
        value = row[key]
        if value is None and key == "backward_input_ms":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{which}: {key}={brief(value)}: expected {_accepted(key)}")
        figures[field] = _digits(value / 1e3) if key.endswith("_ms") else value
    return ModuleCost(name, StageCost(**figures))


def _accepted(key: str) -> str:
    if key == "backward_input_ms":
        return "milliseconds, a number from 0, or null"
    return "milliseconds, a number from 0" if key.endswith("_ms") else "bytes, a number from 0"


def _digits(value: float) -> float:
    """Return a number to twelve digits, so that seconds come back as they were from milliseconds."""
    return float(f"{value:.12g}")


def _check_keys(given: Mapping[Any, Any], known: Sequence[str], which: str) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{which}: unknown key {brief(key)}{similar(str(key), known)}; expected {', '.join(known)}"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (" …" if len(names) > 12 else "")
