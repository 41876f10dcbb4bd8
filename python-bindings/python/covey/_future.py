"""Futures and streams: one object, with and without asyncio."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

from . import _bridge, _codec, _context, errors
from ._retry import parse_seconds
from ._watch import Watch

_log = logging.getLogger("covey")
T = TypeVar("T", covariant=True)
W = TypeVar("W", bound="Result[object]")
_WINDOW = 128  # items between two credits; a stream runs at most 256 ahead of its reader


def _refuse_loop(what: str) -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{what} blocks the event loop; use `await` (or `async for`) here")


class _LoopPort:
    """Wakes the coroutines of one event loop, many with one wake-up."""

    _of: weakref.WeakKeyDictionary[Any, _LoopPort] = weakref.WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.port = _bridge.Port()
        self.waiters: dict[int, asyncio.Future[None]] = {}
        self.tokens = itertools.count(1)
        loop.add_reader(self.port.fileno(), self._wake)

    def _wake(self) -> None:
        waiters = self.waiters
        for token in self.port.drain():
            waiter = waiters.pop(token, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


def _loop_port(loop: asyncio.AbstractEventLoop) -> _LoopPort:
    port = _LoopPort._of.get(loop)
    if port is None:
        port = _LoopPort._of[loop] = _LoopPort(loop)
    return port


def _waits(result: Any) -> None:
    """Inside an actor: the turn that made this call waits for it now, so what comes back to the actor must not wait for the turn."""
    if result._token is not None and _context.begins_to_wait is not None:
        _context.begins_to_wait(*result._token)


def _waited(result: Any) -> None:
    """It does not wait any more: what still comes back out of that call may wait for the turn."""
    if result._token is not None:
        turn, token = result._token
        turn.waits -= {token}


def _gives_place(result: Any) -> bool:
    """The turn that waits has nothing else to do: where it is a function's, another has its place meanwhile."""
    return result._token is not None and _context.gives_place is not None and _context.gives_place(result._token[0])


def _takes_place(result: Any) -> Any:
    """It goes on, once the future that this gives is done; `None` = at once."""
    return _context.takes_place(result._token[0])


def _wait_for(call: Any) -> Generator[Any, None, None]:
    """Suspends the running coroutine until `call` has something."""
    loop = asyncio.get_running_loop()
    port = _loop_port(loop)
    token = next(port.tokens)
    waiter = port.waiters[token] = loop.create_future()
    if call.notify(port.port, token):
        del port.waiters[token]
        return
    try:
        yield from waiter
    finally:
        port.waiters.pop(token, None)


class Large:
    """Stands for the class of that name in `_objects`, until that is there."""


def _load(payload: Any) -> Any:
    if type(payload) is not tuple:
        # The bridge has read it.
        return payload
    value = _codec.load(payload)
    return value.take(False) if type(value) is Large else value


def _is_large(payload: Any) -> bool:
    """It may be a mere reference: reading what that is for may take a while."""
    return type(payload) is tuple and len(payload[1]) < 1024 and b"covey._objects" in payload[1]


class _Callbacks:
    """One thread that finishes what waits for the end of a call: futures with callbacks, files that were lent."""

    _lock = threading.Lock()
    _made: _Callbacks | None = None

    def __init__(self) -> None:
        self.port = _bridge.Port()
        self.tokens = itertools.count(1)
        self.futures: dict[int, Any] = {}
        threading.Thread(target=self._run, name="covey-callbacks", daemon=True).start()

    @classmethod
    def get(cls) -> _Callbacks:
        with cls._lock:
            if cls._made is None:
                cls._made = cls()
            return cls._made

    def watch(self, future: Any) -> None:
        """Calls `future._finish()` once the call `future._call` is over."""
        token = next(self.tokens)
        self.futures[token] = future
        if future._call.notify_end(self.port, token):
            del self.futures[token]
            future._finish()

    def _run(self) -> None:
        while True:
            for token in self.port.wait():
                future = self.futures.pop(token, None)
                if future is not None:
                    try:
                        future._finish()
                    except BaseException:
                        # This thread is everybody's.
                        _log.exception("a callback of %r raised", future)


if TYPE_CHECKING:

    class Result(Protocol[T]):
        """What `get` waits for: a future, a stream, a reference, a task."""

        def result(self, timeout: float | None = None) -> T: ...

else:
    Result = Generic


class Future(Result[T]):
    """The result of a call. Blocks with `result()`, awaits with `await`, cancels the work with `cancel()`."""

    _lock = threading.Lock()
    # Defaults of the class: most futures are made, waited for, and gone.
    _value: Any = None
    _error: BaseException | None = None
    _known = False
    _callbacks: list[Callable[[Future[T]], None]] | None = None
    _token: Any = None
    _keyed = False
    """The same answer may be given again, to another call of its key."""

    def __init__(self, call: Any):
        self._call = call

    def done(self) -> bool:
        return self._known or self._call.done()

    def result(self, timeout: float | str | None = None) -> T:
        """The value, or the exception the method raised.

        After `timeout` (seconds, or "2m") it raises `DeadlineExceeded`, and the work goes on, as after Ctrl-C: `cancel()` stops
        it, and a bound on the work itself is an option of the call (`deadline`, `run_timeout`).
        """
        if not self._known:
            if timeout is not None:
                timeout = parse_seconds(timeout)
            end = self._call.poll()
            if end is None:
                _refuse_loop("Future.result()")
                _waits(self)
                gave = _gives_place(self)
                try:
                    done = self._call.wait(timeout)
                finally:
                    _waited(self)
                    place = _takes_place(self) if gave else None
                    if place is not None:
                        place.result()
                if not done:
                    raise errors.DeadlineExceeded(f"no result within {_rounded(timeout)} s; the work goes on")
                end = self._call.end()
            self._finish(end)
        if self._error is not None:
            raise self._error
        return self._value

    def exception(self, timeout: float | str | None = None) -> BaseException | None:
        """What the method raised, or `None`."""
        try:
            self.result(timeout)
        except BaseException as error:
            if error is self._error:
                return error
            raise
        return None

    def cancel(self) -> None:
        """Stops the work; the future then raises `Cancelled`. Nothing happens when it is done."""
        if not self.done():
            self._call.cancel()

    def add_done_callback(self, callback: Callable[[Future[T]], None]) -> None:
        """Calls `callback(self)` when done, at once if it is; on a thread of Covey's, so it should not block."""
        if getattr(callback, "__module__", None) == "asyncio.tasks":
            # It would be called on another thread, and never wake the loop.
            raise TypeError("asyncio.wait() takes futures of its loop: give it asyncio.ensure_future(future)")
        with Future._lock:
            known = self._known
            first = self._callbacks is None
            if not known:
                self._callbacks = [*(self._callbacks or ()), callback]
        if known:
            callback(self)
        elif first:
            _Callbacks.get().watch(self)

    def _finish(self, end: Any = None) -> None:
        """Takes the answer apart, once."""
        value, error = None, None
        payload, failure = end or self._call.end()
        try:
            if failure is not None:
                error = _codec.to_exception(failure)
            elif type(payload) is not tuple:
                value = payload
            else:
                value = _codec.load(payload)
                if type(value) is Large:
                    value = value.take(self._keyed)
        except BaseException as why:
            error = why
        with Future._lock:
            if self._known:
                return
            self._value, self._error, self._known = value, error, True
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback(self)
            except Exception:
                # It is nobody's who waits; others are called all the same.
                _log.exception("a callback of %r raised", self)

    def __repr__(self) -> str:
        if self._error is not None:
            return f"<future that raised {type(self._error).__name__}>"
        return f"<future that {'is done' if self.done() else 'waits'}>"

    def __await__(self) -> Generator[Any, None, T]:
        if not self._known:
            end = self._call.poll()
            if end is None:
                gave = False
                try:
                    _waits(self)
                    gave = _gives_place(self)
                    while (end := self._call.poll()) is None:
                        yield from _wait_for(self._call)
                except asyncio.CancelledError:
                    self.cancel()
                    raise
                finally:
                    _waited(self)
                    place = _takes_place(self) if gave else None
                    if place is not None:
                        yield from asyncio.wrap_future(place)
            if _is_large(end[0]):
                # Fetching takes time, and the loop is for everyone.
                yield from asyncio.get_running_loop().run_in_executor(None, contextvars.copy_context().run, self._finish, end)
            else:
                self._finish(end)
        if self._error is not None:
            raise self._error
        return self._value


class Stream(Generic[T]):
    """Items while they are made. Iterate it (`for` or `async for`) once; leaving the loop early cancels the work."""

    _token: Any = None

    def __init__(self, call: Any):
        self._call = call
        self._items: collections.deque[Any] = collections.deque()
        self._last = False
        self._taken = 0
        self._kept: list[Any] = []
        """What `result()` has read."""
        self._over = False

    def cancel(self) -> None:
        """Stops the producer. Nothing happens when it has ended."""
        if not self._call.done():
            self._call.cancel()

    def result(self, timeout: float | str | None = None) -> list[T]:
        """All items that no iteration has taken, as a list; reads to the end.

        After `timeout` (seconds, or "2m") it raises `DeadlineExceeded`, and the work goes on, as after Ctrl-C: what has come is
        kept for the next `result()`.
        """
        _refuse_loop("Stream.result()")
        timeout = parse_seconds(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        port = None if end is None else _bridge.Port()
        _waits(self)
        try:
            while not self._over:
                while self._items:
                    self._kept.append(self._next())
                if self._last:
                    self._over = True
                    self._kept.extend(self._end())
                elif port is None or end is None:
                    self._fill(True)
                elif self._call.notify(port, 1) or port.wait(max(0.0, end - time.monotonic())):
                    self._fill(False)
                else:
                    raise errors.DeadlineExceeded(f"no end within {_rounded(timeout)} s; the work goes on")
        finally:
            _waited(self)
        return list(self._kept)

    def text(self) -> str:
        """All items that no iteration has taken, as one text; reads to the end."""
        return "".join(str(item) for item in self)

    def __repr__(self) -> str:
        return f"<stream that {'is over' if self._call.done() else 'goes on'}>"

    def _fill(self, block: bool) -> None:
        items, self._last = self._call.items(False)
        if block and not items and not self._last:
            gave = _gives_place(self)
            try:
                items, self._last = self._call.items(True)
            finally:
                place = _takes_place(self) if gave else None
                if place is not None:
                    place.result()
        self._items.extend(items)

    def _next(self) -> Any:
        self._taken += 1
        if self._taken == _WINDOW:
            self._call.credit(_WINDOW)
            self._taken = 0
        item = self._items.popleft()
        # What is no payload is itself, and most are that.
        return _load(item) if type(item) is tuple else item

    def _end(self) -> Iterator[Any]:
        """What the end itself says: an error, or the one value of a method that does not stream."""
        payload, failure = self._call.end()
        if failure is not None:
            raise _codec.to_exception(failure)
        if payload is not None:
            yield _load(payload)

    def __iter__(self) -> Iterator[T]:
        _refuse_loop("iterating a stream")
        _waits(self)
        try:
            while True:
                while self._items:
                    yield self._next()
                if self._last:
                    break
                self._fill(True)
        finally:
            _waited(self)
            self.cancel()
        yield from self._end()

    async def __aiter__(self) -> AsyncIterator[T]:
        _waits(self)
        try:
            while True:
                while self._items:
                    yield self._next()
                if self._last:
                    break
                self._fill(False)
                if not self._items and not self._last:
                    gave = _gives_place(self)
                    try:
                        await _Suspend(self._call)
                    finally:
                        place = _takes_place(self) if gave else None
                        if place is not None:
                            await asyncio.wrap_future(place)
        finally:
            _waited(self)
            self.cancel()
        for item in self._end():
            yield item


class _Suspend:
    __slots__ = ("call",)

    def __init__(self, call: Any):
        self.call = call

    def __await__(self) -> Generator[Any, None, None]:
        return _wait_for(self.call)


_NO_LIST = (str, bytes, bytearray, Mapping)
"""What can be gone through, and is nothing to wait for."""


@overload
def get(futures: Result[T], timeout: float | str | None = None) -> T: ...
@overload
def get(futures: Iterable[Result[T]], timeout: float | str | None = None) -> list[T]: ...
def get(futures: Any, timeout: float | str | None = None) -> Any:
    """The result of one future, or a list of the results of many, in order; also of durable tasks and refs of `covey.put`."""
    timeout = parse_seconds(timeout)
    if isinstance(futures, (list, tuple)) or not (hasattr(futures, "result") or isinstance(futures, _NO_LIST)) and isinstance(futures, Iterable):
        return _get_all(list(futures), timeout)
    _check_waitable(futures)
    return futures.result(timeout)


def _check_waitable(future: Any) -> None:
    if not hasattr(future, "result"):
        raise TypeError(f"only futures, tasks and references can be waited for, not {future!r}")


def _get_all(futures: list[Any], timeout: float | None) -> list[Any]:
    for future in futures:
        _check_waitable(future)
    if timeout is None:
        return [f.result() for f in futures]
    end, results = time.monotonic() + timeout, []
    for n, future in enumerate(futures, 1):
        try:
            results.append(future.result(max(0.0, end - time.monotonic())))
        except errors.DeadlineExceeded:
            if future.done():  # the work's own deadline
                raise
            told = f"result {n} of {len(futures)} was not there within {_rounded(timeout)} s; the work goes on"
            raise errors.DeadlineExceeded(told) from None
    return results


def _rounded(seconds: float | None) -> str:
    return f"{round(seconds or 0.0, 3):g}"


def _begin_wait(future: Any, port: Any, token: int, watch: Watch) -> bool:
    """Has `token` come to the port once the future is done; `True` where it is."""
    call = getattr(future, "_call", None)
    if call is not None:
        return bool(call.notify(port, token))
    if hasattr(future, "_wait_end"):  # a durable task
        watch.add(token, future._wait_end())
        return False
    _check_waitable(future)
    if hasattr(future, "add_done_callback"):  # one of `concurrent.futures`
        future.add_done_callback(lambda _: port.push(token))
        return False
    return bool(future.done())


class _Race:
    """Futures that are waited for together: who of them is done, as they finish."""

    def __init__(self, futures: list[Any], timeout: float | str | None):
        timeout = parse_seconds(timeout)
        self._futures, self._timeout = futures, timeout
        self._end = None if timeout is None else time.monotonic() + timeout
        self._port = _bridge.Port()
        self._watch = Watch(self._port)
        self._waiting: dict[int, Any] = {}
        self._ours = [future for future in futures if getattr(future, "_token", None) is not None]

    def _begin(self) -> list[Any]:
        """Those that are done already."""
        for future in self._ours:
            _waits(future)
        done = []
        for token, future in enumerate(self._futures):
            if _begin_wait(future, self._port, token, self._watch):
                done.append(future)
            else:
                self._waiting[token] = future
        self._watch.start()
        return done

    def _left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def _take(self, tokens: list[int]) -> list[Any]:
        if not tokens:
            raise errors.DeadlineExceeded(f"not all done within {_rounded(self._timeout)} s")
        for token in tokens:
            error = self._watch.failed.get(token)
            # Nobody knows whether it has ended: the session was closed, or the head does not come back. One that is not there is done with.
            if error is not None and not isinstance(error, errors.NotFound):
                raise error
        return [self._waiting.pop(token) for token in tokens]

    def _leave(self) -> None:
        self._watch.stop()
        for future in self._ours:
            _waited(future)

    def __iter__(self) -> Iterator[Any]:
        _refuse_loop("waiting for futures")
        try:
            yield from self._begin()
            while self._waiting:
                gave = bool(self._ours) and _gives_place(self._ours[0])
                try:
                    tokens = self._port.wait(self._left())
                finally:
                    place = _takes_place(self._ours[0]) if gave else None
                    if place is not None:
                        place.result()
                yield from self._take(tokens)
        finally:
            self._leave()

    async def __aiter__(self) -> AsyncIterator[Any]:
        loop, port = asyncio.get_running_loop(), self._port
        try:
            for future in self._begin():
                yield future
            while self._waiting:
                some = loop.create_future()
                loop.add_reader(port.fileno(), lambda some=some: some.done() or some.set_result(None))
                gave = bool(self._ours) and _gives_place(self._ours[0])
                try:
                    await asyncio.wait({some}, timeout=self._left())
                finally:
                    loop.remove_reader(port.fileno())
                    place = _takes_place(self._ours[0]) if gave else None
                    if place is not None:
                        await asyncio.wrap_future(place)
                for future in self._take(port.drain()):
                    yield future
        finally:
            self._leave()


def wait(futures: Iterable[W], num_returns: int = 1, timeout: float | str | None = None) -> tuple[list[W], list[W]]:
    """(done, not done) once `num_returns` are done or `timeout` (seconds, or "2m") has passed; order is kept.

    Futures, durable tasks and references can be waited for, also together. Where nobody can tell whether a durable task has ended, since
    the session was closed or the head does not come back, it raises why.
    """
    pending: list[Any] = list(futures)
    if not isinstance(num_returns, int):
        raise TypeError(f"num_returns is a whole number, not {num_returns!r}")
    if num_returns < 0 or num_returns > len(pending):
        raise ValueError(f"num_returns={num_returns} of {len(pending)} futures")
    found: set[int] = set()
    try:
        for future in _Race(pending, timeout) if num_returns else ():
            found.add(id(future))
            if len(found) >= num_returns:
                break
    except errors.DeadlineExceeded:
        pass
    # A durable task would have to be asked for, at a head that may be away.
    done = [f for f in pending if id(f) in found or (not hasattr(f, "_wait_end") and f.done())]
    taken = {id(f) for f in done}
    return done, [f for f in pending if id(f) not in taken]


I = TypeVar("I")


class Once(Generic[I]):
    """What is read once, with `for` or with `async for`."""

    def __init__(self, what: str, read: Callable[[], Iterator[I]], read_async: Callable[[], AsyncIterator[I]]):
        self._what, self._read, self._read_async = what, read, read_async
        self._items: Iterator[I] | None = None
        self._awaited: AsyncIterator[I] | None = None

    def __iter__(self) -> Iterator[I]:
        return self

    def __next__(self) -> I:
        _refuse_loop(self._what)
        if self._items is None:
            self._items = self._read()
        return next(self._items)

    def __aiter__(self) -> AsyncIterator[I]:
        return self

    async def __anext__(self) -> I:
        if self._awaited is None:
            self._awaited = self._read_async()
        return await self._awaited.__anext__()


def as_completed(futures: Iterable[W], timeout: float | str | None = None) -> Once[W]:
    """Futures and durable tasks in the order they finish: `for future in as_completed(futures)`, or `async for`.

    Raises `DeadlineExceeded` when `timeout` (seconds, or "2m", from now) was not enough for all.
    """
    race = _Race(list(futures), timeout)
    return Once("waiting for futures", race.__iter__, race.__aiter__)
