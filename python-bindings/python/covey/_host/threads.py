"""Threads of the process: for sync methods, and for the user's code that may block and is no turn."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from .turn import Turn

P = ParamSpec("P")
T = TypeVar("T")

MAKERS_MAX = 32
"""Constructors, snapshots and fetched arguments at once."""


class TurnThreads:
    """Threads for sync methods: made when all are busy, kept for the next. Lighter than the standard library's pool."""

    MOST = 512
    RESTING_MOST = 4096

    def __init__(self, run: Callable[[Turn], None]):
        self._run = run
        self._turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._free = 0  # threads that wait, less turns that wait for one
        self._made = 0
        self.resting = 0
        """Threads whose turns wait and have given their places away; others are made for them."""
        self._lock = threading.Lock()

    def submit(self, turn: Turn) -> None:
        """On the loop's thread."""
        with self._lock:
            self._free -= 1
            make = self._free < 0 and self._made < self.MOST + min(self.resting, self.RESTING_MOST)
            if make:
                self._made += 1
                self._free += 1
        if make:
            threading.Thread(target=self._work, name=f"covey-sync-{self._made}", daemon=True).start()
        self._turns.put(turn)

    def rests(self, more: int) -> None:
        """So many more threads (or fewer) have turns that wait."""
        with self._lock:
            self.resting += more

    def _work(self) -> None:
        turns, run, lock = self._turns, self._run, self._lock
        while True:
            run(turns.get())
            with lock:
                self._free += 1


class Raised:
    """What a function raised, as a value."""

    def __init__(self, error: BaseException):
        self.error = error


def attempt(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Raised:
    """What a function gives, or raises. A future cannot hold a `StopIteration`: nobody would ever hear of it."""
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        return Raised(error)


class Makers:
    """A few threads for the user's code that may block and is no turn: constructors, snapshots, arguments that are fetched."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=MAKERS_MAX, thread_name_prefix="covey-start")

    def submit(self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Runs it on a thread; nobody hears what it gives."""
        self._pool.submit(function, *args, **kwargs)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs it on a thread, and gives what it gives: the loop is for everyone."""
        def work() -> T | Raised:
            return attempt(function, *args, **kwargs)

        made = await self._loop.run_in_executor(self._pool, work)
        if isinstance(made, Raised):
            raise made.error
        return made
