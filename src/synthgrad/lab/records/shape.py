"""What the parts of a record must be where they are there, so that readers need not ask again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["odd_part"]

Check = Callable[[Any], bool]

_DEEP = 6  # lists and dictionaries inside each other, in settings


def odd_part(record: Mapping[str, Any]) -> str | None:
    """Return the name of the first part of a record that is not what it must be; None if all are.

    Parts that are missing, and parts that are not known, pass.
    """
    for name, check in _PARTS.items():
        if name in record and not check(record[name]):
            return name
    return None


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _plain_or_list(value: Any) -> bool:
    return all(map(_plain, value)) if isinstance(value, list) else _plain(value)


def _settings(value: Any, deep: int = _DEEP) -> bool:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return deep > 0 and all(_settings(v, deep - 1) for v in inner)
    return _plain(value)


def _of(check: Check) -> Check:
    """Return the check of a dictionary that holds nothing but such values."""
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _config(value: Any) -> bool:
    return isinstance(value, dict) and _settings(value) and _rule(value.get("rule"))


def _rule(value: Any) -> bool:
    return value is None or isinstance(value, dict | str)


_quality = _or_none(_of(_or_none(_of(_number))))


def _point(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _quality(inner) if name == "quality" else _plain(inner) for name, inner in value.items()
    )


def _graph(value: Any) -> bool:
    lists = (value.get("modules", []), value.get("interfaces", [])) if isinstance(value, dict) else (None,)
    return all(_list_of(_of(_plain_or_list))(entries) for entries in lists)


_PARTS: Mapping[str, Check] = {
    "experiment": _text,
    "method": _text,
    "status": _text,
    "tier": _or_none(_text),
    "error": _or_none(_text),
    "seed": _whole,
    "steps": _whole,
    "batch_size": _whole,
    "cell": _of(_plain_or_list),
    "config": _config,
    "metrics": _of(_plain),
    "time": _of(_plain),
    "env": _of(_plain_or_list),
    "curve": _list_of(_point),
    "graph": _or_none(_graph),
    "estimate": _or_none(_of(_number)),
}
