"""Agents: the decorator, handles, calls, `map`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, ParamSpec, TypeVar, cast

from . import _codec, errors
from ._agent_method import AgentMethod
from ._current import bridge_call, current_session, present_session
from ._context import Context
from ._env import KEYS, Environment
from ._future import Future, Stream
from ._hints import hints_of, keep_hints
from ._mapping import over, results_of
from ._narrow import JsonObject, is_a, is_mapping
from ._option_checks import check_values
from ._options import ActorOptions, AgentOptions, CallOptions, SwarmOptions, TaskOptions, check, listed
from ._pool import Pool
from ._retry import How, run_seconds
from ._schema import of_parameters
from ._task import Task, TaskStream, call_request, message_request, submit
from ._units import parse_bytes, parse_seconds

P = ParamSpec("P")
C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
H = TypeVar("H")
X = TypeVar("X")

_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def spec_fields(options: dict[str, Any]) -> JsonObject:
    """Options in the user's units as fields of the agent's spec."""
    spec: JsonObject = {}
    options = check_values(options)
    amounts = {k: options.pop(k) for k in ("cpus", "gpus", "memory", "resources") if k in options}
    if amounts:
        spec["resources"] = {
            "cpu_milli": round(amounts.get("cpus", 0) * 1000),
            "gpu_milli": round(amounts.get("gpus", 0) * 1000),
            "memory_bytes": parse_bytes(amounts.get("memory", 0)),
            "custom": {k: round(v * 1000) for k, v in amounts.get("resources", {}).items()},
        }
    if "timeout" in options or "run_timeout" in options:
        seconds = run_seconds(options.pop("run_timeout", None), options.pop("timeout", None))
        spec["timeout_ms"] = None if seconds is None else max(1, round(seconds * 1000))
    if "schedule_timeout" in options:
        seconds = parse_seconds(options.pop("schedule_timeout"))
        spec["schedule_timeout_ms"] = 2**62 if seconds is None else round(seconds * 1000)
    if "idle" in options:
        seconds = parse_seconds(options.pop("idle"))
        spec["idle_ms"] = 2**62 if seconds is None else round(seconds * 1000)
    if "snapshot" in options:
        when = options.pop("snapshot")
        spec["snapshot"] = when if when in ("idle", "turn") else {"every": max(1, round((parse_seconds(when) or 0) * 1000))}
    for key in ("labels", "model", "concurrency", "max_restarts", "strategy", "pool", "reentrant", "own_process", "isolation", "a2a"):
        if key in options:
            value = options.pop(key)
            spec[key] = dict(value) if is_mapping(value) else value
    if "node" in options:
        spec["labels"] = {**spec.get("labels", {}), "node": options.pop("node")}
    if "near" in options:
        spec["near"] = options.pop("near").__covey_actor__
    if options:
        raise TypeError(f"unknown option {sorted(options)[0]!r}")
    return spec


def _skill_names(cls: type) -> list[str]:
    """Its public methods in the order of the source, so that the first is the default skill."""
    order = {name: i for i, name in enumerate(vars(cls))}
    names = [name for name, _ in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]
    return sorted(names, key=lambda name: order.get(name, len(order)))


def _skills(cls: type) -> list[JsonObject]:
    skills: list[JsonObject] = []
    for name in _skill_names(cls):
        method = getattr(cls, name)
        streams = inspect.isasyncgenfunction(method) or inspect.isgeneratorfunction(method)
        schema = of_parameters(method, 1) | getattr(method, "__covey_schema__", {})
        skills.append({"id": name, "name": name, "description": inspect.getdoc(method) or "", "input_schema": schema, "streaming": streams})
    return skills


def _dump_class(cls: type) -> bytes:
    """The class with its module's code when that is the user's own, by reference when it is installed."""
    keep_hints(cls)
    try:
        return _codec.dump_code(cls)
    except Exception as error:
        raise TypeError(f"cannot ship agent {cls.__name__}: {error}; make what cannot be pickled inside __init__") from error


class Agent(Generic[P, C]):
    """What `@agent` makes of a class. `Agent.remote(...)` makes an actor and gives its handle."""

    def __init__(self, cls: Callable[P, C], options: dict[str, Any]):
        options = dict(options)
        self.__covey_class__: Any = cls
        if isinstance(cls, type) and Context in hints_of(cls.__init__).values():
            raise TypeError(f"{cls.__name__}.__init__ takes a Context, which is of one turn: methods take it")
        functools.update_wrapper(self, cast(Callable[P, C], cls), updated=())
        self._name = options.pop("name", None) or getattr(cls, "__name__")
        options = check_values(options)
        self._own_process = options.pop("own_process", False)
        groups = options.pop("groups", None)
        if groups:
            self.__covey_class__.__covey_groups__ = dict(groups)
        environment = {k: options.pop(k) for k in KEYS if k in options}
        self._environment = Environment(**environment) if environment else None
        self._spec = {"concurrency": 1, **spec_fields(options)}
        self._actor_options: dict[str, Any] = {}
        self._blob: bytes | None = None
        self._described: tuple[Any, JsonObject, str, bytes] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> C:
        """A plain local object, for tests."""
        return self.__covey_class__(*args, **kwargs)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        """`class Longer(Researcher)` inherits from the class itself, and is no agent unless it says so."""
        return (self.__covey_class__,)

    def __getattr__(self, name: str) -> AgentMethod[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        if not inspect.isfunction(getattr(self.__covey_class__, name, None)):
            known = ", ".join(_skill_names(self.__covey_class__))
            raise AttributeError(f"agent {self._name!r} has no method {name!r}; it has: {known}")
        return AgentMethod(self, name)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<agent {self._name}>"

    def __reduce__(self) -> Any:
        # Inside an agent's code the class itself travels, not the driver's wrapper.
        return _restore, (self.__covey_class__, self._name, self._spec.get("isolation"))

    def environment(self) -> Environment | None:
        """What its processes are started with: its own, on top of the driver's."""
        base = current_session().environment
        return base if self._environment is None else self._environment.over(base)

    def spec(self) -> tuple[JsonObject, bytes]:
        """The definition as the head keeps it, and the code."""
        if self._blob is None:
            self._blob = _dump_class(self.__covey_class__)
        digest = hashlib.sha256(self._blob).hexdigest()
        environment = self.environment()
        kind = {
            "type": "python",
            "code": {"from": "pickle", "digest": digest},
            "version": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "own_process": self._own_process,
        }
        if environment is not None and environment.spec():
            kind["env"] = environment.spec()
        text = inspect.getdoc(self.__covey_class__) or ""
        spec = {"name": self._name, "description": text, "kind": kind, "skills": _skills(self.__covey_class__), **self._spec}
        return spec, self._blob

    def _description(self) -> tuple[JsonObject, str, bytes]:
        """Definition, its JSON, and the code: worked out once for each environment of a driver."""
        base = current_session().environment
        if self._described is None or self._described[0] is not base:
            spec, blob = self.spec()
            self._described = (base, spec, json.dumps(spec), blob)
        return self._described[1:]

    def register(self) -> str:
        """Makes the agent known to the cluster, with its A2A card, without making an actor; gives its name."""
        session = current_session()
        _, text, blob = self._description()
        if session.registered.get(self._name) != text:
            environment = self.environment()
            if environment is not None:
                environment.upload()
            for warning in bridge_call(session.client.register, text, blob):
                warnings.warn(warning, RuntimeWarning, stacklevel=level_outside())
            session.registered[self._name] = text
        return self._name

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return self._name

    @listed(ActorOptions, unsaid=...)
    def options(self, **options: Unpack[ActorOptions]) -> Self:
        """The same agent with other options for its next actors: name, get_if_exists, detached, cpus, gpus, memory, …

        `node="w1"` puts them on the worker of that name and no other, `near=handle` on the node of that actor.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        given = check(options, ActorOptions)
        mine = {k: given.pop(k) for k in ("name", "get_if_exists", "detached") if k in given}
        mine["overrides"] = {**self._actor_options.get("overrides", {}), **spec_fields(given)}
        other._actor_options = {**self._actor_options, **mine}
        return other

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Handle:
        """Makes an actor; the cluster places and starts it while the handle is in use already."""
        return self._make(_codec.dump((args, kwargs)))

    def _make(self, init: Sent | None) -> Handle:
        self.register()
        session = current_session()
        o = self._actor_options
        made = bridge_call(
            session.client.create_actor,
            self._name,
            "" if o.get("detached") else session.owner,
            o.get("name", ""),
            o.get("get_if_exists", False),
            init,
            json.dumps(o.get("overrides", {})),
        )
        return handle_of(made)

    @listed(TaskOptions, retries=0)
    def submit(self, *args: Any, method: str = "", **options: Unpack[TaskOptions]) -> Task[object]:
        """Makes a durable task of a method (default: the agent's first), run by any of its actors; see `covey.submit`, which also takes
        keyword arguments for the method."""
        hint = "; covey.submit(agent, method, …) takes keyword arguments of the method"
        return submit(self, method, *args, **check(options, TaskOptions, hint))

    @listed(TaskOptions, retries=0)
    def stream(self, *args: Any, method: str = "", **options: Unpack[TaskOptions]) -> TaskStream[object]:
        """A durable task, read while it is made: `for item in agent.stream("hi")`, or `async for`. The options are those of `submit`."""
        return TaskStream(self.submit(*args, method=method, **options))

    def bind(self, *args: P.args, **kwargs: P.kwargs) -> Bound[Handle]:
        """An actor to be, for `covey.gang`: the constructor's arguments are taken now, the actor is made with its gang."""
        return Bound(self, _codec.dump((args, kwargs)))

    def __covey_request__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, JsonObject]:
        """For `_task`: the agent's name, and the input of a task that calls one of its methods."""
        return self.register(), call_request(args, kwargs)

    def __covey_member__(self, init: Sent | None) -> GangMember:
        """For `gang`: an actor to be with these constructor's arguments."""
        o = self._actor_options
        return self.register(), o.get("name", ""), init, json.dumps(o.get("overrides", {})), bool(o.get("detached"))

    def __covey_pool__(self) -> tuple[JsonObject, JsonObject]:
        """For `_pool`: the definition, and the fields of it that this one's options change."""
        return self._description()[0], self._actor_options.get("overrides", {})

    def at(self, key: str) -> Handle:
        """The virtual actor of this key: it exists when it is spoken to, one of it in the cluster.

        It is made by `__init__(key)` (or without arguments), falls asleep after `idle` without calls, and wakes with what
        `__snapshot__` gave, wherever there is room. Making the handle costs nothing.
        """
        if not is_a(key, str):
            raise TypeError(f"a virtual actor's key is a text, not {key!r}")
        if not key:
            raise ValueError("a virtual actor's key has at least one character")
        return Handle(f"{self.register()}/{key}", self._description()[0])

    @listed(SwarmOptions, actors=4, retries=2, progress=False, return_exceptions=False)
    def map(self, inputs: Iterable[Any], **options: Unpack[SwarmOptions]) -> list[object]:
        """Results of one method over many inputs, on a swarm of actors. See `map_unordered` for the options."""
        return [result for _, result in self._map(inputs, ordered=True, **check(options, SwarmOptions))]

    @typing.overload
    def map_unordered(
        self, inputs: Iterable[Any], *, with_input: Literal[False] = False, **options: Unpack[SwarmOptions]
    ) -> Iterator[object]: ...
    @typing.overload
    def map_unordered(
        self, inputs: Iterable[X], *, with_input: Literal[True], **options: Unpack[SwarmOptions]
    ) -> Iterator[tuple[X, object]]: ...
    @typing.overload
    def map_unordered(self, inputs: Iterable[Any], *, with_input: bool, **options: Unpack[SwarmOptions]) -> Iterator[object]: ...
    @listed(SwarmOptions, actors=4, retries=2, progress=False, return_exceptions=False)
    def map_unordered(
        self, inputs: Iterable[Any], *, with_input: bool = False, **options: Unpack[SwarmOptions]
    ) -> Iterator[object]:
        """Results as they come, or pairs of input and result.

        Options: `method` (default: `run`, else the first), `actors` (default 4), `progress` (a bar),
        `return_exceptions`, `retries` (after a lost actor, default 2; with `retry_on` also after these exceptions),
        `run_timeout` or `timeout` of each turn from its start, `deadline` of each call from when it is made.
        """
        return results_of(self._map(inputs, ordered=False, **check(options, SwarmOptions)), with_input)

    def _map(
        self,
        inputs: Iterable[Any],
        *,
        method: str | None = None,
        actors: int = 4,
        retries: int = 2,
        timeout: float | str | None = None,
        run_timeout: float | str | None = None,
        deadline: float | str | None = None,
        retry_on: Any = (),
        backoff: float | str | None = None,
        **options: Any,
    ) -> Iterator[tuple[Any, Any]]:
        skills = {s["id"]: s for s in _skills(self.__covey_class__)}
        name = method or ("run" if "run" in skills else next(iter(skills)))
        if skills.get(name, {}).get("streaming"):
            raise TypeError(f"map needs a method that returns; {name!r} yields")
        with Pool(self, actors) as pool:
            bound = getattr(pool, name).options(
                timeout=timeout, run_timeout=run_timeout, deadline=deadline, retries=retries, retry_on=retry_on, backoff=backoff
            )
            yield from over(bound.remote, inputs, name=self._name, **options)

    def pool(self, actors: int, *args: P.args, **kwargs: P.kwargs) -> Pool:
        """So many actors behind one name; the rest are constructor arguments. See `covey.Pool`."""
        return Pool(self, actors, args, kwargs)


class NamedAgent(Agent[..., Any]):
    """An agent of the cluster that is no class here: a prompt, one elsewhere, a native one, somebody else's Python.

    Its methods are here, too, as those of one actor that is made when first needed: `agent.run.remote("hi")`. Its text is its name.
    """

    def __init__(self, name: str):
        self._name = name
        self._actor_options: dict[str, Any] = {}
        self._own: tuple[Any, Handle] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its code is not here."""
        raise TypeError(f"agent {self._name!r} runs on the cluster: .submit(…), .stream(…), or .remote() for an actor of it")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        session = current_session()
        if self._own is None or self._own[0] is not session:
            self._own = (session, self.remote())
        return getattr(self._own[1], name)

    def __reduce__(self) -> Any:
        return NamedAgent, (self._name,)

    def __covey_request__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, JsonObject]:
        return message_request(self._name, args, kwargs)

    def spec(self) -> tuple[JsonObject, bytes]:
        """The definition as the head has it; the code, if there is some, is not here."""
        for spec in agents():
            if spec["name"] == self._name:
                return spec, b""
        raise errors.NotFound(f"there is no agent {self._name!r}")

    def environment(self) -> Environment | None:
        """Nothing of this driver's."""
        return None

    def _description(self) -> tuple[JsonObject, str, bytes]:
        spec, code = self.spec()
        return spec, json.dumps(spec), code

    def register(self) -> str:
        """Its name: the cluster knows it already."""
        current_session().heard.add(self._name)
        return self._name

    def remote(self, *args: Any, **kwargs: Any) -> Handle:
        """Makes an actor of it; the arguments, if it takes some, are JSON."""
        return self._make(_codec.dump_json({"args": args, "kwargs": kwargs}) if args or kwargs else None)

    def bind(self, *args: Any, **kwargs: Any) -> Bound[Handle]:
        """An actor to be, for `covey.gang`."""
        return Bound(self, _codec.dump_json({"args": args, "kwargs": kwargs}) if args or kwargs else None)

    def pool(self, actors: int, *args: Any, **kwargs: Any) -> Any:
        """Refused: the cluster keeps a pool for the tasks of such an agent."""
        raise TypeError(f"agent {self._name!r} is no class here: .submit(…) runs on the pool that the cluster keeps for it")

    def _map(self, inputs: Iterable[Any], **options: Any) -> Iterator[tuple[Any, Any]]:
        raise TypeError(f"agent {self._name!r} is no class here: .submit(…) each input")


def level_outside() -> int:
    """How far above its caller is the code of whoever uses this package, as `warnings.warn` counts."""
    level, here = 1, inspect.currentframe()
    frame = None if here is None else here.f_back
    while frame is not None and frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        level, frame = level + 1, frame.f_back
    return level


def _restore(cls: Any, name: str, isolation: str | None = None) -> Any:
    return Agent(cls, {"name": name, "isolation": isolation})


class Bound(Generic[H]):
    """An actor to be: an agent with its options and the constructor's arguments."""

    def __init__(self, agent: Agent[Any, Any], init: Sent | None):
        self._agent, self._init = agent, init

    def __covey_member__(self) -> GangMember:
        """As `_bridge.Client.create_gang` takes it."""
        return self._agent.__covey_member__(self._init)

    def __repr__(self) -> str:
        return f"<actor to be of {self._agent.name}>"


def gang(actors: Iterable[Bound[H]], *, strategy: Literal["pack", "spread", "strict_pack", "strict_spread"] = "pack") -> list[H]:
    """Makes actors that are placed all at once or not at all: `gang([Trainer.options(cpus=1).bind(rank) for rank in range(4)])`.

    `strategy`: "pack" (few nodes) and "spread" (many nodes) if that can be, "strict_pack" (one node) and "strict_spread"
    (each on a node of its own) or not at all. The handles can be used at once; calls wait for the places. Raises
    `Unschedulable` from the first call when no cluster of the present nodes could ever hold the gang. One that dies later is
    placed again alone.
    """
    members = list(actors)
    for member in members:
        if not is_a(member, Bound):
            raise TypeError(f"gang takes actors to be, as Agent.bind(…) gives them, not {member!r}")
    session = current_session()
    asks = [member.__covey_member__() for member in members]
    made = bridge_call(session.client.create_gang, session.owner, asks, strategy)
    handles: list[Any] = [handle_of(one) for one in made]
    return handles


class Handle:
    """A way to one actor. Every public method of its agent is here as `handle.method.remote(...)`."""

    _actor: str
    _spec: JsonObject
    _methods: JsonObject

    def __init__(self, actor: str, spec: JsonObject):
        self.__dict__.update(_actor=actor, _spec=spec, _methods={s["id"]: s for s in spec["skills"]})
        for verb in _VERBS:
            if verb in self._methods:
                # Found before the verb of that name.
                self.__dict__[verb] = _VerbToo(getattr(self, verb), self._method(verb))

    def _method(self, name: str) -> Method:
        streaming = bool(self._methods[name].get("streaming"))
        return Method(self._actor, name, streaming, self._spec["kind"]["type"] == "python")

    def __getattr__(self, name: str) -> Method:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._methods:
            raise AttributeError(f"agent {self._spec['name']!r} has no method {name!r}; it has: {', '.join(self._methods)}")
        method = self.__dict__[name] = self._method(name)  # found without this method the next time
        return method

    def __setattr__(self, name: str, value: object) -> None:
        """Refused: the actor would not hear of it."""
        raise AttributeError(f"a handle has no attributes of its own: the actor is elsewhere, and only a method of it can set its {name!r}")

    @property
    def __covey_actor__(self) -> str:
        """The id of its actor. No name that an agent may have for a method."""
        return self._actor

    @property
    def __covey_spec__(self) -> JsonObject:
        """The definition of its agent."""
        return self._spec

    def __covey_request__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, JsonObject]:
        """For `_task`: any actor of the agent may run the task."""
        return message_request(self._spec["name"], args, kwargs)

    def __repr__(self) -> str:
        return f"<actor {self._actor} of {self._spec['name']}>"

    def __reduce__(self) -> Any:
        return Handle, (self._actor, self._spec)

    def stop(self, drain: bool = False) -> None:
        """Ends the actor; with `drain`, after what is in its mailbox."""
        session = current_session()
        bridge_call(session.client.stop_actor, self._actor, drain)

    def link(self, other: Handle | Actor) -> None:
        """From now on each of the two ends when the other does: killed, crashed for good, or with its driver.

        A restart is no end, and neither is `stop(drain=True)`. The error of later calls names the one that ended first.
        """
        bridge_call(current_session().client.link_actors, self._actor, cast(Handle, other).__covey_actor__)

    def kill(self) -> None:
        """Ends the actor now."""
        self.stop(drain=False)


def handle_of(made: Made) -> Handle:
    """The handle of an actor, as the bridge tells of it."""
    return Handle(made[0], json.loads(made[3]))


class Method:
    """One method of one actor."""

    __slots__ = ("_actor", "_name", "_streaming", "_python", "_how")

    def __init__(self, actor: str, name: str, streaming: bool, python: bool, how: How | None = None):
        self._actor, self._name, self._streaming, self._python, self._how = actor, name, streaming, python, how

    def __repr__(self) -> str:
        return f"<method {self._name} of actor {self._actor}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the actor is elsewhere."""
        raise TypeError(f"{self._name}() runs on another process: call it with .{self._name}.remote(…), and .result() for its value")

    @listed(CallOptions, retries=0)
    def options(self, **options: Unpack[CallOptions]) -> Method:
        """The same method with bounds on each call (seconds, or '2m'), retries, or an idempotency key.

        `deadline`: a call is answered within this time from when it is made, or fails; where none is left (0 or less), `remote`
        raises `DeadlineExceeded` and sends nothing. `run_timeout` (or `timeout`): its turn ends within this time from its start;
        what it waited before is not counted.

        `retries`: times the call is sent again when its actor dies under it; it may run more than once then. With
        `retry_on=(OSError, …)` also when the method raises one of these (3 times where `retries` says nothing), after a pause
        that is drawn at random up to `backoff` ("100ms"), which doubles each time up to 30 s. With a `key` it runs once:
        the actor answers a second call of the same key from memory, as long as it lives.
        """
        how = How.of(**check(options, CallOptions))
        return Method(self._actor, self._name, self._streaming, self._python, how)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it: a `Future`, or a `Stream` when the method yields."""
        session = current_session()
        if not self._python:
            payload = _codec.dump_json({"args": args, "kwargs": kwargs})
        else:
            payload = session.dump_args("actor", self._actor, (args, kwargs))
        return session.call("actor", self._actor, self._name, payload, None, self._streaming, self._how)


_VERBS = ("stop", "kill", "link")
"""What a handle does itself. An agent may have methods of these names: `handle.stop()` ends the actor, `handle.stop.remote()` calls
the method."""


class _VerbToo(Method):
    """A method of an actor that is called as a verb of its handle."""

    __slots__ = ("_verb",)

    def __init__(self, verb: Callable[..., None], method: Method):
        super().__init__(method._actor, method._name, method._streaming, method._python)
        self._verb = verb

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The handle's own verb."""
        return self._verb(*args, **kwargs)


if typing.TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from typing import Concatenate, Literal

    from typing_extensions import Self

    from ._options import Unpack
    from ._typed import Actor, CallSkill, Mark, StreamSkill
    from ._wire import GangMember, Made, Sent

    A = TypeVar("A", bound=Actor)
    T = TypeVar("T")

    class _Decorator(typing.Protocol):
        """What `@agent(…)` does to a class."""

        @typing.overload
        def __call__(self, cls: type[A], /) -> type[A]: ...  # pyright: ignore[reportOverlappingOverload]  # the first that fits is meant
        @typing.overload
        def __call__(self, cls: Callable[P, C], /) -> Agent[P, C]: ...


@typing.overload
def method(  # pyright: ignore[reportOverlappingOverload]  # the first that fits is meant
    function: Callable[Concatenate[Any, P], AsyncIterator[T]], /
) -> StreamSkill[P, T, AsyncIterator[T]]: ...
@typing.overload
def method(function: Callable[Concatenate[Any, P], Iterator[T]], /) -> StreamSkill[P, T, Iterator[T]]: ...
@typing.overload
def method(function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /) -> CallSkill[P, T, Coroutine[Any, Any, T]]: ...
@typing.overload
def method(function: Callable[Concatenate[Any, P], T], /) -> CallSkill[P, T, T]: ...
@typing.overload
def method(*, group: str | None = None) -> Mark: ...
def method(function: Any = None, *, group: str | None = None) -> Any:
    """Marks a method for type checkers (see `covey.Actor`), and puts it into one of its agent's concurrency groups:
    `@agent(groups={"io": 4})`, `@covey.method(group="io")`.

    Turns of a group are counted apart from the rest, which has the agent's `concurrency`.
    """

    def mark(function: F) -> F:
        if group is not None:
            setattr(function, "__covey_group__", group)
        return function

    return mark if function is None else mark(function)


@typing.overload
def agent(cls: type[A], /) -> type[A]: ...  # pyright: ignore[reportOverlappingOverload]  # the first that fits is meant
@typing.overload
def agent(cls: Callable[P, C], /) -> Agent[P, C]: ...
@typing.overload
def agent(**options: Unpack[AgentOptions]) -> _Decorator: ...
@listed(
    AgentOptions, cpus=0, gpus=0, memory=0, concurrency=1, strategy="spread", schedule_timeout="5m", own_process=False,
    reentrant=False, snapshot="idle", idle="60s",
)  # fmt: skip
def agent(cls: Any = None, **options: Any) -> Any:
    """Makes a class an agent.

    Options: `name`, `cpus`, `gpus`, `memory` ("256MiB": kept free for it, and its bound: it gets a process of its own, which
    ends when it uses more), `resources` (custom), `labels`, `model`, `concurrency`
    (turns at once, default 1), `groups` (of methods that are counted apart, see `covey.method`), `max_restarts` (default: no limit), `strategy` ("spread" or "pack"),
    `run_timeout` (or `timeout`, "2m": of each turn from its start; one that goes on after it has its process replaced), `schedule_timeout` ("5m": its
    actors and tasks wait so long while no worker there could run them),
    `pool` (actors that tasks may use at once), `own_process`, `reentrant` (a call out of an own turn does not wait for
    it), `snapshot` (when `__snapshot__` becomes durable: "idle" before sleep and moves, "turn" before each answer, or
    "30s"), `env_vars`, `working_dir` (a folder that is shipped, importable and current), `pip` (packages, installed once
    on each node), `isolation` (what its processes are kept from, beyond what their worker says: "default", files of others and other
    processes; "strict", the network too, so that it reaches other actors and models alone; "none" only where a worker was started so;
    what it makes is as strict as it), `idle` (a virtual actor sleeps after this time, default "60s"), `a2a` (how it shows itself to A2A: a dict of
    `version`, `tags`, `provider` (name and address), `documentation_url`, `icon_url`, `input_modes` (others are refused, but for `any_input`), `output_modes`,
    `extensions` (dicts of `uri`, `description`, `required`), `messages` (it may answer without a task, see `covey.Reply`),
    and `streaming`, `push_notifications`, `extended_card`, which are on).
    """
    options = check(options, AgentOptions)

    def decorate(real: Callable[P, C]) -> Agent[P, C]:
        return Agent(real, options)

    return decorate if cls is None else decorate(cls)


@typing.overload
def get_actor(name: str) -> Handle: ...
@typing.overload
def get_actor(name: str, agent: type[A]) -> A: ...
@typing.overload
def get_actor(name: str, agent: Agent[Any, Any]) -> Handle: ...
def get_actor(name: str, agent: Any = None) -> Any:
    """The handle of a named actor.

    With its `agent`, type checkers know its methods: `covey.get_actor("one", Crawler)`. `TypeError` where it is of another one.
    """
    handle = handle_of(bridge_call(present_session().client.actor_named, name))
    if agent is not None and agent_name_of(handle) != agent.name:
        raise TypeError(f"actor {name!r} is of agent {agent_name_of(handle)!r}, not of {agent.name!r}")
    return handle


def actor_id(handle: Handle | Actor) -> str:
    """The id of the actor of a handle, which `covey.actors()`, `covey logs` and `covey stack` know it by.

    Inside of the actor it is `ctx.actor_id`.
    It is no attribute of the handle: an agent may have a method of any such name.
    """
    if not isinstance(handle, Handle):
        raise TypeError(f"actor_id takes the handle of an actor, not {handle!r}")
    return handle.__covey_actor__


def agent_name_of(handle: Handle) -> str:
    """The name of the agent that a handle's actor is of."""
    return handle.__covey_spec__["name"]


def agents() -> list[JsonObject]:
    """All agents of the cluster, as the head knows them."""
    return [json.loads(spec) for spec in bridge_call(present_session().client.agents)]


def remote_agent(name: str | NamedAgent, *args: Any, **kwargs: Any) -> Handle:
    """An actor of an agent that is not a class here: native, a prompt, or somebody else's Python."""
    return NamedAgent(str(name)).remote(*args, **kwargs)


__all__ = [
    "Agent", "Bound", "Future", "Handle", "Method", "Stream", "actor_id", "agent", "agents", "gang", "get_actor", "remote_agent",
]  # fmt: skip
