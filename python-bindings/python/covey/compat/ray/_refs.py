"""References: results that come, values that were put, items of generators; `get`, `wait`, `cancel`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeGuard, cast

from ... import _bridge, errors
from ..._agent import level_outside
from ..._current import here, turn_current
from ..._future import Callbacks, Future, Stream, refuse_loop
from ..._narrow import is_iterable, is_sequence
from ..._objects import Ref
from ..._objects import put as covey_put
from .exceptions import as_ray

NESTED_MAX = 8
"""How deep lists, tuples and dicts are looked through for references."""


def is_ref(value: object) -> TypeGuard[Ref[Any]]:
    """A value that was put."""
    return isinstance(value, Ref)


def is_stream(value: object) -> TypeGuard[Stream[Any]]:
    """What a method that yields gives."""
    return isinstance(value, Stream)


class ObjectRef:
    """The result of a call, or a value that was put. `ray.get` takes it, other calls take it as an argument."""

    def __init__(self, source: Any, index: int | None = None, kind: str = "task", of: int | None = None, _name: str | None = None):
        self.source: Any = source
        self.index, self.kind, self._count = index, kind, of
        self._name = _name
        self._listeners: dict[tuple[Callable[[ObjectRef], Any], object], bool] = {}

    def notify(self, port: _bridge.Port, token: int) -> None:
        """Pushes `token` into `port` once it is done."""
        source: Any = self.source
        if isinstance(source, Future):
            if source.__covey_notify__(port, token):
                port.push(token)
        else:
            self.when_done(lambda: port.push(token))

    def _part(self, value: Any) -> Any:
        if self.index is None:
            return value
        values = tuple(value) if is_sequence(value) else None
        if values is None or len(values) != self._count:
            count = "one value" if values is None else f"{len(values)} values"
            raise ValueError(f"the task gave {count}, but num_returns={self._count}")
        return values[self.index]

    def value(self, timeout: float | None = None) -> Any:
        try:
            value = self.source.result(timeout)
        except Exception as error:
            raise as_ray(error, self.kind) from error.__cause__
        return self._part(value)

    def done(self) -> bool:
        return bool(self.source.done())

    def when_done(self, callback: Callable[[], None]) -> None:
        """Calls back once it is done, maybe on another thread, maybe at once."""
        add = getattr(self.source, "add_done_callback", None)
        if add is None:
            callback()
        else:

            def done(_: object) -> None:
                callback()

            add(done)

    def future(self) -> concurrent.futures.Future[Any]:
        """A `concurrent.futures.Future` of the value."""
        made: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def over() -> None:
            try:
                made.set_result(self.value())
            except concurrent.futures.InvalidStateError:
                pass  # cancelled meanwhile
            except BaseException as error:
                made.set_exception(error)

        self.when_done(over)
        return made

    # What `asyncio.wait` asks of a future; it looks at these on the loop.

    def add_done_callback(self, callback: Callable[[ObjectRef], Any], *, context: contextvars.Context | None = None) -> None:
        """Calls `callback(ref)` once it is done: on the loop that runs here, or on some thread where none does."""
        loop = asyncio._get_running_loop()

        def over() -> None:
            if not self._listeners.pop(key, False):
                return
            if loop is None:
                callback(self)
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(callback, self, context=context)

        key = (callback, object())
        self._listeners[key] = True
        self.when_done(over)

    def remove_done_callback(self, callback: Callable[[ObjectRef], Any]) -> int:
        """Forgets it; gives how often it was there."""
        return sum(self._listeners.pop(key, False) for key in list(self._listeners) if key[0] == callback)

    def cancelled(self) -> bool:
        """Its work was cancelled."""
        return self.done() and isinstance(self._failure(), errors.Cancelled)

    def exception(self) -> BaseException | None:
        """What getting it raises; it must be done."""
        if not self.done():
            raise asyncio.InvalidStateError("the reference is not ready")
        return self._failure()

    def _failure(self) -> BaseException | None:
        try:
            self.value()
        except Exception as error:
            return error
        return None

    def __await__(self) -> Generator[Any, Any, Any]:
        value: Any
        try:
            steps: Callable[[], Generator[Any, Any, Any]] | None = getattr(self.source, "__await__", None)
            if steps is not None:
                value = yield from steps()
            elif self.source.done():
                value = self.source.result()
            else:
                # `future()` gives the part already, under Ray's names.
                return (yield from asyncio.wrap_future(self.future()).__await__())
        except Exception as error:
            raise as_ray(error, self.kind) from error.__cause__
        return self._part(value)

    def hex(self) -> str:
        """Its name: the same wherever the reference goes."""
        if self._name is None:
            self._name = os.urandom(28).hex()
        return self._name

    def binary(self) -> bytes:
        return bytes.fromhex(self.hex())

    def __hash__(self) -> int:
        return hash(self.hex())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, ObjectRef) and self.hex() == other.hex())

    def __repr__(self) -> str:
        return f"ObjectRef({self.hex()})"

    def __reduce__(self) -> Any:
        # Inside other values a reference travels as one to a value in the store; calls wait for it before they start.
        if is_ref(self.source) and self.index is None:
            return _restored, (self.source, self.hex())
        try:
            value = self.value()
        except Exception as error:
            return _failed, (error, self.hex())
        return _restored, (covey_put(value), self.hex())


def _restored(source: Any, name: str) -> ObjectRef:
    return ObjectRef(source, _name=name)


def _failed(error: BaseException, name: str) -> ObjectRef:
    return _restored(Failed(error), name)


class Ready:
    """A value that is here."""

    def __init__(self, value: Any):
        self._value = value

    def result(self, timeout: float | None = None) -> Any:
        return self._value

    def done(self) -> bool:
        return True


class Failed(Ready):
    """An error in the place of a value."""

    def result(self, timeout: float | None = None) -> Any:
        raise self._value


class ObjectRefGenerator:
    """What a method that yields gives: references to its items, while they are made."""

    def __init__(self, stream: Stream[Any], kind: str = "task"):
        self.stream, self.kind = stream, kind
        self._items: Iterator[Any] | None = None
        self._async_items: AsyncIterator[Any] | None = None
        self._failed = False

    def notify(self, port: _bridge.Port, token: int) -> None:
        """Pushes `token` into `port` once an item is there, or there will be none."""
        if self.stream.__covey_notify__(port, token):
            port.push(token)

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        if self._failed:
            raise StopIteration
        with blocking("next()", "`async for ref in items`"):
            try:
                if self._items is None:
                    self._items = iter(self.stream)
                return ObjectRef(Ready(next(self._items)))
            except StopIteration:
                raise
            except Exception as error:
                return self._failure(error)

    def _failure(self, error: Exception) -> ObjectRef:
        """As in Ray, the last reference is the one that raises."""
        self._failed = True
        named = as_ray(error, self.kind)
        named.__cause__ = error.__cause__
        return ObjectRef(Failed(named))

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        if self._failed:
            raise StopAsyncIteration
        if self._async_items is None:
            self._async_items = self.stream.__aiter__()
        try:
            return ObjectRef(Ready(await self._async_items.__anext__()))
        except StopAsyncIteration:
            raise
        except Exception as error:
            return self._failure(error)

    def completed(self) -> ObjectRef:
        """A reference that is there when the generator has ended."""
        return ObjectRef(Ended(self.stream), kind=self.kind)

    def is_finished(self) -> bool:
        return self.stream.__covey_ended__()

    def done(self) -> bool:
        """An item is there, or there will be none."""
        return self.stream.__covey_has__()


class DynamicObjectRefGenerator:
    """The value of a task with `num_returns="dynamic"`: references to all items."""

    def __init__(self, values: list[Any]):
        self._refs = [ObjectRef(Ready(value)) for value in values]

    def __iter__(self) -> Iterator[ObjectRef]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __reduce__(self) -> Any:
        return DynamicObjectRefGenerator, ([ref.value() for ref in self._refs],)


class _Streamed:
    """A stream as one result, once it has ended."""

    def __init__(self, stream: Stream[Any]):
        self._stream, self._call = stream, stream.__covey_call__
        self._lock = threading.Lock()
        self._made: Ready | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def _take(self, values: list[Any]) -> Any:
        return values

    def result(self, timeout: float | None = None) -> Any:
        if timeout is not None and not self._call.wait(timeout):
            raise errors.DeadlineExceeded(f"no result within {timeout} s")
        with self._lock:
            if self._made is None:
                try:
                    self._made = Ready(self._take(list(self._stream)))
                except Exception as error:
                    self._made = Failed(error)
        return self._made.result()

    def done(self) -> bool:
        return self._made is not None or bool(self._call.done())

    def cancel(self) -> None:
        self._stream.cancel()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)
        if len(self._callbacks) == 1:
            Callbacks.get().watch(self._call, self._finish)

    def _finish(self) -> None:
        for callback in self._callbacks:
            callback(self)


class Collected(_Streamed):
    """All items of a generator, as the values of a task with `num_returns=n`."""


class Dynamic(_Streamed):
    """All items of a generator, behind one reference."""

    def _take(self, values: list[Any]) -> Any:
        return DynamicObjectRefGenerator(values)


class Ended(_Streamed):
    """That a generator has ended; its items are others'."""

    def result(self, timeout: float | None = None) -> Any:
        if not self._call.wait(timeout):
            raise errors.DeadlineExceeded(f"no end within {timeout} s")


# ---- calls that wait for others ----------------------------------------------------------------------------------


@contextlib.contextmanager
def place_given() -> Generator[None, None, None]:
    """The turn that waits gives its place, and its CPU, to others meanwhile."""
    turn, host = turn_current.get(), here.host
    if turn is None or host is None or not host.give_place(turn):
        yield
        return
    try:
        yield
    finally:
        place = host.take_place(turn)
        if place is not None:
            place.result()


class blocking:
    """Waiting in a coroutine blocks its loop. As in Ray a program's own loop is blocked; the loop of an actor's process cannot be:
    it runs all async actors of the process, and it is what brings the value."""

    def __init__(self, what: str, instead: str):
        self._what, self._instead = what, instead
        self._loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> None:
        loop = asyncio._get_running_loop()
        session = here.session
        if loop is None or session is None:
            return
        if session.inside:
            text = f"{self._what} in an async method would block the event loop, which brings the values that it waits for"
            raise RuntimeError(f"{text}: write {self._instead}")
        text = f"{self._what} blocks the event loop here; write {self._instead} instead"
        warnings.warn(text, RuntimeWarning, stacklevel=level_outside())
        self._loop = loop
        asyncio._set_running_loop(None)

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            asyncio._set_running_loop(self._loop)


def refs_in(values: Iterable[Any], depth: int = NESTED_MAX) -> Iterator[ObjectRef]:
    """References among values, and in the plain containers among them."""
    for value in values:
        if isinstance(value, ObjectRef):
            yield value
        elif depth and type(value) in (list, tuple, set, frozenset) and is_iterable(value):
            yield from refs_in(value, depth - 1)
        elif depth and type(value) is dict:
            yield from refs_in(cast(dict[Any, Any], value).values(), depth - 1)


def plain(value: Any) -> Any:
    """An argument as it travels: the value behind a reference, or the reference where the value stays in the store."""
    if not isinstance(value, ObjectRef):
        return value
    return value.source if is_ref(value.source) and value.index is None else value.value()


class Later:
    """A call that starts when the results among its arguments are there, and the one before it has started; in the context
    that it was made in."""

    def __init__(self, start: Callable[[], Any], waiting: list[ObjectRef], after: Later | None):
        self._start = start
        self._context = contextvars.copy_context()
        self._real: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._followers: list[Callable[[], None]] = []
        self._over, self._lock = threading.Event(), threading.Lock()
        self._left = len(waiting) + 1
        self.started = False
        if after is not None and after._follow(self._one):
            self._left += 1
        for ref in waiting:
            ref.when_done(self._one)
        self._one()

    def _follow(self, callback: Callable[[], None]) -> bool:
        """Calls back when this one has started; `False`: it has."""
        with self._lock:
            if not self.started:
                self._followers.append(callback)
            return not self.started

    def _one(self) -> None:
        with self._lock:
            self._left -= 1
            go = self._left == 0 and self._error is None
        if go:
            self._go()

    def _go(self) -> None:
        try:
            self._real = self._context.run(self._start)
            self._real.add_done_callback(self._finished)
        except BaseException as error:
            self._error = error
            self._finished()
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            self.started = True
            followers, self._followers = self._followers, []
        for follower in followers:
            follower()

    def _finished(self, _: object = None) -> None:
        with self._lock:
            self._over.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def done(self) -> bool:
        return self._over.is_set()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._over.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def result(self, timeout: float | None = None) -> Any:
        if not self._over.is_set():
            refuse_loop("ray.get()")
            with place_given():
                if not self._over.wait(timeout):
                    raise errors.DeadlineExceeded(f"no result within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._real.result()

    def cancel(self) -> None:
        with self._lock:
            waits = self._real is None and self._error is None
            if waits:
                self._error = errors.Cancelled("cancelled")
        if waits:
            self._finished()
            self._let_go()
        elif self._real is not None:
            self._real.cancel()


_tails: dict[str, Later] = {}
"""Of each actor: the last call of this process that has not started, which later ones come after."""


def call(start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: Any, kind: str, actor: str = "") -> Any:
    """Starts a call, now or when what it needs is there; gives its references."""
    waiting = [ref for ref in refs_in((*args, *kwargs.values())) if not ref.done()]
    after = _tails.get(actor) if actor else None
    if after is not None and after.started:
        after = _tails.pop(actor, None) and None

    def begin() -> Any:
        return start(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})

    source: Any
    if waiting or after is not None:
        source = Later(begin, waiting, after)
        if actor and not source.started:
            _tails[actor] = source
    else:
        try:
            source = begin()
        except errors.CoveyError as error:
            source = Failed(error)
    return given(source, num_returns, kind)


def given(source: Any, num_returns: Any, kind: str) -> Any:
    """What a call gives: a reference, as many as were asked for, or a generator of them."""
    if is_stream(source):
        if num_returns in (None, "streaming"):
            return ObjectRefGenerator(source, kind)
        source = Dynamic(source) if num_returns == "dynamic" else Collected(source)
    if num_returns == 0:
        return None
    if isinstance(num_returns, int) and (num_returns > 1 or isinstance(source, Collected)):
        refs = [ObjectRef(source, i, kind, num_returns) for i in range(num_returns)]
        return refs if num_returns > 1 else refs[0]
    return ObjectRef(source, kind=kind)


# ---- the module's functions ---------------------------------------------------------------------------------------


def put(value: Any, **_: Any) -> ObjectRef:
    """Keeps a value for calls that share it."""
    if isinstance(value, ObjectRef):
        raise TypeError("calling 'put' on an ObjectRef is not allowed; call 'put' on its value, ray.get(ref)")
    return ObjectRef(covey_put(value))


def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value, or the values, waiting for them."""
    if asyncio._get_running_loop() is not None and not _all_done(refs):
        with blocking("ray.get()", "`await ref`, or `await asyncio.gather(*refs)`"):
            return _get(refs, timeout)
    return _get(refs, timeout)


def _all_done(refs: Any) -> bool:
    """Getting these does not wait."""
    found: Sequence[Any] = refs if is_sequence(refs) else [refs]
    return all(isinstance(ref, ObjectRef) and ref.done() for ref in found)


def _get(refs: Any, timeout: float | None) -> Any:
    if isinstance(refs, ObjectRef):
        return refs.value(timeout)
    if isinstance(refs, ObjectRefGenerator):
        return [ref.value() for ref in refs]
    if not is_sequence(refs):
        raise ValueError(f"'get' takes an ObjectRef or a list of them, not {type(refs).__name__}")
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise ValueError(f"'get' takes ObjectRefs, not {type(ref).__name__}")
    end = None if timeout is None else time.monotonic() + timeout
    return [ref.value(None if end is None else max(0.0, end - time.monotonic())) for ref in refs]


def wait(refs: Any, *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True) -> tuple[list[Any], list[Any]]:
    """(ready, not ready): ready has at most `num_returns`, in the order given."""
    if isinstance(refs, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"wait() takes a list of ObjectRefs, not {type(refs).__name__}")
    refs = list(refs)
    for ref in refs:
        if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
            raise TypeError(f"wait() takes a list of ObjectRefs, not one with {type(ref).__name__}")
    if not refs:
        return [], []
    if len(set(map(id, refs))) != len(refs):
        raise ValueError("wait needs a list of unique ObjectRefs")
    if num_returns <= 0 or num_returns > len(refs):
        raise ValueError(f"num_returns={num_returns} of {len(refs)} refs")
    if asyncio._get_running_loop() is not None and timeout != 0:
        with blocking("ray.wait()", "`await asyncio.wait(refs)`"):
            return _wait(refs, num_returns, timeout)
    return _wait(refs, num_returns, timeout)


def _wait(refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
    ready: set[int] = set()

    def more() -> bool:
        for ref in refs:
            if len(ready) < num_returns and id(ref) not in ready and ref.done():
                ready.add(id(ref))
        return len(ready) < num_returns

    if more():
        port = _bridge.Port()
        for token, ref in enumerate(refs):
            if id(ref) in ready:
                continue
            ref.notify(port, token)
        end = None if timeout is None else time.monotonic() + timeout
        while more():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            with place_given():
                port.wait(left)
    return [r for r in refs if id(r) in ready], [r for r in refs if id(r) not in ready]


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Stops the work behind a reference; getting it then raises `TaskCancelledError`."""
    if not isinstance(ref, (ObjectRef, ObjectRefGenerator)):
        raise TypeError(f"ray.cancel() takes an ObjectRef or a generator of them, not {type(ref).__name__}")
    if force and ref.kind == "actor":
        raise ValueError("force=True is not for calls of actors; ray.kill(actor) ends the actor")
    source = ref.stream if isinstance(ref, ObjectRefGenerator) else ref.source
    if hasattr(source, "cancel"):
        source.cancel()
