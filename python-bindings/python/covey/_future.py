"""Futures and streams: one object, with and without asyncio."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import functools
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from . import _bridge, _codec, errors
from ._current import here
from ._narrow import is_a, is_iterable, is_sequence
from ._retry import parse_seconds
from ._watch import Watch

if TYPE_CHECKING:
    from ._host.turn import Turn
    from ._wire import Failure, Payload

    Waiter = tuple[Turn, int]
    """The turn that made a call, and the call's token there."""

_log = logging.getLogger("covey")
T = TypeVar("T", covariant=True)
W = TypeVar("W", bound="Result[object]")
_WINDOW = 128  # items between two credits; a stream runs at most 256 ahead of its reader


def refuse_loop(what: str) -> None:
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(f"{what} blocks the event loop; use `await` (or `async for`) here")


class _LoopPort:
    """Wakes the coroutines of one event loop, many with one wake-up."""

    _of: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPort] = weakref.WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.port = _bridge.Port()
        self.waiters: dict[int, asyncio.Future[None]] = {}
        self.tokens = itertools.count(1)
        loop.add_reader(self.port.fileno(), self._wake)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _LoopPort:
        """The one of this loop."""
        port = cls._of.get(loop)
        if port is None:
            port = cls._of[loop] = cls(loop)
        return port

    def _wake(self) -> None:
        waiters = self.waiters
        for token in self.port.drain():
            waiter = waiters.pop(token, None)
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


def _waits(waiter: Waiter | None) -> None:
    """The turn that made a call waits for it now, so what comes back to the actor must not wait for the turn."""
    if waiter is not None and here.host is not None:
        here.host.waits(*waiter)


def _waited(waiter: Waiter | None) -> None:
    """It does not wait any more: what still comes back out of that call may wait for the turn."""
    if waiter is not None:
        turn, token = waiter
        turn.waits -= {token}


def _gives_place(waiter: Waiter | None) -> bool:
    """The turn that waits has nothing else to do: where it is a function's, another has its place meanwhile."""
    return waiter is not None and here.host is not None and here.host.give_place(waiter[0])


def _takes_place(waiter: Waiter | None) -> concurrent.futures.Future[None] | None:
    """It goes on, once the future that this gives is done; `None`: at once."""
    assert waiter is not None and here.host is not None, "it gave its place away"
    return here.host.take_place(waiter[0])


def _wait_for(call: _bridge.Call) -> Generator[Any, None, None]:
    """Suspends the running coroutine until `call` has something."""
    loop = asyncio.get_running_loop()
    port = _LoopPort.of(loop)
    token = next(port.tokens)
    waiter = port.waiters[token] = loop.create_future()
    if call.notify(port.port, token):
        del port.waiters[token]
        return
    try:
        yield from waiter
    finally:
        port.waiters.pop(token, None)


class Elsewhere:
    """Base of what travels in place of a value that is too large for a message: `_objects.Large`."""

    __slots__ = ()

    def take(self, keep: bool) -> Any:
        """The value. Unless others may ask for the answer again (`keep`), its file goes."""
        raise NotImplementedError


def _payload_of(value: object) -> Payload | None:
    """A value of the bridge that is still to be read; `None` where the bridge has read it."""
    return cast("Payload", value) if type(value) is tuple else None


def _load(value: object, keep: bool = False) -> Any:
    payload = _payload_of(value)
    if payload is None:
        return value
    loaded = _codec.load(payload)
    # Not `isinstance`, which asks the value itself.
    return cast(Elsewhere, loaded).take(keep) if issubclass(type(loaded), Elsewhere) else loaded


def _is_large(value: object) -> bool:
    """It may be a mere reference: reading what that is for may take a while."""
    payload = _payload_of(value)
    return payload is not None and len(payload[1]) < 1024 and b"covey._objects" in payload[1]


class Callbacks:
    """One thread that finishes what waits for the end of a call: futures with callbacks, files that were lent."""

    _lock = threading.Lock()
    _made: Callbacks | None = None

    def __init__(self) -> None:
        self.port = _bridge.Port()
        self.tokens = itertools.count(1)
        self._finish: dict[int, Callable[[], None]] = {}
        """What is done at the end of each call, by token."""
        threading.Thread(target=self._run, name="covey-callbacks", daemon=True).start()

    @classmethod
    def get(cls) -> Callbacks:
        with cls._lock:
            if cls._made is None:
                cls._made = cls()
            return cls._made

    def watch(self, call: _bridge.Call, finish: Callable[[], None]) -> None:
        """Calls `finish()` once the call is over: on this class's thread, or at once."""
        token = next(self.tokens)
        self._finish[token] = finish
        if call.notify_end(self.port, token):
            del self._finish[token]
            finish()

    def _run(self) -> None:
        while True:
            for token in self.port.wait():
                finish = self._finish.pop(token, None)
                if finish is not None:
                    try:
                        finish()
                    except BaseException:
                        # This thread is everybody's.
                        _log.exception("%r raised", finish)


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
    __covey_waiter__: Waiter | None = None
    """The turn that made the call, and the call's token there; `None` in a driver."""
    _keyed = False
    """The same answer may be given again, to another call of its key."""

    def __init__(self, call: _bridge.Call, waiter: Waiter | None = None, *, keyed: bool = False):
        self._call = call
        if waiter is not None:
            self.__covey_waiter__ = waiter
        if keyed:
            self._keyed = True

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
                refuse_loop("Future.result()")
                _waits(self.__covey_waiter__)
                gave = _gives_place(self.__covey_waiter__)
                try:
                    done = self._call.wait(timeout)
                finally:
                    _waited(self.__covey_waiter__)
                    place = _takes_place(self.__covey_waiter__) if gave else None
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
            Callbacks.get().watch(self._call, self._finish)

    def _finish(self, end: tuple[object, Failure | None] | None = None) -> None:
        """Takes the answer apart, once."""
        value, error = None, None
        payload, failure = end or self._call.end()
        try:
            if failure is not None:
                error = _codec.to_exception(failure)
            else:
                value = _load(payload, self._keyed)
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

    def __covey_notify__(self, port: _bridge.Port, token: int) -> bool:
        """Pushes `token` into `port` once it is done; `True`, and nothing is pushed, where it is."""
        return self._call.notify(port, token)

    def __covey_outcome__(self) -> tuple[T | None, BaseException | None]:
        """Value and error once it is done and was read, as its callbacks find it."""
        return self._value, self._error

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
                    _waits(self.__covey_waiter__)
                    gave = _gives_place(self.__covey_waiter__)
                    while (end := self._call.poll()) is None:
                        yield from _wait_for(self._call)
                except asyncio.CancelledError:
                    self.cancel()
                    raise
                finally:
                    _waited(self.__covey_waiter__)
                    place = _takes_place(self.__covey_waiter__) if gave else None
                    if place is not None:
                        yield from asyncio.wrap_future(place)
            if _is_large(end[0]):
                # Fetching takes time, and the loop is for everyone.
                finish = functools.partial(contextvars.copy_context().run, self._finish, end)
                yield from asyncio.get_running_loop().run_in_executor(None, finish)
            else:
                self._finish(end)
        if self._error is not None:
            raise self._error
        return self._value


class Stream(Generic[T]):
    """Items while they are made. Iterate it (`for` or `async for`) once; leaving the loop early cancels the work."""

    __covey_waiter__: Waiter | None = None
    """As of `Future`."""

    def __init__(self, call: _bridge.Call, waiter: Waiter | None = None):
        self._call = call
        if waiter is not None:
            self.__covey_waiter__ = waiter
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
        refuse_loop("Stream.result()")
        timeout = parse_seconds(timeout)
        end = None if timeout is None else time.monotonic() + timeout
        port = None if end is None else _bridge.Port()
        _waits(self.__covey_waiter__)
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
            _waited(self.__covey_waiter__)
        return list(self._kept)

    def __covey_notify__(self, port: _bridge.Port, token: int) -> bool:
        """Pushes `token` into `port` once it has something; `True`, and nothing is pushed, where it has."""
        return self._call.notify(port, token)

    @property
    def __covey_call__(self) -> _bridge.Call:
        """The call itself."""
        return self._call

    def __covey_has__(self) -> bool:
        """An item is there, or there will be none; does not wait."""
        if not self._items and not self._last:
            self._fill(False)
        return bool(self._items) or self._last

    def __covey_ended__(self) -> bool:
        """Its producer has ended, and all items that were fetched are read."""
        return self._call.done() and not self._items

    def text(self) -> str:
        """All items that no iteration has taken, as one text; reads to the end."""
        return "".join(str(item) for item in self)

    def __repr__(self) -> str:
        return f"<stream that {'is over' if self._call.done() else 'goes on'}>"

    def _fill(self, block: bool) -> None:
        items, self._last = self._call.items(False)
        if block and not items and not self._last:
            gave = _gives_place(self.__covey_waiter__)
            try:
                items, self._last = self._call.items(True)
            finally:
                place = _takes_place(self.__covey_waiter__) if gave else None
                if place is not None:
                    place.result()
        self._items.extend(items)

    def _next(self) -> Any:
        self._taken += 1
        if self._taken == _WINDOW:
            self._call.credit(_WINDOW)
            self._taken = 0
        return _load(self._items.popleft())

    def _end(self) -> Iterator[Any]:
        """What the end itself says: an error, or the one value of a method that does not stream."""
        payload, failure = self._call.end()
        if failure is not None:
            raise _codec.to_exception(failure)
        if payload is not None:
            yield _load(payload)

    def __iter__(self) -> Iterator[T]:
        refuse_loop("iterating a stream")
        _waits(self.__covey_waiter__)
        try:
            while True:
                while self._items:
                    yield self._next()
                if self._last:
                    break
                self._fill(True)
        finally:
            _waited(self.__covey_waiter__)
            self.cancel()
        yield from self._end()

    async def __aiter__(self) -> AsyncIterator[T]:
        _waits(self.__covey_waiter__)
        try:
            while True:
                while self._items:
                    yield self._next()
                if self._last:
                    break
                self._fill(False)
                if not self._items and not self._last:
                    gave = _gives_place(self.__covey_waiter__)
                    try:
                        await Suspend(self._call)
                    finally:
                        place = _takes_place(self.__covey_waiter__) if gave else None
                        if place is not None:
                            await asyncio.wrap_future(place)
        finally:
            _waited(self.__covey_waiter__)
            self.cancel()
        for item in self._end():
            yield item


class Suspend:
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
    if is_sequence(futures) or not (hasattr(futures, "result") or is_a(futures, _NO_LIST)) and is_iterable(futures):
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
    end, results = time.monotonic() + timeout, list[Any]()
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


def _begin_wait(future: Any, port: _bridge.Port, token: int, watch: Watch) -> bool:
    """Has `token` come to the port once the future is done; `True` where it is."""
    if hasattr(future, "__covey_notify__"):
        return bool(future.__covey_notify__(port, token))
    if hasattr(future, "__covey_wait_end__"):  # a durable task
        watch.add(token, future.__covey_wait_end__())
        return False
    _check_waitable(future)
    if hasattr(future, "add_done_callback"):  # one of `concurrent.futures`

        def done(_: object) -> None:
            port.push(token)

        future.add_done_callback(done)
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
        waiters: Iterator[Waiter | None] = (getattr(future, "__covey_waiter__", None) for future in futures)
        self._waiters = [waiter for waiter in waiters if waiter is not None]

    def _begin(self) -> list[Any]:
        """Those that are done already."""
        for waiter in self._waiters:
            _waits(waiter)
        done: list[Any] = []
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
        for waiter in self._waiters:
            _waited(waiter)

    def __iter__(self) -> Iterator[Any]:
        refuse_loop("waiting for futures")
        try:
            yield from self._begin()
            while self._waiting:
                gave = bool(self._waiters) and _gives_place(self._waiters[0])
                try:
                    tokens = self._port.wait(self._left())
                finally:
                    place = _takes_place(self._waiters[0]) if gave else None
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
                gave = bool(self._waiters) and _gives_place(self._waiters[0])
                try:
                    await asyncio.wait({some}, timeout=self._left())
                finally:
                    loop.remove_reader(port.fileno())
                    place = _takes_place(self._waiters[0]) if gave else None
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
    if not is_a(num_returns, int):
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
    done = [f for f in pending if id(f) in found or (not hasattr(f, "__covey_wait_end__") and f.done())]
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
        refuse_loop(self._what)
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
