"""Arguments of methods and constructors, from whatever they travelled in."""

from __future__ import annotations

import inspect
import json
import typing
from typing import Any

from . import _bridge, _codec
from ._content import File, file_of


def with_key(cls: Any, key: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Constructor arguments of a virtual actor: its key for the parameter `key`, else for the first that must be given, else among
    those of `*args` or `**kwargs`.
    """
    parameters = inspect.signature(cls).parameters
    variadic = [p for p in parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p for p in parameters.values() if p.default is p.empty and p not in variadic]
    taker = parameters.get("key") or next(iter((*needed, *variadic)), None)
    if taker is None:
        return (), {}
    if taker.kind is taker.VAR_KEYWORD:
        return (), {"key": key}
    if taker.kind is taker.KEYWORD_ONLY or taker.kind is taker.POSITIONAL_OR_KEYWORD and taker.name == "key":
        return (), {taker.name: key}
    # What stands before it keeps its default.
    before = list(parameters.values())[: list(parameters).index(taker.name)]
    return (*(p.default for p in before if p.default is not p.empty), key), {}


def from_payload(payload: Any) -> tuple[Any, dict[str, Any]]:
    """Positional and named arguments, as a caller sent them."""
    if payload is None:
        return (), {}
    value = _codec.load(payload)
    if payload[0] == _bridge.JSON:
        return list(value.get("args", [])), dict(value.get("kwargs", {}))
    return value


_FILES = (File, list[File])


def from_content(content: list[dict[str, Any]], wanted: list[inspect.Parameter], hints: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A message's parts as arguments: an object whose keys are parameters, else its text as the first."""
    # Files go where files are asked for.
    files = [p for p in wanted if hints.get(p.name) in _FILES]
    if files:
        wanted = [p for p in wanted if p not in files]
        args, kwargs = from_content(content, wanted, hints)
        sent = [file_of(part) for part in content if "source" in part]
        for p in files:
            if hints[p.name] is not File:
                kwargs[p.name] = sent
            elif sent:
                kwargs[p.name] = sent[0]
        return [], {**{p.name: arg for p, arg in zip(wanted, args)}, **kwargs}
    names = {p.name for p in wanted}
    data = [part["data"] for part in content if "data" in part]
    if len(data) == 1 and isinstance(data[0], dict) and data[0] and set(data[0]) <= names:
        return [], dict(data[0])
    if not wanted:
        return [], {}
    text = "\n".join(part["text"] if "text" in part else json.dumps(part["data"]) for part in content if "text" in part or "data" in part)
    hint = hints.get(wanted[0].name)
    if hint in (int, float):
        return [hint(text.strip())], {}
    if hint in (list, dict) or typing.get_origin(hint) in (list, dict):
        return [json.loads(text)], {}
    return [text], {}


def hints_of(method: Any) -> dict[str, Any]:
    """Annotations by name; none where they cannot be read."""
    try:
        return typing.get_type_hints(method)
    except Exception:
        return {}
