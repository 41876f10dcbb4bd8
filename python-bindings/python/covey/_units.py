"""Times and amounts of memory, as users write them."""

from __future__ import annotations

import math
import operator
import re
from typing import Any

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BYTES = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}


_READ: tuple[type, ...] = (int, float, str, bytes, bytearray, memoryview)
"""What Python reads a number from itself: `float` reads bytes, too."""


def plain_number(value: Any, whole: bool = False) -> Any:
    """A number of another library (numpy's `int64` has `__index__`, its `float32` `__float__`) as Python's; all else as it is.

    With `whole` only integers are taken: a fraction is not rounded in silence. A truth value is no number.
    """
    if isinstance(value, _READ):
        return value
    if getattr(getattr(value, "dtype", None), "kind", "") == "b":  # numpy's bool has `__float__`
        return value
    for converts in (operator.index,) if whole else (operator.index, float):
        try:
            return converts(value)
        except (TypeError, ValueError, OverflowError):
            pass  # it is no such number, or an array, which has these methods whatever is in it
    return value


def parse_seconds(value: float | str | None) -> float | None:
    """`"2m"`, `"500ms"` or a number of seconds."""
    value = plain_number(value)
    if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)):
        return value
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([a-z]*)\s*", value) if isinstance(value, str) else None
    if not match or match[2] not in _SECONDS:
        raise ValueError(f"not a time: {value!r}; write it like '30s' or '2m'")
    return float(match[1]) * _SECONDS[match[2]]


def parse_bytes(value: float | str) -> int:
    """`"256MiB"` or a number of bytes; `1.5e9` is one, too."""
    value = plain_number(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value // 1:
        return int(value)
    match = re.fullmatch(r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if not match or match[2] not in _BYTES:
        raise ValueError(f"not an amount of memory: {value!r}; write it like '256MiB'")
    return int(float(match[1]) * _BYTES[match[2]])
