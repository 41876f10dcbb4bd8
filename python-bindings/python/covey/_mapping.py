"""Mapping of many inputs: one call for each, a bounded number under way, results in order or as they come."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TYPE_CHECKING, Any, TypeVar

from . import _bridge
from ._future import refuse_loop

if TYPE_CHECKING:
    from tqdm import tqdm

    from ._future import Future

X = TypeVar("X")
R = TypeVar("R")

IN_FLIGHT_MAX = 8192
"""Inputs of one `map` that are under way at once; the rest is read when there is room."""


def _progress_bar(total: int | None, name: str) -> tqdm[Any] | None:
    """A bar, where somebody can see it."""
    if not sys.stderr.isatty() and "ipykernel" not in sys.modules:
        return None
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=name, unit="item")


def results_of(pairs: Iterator[tuple[X, R]], with_input: bool) -> Iterator[R] | Iterator[tuple[X, R]]:
    """Results alone, or pairs of input and result."""
    return pairs if with_input else (result for _, result in pairs)


def over(
    start: Callable[[X], Future[R]],
    inputs: Iterable[X],
    *,
    ordered: bool = True,
    return_exceptions: bool = False,
    progress: bool = False,
    name: str = "",
) -> Iterator[tuple[X, R | Exception]]:
    """Starts one call for each input, at most `IN_FLIGHT_MAX` at once, and gives inputs with results. What is under way when the
    reader leaves is cancelled."""
    refuse_loop("mapping")
    bar = _progress_bar(len(inputs) if isinstance(inputs, Sized) else None, name) if progress else None
    pending: collections.deque[tuple[X, Future[R]]] = collections.deque()
    waiting: dict[int, tuple[X, Future[R]]] = {}
    port, token, source, more = _bridge.Port(), 0, iter(inputs), True

    def outcome(future: Future[R]) -> R | Exception:
        if bar is not None:
            bar.update(1)
        try:
            return future.result()
        except Exception as error:
            if return_exceptions:
                return error
            raise

    try:
        while more or pending or waiting:
            while more and len(pending) + len(waiting) < IN_FLIGHT_MAX:
                try:
                    item = next(source)
                except StopIteration:
                    more = False
                    break
                future = start(item)
                token += 1
                if ordered:
                    pending.append((item, future))
                elif future.__covey_notify__(port, token):
                    yield item, outcome(future)
                else:
                    waiting[token] = (item, future)
            if pending:
                item, future = pending[0]
                result = outcome(future)
                pending.popleft()
                yield item, result
            elif waiting:
                for ready in port.wait():
                    item, future = waiting.pop(ready)
                    yield item, outcome(future)
    finally:
        if bar is not None:
            bar.close()
        for _, future in (*pending, *waiting.values()):
            future.cancel()
