"""What type checkers are told of values that come from outside: JSON, and what users give.

`isinstance` narrows a value of any type to a dict or list of nobody knows what. These say what is in it, as far as that is known.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias, TypeGuard

JsonObject: TypeAlias = dict[str, Any]
"""An object of JSON that was read, or will be written."""


def is_object(value: object) -> TypeGuard[JsonObject]:
    """An object of JSON."""
    return isinstance(value, dict)


def is_array(value: object) -> TypeGuard[list[Any]]:
    """An array of JSON."""
    return isinstance(value, list)


def is_dict(value: object) -> TypeGuard[dict[Any, Any]]:
    """A dict of the user's."""
    return isinstance(value, dict)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """A list or a tuple of the user's."""
    return isinstance(value, (list, tuple))


def is_iterable(value: object) -> TypeGuard[Iterable[Any]]:
    """Something of the user's that can be gone through."""
    return isinstance(value, Iterable)


def is_tuple(value: object) -> TypeGuard[tuple[Any, ...]]:
    """A tuple of the user's."""
    return isinstance(value, tuple)


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """A mapping of the user's."""
    return isinstance(value, Mapping)


def is_set(value: object) -> TypeGuard[AbstractSet[Any]]:
    """A set of the user's."""
    return isinstance(value, (set, frozenset))


def is_dataclass_object(value: object) -> bool:
    """An object of a dataclass, and not the class."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def is_a(value: object, kind: type | tuple[type, ...]) -> bool:
    """`isinstance`, where the declared type is a promise that users without a type checker may break."""
    return isinstance(value, kind)
