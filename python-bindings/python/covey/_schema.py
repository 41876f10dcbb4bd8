"""JSON schemas of parameters, from their annotations."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence, Set
from typing import Any, cast

from ._context import Context
from ._hints import Files, annotations_of, hint_of
from ._narrow import JsonObject

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object", type(None): "null"}


def of_parameters(function: Any, skip: int = 0) -> JsonObject:
    """An object with a property for each parameter behind the first `skip`; a context and files, which travel beside the arguments, are left out."""
    hints = annotations_of(function)
    properties: JsonObject = {}
    required: list[str] = []
    for p in list(inspect.signature(function).parameters.values())[skip:]:
        hint = hint_of(hints.get(p.name))
        if p.name == "ctx" or hint is Context or isinstance(hint, Files) or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        properties[p.name] = of_hint(hints.get(p.name, Any))
        if p.default is p.empty:
            required.append(p.name)
    return {"type": "object", "properties": properties, "required": required}


def of_hint(hint: Any) -> JsonObject:
    """The schema of an annotation; of one that JSON does not know, anything."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        text = next((a for a in args[1:] if isinstance(a, str)), None)
        return {**of_hint(args[0]), **({"description": text} if text else {})}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [of_hint(a) for a in args]}
    kind = origin or hint
    # A pydantic model. An agent is no type here: asked for an attribute that it lacks, it would want its schemas, or an actor to be made.
    if isinstance(kind, type) and (model_schema := getattr(cast(Any, kind), "model_json_schema", None)) is not None:
        return model_schema()
    if kind in _NAMES:
        name = _NAMES[kind]
    elif isinstance(kind, type) and issubclass(kind, Mapping):
        name = "object"
    elif isinstance(kind, type) and issubclass(kind, (Sequence, Set, tuple)):
        name = "array"
    else:
        return {}
    if name == "array" and args and kind is not tuple and args[0] is not Any:
        return {"type": "array", "items": of_hint(args[0])}
    if name == "object" and len(args) == 2 and args[1] is not Any:
        return {"type": "object", "additionalProperties": of_hint(args[1])}
    return {"type": name}
