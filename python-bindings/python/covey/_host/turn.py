"""What is known of actors, their methods, and their turns. Data; who changes it is said beside it."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import inspect
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from .._arguments import Places
from .._context import Context
from .._hints import hints_of

if TYPE_CHECKING:
    from .._wire import About, Sent

WINDOW = 256
"""Items that a generator may be ahead of its reader."""
METHODS_MAX = 1024
"""Methods of one actor that are remembered, each by every name that it was called by."""


class Method:
    """What there is to know about a method before it is called, found out once."""

    def __init__(self, attribute: str, function: Any):
        self.attribute = attribute
        self.is_async = inspect.isasyncgenfunction(function) or inspect.iscoroutinefunction(function)
        """It runs on the event loop; others run on threads."""
        self.yields = inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function)
        self.hints = hints_of(function)
        parameters = list(inspect.signature(function).parameters.values())
        self.places = Places(parameters, self.hints)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY)
        self.wanted = [p for p in parameters if p.name not in self.places.takes and p.kind in named]
        self.group: str | None = getattr(function, "__covey_group__", None)


_methods: weakref.WeakKeyDictionary[type, dict[str, Method]] = weakref.WeakKeyDictionary()


def _method_of(cls: type, attribute: str, function: Any) -> Method:
    """The same for all objects of a class, where they have it of the class."""
    if getattr(function, "__func__", None) is not inspect.getattr_static(cls, attribute, None):
        return Method(attribute, function)
    known = _methods.setdefault(cls, {})
    if attribute not in known:
        known[attribute] = Method(attribute, function)
    return known[attribute]


class Group:
    """Turns that share a limit: the whole actor, or one of its concurrency groups. Changed under the actor's lock."""

    def __init__(self, limit: int):
        self.limit, self.running = limit, 0
        self.current: Turn | None = None
        """The turn that runs, where there is one at a time."""
        self.queue: collections.deque[Turn] = collections.deque()


class Actor:
    """One live object, and its turns."""

    def __init__(self, id: str, mark: str, instance: object, concurrency: int, model: str, owner: str, save_turns: bool, reentrant: bool):
        self.id, self.mark, self.instance, self.model, self.owner = id, mark, instance, model, owner
        self.save_turns, self.reentrant = save_turns, reentrant
        self.lends = bool(getattr(type(instance), "__covey_lends__", False))
        """A turn that waits for a call gives its place to another, and its CPU to others."""
        self.lent = False
        """The cluster has its CPU."""
        self.methods: dict[str, Method] = {}
        self.loops = False
        """Some of the methods that were called are async."""
        self.group = Group(concurrency)
        limits: dict[str, int] = getattr(type(instance), "__covey_groups__", None) or {}
        self.groups = {name: Group(limit) for name, limit in limits.items()}
        self.lock = threading.Lock()

    def method(self, name: str) -> Method:
        """The method that a call names; `AttributeError` where there is no public one of that name."""
        known = self.methods.get(name)
        if known is None:
            # `run:resize` is the method `run`, and what it runs.
            attribute = name.partition(":")[0]
            function = getattr(self.instance, attribute, None)
            if name.startswith("_") or not callable(function):
                raise AttributeError(f"{type(self.instance).__name__!r} has no public method {name!r}")
            if len(self.methods) >= METHODS_MAX:
                self.methods.clear()
            known = self.methods[name] = _method_of(type(self.instance), attribute, function)
            self.loops = self.loops or known.is_async
        return known

    def group_of(self, method: Method) -> Group:
        """The group that the method's turns are counted in."""
        return self.group if method.group is None else self.groups.get(method.group, self.group)


class Turn:
    """One call: from its arrival to its answer."""

    method: Method
    group: Group

    # Defaults of the class: most turns never have another value.
    as_json = False
    task_id = context_id = chain = traceparent = ""
    history = sampling = b""
    model = message_id = ""
    """That the task was asked with."""
    content: list[dict[str, Any]] | None = None
    """Of a task: what its message held."""
    deadline = 0.0
    """By the monotonic clock; 0: none."""
    task: asyncio.Task[None] | None = None
    ctx: Context | None = None
    credits = WINDOW
    """Items granted so far; the maker counts what it has used."""
    more: asyncio.Event | threading.Event | None = None
    """Set when there are more credits, or the turn is over."""
    over = False
    """Nobody wants its answer any more."""
    gone = False
    """It is over because its actor is gone."""
    told = False
    """Its coroutine was cancelled."""
    waits: frozenset[int] = frozenset()
    """Tokens of the calls it waits for."""
    placed = True
    """It is counted in its group."""
    coming: concurrent.futures.Future[None] | None = None
    """It was away, and waits for a place."""
    run_timeout = 0.0
    """Seconds from its start; 0: no bound."""
    retry_on: tuple[str, ...] = ()
    """Exceptions that its caller wants to be tried again."""
    begun = False
    alone = False
    """Processes died while they ran it: it runs with no other beside it."""
    long = False
    """It had its time alone, or kept one that runs alone waiting for as long as one waits."""
    given: object = None
    """What a layer above keeps with the turn, as `compat.ray` does."""
    label = ""
    """What it is called in what it prints, where that is not its actor's name."""

    def __init__(self, call: int, actor: Actor, name: str, args: Sent):
        self.call, self.actor, self.name = call, actor, name
        self.args: Sent | None = args
        """In the form that they travelled in; `None` once they were read."""

    def about(self, about: About) -> None:
        """What most calls do not carry."""
        as_json, task_id, context_id, timeout_ms, chain, traceparent, asked, run_timeout_ms, retry_on, alone = about
        self.as_json, self.task_id, self.context_id, self.chain, self.traceparent = as_json, task_id, context_id, chain, traceparent
        if asked is not None:
            self.history, self.model, self.sampling, self.message_id = asked
        if timeout_ms:
            self.deadline = time.monotonic() + timeout_ms / 1000
        self.run_timeout, self.retry_on, self.alone = run_timeout_ms / 1000, tuple(retry_on), alone

    def context_of(self) -> Context:
        """What the method may ask for; made when it first does."""
        if self.ctx is None:
            self.ctx = Context(self, self.task_id, self.context_id, self.model or self.actor.model)
        return self.ctx
