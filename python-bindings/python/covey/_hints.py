"""What the annotations of a method say of its parameters, to those who fill them in."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from typing import Any, NamedTuple

from ._content import File
from ._context import Context


class Files(NamedTuple):
    """A parameter that gets files: those that come beside a message's text and data."""

    form: type
    """`File` (one), `list`, `tuple`, or `dict` (by name)."""
    optional: bool
    """`None` does where no file comes."""


_LISTS = {
    list: list, tuple: tuple, collections.abc.Sequence: list, collections.abc.Collection: list, collections.abc.Iterable: list,
}  # fmt: skip
_DICTS = (dict, collections.abc.Mapping)


def annotations_of(function: Any) -> dict[str, Any]:
    """Annotations by name, with what `Annotated` adds; those that cannot be read are left out."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception:  # one of them has a name that is there for type checkers alone
        function = inspect.unwrap(function)
        within = getattr(function, "__globals__", {})
        return {name: hint for name, said in getattr(function, "__annotations__", {}).items() for hint in _read(said, within)}


def _read(said: Any, within: dict[str, Any]) -> list[Any]:
    alone = types.SimpleNamespace(__annotations__={"it": said})
    try:
        return list(typing.get_type_hints(alone, within, include_extras=True).values())
    except Exception:
        return []


def hints_of(function: Any) -> dict[str, Any]:
    """By name, of the parameters whose annotations matter to who calls the function: `Context`, `Files`, or the kind of what is
    read from text (`int`, `float`, `list`, `dict`)."""
    kept: dict[str, Any] | None = getattr(function, "__covey_hints__", None)
    if kept is not None:
        return kept
    read = {name: hint_of(said) for name, said in annotations_of(function).items()}
    return {name: hint for name, hint in read.items() if hint is not None}


def keep_hints(cls: type) -> None:
    """Notes what annotations say that are texts (`from __future__ import annotations`) on methods that are about to travel: the
    names in these texts do not travel with them."""
    for _, function in inspect.getmembers(cls, inspect.isfunction):
        keep_hints_of(function)


def keep_hints_of(function: Any) -> None:
    """The same for one function."""
    if inspect.isfunction(function) and any(isinstance(said, str) for said in function.__annotations__.values()):
        setattr(function, "__covey_hints__", hints_of(function))


def hint_of(said: Any) -> Any:
    """What one annotation says; `None` where it does not matter."""
    hint, optional = _alone(said)
    if hint is Context:
        return Context
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is File:
        return Files(File, optional)
    if origin in _LISTS and args in ((File,), (File, ...)):
        return Files(_LISTS[origin], optional)
    if origin in _DICTS and args == (str, File):
        return Files(dict, optional)
    kind = origin or hint
    return kind if kind in (int, float, list, dict) and not optional else None


def _alone(hint: Any) -> tuple[Any, bool]:
    """An annotation without what `Annotated` adds and without `None`; and whether that was there."""
    if typing.get_origin(hint) is typing.Annotated:
        return _alone(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        others = [one for one in typing.get_args(hint) if one is not type(None)]
        if len(others) == 1:
            return _alone(others[0])[0], True
    return hint, False
