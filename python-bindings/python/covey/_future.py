"""Futures and streams: one object, with and without asyncio."""

from __future__ import annotations

import asyncio
import collections
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

from . import errors

T = TypeVar("T")
_NOTHING: Any = object()
_WINDOW = 128  # items between two credits; the head lets a stream run 256 ahead


def _refuse_loop(what: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(f"{what} blocks the event loop; use `await` (or `async for`) here")


class Future(Generic[T]):
    """The result of a call. Blocks with `result()`, awaits with `await`, cancels the work with `cancel()`."""

    def __init__(self, cancel: Callable[[], None]):
        self._event = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._cancel = cancel
        self._callbacks: list[Callable[[Future[T]], None]] = []
        self._lock = threading.Lock()

    def done(self) -> bool:
        return self._event.is_set()

    def result(self, timeout: float | None = None) -> T:
        """The value, or the exception the method raised. A timeout (seconds) cancels the work it waited for."""
        if not self._event.is_set():
            _refuse_loop("Future.result()")
            try:
                if not self._event.wait(timeout):
                    self.cancel()
                    raise errors.DeadlineExceeded(f"no result within {timeout} s")
            except KeyboardInterrupt:
                self.cancel()
                raise
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        try:
            self.result(timeout)
        except BaseException as error:
            if error is self._error:
                return error
            raise
        return None

    def cancel(self) -> None:
        """Stops the work; the future then raises `Cancelled`. Nothing happens when it is done."""
        if not self._event.is_set():
            self._cancel()

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Calls `callback(self)` when done, at once if it is; on the client's thread, so it must not block."""
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def _set(self, value: Any, error: BaseException | None) -> None:
        with self._lock:
            self._value, self._error = value, error
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def __await__(self) -> Generator[Any, None, T]:
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()

        def wake(_: Future[T]) -> None:
            try:
                loop.call_soon_threadsafe(lambda: waiter.done() or waiter.set_result(None))
            except RuntimeError:  # the loop was closed meanwhile
                pass

        self.add_done_callback(wake)
        try:
            yield from waiter
        except asyncio.CancelledError:
            self.cancel()
            raise
        if self._error is not None:
            raise self._error
        return self._value


class Stream(Generic[T]):
    """Items while they are made. Iterate it (`for` or `async for`) once; leaving the loop early cancels the work."""

    def __init__(self, cancel: Callable[[], None], credit: Callable[[int], None]):
        self._items: collections.deque[Any] = collections.deque()
        self._ready = threading.Condition()
        self._error: BaseException | None = None
        self._ended = False
        self._cancel, self._credit = cancel, credit
        self._taken = 0
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def cancel(self) -> None:
        if not self._ended:
            self._cancel()

    def text(self) -> str:
        """All items as one text; reads to the end."""
        return "".join(str(item) for item in self)

    def __iter__(self) -> Iterator[T]:
        _refuse_loop("iterating a stream")
        try:
            while True:
                with self._ready:
                    while not self._items and not self._ended:
                        self._ready.wait()
                    if not self._items:
                        break
                    item = self._items.popleft()
                self._count()
                yield item
        finally:
            self.cancel()
        if self._error is not None:
            raise self._error

    async def __aiter__(self) -> AsyncIterator[T]:
        loop = asyncio.get_running_loop()
        try:
            while True:
                with self._ready:
                    item, waiter = _NOTHING, None
                    if self._items:
                        item = self._items.popleft()
                    elif self._ended:
                        break
                    else:
                        waiter = loop.create_future()
                        self._waiters.append((loop, waiter))
                if waiter is not None:
                    await waiter
                    continue
                self._count()
                yield item
        finally:
            self.cancel()
        if self._error is not None:
            raise self._error

    def _count(self) -> None:
        self._taken += 1
        if self._taken == _WINDOW:
            self._credit(self._taken)
            self._taken = 0

    def _push(self, item: Any) -> None:
        with self._ready:
            self._items.append(item)
            self._wake()

    def _end(self, error: BaseException | None) -> None:
        with self._ready:
            self._ended, self._error = True, error
            self._wake()

    def _wake(self) -> None:
        self._ready.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, waiter in waiters:
            try:
                loop.call_soon_threadsafe(lambda w=waiter: w.done() or w.set_result(None))
            except RuntimeError:
                pass


def get(futures: Future[T] | Iterable[Future[T]], timeout: float | None = None) -> Any:
    """The result of one future, or a list of the results of many, in order."""
    if isinstance(futures, Future):
        return futures.result(timeout)
    end = None if timeout is None else time.monotonic() + timeout
    return [f.result(None if end is None else max(0.0, end - time.monotonic())) for f in list(futures)]


def wait(futures: Iterable[Future[T]], num_returns: int = 1, timeout: float | None = None) -> tuple[list[Future[T]], list[Future[T]]]:
    """(done, not done) once `num_returns` are done or `timeout` seconds have passed; order is kept."""
    pending = list(futures)
    _refuse_loop("covey.wait()")
    count, enough = [0], threading.Event()
    lock = threading.Lock()

    def one(_: Future[T]) -> None:
        with lock:
            count[0] += 1
            if count[0] >= num_returns:
                enough.set()

    for f in pending:
        f.add_done_callback(one)
    if pending:
        enough.wait(timeout)
    done = [f for f in pending if f.done()]
    return done, [f for f in pending if not f.done()]


def as_completed(futures: Iterable[Future[T]], timeout: float | None = None) -> Iterator[Future[T]]:
    """Futures in the order they finish."""
    import queue

    done: queue.Queue[Future[T]] = queue.Queue()
    pending = list(futures)
    for f in pending:
        f.add_done_callback(done.put)
    end = None if timeout is None else time.monotonic() + timeout
    for _ in pending:
        try:
            yield done.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise errors.DeadlineExceeded(f"not all done within {timeout} s") from None
