"""`ray.util.queue`: a first-in, first-out queue in an actor."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterable
from typing import Any

from ...._narrow import is_a
from .._calls import ActorHandle, kill, remote
from .._refs import get


class Empty(queue.Empty):
    """Nothing is in the queue."""


class Full(queue.Full):
    """No room is in the queue."""


class _Queue:
    """The actor behind a queue. What does not come in time is told as a value: it is no trouble of the actor's."""

    def __init__(self, maxsize: int):
        self.queue: asyncio.Queue[Any] = asyncio.Queue(maxsize)

    async def size(self) -> int:
        return self.queue.qsize()

    async def put(self, item: Any, timeout: float | None) -> bool:
        try:
            await asyncio.wait_for(self.queue.put(item), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def get(self, timeout: float | None) -> tuple[bool, Any]:
        try:
            return True, await asyncio.wait_for(self.queue.get(), timeout)
        except asyncio.TimeoutError:
            return False, None

    async def put_now(self, items: list[Any]) -> bool:
        if self.queue.maxsize and self.queue.qsize() + len(items) > self.queue.maxsize:
            return False
        for item in items:
            self.queue.put_nowait(item)
        return True

    async def get_now(self, count: int) -> list[Any] | None:
        if count > self.queue.qsize():
            return None
        return [self.queue.get_nowait() for _ in range(count)]


class Queue:
    """May be handed to tasks and actors; `maxsize` 0 is no bound."""

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None):
        self.maxsize = maxsize
        made = remote(**(actor_options or {}))(_Queue) if actor_options else remote(_Queue)
        self.actor: ActorHandle | None = made.remote(maxsize)

    def _of(self) -> Any:
        if self.actor is None:
            raise ValueError("the queue was shut down")
        return self.actor

    def __len__(self) -> int:
        return self.size()

    def size(self) -> int:
        return int(get(self._of().size.remote()))

    qsize = size

    def empty(self) -> bool:
        return self.size() == 0

    def full(self) -> bool:
        return 0 < self.maxsize <= self.size()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Adds an item; raises `Full` when there is no room at once, or within `timeout` seconds."""
        if not block:
            return self.put_nowait(item)
        if not get(self._of().put.remote(item, _not_negative(timeout))):
            raise Full

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        actor = self._of()
        done = actor.put.remote(item, _not_negative(timeout)) if block else actor.put_now.remote([item])
        if not await done:
            raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Takes the oldest item; raises `Empty` when there is none at once, or within `timeout` seconds."""
        if not block:
            return self.get_nowait()
        there, item = get(self._of().get.remote(_not_negative(timeout)))
        if not there:
            raise Empty
        return item

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        if not block:
            items = await self._of().get_now.remote(1)
            if items is None:
                raise Empty
            return items[0]
        there, item = await self._of().get.remote(_not_negative(timeout))
        if not there:
            raise Empty
        return item

    def put_nowait(self, item: Any) -> None:
        self.put_nowait_batch([item])

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Adds all of them, or none and raises `Full`."""
        if not is_a(items, Iterable):
            raise TypeError("Argument 'items' must be an Iterable")
        if not get(self._of().put_now.remote(list(items))):
            raise Full

    def get_nowait(self) -> Any:
        return self.get_nowait_batch(1)[0]

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Takes so many, or raises `Empty`."""
        if not is_a(num_items, int):
            raise TypeError("Argument 'num_items' must be an int")
        if num_items < 0:
            raise ValueError("'num_items' must be nonnegative")
        items = get(self._of().get_now.remote(num_items))
        if items is None:
            raise Empty
        return list(items)

    def shutdown(self, force: bool = False, grace_period_s: int = 5) -> None:
        """Ends the actor; without `force` after what it has accepted."""
        if self.actor is not None:
            if force:
                kill(self.actor)
            else:
                self.actor.__covey_handle__.stop(drain=True)
        self.actor = None


def _not_negative(timeout: float | None) -> float | None:
    if timeout is not None and timeout < 0:
        raise ValueError("'timeout' must be a non-negative number")
    return timeout
