"""Values as the JSON that a task's log keeps: what has a form in it gets that, the rest is refused by its place in the value."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import math
import pathlib
import re
import sys
import uuid
from collections.abc import Collection, Iterator
from typing import Any

from ._narrow import is_a, is_dataclass_object, is_dict, is_sequence, is_set

DEPTH_MAX = 64
"""Levels that the log takes."""
_INTEGERS = -(1 << 63), (1 << 64) - 1
"""The least and the largest that readers in other languages hold; beyond them they read another number."""
_DIGITS = re.compile(rb"\d{19}")
_TEXT = (decimal.Decimal, uuid.UUID, pathlib.PurePath)
_ISO = (datetime.date, datetime.time)


def dump(value: Any) -> bytes:
    """`value` as JSON; a `TypeError` names what has no form in it."""
    body, why = b"", ""
    try:
        body = _encode(value).encode()
    except (TypeError, ValueError, RecursionError) as error:  # half a surrogate pair is a ValueError too
        why = str(error)
    if why or _DIGITS.search(body) or _loses_keys(value):
        _refuse(value, "the value", ())
    if why:
        raise _refusal("the value", _name(value), why)
    return body


def load(value: Any) -> Any:
    """`value` as who reads the JSON has it."""
    return json.loads(dump(value))


def _loses_keys(value: Any) -> bool:
    """Two keys of one dict in it have the same text, so that a reader finds one of their values only."""
    left: list[Any] = [value]
    seen = set[int]()
    while left:
        part = left.pop()
        if id(part) in seen:  # it may hold itself, which the encoder refuses later
            continue
        seen.add(id(part))
        inside: Collection[Any]
        if is_dict(part):
            if any(type(key) is not str for key in part) and len({_key_text(key) for key in part}) < len(part):
                return True
            inside = part.values()
        elif is_sequence(part):
            inside = part
        else:
            continue
        left += (inner for inner in inside if isinstance(inner, (dict, list, tuple)))
    return False


def _key_text(key: Any) -> str:
    """A key as JSON has it: `True` is "true" there, and `1` is "1"."""
    return key if type(key) is str else str(next(iter(json.loads(json.dumps({key: 0})))))


def refuse_lost_keys(value: Any, name: str) -> None:
    """A `TypeError` that names the place in `value` where two keys of a dict become one in JSON."""
    if _loses_keys(value):
        _refuse_keys(value, name)


def _refuse_keys(value: Any, path: str) -> None:
    if is_dict(value):
        _keys_of(value, path)
        for key, part in value.items():
            _refuse_keys(part, f"{path}[{key!r}]")
    elif is_sequence(value):
        for at, part in enumerate(value):
            _refuse_keys(part, f"{path}[{at!r}]")


def _keys_of(value: dict[Any, Any], path: str) -> None:
    seen: dict[str, Any] = {}
    for key in value:
        text = _key_text(key)
        if text in seen:
            why = f"JSON keeps keys as text, and the key {seen[text]!r} is {text!r}, too; give one of them another name"
            raise TypeError(f"the key {key!r} of {path} ({_name(key)}) would be lost: {why}")
        seen[text] = key


def _checked_form(value: Any) -> Any:
    form = _form(value)
    if _loses_keys(form):
        raise TypeError("two of its keys become one")
    return form


def _form(value: Any) -> Any:
    """What JSON does not know, as something closer to what it does."""
    if isinstance(value, enum.Enum):
        return value.value
    if hasattr(value, "model_dump") and not is_a(value, type):  # a pydantic model
        return value.model_dump(mode="json")
    if is_dataclass_object(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if is_set(value):
        return list(value)
    if isinstance(value, _ISO):
        return value.isoformat()
    if isinstance(value, _TEXT):
        return str(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and is_a(value, (numpy.ndarray, numpy.generic)) and not is_a(value, bytes):
        if value.dtype.kind == "M":  # some of these have numbers for items
            return value.astype(str).tolist()
        return float(value) if is_a(value, numpy.longdouble) else value.tolist()
    raise TypeError("not plain data")


_encode = json.JSONEncoder(default=_checked_form, allow_nan=False, ensure_ascii=False).encode


def _refuse(value: Any, path: str, around: tuple[int, ...]) -> None:
    """Raises for the first thing in `value` that the log does not keep as it is."""
    if id(value) in around:
        raise _refusal(path, _name(value), "it holds itself; give plain data that ends")
    if len(around) > DEPTH_MAX:
        raise _refusal("the value", "nested", f"it is more than {DEPTH_MAX} levels deep; give data that is flatter")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _refusal(path, repr(float(value)), "JSON has no such number; give None for what is missing")
    elif isinstance(value, int):
        if not _INTEGERS[0] <= value <= _INTEGERS[1]:
            raise _refusal(path, "int", "it has more than 64 bits; give it as text")
    elif isinstance(value, str):
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise _refusal(path, "str", "it has half a surrogate pair; give bytes that are no text as a covey.File")
    else:
        for part, where in _parts(value, path):
            _refuse(part, where, (*around, id(value)))


def _parts(value: Any, path: str) -> Iterator[tuple[Any, str]]:
    """What a value is made of, with the place of each."""
    if is_dict(value):
        for key, part in value.items():
            if not (key is None or isinstance(key, (str, int, float))):
                raise _refusal(f"the key {key!r} of {path}", _name(key), "keys are text (numbers, booleans and None become text)")
            _refuse(str(key), f"the key {key!r} of {path}", ())
            yield part, f"{path}[{key!r}]"
        _keys_of(value, path)
    elif is_sequence(value):
        for index, part in enumerate(value):
            yield part, f"{path}[{index}]"
    else:
        try:
            form = _form(value)
        except TypeError:
            raise _refusal(path, _name(value), _hint(value)) from None
        if dataclasses.is_dataclass(value):
            yield from ((part, f"{path}.{name}") for name, part in form.items())
        else:
            yield form, path


def _hint(value: object) -> str:
    if is_a(value, (bytes, bytearray, memoryview)):
        return "give bytes as a file: covey.File(data)"
    hint: str | None = getattr(type(value), "__covey_not_plain__", None)
    if hint is not None:  # a class of ours says itself what to do
        return hint
    if hasattr(value, "tolist") and not is_a(value, type):
        return "give plain data: its tolist() is that"
    return "give plain data: text, numbers, lists, dicts, dataclasses"


def _name(value: object) -> str:
    cls = type(value)
    module = cls.__module__
    plain = module in ("builtins", "__main__") or module.split(".")[0] == "covey"
    return cls.__qualname__ if plain else f"{module}.{cls.__qualname__}"


def _refusal(path: str, kind: str, hint: str) -> TypeError:
    return TypeError(f"{path} ({kind}) cannot be kept in a task, which keeps JSON: {hint}")
