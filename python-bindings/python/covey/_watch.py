"""Threads that look at things which give no signal of their own end, for a wait that looks at many: durable tasks."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

THREADS_MAX = 16
"""Threads of one wait; with more tasks than that, each thread looks at several in turn."""
_LOOK = 5.0
"""Seconds that one look lasts at most; the last look of a wait that is over ends within this time."""
_LOOK_LEAST = 0.02
_ROUND = 1.0
"""Seconds in which all are looked at, where there are more than threads and not too many."""


class Watch:
    """Pushes the token of each thing into a port once that has ended."""

    def __init__(self, port: Any):
        self._port = port
        self._things: queue.SimpleQueue[tuple[int, Callable[[float], bool]]] = queue.SimpleQueue()
        self._over = threading.Event()
        self.failed: dict[int, Exception] = {}
        """Tokens of things that cannot be looked at any more, and why."""

    def add(self, token: int, wait_end: Callable[[float], bool]) -> None:
        """`wait_end(seconds)` waits so long and says whether it has ended; what it raises is in `failed` when the token comes."""
        self._things.put((token, wait_end))

    def start(self) -> None:
        """Begins to look, after all were added."""
        threads = min(self._things.qsize(), THREADS_MAX)
        for number in range(threads):
            look = contextvars.copy_context().run
            threading.Thread(target=look, args=(self._look, threads), name=f"covey-watch-{number}", daemon=True).start()

    def stop(self) -> None:
        """Nobody waits any more."""
        self._over.set()

    def _look(self, threads: int) -> None:
        while not self._over.is_set():
            try:
                token, wait_end = self._things.get_nowait()
            except queue.Empty:
                return
            # One that has a thread to itself is waited for; of many, each is looked at often.
            others = self._things.qsize()
            seconds = _LOOK if others == 0 else max(_LOOK_LEAST, _ROUND * threads / (threads + others))
            try:
                ended = wait_end(seconds)
            except Exception as error:
                self.failed[token], ended = error, True
            if ended:
                self._port.push(token)
            else:
                self._things.put((token, wait_end))
