"""Functions on the cluster: `@covey.task`, `covey.Executor`, and the mapping of many inputs over pools of actors."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import hashlib
import inspect
import json
import threading
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from . import _codec, _env
from ._agent import Agent, spec_fields
from ._arguments import FunctionPlaces
from ._current import bridge_call, current_session, is_forked, refuse_fork, turn_current
from ._future import Future, Stream
from ._hints import keep_hints_of
from ._mapping import over, results_of
from ._objects import Ref, has_refs, resolve
from ._option_checks import check_value
from ._options import FunctionOptions, MapOptions, check, listed
from ._pool import pool_spec
from ._retry import How

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
I = TypeVar("I")  # noqa: E741
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)

class Functions:
    """The agent that runs functions: they travel with their arguments and are kept by those who run them."""

    __covey_lends__ = True
    """A function that waits for others has nothing that they could disturb: they have its place and its CPU meanwhile."""

    _loaded: dict[bytes, tuple[Any, FunctionPlaces]] = {}

    @classmethod
    def _called(cls, code: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the function gives, with the context where it takes one."""
        known = cls._loaded.get(code)
        if known is None:
            if len(cls._loaded) >= 1024:
                cls._loaded.clear()
            function = _codec.loads(code)
            known = cls._loaded[code] = function, FunctionPlaces(function)
        function, places = known
        turn = turn_current.get()
        if turn is not None:
            turn.label = getattr(function, "__name__", "")
            if places.takes:
                args, kwargs = places.fill(args, kwargs, turn.context_of())
        return function(*args, **kwargs)

    def run(self, code: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = resolve(args, kwargs)
        return self._called(code, args, kwargs)

    async def run_async(self, code: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if has_refs(args, kwargs):
            args, kwargs = await asyncio.to_thread(resolve, args, kwargs)
        return await self._called(code, args, kwargs)

    def items(self, code: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        args, kwargs = resolve(args, kwargs)
        yield from self._called(code, args, kwargs)

    async def items_async(self, code: bytes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        if has_refs(args, kwargs):
            args, kwargs = await asyncio.to_thread(resolve, args, kwargs)
        async for item in self._called(code, args, kwargs):
            yield item

    def run_many(self, code: bytes, inputs: list[tuple[Any, ...]]) -> list[Any]:
        return [self._called(code, resolve(args, {})[0], {}) for args in inputs]


_functions: Agent[Any, Any] = Agent(Functions, {"name": "covey.function", "cpus": 1})


_NAME_MAX = 32
"""Letters of a function's name by which the cluster calls it."""


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", ""))[:_NAME_MAX]


def _ascii(name: str) -> str:
    return "".join(c for c in name if c.isascii() and (c.isalnum() or c == "_"))


def _named(method: str, function: Any) -> str:
    """The method that runs a function, with the function's name for those who look: `run:resize`."""
    name = _name_of(function)
    return f"{method}:{name}" if name else method


class TakesOne(Protocol[X_contra]):
    """A function that one input is enough for."""

    def __call__(self, item: X_contra, /) -> object: ...


class RemoteFunction(Generic[P, R]):
    """What `@covey.task` makes of a function. `f.remote(...)` runs it on the cluster; `f(...)` runs it here."""

    def __init__(self, function: Callable[P, R], options: dict[str, Any]):
        self.__covey_function__ = function
        functools.update_wrapper(self, function)
        options = dict(options)
        environment = {k: options.pop(k) for k in _env.KEYS if k in options}
        self._agent = _functions
        if environment:
            digest = hashlib.sha256(repr(sorted(environment.items())).encode()).hexdigest()[:12]
            # Of that name for people, and one for each environment.
            name = ".".join(part for part in ("covey.function", _ascii(_name_of(function)), digest) if part)
            self._agent = Agent(Functions, {"name": name, "cpus": 1, **environment})
        self._options = {**environment, **options}
        self._ahead = options.pop("ahead", None)
        self._retries = int(options.pop("retries", 3))
        retry_on = options.pop("retry_on", ())
        if options.pop("retry_exceptions", False) and not retry_on:
            retry_on = Exception
        names = ("deadline", "run_timeout", "timeout", "backoff")
        self._how = How.of(retries=self._retries, retry_on=retry_on, **{name: options.pop(name, None) for name in names})
        self._overrides = json.dumps(spec_fields({"cpus": 1, **options}))
        self._code: bytes | None = None
        if inspect.isasyncgenfunction(function):
            self._method = "items_async"
        elif inspect.isgeneratorfunction(function):
            self._method = "items"
        else:
            self._method = "run_async" if inspect.iscoroutinefunction(function) else "run"
        self._method = _named(self._method, function)
        self._specs: dict[str, str] = {}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__covey_function__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<function {getattr(self.__covey_function__, '__qualname__', 'without a name')} for the cluster>"

    def __reduce__(self) -> Any:
        return RemoteFunction, (self.__covey_function__, self._options)

    @listed(FunctionOptions, unsaid=...)
    def options(self, **options: Unpack[FunctionOptions]) -> RemoteFunction[P, R]:
        """The same function with other options, see `covey.task`."""
        return RemoteFunction(self.__covey_function__, {**self._options, **check(options, FunctionOptions)})

    def code(self) -> bytes:
        """The function as it travels."""
        if self._code is None:
            try:
                keep_hints_of(self.__covey_function__)
                self._code = _codec.dump_code(self.__covey_function__)
            except Exception as error:
                name = getattr(self.__covey_function__, "__name__", "the function")
                raise TypeError(f"cannot ship {name}: {error}; make what cannot be pickled inside it") from error
        return self._code

    def _pool(self, session: Connection) -> str:
        owner = session.owner
        spec = self._specs.get(owner)
        if spec is None:
            name = self._agent.register()
            spec = self._specs[owner] = pool_spec(
                agent=name, session=owner, overrides=self._overrides, retries=self._retries, **({} if self._ahead is None else {"ahead": self._ahead})
            )
        return spec

    # References of `covey.put` stand for values as the first two arguments. The plain form is last: messages of checkers tell of it.
    @overload
    def remote(
        self: RemoteFunction[Concatenate[A, Q], R], a: Ref[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[R]: ...
    @overload
    def remote(
        self: RemoteFunction[Concatenate[A, B, Q], R], a: Ref[A], b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[R]: ...
    @overload
    def remote(
        self: RemoteFunction[Concatenate[A, B, Q], R], a: A, b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[R]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
    def remote(self, *args: Any, **kwargs: Any) -> Future[Any]:
        """Runs it on the cluster: a `Future`, or a `Stream` when it yields."""
        session = current_session()
        pool = self._pool(session)
        payload = session.dump_args("pool", pool, ((self._code or self.code(), args, kwargs), _codec.NO_NAMES))
        started = session.call("pool", pool, self._method, payload, None, self._method.startswith("items"), self._how)
        # Of a function that yields it is a stream, as `RemoteGenerator` says.
        return cast("Future[R]", started)

    @overload
    def map(
        self: TakesOne[X], inputs: Iterable[X], *, progress: bool = False, return_exceptions: Literal[False] = False
    ) -> list[R]: ...
    @overload
    def map(
        self: TakesOne[X], inputs: Iterable[X], *, progress: bool = False, return_exceptions: bool
    ) -> list[R | Exception]: ...
    @listed(MapOptions, False)
    def map(self: Any, inputs: Iterable[Any], **options: Any) -> list[Any]:
        """Results for all inputs, in order. Options: `progress`, `return_exceptions`."""
        return [result for _, result in self._map(inputs, ordered=True, **check(options, MapOptions))]

    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> Iterator[R]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[True],
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> Iterator[tuple[X, R]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        progress: bool = False,
        return_exceptions: bool,
    ) -> Iterator[R | Exception]: ...
    @overload
    def map_unordered(
        self: TakesOne[X], inputs: Iterable[X], *, with_input: Literal[True], progress: bool = False, return_exceptions: bool
    ) -> Iterator[tuple[X, R | Exception]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X], inputs: Iterable[X], *, with_input: bool, progress: bool = False, return_exceptions: bool = False
    ) -> Iterator[object]: ...
    @listed(MapOptions, False)
    def map_unordered(self: Any, inputs: Iterable[Any], *, with_input: bool = False, **options: Any) -> Iterator[Any]:
        """Results as they come, or pairs of input and result."""
        return results_of(self._map(inputs, ordered=False, **check(options, MapOptions)), with_input)

    def _map(self, inputs: Iterable[Any], **options: Any) -> Iterator[tuple[Any, Any]]:
        start = cast("Callable[[Any], Future[R]]", self.remote)  # one input is enough for it, as `TakesOne` says
        return over(start, inputs, name=getattr(self, "__name__", ""), **options)


if TYPE_CHECKING:
    from typing import Literal

    from ._connection import Connection
    from ._options import Unpack

    class RemoteCoroutine(RemoteFunction[P, R]):
        """A function that is async: for type checkers."""

        # The decorator alone makes such a function, and nobody takes it for a plain one.
        def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, *args: P.args, **kwargs: P.kwargs
        ) -> Coroutine[Any, Any, R]: ...

        def options(self, **options: Unpack[FunctionOptions]) -> RemoteCoroutine[P, R]: ...

    class RemoteGenerator(RemoteFunction[P, list[R]], Generic[P, R, I]):
        """A function that yields `R`, and that gives `I` when it is called here: for type checkers."""

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> I: ...  # pyright: ignore[reportIncompatibleMethodOverride]  # as there

        def options(self, **options: Unpack[FunctionOptions]) -> RemoteGenerator[P, R, I]: ...

        @overload
        def remote(
            self: RemoteGenerator[Concatenate[A, Q], R, Any], a: Ref[A], /, *args: Q.args, **kwargs: Q.kwargs
        ) -> Stream[R]: ...
        @overload
        def remote(
            self: RemoteGenerator[Concatenate[A, B, Q], R, Any], a: Ref[A], b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
        ) -> Stream[R]: ...
        @overload
        def remote(
            self: RemoteGenerator[Concatenate[A, B, Q], R, Any], a: A, b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
        ) -> Stream[R]: ...
        @overload
        def remote(self, *args: P.args, **kwargs: P.kwargs) -> Stream[R]: ...
        def remote(self, *args: Any, **kwargs: Any) -> Stream[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as there
            """Runs it on the cluster."""
            ...

    class _Decorator(Protocol):
        """What `@covey.task(…)` does to a function."""

        @overload
        def __call__(self, function: Callable[P, AsyncIterator[R]], /) -> RemoteGenerator[P, R, AsyncIterator[R]]: ...
        @overload
        def __call__(self, function: Callable[P, Iterator[R]], /) -> RemoteGenerator[P, R, Iterator[R]]: ...
        @overload
        def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteCoroutine[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> RemoteFunction[P, R]: ...


@overload
def task(function: Callable[P, AsyncIterator[R]], /) -> RemoteGenerator[P, R, AsyncIterator[R]]: ...
@overload
def task(function: Callable[P, Iterator[R]], /) -> RemoteGenerator[P, R, Iterator[R]]: ...
@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> RemoteCoroutine[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> RemoteFunction[P, R]: ...
@overload
def task(**options: Unpack[FunctionOptions]) -> _Decorator: ...
@listed(
    FunctionOptions, cpus=1, gpus=0, memory=0, strategy="spread", retries=3, retry_exceptions=False, schedule_timeout="5m",
    own_process=False,
)  # fmt: skip
def task(function: Any = None, **options: Any) -> Any:
    """Makes a function one that the cluster runs: `f.remote(...)`, `f.map(inputs)`.

    Options: `cpus` (default 1), `gpus`, `memory`, `resources`, `labels`, `retries` (times it is run again when
    its worker dies, default 3), `retry_on` (exceptions after which it is run again too, like `(OSError, TimeoutError)`),
    `backoff` (the pause before that is drawn at random up to this, "100ms", which doubles), `run_timeout` or `timeout` (of each
    run from its start, what it waited not counted), `deadline` (from the call to its answer). A function may so run more than
    once; what must not belongs into an actor, or into a durable task (`covey.submit`). A function that waits for others gives
    its CPU to them meanwhile. `isolation` as of `covey.agent`.
    A parameter annotated `covey.Context` is filled in, as of methods: `ctx.cancelled`, `ctx.llm`, ….
    """
    options = check(options, FunctionOptions)

    def decorate(real: Callable[P, R]) -> RemoteFunction[P, R]:
        return RemoteFunction(real, options)

    return decorate if function is None else decorate(function)


class _ExecutorFuture(concurrent.futures.Future[Any]):
    """A future of the standard library whose `cancel` also stops work that runs."""

    covey: Future[Any] | None = None

    def result(self, timeout: float | None = None) -> Any:
        self._refuse_fork()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._refuse_fork()
        return super().exception(timeout)

    def _refuse_fork(self) -> None:
        if is_forked() and not self.done():
            refuse_fork()

    def cancel(self) -> bool:
        if self.done():
            return self.cancelled()
        if self.covey is not None:
            self.covey.cancel()
        with self._condition:
            # The standard refuses to cancel what runs; here the work is told to stop.
            if self._state == "RUNNING":
                self._state = "PENDING"
        cancelled = super().cancel()
        if cancelled:
            # Nobody else will tell those who wait for it.
            self.set_running_or_notify_cancel()
        return cancelled


class _PoolSize:
    """Functions at once of one executor, and the pools that it has for them."""

    def __init__(self, max_workers: int | None):
        self.max_workers = max_workers
        """`None`: as many as the cluster has CPUs; the functions' own pools are used."""
        self.id = uuid.uuid4().hex
        self.pools: set[str] = set()
        """Pools of a size that the user fixed; they end with the executor, whatever became of the functions."""


class Executor(concurrent.futures.Executor):
    """A `concurrent.futures.Executor` over the cluster: for joblib, asyncio's `run_in_executor`, and your own code."""

    @listed(
        FunctionOptions, cpus=1, gpus=0, memory=0, strategy="spread", retries=3, retry_exceptions=False, schedule_timeout="5m",
        own_process=False,
    )  # fmt: skip
    def __init__(self, max_workers: int | None = None, **options: Unpack[FunctionOptions]):
        """`max_workers`: functions at once (default: as many as the cluster has CPUs); options as of `covey.task`."""
        self._options: dict[str, Any] = {"retries": 3, **check(options, FunctionOptions)}
        self._functions: weakref.WeakKeyDictionary[Any, _Sized] = weakref.WeakKeyDictionary()
        self._open: set[_ExecutorFuture] = set()
        self._guard = threading.Lock()
        self._closed = False
        self._size = _PoolSize(check_value("max_workers", max_workers))

    def _remote(self, function: Any) -> _Sized:
        try:
            known = self._functions.get(function)
            if known is None:
                known = self._functions[function] = _Sized(function, self._options, self._size)
        except TypeError:  # not hashable, or no weak references to it
            known = _Sized(function, self._options, self._size)
        return known

    def _start(self, call: Future[Any]) -> _ExecutorFuture:
        future = _ExecutorFuture()
        future.covey = call
        future.set_running_or_notify_cancel()
        with self._guard:
            self._open.add(future)
        call.add_done_callback(functools.partial(self._over, future))
        return future

    def _over(self, future: _ExecutorFuture, call: Future[Any]) -> None:
        with self._guard:
            self._open.discard(future)
        try:
            value, error = call.__covey_outcome__()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        except concurrent.futures.InvalidStateError:
            pass  # cancelled meanwhile

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> concurrent.futures.Future[R]:
        """Runs `fn(*args, **kwargs)` on the cluster."""
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        return self._start(self._remote(fn).remote(*args, **kwargs))

    def map(
        self, fn: Callable[..., R], *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1
    ) -> Iterator[R]:
        """Like the built-in `map`; with `chunksize`, so many inputs travel and run together."""
        if chunksize < 1:
            raise ValueError("chunksize must be at least 1")
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout)
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        remote, inputs = self._remote(fn), list(zip(*iterables, strict=False))
        chunks = [inputs[i : i + chunksize] for i in range(0, len(inputs), chunksize)]
        futures = [self._start(remote.run_many(chunk)) for chunk in chunks]

        def results() -> Iterator[Any]:
            try:
                for future in futures:
                    yield from future.result(timeout)
            finally:
                for future in futures:
                    future.cancel()

        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """No more work is taken. With `wait`, returns when all is done."""
        self._closed = True
        if is_forked():
            # The work is the other process's.
            return
        with self._guard:
            left = list(self._open)
        if cancel_futures:
            for future in left:
                future.cancel()
        if wait:
            concurrent.futures.wait(left)
            session = current_session()
            for spec in self._size.pools:
                bridge_call(session.client.close_pool, spec)


class _Sized(RemoteFunction[Any, Any]):
    """A function of an executor: its pool is the executor's, of a size that the user may have fixed."""

    def __init__(self, function: Any, options: dict[str, Any], size: _PoolSize):
        self._size = size
        super().__init__(function, options)

    def run_many(self, inputs: list[tuple[Any, ...]]) -> Future[list[Any]]:
        """Runs it once for each input, all of them in one call."""
        session = current_session()
        pool = self._pool(session)
        payload = session.dump_args("pool", pool, ((self.code(), inputs), _codec.NO_NAMES))
        return session.call("pool", pool, _named("run_many", self.__covey_function__), payload, None, False, self._how)

    def _pool(self, session: Connection) -> str:
        if self._size.max_workers is None:
            return super()._pool(session)
        owner = session.owner
        spec = self._specs.get(owner)
        if spec is None:
            name = self._agent.register()
            # Many small workers of one executor share the CPUs, as threads do.
            overrides = json.loads(self._overrides)
            overrides.get("resources", {})["cpu_milli"] = 0
            spec = self._specs[owner] = pool_spec(
                agent=name,
                session=owner,
                overrides=json.dumps(overrides),
                retries=self._retries,
                actors=self._size.max_workers,
                id=self._size.id,
            )
            self._size.pools.add(spec)
        return spec
