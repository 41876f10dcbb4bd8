"""Ray core's words on Covey: `from covey.compat import ray` instead of `import ray`.

What differs, and cannot be papered over:
- Ray places an actor's calls in its own process; here many actors share processes unless `own_process=True` is given.
- `ray.get` of a big value copies arrays in results; `ray.put` gives read-only views, as Ray does.
- Streaming generators yield references, as in Ray; the items behind them have already arrived.
- `memory` is a bound here: an actor that uses more ends. Ray only keeps it free.
- What runs in a bundle of a placement group is not counted against the bundle, only refused when it asks for more than that.
- Not here: runtime_env beyond `env_vars`, Ray's own libraries (Serve, Data, Train, Tune).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from .. import _agent, _bridge, _codec, _context, _functions, _objects, _session, errors
from .._future import Future, Stream, _done_in_order

# ---- errors, under the names that scripts catch -------------------------------------------------------------------


class exceptions:
    """`ray.exceptions`."""

    RayError = errors.CoveyError
    RayTaskError = errors.RemoteError
    RayActorError = errors.ActorDied
    ActorDiedError = errors.ActorDied
    ActorUnavailableError = errors.ActorDied
    GetTimeoutError = errors.DeadlineExceeded
    TaskCancelledError = errors.Cancelled
    ActorUnschedulableError = errors.Unschedulable
    TaskUnschedulableError = errors.Unschedulable
    PendingCallsLimitExceeded = errors.Overloaded


# ---- references ---------------------------------------------------------------------------------------------------


class ObjectRef:
    """The result of a call, or a value that was put. `ray.get` takes it, other calls take it as an argument."""

    def __init__(self, source: Any, index: int | None = None):
        self._source, self._index = source, index

    @property
    def _call(self) -> Any:
        return getattr(self._source, "_call", None)

    def _value(self, timeout: float | None = None) -> Any:
        value = self._source.result(timeout)
        return value if self._index is None else value[self._index]

    def done(self) -> bool:
        return self._source.done()

    def future(self) -> Any:
        """A `concurrent.futures.Future` of the value."""
        made: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def over(_: Any) -> None:
            try:
                made.set_result(self._value())
            except BaseException as error:
                made.set_exception(error)

        if hasattr(self._source, "add_done_callback"):
            self._source.add_done_callback(over)
        else:
            over(None)
        return made

    def __await__(self) -> Any:
        if hasattr(self._source, "__await__"):
            value = yield from self._source.__await__()
        else:
            value = self._source.result()
        return value if self._index is None else value[self._index]

    def hex(self) -> str:
        return f"{id(self):032x}"

    def __reduce__(self) -> Any:
        # Only finished values travel inside other values; as arguments references are waited for by the caller.
        return _get_back, (_objects.put(self._value()) if not isinstance(self._source, _objects.Ref) else self._source,)


def _get_back(ref: Any) -> ObjectRef:
    return ObjectRef(ref)


class ObjectRefGenerator:
    """What a method that yields gives: references to its items, while they are made."""

    def __init__(self, stream: Stream[Any]):
        self._stream = stream
        self._items: Iterator[Any] | None = None
        self._async_items: AsyncIterator[Any] | None = None

    def __iter__(self) -> ObjectRefGenerator:
        return self

    def __next__(self) -> ObjectRef:
        if self._items is None:
            self._items = iter(self._stream)
        return ObjectRef(_Ready(next(self._items)))

    def __aiter__(self) -> ObjectRefGenerator:
        return self

    async def __anext__(self) -> ObjectRef:
        if self._async_items is None:
            self._async_items = self._stream.__aiter__()
        return ObjectRef(_Ready(await self._async_items.__anext__()))

    def completed(self) -> bool:
        return self._stream._call.done()


DynamicObjectRefGenerator = ObjectRefGenerator


class _Ready:
    """A value that is here."""

    def __init__(self, value: Any):
        self._value = value

    def result(self, timeout: float | None = None) -> Any:
        return self._value

    def done(self) -> bool:
        return True


# ---- calls --------------------------------------------------------------------------------------------------------

_RENAMED = {"num_cpus": "cpus", "num_gpus": "gpus", "memory": "memory", "resources": "resources", "max_restarts": "max_restarts"}
_IGNORED = {
    "max_calls", "num_returns", "max_task_retries", "max_concurrency", "lifetime", "namespace", "name", "get_if_exists", "max_retries",
    "retry_exceptions", "runtime_env", "scheduling_strategy", "concurrency_groups", "concurrency_group", "max_pending_calls",
    "accelerator_type", "allow_out_of_order_execution", "enable_task_events", "label_selector", "fallback_strategy",
    "_generator_backpressure_num_objects", "own_process",
}  # fmt: skip


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in options.items():
        if key in _RENAMED:
            if value is not None:
                out[_RENAMED[key]] = None if key == "max_restarts" and value == -1 else value
        elif key not in _IGNORED:
            raise ValueError(f"option {key!r} is not one of Ray's that Covey knows")
    strategy = options.get("scheduling_strategy")
    if strategy in ("SPREAD", "DEFAULT"):
        out["strategy"] = "spread" if strategy == "SPREAD" else "pack"
    elif isinstance(strategy, PlacementGroupSchedulingStrategy):
        out |= strategy._place(out)
    elif isinstance(strategy, NodeAffinitySchedulingStrategy):
        if not strategy.soft:
            out["labels"] = {"node_id": strategy.node_id}
    elif strategy is not None:
        raise ValueError(f"scheduling_strategy {strategy!r} is not one of Ray's that Covey knows")
    return out


def _ready(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return not any(isinstance(v, ObjectRef) for v in (*args, *kwargs.values()))


def _plain(value: Any) -> Any:
    """An argument as it travels: the value behind a reference, or the reference where the value stays in the store."""
    if not isinstance(value, ObjectRef):
        return value
    return value._source if isinstance(value._source, _objects.Ref) and value._index is None else value._value()


class _Later:
    """A call whose arguments are results of others: it starts when they are there."""

    def __init__(self, start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]):
        self._start, self._args, self._kwargs = start, args, kwargs
        self._real: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Any], None]] = []
        self._event, self._lock = threading.Event(), threading.Lock()
        waiting = [v for v in (*args, *kwargs.values()) if isinstance(v, ObjectRef) and not v.done()]
        self._left = len(waiting)
        if not waiting:
            self._go()
        for ref in waiting:
            ref._source.add_done_callback(self._one)

    def _one(self, _: Any) -> None:
        with self._lock:
            self._left -= 1
            go = self._left == 0
        if go:
            self._go()

    def _go(self) -> None:
        try:
            self._real = self._start(*map(_plain, self._args), **{k: _plain(v) for k, v in self._kwargs.items()})
            self._real.add_done_callback(self._over)
        except BaseException as error:
            self._error = error
            self._over(self)

    def _over(self, _: Any) -> None:
        with self._lock:
            self._event.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def done(self) -> bool:
        return self._event.is_set()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._event.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def result(self, timeout: float | None = None) -> Any:
        if not self._event.wait(timeout):
            raise errors.DeadlineExceeded(f"no result within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._real.result()

    def cancel(self) -> None:
        if self._real is not None:
            self._real.cancel()

    def __await__(self) -> Any:
        return asyncio.wrap_future(ObjectRef(self).future()).__await__()


def _call(start: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], num_returns: Any = 1) -> Any:
    source = start(*args, **kwargs) if _ready(args, kwargs) else _Later(start, args, kwargs)
    if isinstance(source, Stream):
        return ObjectRefGenerator(source)
    if isinstance(num_returns, int) and num_returns > 1:
        return [ObjectRef(source, i) for i in range(num_returns)]
    return None if num_returns == 0 else ObjectRef(source)


class RemoteFunction:
    """What `@ray.remote` makes of a function."""

    def __init__(self, function: Any, options: dict[str, Any]):
        self._function, self._options = function, options
        covey = _translated(options)
        covey.setdefault("cpus", 1)
        retries = options.get("max_retries", 3)
        covey.pop("max_restarts", None)
        self._remote = _functions.RemoteFunction(
            function, {**covey, "retries": 1_000_000 if retries == -1 else retries, "retry_exceptions": bool(options.get("retry_exceptions"))}
        )
        self.__name__, self.__doc__ = function.__name__, function.__doc__

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"remote functions cannot be called directly; use {self.__name__}.remote()")

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._function, self._options)

    def options(self, **options: Any) -> RemoteFunction:
        return RemoteFunction(self._function, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._remote.remote, args, kwargs, self._options.get("num_returns", 1))


class ActorClass:
    """What `@ray.remote` makes of a class."""

    def __init__(self, cls: type, options: dict[str, Any]):
        self._cls, self._options = cls, options
        methods = [m for _, m in inspect.getmembers(cls, inspect.isfunction)]
        anew = any(inspect.iscoroutinefunction(m) or inspect.isasyncgenfunction(m) for m in methods)
        covey = _translated(options)
        covey.setdefault("max_restarts", 0)
        covey["concurrency"] = options.get("max_concurrency") or (1000 if anew else 1)
        if options.get("own_process"):
            covey["own_process"] = True
        if options.get("concurrency_groups"):
            covey["groups"] = options["concurrency_groups"]
        self._agent: _agent.Agent[Any, Any] = _agent.Agent(cls, {"name": cls.__name__, **covey})
        self.__name__, self.__doc__ = cls.__name__, cls.__doc__

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"actors cannot be made directly; use {self.__name__}.remote()")

    def __reduce__(self) -> Any:
        return ActorClass, (self._cls, self._options)

    def options(self, **options: Any) -> ActorClass:
        return ActorClass(self._cls, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        o, mine = self._options, {}
        if o.get("name"):
            mine["name"] = f"{o['namespace']}/{o['name']}" if o.get("namespace") else o["name"]
        if o.get("get_if_exists"):
            mine["get_if_exists"] = True
        if o.get("lifetime") == "detached":
            mine["detached"] = True
        args, kwargs = tuple(map(_plain, args)), {k: _plain(v) for k, v in kwargs.items()}
        agent = self._agent.options(**mine) if mine else self._agent
        return ActorHandle(agent.remote(*args, **kwargs), o.get("max_task_retries", 0))


class ActorHandle:
    """A way to one actor."""

    def __init__(self, handle: _agent.Handle, retries: int = 0):
        self._handle, self._retries = handle, retries

    def __getattr__(self, name: str) -> ActorMethod:
        if name.startswith("_"):
            raise AttributeError(name)
        return ActorMethod(getattr(self._handle, name), self._retries)

    def __reduce__(self) -> Any:
        return ActorHandle, (self._handle, self._retries)

    def __repr__(self) -> str:
        return f"Actor({self._handle._spec['name']}, {self._handle._actor})"


class ActorMethod:
    """One method of one actor."""

    def __init__(self, method: _agent.Method, retries: int, num_returns: Any = None):
        self._retries = 1_000_000 if retries == -1 else retries
        self._method = method.options(retries=self._retries) if self._retries else method
        self._num_returns = num_returns

    def options(self, *, num_returns: Any = None, max_task_retries: int | None = None, **_: Any) -> ActorMethod:
        return ActorMethod(self._method, self._retries if max_task_retries is None else max_task_retries, num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return _call(self._method.remote, args, kwargs, self._num_returns if self._num_returns is not None else 1)


def remote(*args: Any, **options: Any) -> Any:
    """`@ray.remote` and `@ray.remote(num_cpus=…)`, on functions and classes."""

    def wrap(thing: Any) -> Any:
        return ActorClass(thing, options) if inspect.isclass(thing) else RemoteFunction(thing, options)

    if len(args) == 1 and not options and callable(args[0]):
        return wrap(args[0])
    if args:
        raise TypeError("use @ray.remote or @ray.remote(option=value)")
    return wrap


def method(*, num_returns: Any = None, concurrency_group: str | None = None, **_: Any) -> Callable[[Any], Any]:
    """`@ray.method`: marks a method's concurrency group."""

    return _agent.method(group=concurrency_group) if concurrency_group else lambda function: function


# ---- placement ------------------------------------------------------------------------------------------------------


def _needs(bundle: dict[str, float]) -> dict[str, Any]:
    """A bundle in Covey's words."""
    own = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
    needs: dict[str, Any] = {own[k]: v for k, v in bundle.items() if k in own}
    custom = {k: v for k, v in bundle.items() if k not in own}
    return {**needs, "resources": custom} if custom else needs


class _Held:
    """A group that is there when all of its bundles are."""

    def __init__(self, group: PlacementGroup, bundles: list[Future]):
        self._group, self._bundles = group, bundles

    def done(self) -> bool:
        return all(bundle.done() for bundle in self._bundles)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        left, lock = [len(self._bundles)], threading.Lock()

        def one(_: Any) -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                callback(self)

        for bundle in self._bundles:
            bundle.add_done_callback(one)

    def result(self, timeout: float | None = None) -> PlacementGroup:
        end = None if timeout is None else time.monotonic() + timeout
        for bundle in self._bundles:
            bundle.result(None if end is None else max(0.0, end - time.monotonic()))
        return self._group

    def cancel(self) -> None:
        for bundle in self._bundles:
            bundle.cancel()


class PlacementGroup:
    """Room that is held: each bundle by an actor that does nothing, all of them placed at once or not at all."""

    def __init__(self, bundles: list[dict[str, float]], holders: list[_agent.Handle]):
        self.bundle_specs, self._holders, self._turn = bundles, holders, itertools.cycle(range(len(bundles)))

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    @property
    def id(self) -> str:
        return self._holders[0]._actor

    def ready(self) -> ObjectRef:
        """A reference that is there once all bundles are."""
        return ObjectRef(_Held(self, [holder.get.remote() for holder in self._holders]))

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether all bundles are there within this time."""
        done, _ = wait([self.ready()], timeout=timeout_seconds)
        return bool(done)

    def __reduce__(self) -> Any:
        return PlacementGroup, (self.bundle_specs, self._holders)


def placement_group(bundles: list[dict[str, float]], strategy: str = "PACK", name: str = "", lifetime: str | None = None) -> PlacementGroup:
    """Holds room for all of these bundles at once. Strategies: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD."""
    if not bundles or not all(bundles):
        raise ValueError("a placement group needs bundles, and each of them something to hold")
    session = _session.current()
    asks = []
    for index, bundle in enumerate(bundles):
        overrides = json.dumps(_agent._options(_needs(bundle)))
        asks.append(("counter", f"{name}#{index}" if name else "", None, overrides, lifetime == "detached"))
    made = _session.bridge_call(session.client.create_gang, session.owner, asks, strategy.lower())
    return PlacementGroup(bundles, [_agent.Handle(m[0], json.loads(m[3])) for m in made])


def remove_placement_group(group: PlacementGroup) -> None:
    """Gives the room back. Unlike in Ray, what runs in it goes on until it is killed."""
    for holder in group._holders:
        holder.kill()


class PlacementGroupSchedulingStrategy:
    """In a bundle of a group: the one of this index, or the next in turn."""

    def __init__(self, placement_group: PlacementGroup, placement_group_bundle_index: int = -1, placement_group_capture_child_tasks: bool | None = None):
        if placement_group_bundle_index >= placement_group.bundle_count:
            raise ValueError(f"the placement group has {placement_group.bundle_count} bundles, there is no number {placement_group_bundle_index}")
        self.placement_group, self.placement_group_bundle_index = placement_group, placement_group_bundle_index

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        group, index = self.placement_group, self.placement_group_bundle_index
        if index < 0:
            index = next(group._turn)
        held = _needs(group.bundle_specs[index])
        for key in ("cpus", "gpus"):
            if (asked.get(key) or 0) > held.get(key, 0):
                raise ValueError(f"asks for {key}={asked[key]}, its bundle holds {held.get(key, 0)}")
        # The bundle has what it needs.
        return {"near": group._holders[index], "cpus": 0, "gpus": 0, "resources": {}}


class NodeAffinitySchedulingStrategy:
    """On the node of this id; with `soft`, anywhere."""

    def __init__(self, node_id: str, soft: bool = False, **_: Any):
        self.node_id, self.soft = node_id, soft


# ---- the module's functions ---------------------------------------------------------------------------------------


def init(address: str | None = None, *, num_cpus: float | None = None, ignore_reinit_error: bool = False, namespace: str | None = None, **_: Any) -> Any:
    """Connects, or starts a cluster on this machine. `"auto"` takes the one of this user."""
    if is_initialized():
        if ignore_reinit_error or (address is None and num_cpus is None):
            return _session.current()
        raise RuntimeError("ray.init() was called twice; use ignore_reinit_error=True to allow it")
    if address in ("auto", "ray://"):
        return _session.connect()
    if address and address != "local":
        return _session.connect(address.removeprefix("ray://"))
    return _session.init(cpus=num_cpus)


def is_initialized() -> bool:
    return _session._current is not None


def shutdown() -> None:
    _session.shutdown()


def put(value: Any) -> ObjectRef:
    """Keeps a value for calls that share it."""
    if isinstance(value, ObjectRef):
        raise TypeError("calling 'put' on an ObjectRef is not allowed")
    return ObjectRef(_objects.put(value))


def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value, or the values, waiting for them."""
    if isinstance(refs, ObjectRef):
        return refs._value(timeout)
    if isinstance(refs, ObjectRefGenerator):
        return [ref._value() for ref in refs]
    if not isinstance(refs, (list, tuple)):
        raise ValueError(f"'get' takes an ObjectRef or a list of them, not {type(refs).__name__}")
    end = None if timeout is None else time.monotonic() + timeout
    out = []
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise ValueError(f"'get' takes ObjectRefs, not {type(ref).__name__}")
        out.append(ref._value(None if end is None else max(0.0, end - time.monotonic())))
    return out


def wait(refs: list[ObjectRef], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True) -> tuple[list[ObjectRef], list[ObjectRef]]:
    """(ready, not ready): ready has at most `num_returns`, in the order given."""
    refs = list(refs)
    if len({id(r) for r in refs}) != len(refs):
        raise ValueError("wait needs a list of unique ObjectRefs")
    if not 0 < num_returns <= len(refs):
        raise ValueError(f"num_returns={num_returns} of {len(refs)} refs")
    ready: set[int] = set()

    def more() -> bool:
        for ref in refs:
            if len(ready) < num_returns and ref.done():
                ready.add(id(ref))
        return len(ready) < num_returns

    if more():
        port = _bridge.Port()
        for token, ref in enumerate(refs):
            if isinstance(ref._source, (_Later, _Held)):
                ref._source.add_done_callback(lambda _, token=token: port.push(token))
            elif ref._call is not None:
                ref._call.notify(port, token)
        end = None if timeout is None else time.monotonic() + timeout
        while more():
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                break
            port.wait(left)
    return [r for r in refs if id(r) in ready], [r for r in refs if id(r) not in ready]


def cancel(ref: Any, *, force: bool = False, recursive: bool = True) -> None:
    """Stops the work behind a reference; getting it then raises `TaskCancelledError`."""
    source = ref._stream if isinstance(ref, ObjectRefGenerator) else ref._source
    if hasattr(source, "cancel"):
        source.cancel()


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Ends an actor now."""
    actor._handle.kill()


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor."""
    try:
        return ActorHandle(_agent.get_actor(f"{namespace}/{name}" if namespace else name))
    except errors.NotFound:
        raise ValueError(f"Failed to look up actor with name '{name}'") from None


def nodes() -> list[dict[str, Any]]:
    """Workers, in the shape of Ray's list."""
    status = json.loads(_session.bridge_call(_session.current().client.status))
    return [
        {"NodeID": n["id"], "Alive": n["state"] == "live", "NodeName": n["name"], "Resources": _amounts(n["total"]), "Labels": n["labels"]}
        for n in status["nodes"]
    ]


def _amounts(resources: dict[str, Any]) -> dict[str, float]:
    out = {"CPU": resources["cpu_milli"] / 1000, "memory": float(resources["memory_bytes"])}
    if resources["gpu_milli"]:
        out["GPU"] = resources["gpu_milli"] / 1000
    return out | {k: v / 1000 for k, v in resources.get("custom", {}).items()}


def cluster_resources() -> dict[str, float]:
    """What all live workers have."""
    return _sum("total")


def available_resources() -> dict[str, float]:
    """What is free on all live workers."""
    return _sum("free")


def _sum(which: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for node in json.loads(_session.bridge_call(_session.current().client.status))["nodes"]:
        if node["state"] == "live":
            for key, value in _amounts(node[which]).items():
                total[key] = total.get(key, 0) + value
    return total


class _RuntimeContext:
    def get_node_id(self) -> str:
        import os

        return os.environ.get("COVEY_NODE", "")

    def get_job_id(self) -> str:
        return _session.current().owner

    @property
    def was_current_actor_reconstructed(self) -> bool:
        return False

    def is_canceled(self) -> bool:
        ctx = _context.current()
        return ctx is not None and ctx.cancelled


def get_runtime_context() -> _RuntimeContext:
    return _RuntimeContext()


class ActorPool:
    """`ray.util.ActorPool`: work over a given list of actors."""

    def __init__(self, actors: Iterable[ActorHandle]):
        self._idle = list(actors)
        self._busy: dict[int, tuple[ObjectRef, ActorHandle]] = {}
        self._order: list[ObjectRef] = []
        self._waiting: list[tuple[Callable[[Any, Any], Any], Any]] = []

    def submit(self, fn: Callable[[Any, Any], Any], value: Any) -> None:
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

    def get_next(self, timeout: float | None = None) -> Any:
        if not self.has_next():
            raise StopIteration("No more results to get")
        ref = self._order[0]
        if timeout is not None and not wait([ref], timeout=timeout)[0]:
            raise TimeoutError("Timed out waiting for result")
        return self._take(ref)

    def get_next_unordered(self, timeout: float | None = None) -> Any:
        if not self.has_next():
            raise StopIteration("No more results to get")
        ready, _ = wait(list(self._order), num_returns=1, timeout=timeout)
        if not ready:
            raise TimeoutError("Timed out waiting for result")
        return self._take(ready[0])

    def map(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.submit(fn, value)
        while self.has_next():
            yield self.get_next()

    def map_unordered(self, fn: Callable[[Any, Any], Any], values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.submit(fn, value)
        while self.has_next():
            yield self.get_next_unordered()

    def push(self, actor: ActorHandle) -> None:
        self._idle.append(actor)
        if self._waiting:
            self.submit(*self._waiting.pop(0))

    def pop_idle(self) -> ActorHandle | None:
        return self._idle.pop() if self._idle else None


class util:
    """`ray.util`."""

    placement_group = staticmethod(placement_group)
    remove_placement_group = staticmethod(remove_placement_group)

    class scheduling_strategies:
        PlacementGroupSchedulingStrategy = PlacementGroupSchedulingStrategy
        NodeAffinitySchedulingStrategy = NodeAffinitySchedulingStrategy

    ActorPool = ActorPool

    @staticmethod
    def as_completed(refs: list[ObjectRef], **_: Any) -> Iterator[Any]:
        """Values as they come."""
        for ref in _done_in_order(list(refs), None):
            yield ref._value()

    @staticmethod
    def map_unordered(fn: RemoteFunction, inputs: Iterable[Any], **_: Any) -> Iterator[Any]:
        yield from fn._remote.map_unordered(inputs)
