"""Whether a value fits a JSON schema (2020-12): all its words but those in `_UNSUPPORTED`, which are refused in a schema."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from ._narrow import JsonObject, is_array, is_object, is_sequence

_DEPTH = 64
"""Schemas that point to themselves end here."""


_KINDS = ("object", "array", "string", "boolean", "number", "integer", "null")


def _is(value: Any, kind: str) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    tests = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "number": number,
        "integer": number and math.isfinite(value) and value == int(value),
        "null": value is None,
    }
    return tests.get(kind, True)


_BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str, str]] = {
    "minimum": (lambda v, b: v >= b, "number", "at least"),
    "maximum": (lambda v, b: v <= b, "number", "at most"),
    "exclusiveMinimum": (lambda v, b: v > b, "number", "above"),
    "exclusiveMaximum": (lambda v, b: v < b, "number", "below"),
    "minLength": (lambda v, b: len(v) >= b, "string", "of a length of at least"),
    "maxLength": (lambda v, b: len(v) <= b, "string", "of a length of at most"),
    "minItems": (lambda v, b: len(v) >= b, "array", "of a length of at least"),
    "maxItems": (lambda v, b: len(v) <= b, "array", "of a length of at most"),
    "minProperties": (lambda v, b: len(v) >= b, "object", "of a size of at least"),
    "maxProperties": (lambda v, b: len(v) <= b, "object", "of a size of at most"),
    "pattern": (lambda v, b: re.search(b, v) is not None, "string", "like"),
    # Numbers of a fraction are near their multiple: 0.3 is one of 0.1.
    "multipleOf": (lambda v, b: math.isclose(v / b, round(v / b), abs_tol=1e-9), "number", "a multiple of"),
}


_UNSUPPORTED = ("dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef")


def same(one: Any, other: Any) -> bool:
    """JSON's equality: a boolean is no number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if is_array(one) and is_array(other):
        return len(one) == len(other) and all(map(same, one, other))
    if is_object(one) and is_object(other):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


def _object_misfit(value: JsonObject, schema: JsonObject, fits: Callable[[Any, Any], bool], name: str) -> str | None:
    """What is wrong with an object beside its members."""
    missing = [key for key in schema.get("required", ()) if key not in value]
    for key, needed in schema.get("dependentRequired", {}).items():
        missing += [other for other in needed if key in value and other not in value]
    if missing:
        return f"{name} lacks {', '.join(missing)}"
    wrong = [key for key in value if not fits(key, schema.get("propertyNames", True))]
    return f"{name} must not have a member called {wrong[0]!r}" if wrong else None


def _array_misfit(value: list[Any], schema: JsonObject, fits: Callable[[Any, Any], bool], name: str) -> str | None:
    """What is wrong with an array beside its items."""
    if schema.get("uniqueItems") and any(same(one, other) for at, one in enumerate(value) for other in value[:at]):
        return f"{name} must not have the same item twice"
    if "contains" in schema:
        found, least = sum(fits(item, schema["contains"]) for item in value), schema.get("minContains", 1)
        if not least <= found <= schema.get("maxContains", found):
            return f"{name} has {found} of the items that are looked for"
    return None


def _members(value: JsonObject, schema: JsonObject) -> list[tuple[Any, Any, str]]:
    """Members of an object with the schemas that each has to fit."""
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    parts: list[tuple[Any, Any, str]] = []
    for key, member in value.items():
        own = [one for pattern, one in patterns.items() if re.search(pattern, key)]
        own += [known[key]] if key in known else []
        parts += [(member, one, f"`{key}`") for one in own or [schema.get("additionalProperties", True)]]
    return parts


def misfit(value: Any, schema: Any, root: Any = None, name: str = "it", depth: int = _DEPTH) -> str | None:
    """Why a value does not fit; `None` where it does."""
    root = schema if root is None else root
    if not is_object(schema) or depth == 0:
        return f"{name} must not be there" if schema is False else None
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{name} must be of type {' or '.join(kinds)}, not {value!r}"
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return f"{name} must be one of {', '.join(map(str, schema['enum']))}, not {value!r}"
    if "const" in schema and not same(value, schema["const"]):
        return f"{name} must be {schema['const']!r}, not {value!r}"
    for word, (holds, kind, text) in _BOUNDS.items():
        if word in schema and _is(value, kind) and not holds(value, schema[word]):
            return f"{name} must be {text} {schema[word]}, not {value!r}"

    def fits(part: Any, one: Any) -> bool:
        return misfit(part, one, root, name, depth - 1) is None

    parts: list[tuple[Any, Any, str]] = [(value, one, name) for one in schema.get("allOf", ())]
    if "$ref" in schema:
        parts.append((value, _pointed_to(root, schema["$ref"]), name))
    if "if" in schema:
        parts.append((value, schema.get("then" if fits(value, schema["if"]) else "else", True), name))
    why = None
    if is_object(value):
        why = _object_misfit(value, schema, fits, name)
        parts += _members(value, schema)
    elif is_array(value):
        why = _array_misfit(value, schema, fits, name)
        first: list[Any] = schema.get("prefixItems", [])
        all_of = [*first, *[schema.get("items", True)] * (len(value) - len(first))]
        parts += [(item, one, f"item {i + 1}") for i, (item, one) in enumerate(zip(value, all_of, strict=False))]
    if why is not None:
        return why
    for part, one, called in parts:
        why = misfit(part, one, root, called, depth - 1)
        if why is not None:
            return why
    for word in ("anyOf", "oneOf"):
        reasons = [misfit(value, one, root, name, depth - 1) for one in schema.get(word, ())]
        if reasons and None not in reasons:
            return reasons[0]
        if word == "oneOf" and reasons.count(None) > 1:
            return f"{name} fits more than one of the schemas of `oneOf`"
    return f"{name} is what it must not be" if "not" in schema and fits(value, schema["not"]) else None


def check_schema(schema: Any, path: str = "the schema", depth: int = _DEPTH) -> None:
    """A `TypeError` or `ValueError` that names the place where it is no JSON schema, so that who asks hears of it and not who answers."""
    if isinstance(schema, bool) or depth == 0:
        return
    if not is_object(schema):
        raise TypeError(f"{path} is a JSON schema (a dict) or a pydantic model, not {schema!r}")
    for word in _UNSUPPORTED:
        if word in schema:
            raise ValueError(f"`{word}` of {path} is not looked at: say it in other words")
    kinds = schema.get("type", [])
    for kind in kinds if is_sequence(kinds) else [kinds]:
        if kind not in _KINDS:
            raise ValueError(f"`type` of {path} is one of {', '.join(_KINDS)}, not {kind!r}")
    for word in _BOUNDS:
        bound = schema.get(word, 1)
        number = isinstance(bound, (int, float)) and not isinstance(bound, bool) and math.isfinite(bound)
        if word == "pattern":
            _check_pattern(schema.get(word, ""), path)
        elif not number or (word == "multipleOf" and bound <= 0):
            raise ValueError(f"`{word}` of {path} is a number{' above 0' if word == 'multipleOf' else ''}, not {bound!r}")
    for word in ("properties", "patternProperties", "$defs", "definitions"):
        inner = schema.get(word, {})
        if not is_object(inner):
            raise TypeError(f"`{word}` of {path} is a dict of schemas, not {inner!r}")
        for name, one in inner.items():
            check_schema(one, f"{path}.{name}", depth - 1)
            if word == "patternProperties":
                _check_pattern(name, path)
    for word in ("allOf", "anyOf", "oneOf", "prefixItems", "enum", "required"):
        inner = schema.get(word, [])
        if not is_sequence(inner):
            raise TypeError(f"`{word}` of {path} is a list, not {inner!r}")
        if word.endswith("Of") or word == "prefixItems":
            for number, one in enumerate(inner):
                check_schema(one, f"{path}.{word}[{number}]", depth - 1)
    for word in ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"):
        if word in schema and not isinstance(schema[word], (list, tuple)):
            check_schema(schema[word], f"`{word}` of {path}", depth - 1)


def _check_pattern(pattern: Any, path: str) -> None:
    try:
        re.compile(pattern)
    except (TypeError, re.error) as error:
        raise ValueError(f"`pattern` of {path} is a regular expression, not {pattern!r}: {error}") from None


def _pointed_to(root: Any, reference: Any) -> Any:
    found = root
    for part in str(reference).removeprefix("#/").split("/"):
        found = found.get(part, True) if is_object(found) else True
    return found
