"""`@ray.remote`: functions, classes, handles and their methods."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

from ... import errors
from ..._agent import Agent, Handle, Method
from ..._agent import get_actor as covey_actor
from ..._agent import method as covey_method
from ..._current import current_session
from ..._functions import RemoteFunction as CoveyFunction
from ..._narrow import is_a
from ..._schema import of_parameters
from . import _placement, exceptions
from ._cluster import Id, full_name
from ._env import environment
from ._exits import ending
from ._refs import call, plain
from ._signature import Fits, told

_RENAMED = {"num_cpus": "cpus", "num_gpus": "gpus", "memory": "memory", "resources": "resources", "max_restarts": "max_restarts"}
_IGNORED = {
    "max_calls", "num_returns", "max_task_retries", "max_concurrency", "lifetime", "namespace", "name", "get_if_exists", "max_retries",
    "retry_exceptions", "runtime_env", "scheduling_strategy", "concurrency_groups", "concurrency_group", "max_pending_calls",
    "accelerator_type", "allow_out_of_order_execution", "enable_task_events", "label_selector", "fallback_strategy",
    "_generator_backpressure_num_objects", "own_process", "object_store_memory", "_metadata", "_labels", "placement_group",
    "placement_group_bundle_index", "placement_group_capture_child_tasks",
}  # fmt: skip
SIGNATURE = "x-signature"
"""Where the schema of a method tells its parameters."""
FOREVER = 1_000_000
"""Tries of what Ray tries without a bound (-1)."""
READY = "covey_ready"
"""Stands for `__ray_ready__`, as a name that may be called."""


def _translated(options: dict[str, Any]) -> dict[str, Any]:
    """Options in Covey's words."""
    out: dict[str, Any] = {}
    for key, value in options.items():
        if key in _RENAMED:
            if value is not None:
                out[_RENAMED[key]] = None if key == "max_restarts" and value == -1 else value
        elif key not in _IGNORED:
            raise ValueError(f"option {key!r} is not one of Ray's that Covey knows")
    if options.get("label_selector"):
        out["labels"] = dict(options["label_selector"])
    return out | _placement.place(options, out) | environment(options.get("runtime_env"))


def _tries(count: Any) -> int:
    return FOREVER if count == -1 else int(count or 0)


def _retry_on(said: Any) -> tuple[type[BaseException], ...]:
    """`retry_exceptions`: all of them, or those of a list."""
    if said is True:
        return (Exception,)
    return tuple(said) if said else ()


def _refuse_mix(name: str) -> TypeError:
    return TypeError(f"Remote functions cannot be called directly. Instead of running '{name}()', try '{name}.remote()'.")


class RemoteFunction:
    """What `@ray.remote` makes of a function."""

    def __init__(self, function: Any, options: dict[str, Any]):
        self._function, self._options = function, options
        covey = _translated(options)
        covey.setdefault("cpus", 1)
        covey.pop("max_restarts", None)
        retry_on = _retry_on(options.get("retry_exceptions"))
        retries = _tries(options.get("max_retries", 3))
        # As in Ray a task never waits behind one that runs where a CPU is free. `sys.exit` is an end of its process to Ray.
        more = {"retries": retries, "retry_on": (*retry_on, SystemExit) if retries else (), "ahead": 0}
        self._remote = CoveyFunction(function, {**covey, **more})
        self._place = _placement.place_of(options)
        self._remote.__covey_function__ = _placement.Inside(function, _placement.assigned(options, cpus=1), self._place)
        self._captured: dict[tuple[str, int], RemoteFunction] = {}
        """The same for the bundles of groups that capture what their tasks start."""
        self._fits = Fits(told(function))
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise _refuse_mix(self._function.__name__)

    def __reduce__(self) -> Any:
        return RemoteFunction, (self._function, self._options)

    def options(self, **options: Any) -> RemoteFunction:
        """The same function with other options for its next calls."""
        return RemoteFunction(self._function, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it: an `ObjectRef`, several, or a generator of them."""
        self._fits.check(getattr(self._function, "__name__", "the function"), args, kwargs)
        strategy = _placement.captured(self._options)
        if strategy is not None:
            return self._in(strategy)._start(args, kwargs)
        return self._start(args, kwargs)

    def _in(self, strategy: _placement.PlacementGroupSchedulingStrategy) -> RemoteFunction:
        """The same function in a group that its caller is in."""
        group = strategy.placement_group
        assert group is not None, "what captures has a group"
        asked = {"cpus": 1, **_translated(self._options)}
        key = (group.id, strategy.index_in(group, asked))
        if key not in self._captured:
            strategy.placement_group_bundle_index = key[1]
            self._captured[key] = self.options(scheduling_strategy=strategy)
        return self._captured[key]

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        start, place = self._remote.remote, self._place
        if place is not None and place.group.removed:
            start = _refuse_removed
        return call(start, args, kwargs, self._options.get("num_returns"), "task")


def _refuse_removed(*_: Any, **__: Any) -> Any:
    # A worker that has run tasks in the bundle would take more.
    raise exceptions.TaskPlacementGroupRemoved()


def _methods_of(cls: type) -> dict[str, Any]:
    """Its public methods as the actor has them: they may end it, and tell how they are called."""
    made: dict[str, Any] = {}
    for name, function in inspect.getmembers(cls, inspect.isfunction):
        if name.startswith("_") or isinstance(inspect.getattr_static(cls, name), staticmethod):
            continue
        method: Any = ending(function, name)
        made[name] = method
        marks = getattr(function, "__covey_schema__", {})
        schema = {**of_parameters(function, 1), **marks, SIGNATURE: told(function, 1)}
        method.__covey_schema__ = schema
    return made


def _ready(self: Any) -> None:
    """The constructor has run."""


class ActorClass:
    """What `@ray.remote` makes of a class."""

    def __init__(self, cls: type, options: dict[str, Any]):
        self._cls, self._options = cls, options
        methods = [m for _, m in inspect.getmembers(cls, inspect.isfunction)]
        anew = any(inspect.iscoroutinefunction(m) or inspect.isasyncgenfunction(m) for m in methods)
        covey = _translated(options)
        covey.setdefault("max_restarts", 0)
        covey["concurrency"] = options.get("max_concurrency") or (1000 if anew else 1)
        # One that may start again may crash, which others in its process would feel.
        if options.get("own_process", covey["max_restarts"] != 0):
            covey["own_process"] = True
        if options.get("concurrency_groups"):
            covey["groups"] = options["concurrency_groups"]
        has: dict[str, Any] = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        has |= {READY: _ready, **_methods_of(cls), "__ray_restarts__": covey["max_restarts"] != 0}
        place = _placement.place_of(options)
        given = _placement.assigned(options, cpus=0)
        if given or place is not None:
            has |= {"__ray_assigned__": given, "__ray_place__": place, "__init__": _placement.constructor_in(cls, given, place)}
        shipped = type(cls.__name__, (cls,), has)
        self._agent: Agent[Any, Any] = Agent(shipped, {"name": cls.__name__, **covey})
        self.__name__, self.__doc__, self.__module__ = cls.__name__, cls.__doc__, cls.__module__

    def __call__(self, *_: Any, **__: Any) -> Any:
        name = self.__name__
        raise TypeError(f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'.")

    def __reduce__(self) -> Any:
        return ActorClass, (self._cls, self._options)

    def options(self, **options: Any) -> ActorClass:
        """The same class with other options for its next actors."""
        return ActorClass(self._cls, {**self._options, **options})

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle:
        """Makes an actor."""
        o = self._options
        mine: dict[str, Any] = {}
        Fits(told(self._cls)).check(self.__name__, args, kwargs)
        captured = _placement.captured(o)
        if captured is not None:
            return self.options(scheduling_strategy=captured).remote(*args, **kwargs)
        if o.get("name"):
            mine["name"] = full_name(o["name"], o.get("namespace"))
        if o.get("get_if_exists"):
            if not o.get("name"):
                raise ValueError("The actor name must be specified to use `get_if_exists`.")
            mine["get_if_exists"] = True
        if o.get("lifetime") == "detached":
            mine["detached"] = True
        elif o.get("lifetime") not in (None, "non_detached"):
            raise ValueError("actor `lifetime` argument must be one of 'detached', 'non_detached' and None")
        args, kwargs = tuple(map(plain, args)), {k: plain(v) for k, v in kwargs.items()}
        agent = self._agent.options(**mine) if mine else self._agent
        try:
            handle = ActorHandle(agent.remote(*args, **kwargs), o.get("max_task_retries", 0), _retry_on(o.get("retry_exceptions")))
        except errors.AlreadyExists as error:
            raise ValueError(f"The name {o['name']} is already taken. Please use a different name or get the existing actor. ({error})") from None
        place = _placement.place_of(o)
        if place is not None:
            place.group.inside.append(weakref.ref(handle))
        return handle


def skills_of(handle: Handle) -> dict[str, dict[str, Any]]:
    """Methods of an actor, as its agent's definition tells of them."""
    return {skill["id"]: skill for skill in handle.__covey_spec__["skills"]}


class ActorHandle:
    """A way to one actor."""

    def __init__(self, handle: Handle, retries: int = 0, retry_on: tuple[type[BaseException], ...] = ()):
        self.__covey_handle__, self._retries, self._retry_on = handle, retries, retry_on

    def __getattr__(self, name: str) -> ActorMethod:
        if name == "__ray_ready__":
            name = READY
        if name.startswith("__") or "__covey_handle__" not in self.__dict__:
            raise AttributeError(name)
        methods = skills_of(self.__covey_handle__)
        skill, kind = methods.get(name), self.__covey_handle__.__covey_spec__["name"]
        if skill is None and name.startswith("_"):
            raise AttributeError(f"{name!r} of an actor of {kind!r} cannot be called from elsewhere: its name begins with _")
        if skill is None:
            has = ", ".join(m for m in methods if m != READY)
            raise AttributeError(f"an actor of {kind!r} has no method {name!r}; it has: {has}")
        covey = Method(self.__covey_handle__.__covey_actor__, name, bool(skill.get("streaming")), True)
        method = ActorMethod(covey, name, self.__covey_handle__, self._retries, self._retry_on)
        self.__dict__[name] = method
        return method

    def __reduce__(self) -> Any:
        return ActorHandle, (self.__covey_handle__, self._retries, self._retry_on)

    def __hash__(self) -> int:
        return hash(self.__covey_handle__.__covey_actor__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other.__covey_handle__.__covey_actor__ == self.__covey_handle__.__covey_actor__

    @property
    def _actor_id(self) -> str:
        return self.__covey_handle__.__covey_actor__

    @property
    def _ray_actor_id(self) -> Id:
        return Id(self.__covey_handle__.__covey_actor__)

    def __repr__(self) -> str:
        return f"Actor({self.__covey_handle__.__covey_spec__['name']}, {self.__covey_handle__.__covey_actor__})"


class ActorMethod:
    """One method of one actor."""

    def __init__(
        self, method: Method, name: str, handle: Handle, retries: Any, retry_on: tuple[type[BaseException], ...], num_returns: Any = None
    ):
        self._covey, self._name, self._handle = method, name, handle
        self._retries, self._retry_on = retries, retry_on
        tries = _tries(retries)
        again_on = (*retry_on, exceptions.Crash)
        self._method = method.options(retries=tries, retry_on=again_on) if tries else method
        said: dict[str, Any] = skills_of(handle)[name].get("input_schema") or {}
        self._num_returns: Any = num_returns if num_returns is not None else said.get("x-num-returns")
        self._fits = Fits(said.get(SIGNATURE))

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"Actor methods cannot be called directly. Instead of running 'object.{self._name}()', try 'object.{self._name}.remote()'.")

    def options(self, *, num_returns: Any = None, max_task_retries: Any = None, retry_exceptions: Any = None, **_: Any) -> ActorMethod:
        """The same method with other options for its next calls."""
        retries = self._retries if max_task_retries is None else max_task_retries
        retry_on = self._retry_on if retry_exceptions is None else _retry_on(retry_exceptions)
        return ActorMethod(self._covey, self._name, self._handle, retries, retry_on, self._num_returns if num_returns is None else num_returns)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it: an `ObjectRef`, several, or a generator of them."""
        self._fits.check(self._name, args, kwargs)
        return call(self._method.remote, args, kwargs, self._num_returns, "actor", self._handle.__covey_actor__)


def remote(*args: Any, **options: Any) -> Any:
    """`@ray.remote` and `@ray.remote(num_cpus=…)`, on functions and classes."""

    def wrap(thing: Any) -> Any:
        if inspect.isclass(thing):
            return ActorClass(thing, options)
        if not callable(thing):
            raise TypeError("The @ray.remote decorator must be applied to either a function or a class.")
        return RemoteFunction(thing, options)

    if len(args) == 1 and not options and callable(args[0]):
        return wrap(args[0])
    if args:
        raise TypeError("use @ray.remote or @ray.remote(option=value)")
    return wrap


def method(*args: Any, num_returns: Any = None, concurrency_group: str | None = None, **options: Any) -> Callable[[Any], Any]:
    """`@ray.method`: how many values a method gives, and its concurrency group."""
    if args:
        raise ValueError("use @ray.method(num_returns=2), with an option")

    def mark(function: Any) -> Any:
        if num_returns is not None:
            function.__covey_schema__ = {"x-num-returns": num_returns}
        grouped: Any = covey_method(group=concurrency_group)
        return grouped(function) if concurrency_group else function

    return mark


def kill(actor: ActorHandle, *, no_restart: bool = True) -> None:
    """Ends an actor now."""
    if not is_a(actor, ActorHandle):
        raise ValueError(f"ray.kill() only supported for actors. For tasks, try ray.cancel(). Got: {type(actor).__name__}")
    actor.__covey_handle__.kill()


def get_actor(name: str, namespace: str | None = None) -> ActorHandle:
    """The handle of a named actor."""
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    current_session()  # as in Ray, there is a cluster now
    try:
        return ActorHandle(covey_actor(full_name(name, namespace)))
    except errors.NotFound:
        raise ValueError(f"Failed to look up actor with name '{name}'") from None
