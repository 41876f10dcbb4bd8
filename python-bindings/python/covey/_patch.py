"""JSON Patch (RFC 6902): what `ctx.state.patch` does to the state."""

from __future__ import annotations

import copy
from typing import Any

from ._fits import same
from ._narrow import JsonObject, is_a, is_array, is_object


def apply(value: Any, patch: list[JsonObject]) -> Any:
    """A copy of `value` with the operations done, one after the other; `ValueError` where one cannot be."""
    if not is_a(patch, list):
        raise TypeError(f"a patch is a list of operations, not {patch!r}")
    value = copy.deepcopy(value)
    for operation in patch:
        value = _one(value, operation)
    return value


def _one(value: Any, operation: Any) -> Any:
    if not is_object(operation) or not isinstance(operation.get("path"), str):
        raise ValueError(f"{operation!r} is no operation: it has no `op` and `path`")
    op, path = operation.get("op"), _pointer(operation["path"])
    if op in ("add", "replace", "test") and "value" not in operation:
        raise ValueError(f"{operation!r} has no `value`")
    if op in ("move", "copy") and not isinstance(operation.get("from"), str):
        raise ValueError(f"{operation!r} has no `from`")
    if op == "add":
        return _add(value, path, copy.deepcopy(operation["value"]))
    if op == "remove":
        return _remove(value, path)
    if op == "replace":
        _get(value, path)
        return copy.deepcopy(operation["value"]) if not path else _add(_remove(value, path), path, copy.deepcopy(operation["value"]))
    if op == "test":
        if not same(_get(value, path), operation["value"]):
            raise ValueError(f"{operation['path']!r} is not {operation['value']!r}")
        return value
    if op == "copy":
        return _add(value, path, copy.deepcopy(_get(value, _pointer(operation["from"]))))
    if op == "move":
        source = _pointer(operation["from"])
        if path[: len(source)] == source and path != source:
            raise ValueError(f"{operation['from']!r} cannot be moved into itself")
        moved = _get(value, source)
        return _add(_remove(value, source), path, moved)
    raise ValueError(f"{op!r} is none of add, remove, replace, move, copy, test")


def _pointer(text: str) -> list[str]:
    """The steps of a JSON pointer (RFC 6901)."""
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no JSON pointer: it begins with '/'")
    return [step.replace("~1", "/").replace("~0", "~") for step in text.split("/")[1:]]


def _index(place: list[Any], step: str, most: int) -> int:
    if not (step == "0" or (step.isascii() and step.isdigit() and step[0] != "0")) or int(step) > most:
        raise ValueError(f"{step!r} is no place in a list of {len(place)}")
    return int(step)


def _get(value: Any, path: list[str]) -> Any:
    for step in path:
        if is_array(value):
            value = value[_index(value, step, len(value) - 1)]
        elif is_object(value) and step in value:
            value = value[step]
        else:
            raise ValueError(f"there is no {step!r} in it")
    return value


def _add(value: Any, path: list[str], new: Any) -> Any:
    if not path:
        return new
    place, step = _get(value, path[:-1]), path[-1]
    if is_array(place):
        place.insert(len(place) if step == "-" else _index(place, step, len(place)), new)
    elif is_object(place):
        place[step] = new
    else:
        raise ValueError(f"{step!r} cannot be added to {place!r}")
    return value


def _remove(value: Any, path: list[str]) -> Any:
    if not path:
        return None
    place, step = _get(value, path[:-1]), path[-1]
    _get(place, [step])
    del place[int(step) if isinstance(place, list) else step]
    return value
