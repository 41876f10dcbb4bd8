"""`ray.util.check_serialize`: finds what in an object cannot be pickled."""

from __future__ import annotations

import inspect
import sys
from typing import Any, NamedTuple, TextIO

from ...._cloudpickle import load_cloudpickle
from ...._narrow import is_a, is_dict, is_iterable


class FailureTuple(NamedTuple):
    """Something that cannot be pickled."""

    obj: Any
    name: str
    parent: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FailureTuple) and self.obj is other.obj and self.name == other.name

    def __hash__(self) -> int:
        return hash((id(self.obj), self.name))


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Whether it can be pickled, and the innermost things in it that cannot; tells of them in `print_file` (standard output)."""
    found: set[FailureTuple] = set()
    name = str(name or getattr(base_obj, "__name__", None) or base_obj)
    _look(base_obj, name, None, depth, found, set())
    out = print_file or sys.stdout
    print(f"{name}: {'cannot be pickled' if found else 'can be pickled'}", file=out)
    for failure in sorted(found, key=lambda f: f.name):
        print(f"  {failure.name} ({type(failure.obj).__name__}), found in {failure.parent!r}", file=out)
    return not found, found


def _look(obj: Any, name: str, parent: Any, depth: int, found: set[FailureTuple], seen: set[int]) -> bool:
    """Adds what fails in `obj`; `False`: it can be pickled."""
    try:
        load_cloudpickle().dumps(obj)
        return False
    except Exception:
        pass
    if id(obj) in seen:
        return True
    seen.add(id(obj))
    inside = [_look(value, key, obj, depth - 1, found, seen) for key, value in _members(obj)] if depth > 0 else []
    if not any(inside):
        found.add(FailureTuple(obj, name, parent))
    return True


def _members(obj: Any) -> list[tuple[str, Any]]:
    """What `obj` takes with it when it is pickled, by name."""
    obj = getattr(obj, "_function", getattr(obj, "_cls", obj))
    if inspect.isfunction(obj):
        variables = inspect.getclosurevars(obj)
        return [*variables.nonlocals.items(), *variables.globals.items()]
    if is_dict(obj):
        return [(str(key), value) for key, value in obj.items()]
    if is_a(obj, (list, tuple, set, frozenset)) and is_iterable(obj):
        return [(f"[{i}]", value) for i, value in enumerate(obj)]
    if inspect.isclass(obj):
        return [(key, value) for key, value in vars(obj).items() if not key.startswith("__")]
    return list(getattr(obj, "__dict__", {}).items())


__all__ = ["FailureTuple", "inspect_serializability"]
