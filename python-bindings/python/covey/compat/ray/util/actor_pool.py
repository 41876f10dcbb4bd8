"""`ray.util.ActorPool`: work over a given list of actors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .._calls import ActorHandle
from .._refs import ObjectRef, get, wait


class ActorPool:
    def __init__(self, actors: Iterable[ActorHandle]):
        self._idle = list(actors)
        self._busy: dict[int, tuple[ObjectRef, ActorHandle]] = {}
        self._order: list[ObjectRef] = []
        self._waiting: list[tuple[Callable[[Any, Any], Any], Any]] = []

    def submit(self, fn: Callable[[Any, Any], Any], value: Any) -> None:
        """Calls `fn(actor, value)` with the next actor that is free."""
        if self._idle:
            actor = self._idle.pop()
            ref = fn(actor, value)
            self._busy[id(ref)] = (ref, actor)
            self._order.append(ref)
        else:
            self._waiting.append((fn, value))

    def has_next(self) -> bool:
        return bool(self._order) or bool(self._waiting)

    def has_free(self) -> bool:
        return bool(self._idle) and not self._waiting

    def _take(self, ref: ObjectRef) -> Any:
        self._order.remove(ref)
        _, actor = self._busy.pop(id(ref))
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.pop(0))
        return get(ref)

    def _next(self, timeout: float | None, ignore_if_timedout: bool, ordered: bool) -> Any:
        if not self.has_next():
            raise StopIteration("No more results to get")
        ready, _ = wait(self._order[:1] if ordered else list(self._order), num_returns=1, timeout=timeout)
        if not ready:
            if ignore_if_timedout:
                return None
            raise TimeoutError("Timed out waiting for result")
        return self._take(ready[0])

    def get_next(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result in the order of submission."""
        return self._next(timeout, ignore_if_timedout, ordered=True)

    def get_next_unordered(self, timeout: float | None = None, ignore_if_timedout: bool = False) -> Any:
        """The next result that is there."""
        return self._next(timeout, ignore_if_timedout, ordered=False)

    def map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.submit(fn, value)
        return self._rest(self.get_next)

    def map_unordered(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.submit(fn, value)
        return self._rest(self.get_next_unordered)

    def _rest(self, take: Callable[[], Any]) -> Iterator[Any]:
        while self.has_next():
            yield take()

    def push(self, actor: ActorHandle) -> None:
        if actor in self._idle or any(actor == busy for _, busy in self._busy.values()):
            raise ValueError("Actor already belongs to current ActorPool")
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.pop(0))

    def pop_idle(self) -> ActorHandle | None:
        return self._idle.pop() if self.has_free() else None
