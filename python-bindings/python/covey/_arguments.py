"""Arguments of methods and constructors, from whatever they travelled in."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from . import _bridge, _codec
from ._content import File, file_of
from ._context import Context
from ._hints import Files, hints_of
from ._narrow import JsonObject, is_object

if TYPE_CHECKING:
    from ._wire import Sent

Arguments = tuple[tuple[Any, ...], JsonObject]
"""Positional and named ones."""


def with_key(cls: Any, key: str) -> Arguments:
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


class Places:
    """Where the context goes among the parameters of a function: one annotated `Context`, or named `ctx`."""

    def __init__(self, parameters: list[inspect.Parameter], hints: dict[str, Any]):
        positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.POSITIONAL_ONLY)]
        self.takes: dict[str, int | None] = {
            p.name: positional.index(p.name) if p.name in positional else None
            for p in parameters
            if p.name == "ctx" or hints.get(p.name) is Context
        }

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> Arguments:
        """The arguments with the context among them."""
        for name, at in self.takes.items():
            if at is not None and len(args) > at:
                args = (*args[:at], context, *args[at:])
            else:
                kwargs.setdefault(name, context)
        return args, kwargs


class FunctionPlaces(Places):
    """The same of a function that was not written for Covey, maybe: what its caller gives for `ctx` is the caller's."""

    def __init__(self, function: Any):
        try:
            self._signature = inspect.signature(function)
        except (TypeError, ValueError):  # some builtins have none
            self.takes = {}
            return
        hints = hints_of(function)
        super().__init__(list(self._signature.parameters.values()), hints)
        self._by_name = {name for name in self.takes if hints.get(name) is not Context}

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any], context: Context) -> Arguments:
        if not self._by_name:
            return super().fill(args, kwargs, context)
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError:  # something is missing, which is the context
            return super().fill(args, kwargs, context)
        return args, kwargs | {name: context for name in self.takes if name not in given}


def from_payload(payload: Sent | None) -> Arguments:
    """Positional and named arguments, as a caller sent them."""
    if payload is None:
        return (), {}
    value = _codec.load(payload)
    if payload[0] == _bridge.JSON:
        return tuple(value.get("args", ())), dict(value.get("kwargs", {}))
    return value


def from_content(content: list[JsonObject], wanted: list[inspect.Parameter], hints: dict[str, Any]) -> Arguments:
    """A message's parts as arguments: an object whose keys are parameters, else its text as the first.

    `hints` is of `hints_of`.
    """
    # Files go where files are asked for.
    takers = {p.name: p for p in wanted if isinstance(hints.get(p.name), Files)}
    if takers:
        wanted = [p for p in wanted if p.name not in takers]
        args, kwargs = from_content(content, wanted, hints)
        given = _given([file_of(part) for part in content if "source" in part], takers, hints)
        return (), {**{p.name: arg for p, arg in zip(wanted, args)}, **kwargs, **given}
    names = {p.name for p in wanted}
    data = [part["data"] for part in content if "data" in part]
    if len(data) == 1 and is_object(data[0]) and data[0] and set(data[0]) <= names:
        return (), dict(data[0])
    if not wanted:
        return (), {}
    text = "\n".join(part["text"] if "text" in part else json.dumps(part["data"]) for part in content if "text" in part or "data" in part)
    hint = hints.get(wanted[0].name)
    if hint in (int, float):
        return (hint(text.strip()),), {}
    if hint in (list, dict):
        return (json.loads(text),), {}
    return (text,), {}


def _given(files: list[File], takers: dict[str, inspect.Parameter], hints: dict[str, Any]) -> JsonObject:
    """The files of a message by parameter: one each for those that take one, in their order, and all for those that take more."""
    given: dict[str, Any] = {}
    left = iter(files)
    for name, taker in takers.items():
        form, optional = hints[name]
        if form is File:
            one = next(left, None)
            if one is not None:
                given[name] = one
        elif files or not optional:
            given[name] = _by_name(files) if form is dict else form(files)
        if optional and name not in given and taker.default is taker.empty:
            given[name] = None
    return given


def _by_name(files: list[File]) -> dict[str, File]:
    named: dict[str, File] = {}
    for number, file in enumerate(files, 1):
        named[f"file-{number}" if file.name is None or file.name in named else file.name] = file
    return named
