"""Whether arguments fit a function, found out where it is called; Ray raises `TypeError` there, and so does this."""

from __future__ import annotations

import inspect
from typing import Any

_Told = list[tuple[str, int, bool]]
_KINDS = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.VAR_POSITIONAL,
    inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD,
)  # fmt: skip
"""By their numbers."""


def told(function: Any, skip: int = 0) -> _Told | None:
    """Parameters as (name, kind, has a default), as JSON takes them, but for the first `skip`; `None` where nobody knows them."""
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):
        return None
    return [(p.name, int(p.kind), p.default is not p.empty) for p in parameters]


class Fits:
    """Refuses what a function would refuse."""

    def __init__(self, parameters: _Told | None):
        self._signature: inspect.Signature | None = None
        self._least, self._most = 0, -1
        if parameters is None:
            return
        empty = inspect.Parameter.empty
        made = [inspect.Parameter(n, _KINDS[kind], default=None if d else empty) for n, kind, d in parameters]
        self._signature = inspect.Signature(made)
        plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if all(p.kind in plain for p in made):
            self._least, self._most = sum(p.default is empty for p in made), len(made)

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raises `TypeError` where these arguments do not fit."""
        # The usual call is known to fit by the number of its arguments.
        if self._signature is None or (not kwargs and self._least <= len(args) <= self._most):
            return
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None
