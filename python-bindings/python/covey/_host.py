"""The process that runs Python agents for a worker: `python -m covey._host <socket> <table of calls> <file for stacks>`.

One event loop reads the socket and runs async methods; sync methods run on threads, so neither blocks the other. The
actor's order and concurrency are kept here: the worker hands calls on as they come. Answers are queued and written once
per turn of the loop, or when a thread has nothing more to run. Standard output belongs to the agents' code and is no
channel of ours. The process ends when its worker does. When it is replaced, a thread reads the socket (`_standby`).
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextvars
import faulthandler
import functools
import gc
import inspect
import json
import mmap
import os
import queue
import signal
import sys
import threading
import time
import traceback
import types
import weakref
from collections.abc import Callable
from typing import Any

from . import __version__, _bridge, _codec, _context, _marks, _objects, _session, _standby, _turns, errors
from ._alone import Alone
from ._arguments import Places, from_content, from_payload, with_key
from ._env import Environment
from ._content import Reply, dump_answer
from ._hints import hints_of
from ._objects import borrow, has_refs, resolve

RAN_OUT = 86  # exit code of a process that got no more memory
WINDOW = 256  # items a generator may be ahead of its reader
ROUND = 128  # frames taken in one round of the loop; what they make has mostly gone before the collector looks
# Objects made before the collector looks: a thousand calls that wait are that many times three, and are no garbage.
COLLECT_AFTER = 5_000

# An actor of functions whose turns all wait lends its CPU after this time, seconds.
LEND_AFTER = 0.05

_VALUE, _ITEMS, _SYNC_VALUE, _SYNC_ITEMS = range(4)


def _nothing() -> None:
    """Called for the wake."""


def _tried(function: Any, *args: Any) -> tuple[Any, BaseException | None]:
    """What a function gives or raises. A future cannot hold a `StopIteration`: nobody would ever hear of it."""
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


class Method:
    """What there is to know about a method before it is called, found out once."""

    def __init__(self, attribute: str, function: Any):
        self.attribute = attribute
        if inspect.isasyncgenfunction(function):
            self.kind = _ITEMS
        elif inspect.iscoroutinefunction(function):
            self.kind = _VALUE
        else:
            self.kind = _SYNC_ITEMS if inspect.isgeneratorfunction(function) else _SYNC_VALUE
        self.hints = hints_of(function)
        parameters = list(inspect.signature(function).parameters.values())
        self.places = Places(parameters, self.hints)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY)
        self.wanted = [p for p in parameters if p.name not in self.places.takes and p.kind in named]
        self.group = getattr(function, "__covey_group__", None)


_METHODS_MAX = 1024
"""Methods of one actor that are remembered, each by every name that it was called by."""


class Group:
    """Turns that share a limit: the whole actor, or one of its concurrency groups."""

    def __init__(self, limit: int):
        self.limit, self.running = limit, 0
        self.current: Turn | None = None
        """The turn that runs, where there is one at a time."""
        self.queue: collections.deque[Turn] = collections.deque()


def _method_of(cls: type, attribute: str, function: Any) -> Method:
    """The same for all objects of a class, where they have it of the class."""
    if getattr(function, "__func__", None) is not inspect.getattr_static(cls, attribute, None):
        return Method(attribute, function)
    known = _methods.setdefault(cls, {})
    if attribute not in known:
        known[attribute] = Method(attribute, function)
    return known[attribute]


_methods: weakref.WeakKeyDictionary[type, dict[str, Method]] = weakref.WeakKeyDictionary()


class Actor:
    def __init__(self, id: str, mark: str, instance: Any, concurrency: int, model: str, owner: str, save_turns: bool, reentrant: bool):
        self.id, self.mark, self.instance, self.model, self.owner = id, mark, instance, model, owner
        self.save_turns, self.reentrant = save_turns, reentrant
        self.lends = bool(getattr(type(instance), "__covey_lends__", False))
        """A turn that waits for a call gives its place to another, and its CPU to others."""
        self.lent = False
        self.methods: dict[str, Method] = {}
        self.loops = False
        """Some of the methods that were called are async."""
        self.group = Group(concurrency)
        limits = getattr(type(instance), "__covey_groups__", None) or {}
        self.groups = {name: Group(limit) for name, limit in limits.items()}
        self.lock = threading.Lock()

    def method(self, name: str) -> Method:
        known = self.methods.get(name)
        if known is None:
            # `run:resize` is the method `run`, and what it runs.
            attribute = name.partition(":")[0]
            function = getattr(self.instance, attribute, None)
            if name.startswith("_") or not callable(function):
                raise AttributeError(f"{type(self.instance).__name__!r} has no public method {name!r}")
            if len(self.methods) >= _METHODS_MAX:
                self.methods.clear()
            known = self.methods[name] = _method_of(type(self.instance), attribute, function)
            self.loops = self.loops or known.kind < _SYNC_VALUE
        return known


class Turn:
    """One call: from its arrival to its answer."""

    # Defaults of the class: most turns never have another value.
    as_json = False
    task_id = context_id = chain = traceparent = ""
    history = sampling = b""
    model = message_id = ""  # that the task was asked with
    content: Any = None  # of a task: what its message held
    deadline = 0.0
    task: asyncio.Task[None] | None = None
    ctx: _context.Context | None = None
    credits = WINDOW  # granted so far; the maker counts what it has used
    more: Any = None
    over = False
    gone = False  # over because its actor is gone
    told = False  # its coroutine was cancelled
    waits: frozenset[int] = frozenset()  # tokens of the calls it waits for
    placed = True  # it is counted in its group
    coming: concurrent.futures.Future[None] | None = None  # it was away, and waits for a place
    run_timeout = 0.0  # seconds from its start
    retry_on: tuple[str, ...] = ()  # exceptions that its caller wants to be tried again
    begun = False
    alone = False  # processes died while they ran it: it runs with no other beside it
    long = False  # it had its time alone, or kept one that runs alone waiting for as long as one waits
    label = ""  # what it is called in what it prints, where that is not its actor's name

    def __init__(self, call: int, actor: Actor, name: str, args: Any):
        self.call, self.actor, self.name, self.args = call, actor, name, args

    def about(
        self,
        as_json: bool,
        task_id: str,
        context_id: str,
        timeout_ms: int,
        chain: str,
        traceparent: str,
        asked: Any,
        run_timeout_ms: int,
        retry_on: list[str],
        alone: bool,
    ) -> None:
        """What most calls do not carry."""
        if asked is not None:
            self.history, self.model, self.sampling, self.message_id = asked
        self.as_json, self.task_id, self.context_id, self.chain, self.traceparent = as_json, task_id, context_id, chain, traceparent
        if timeout_ms:
            self.deadline = time.monotonic() + timeout_ms / 1000
        self.run_timeout, self.retry_on, self.alone = run_timeout_ms / 1000, tuple(retry_on), alone

    def context_of(self) -> _context.Context:
        """What the method may ask for; made when it first does."""
        if self.ctx is None:
            self.ctx = _context.Context(self, self.task_id, self.context_id, self.model or self.actor.model)
            if self.over:
                self.ctx._over.set()
        return self.ctx


class _Driven:
    """The rest of a coroutine that has begun already: each step in the context it began in."""

    __slots__ = ("run", "work", "waits_for")

    def __init__(self, run: Any, work: Any, waits_for: Any):
        self.run, self.work, self.waits_for = run, work, waits_for

    def __await__(self) -> Any:
        run, work, waits_for = self.run, self.work, self.waits_for
        while True:
            try:
                value = yield waits_for
            except BaseException as error:
                step, value = work.throw, error
            else:
                step = work.send
            try:
                waits_for = run(step, value)
            except StopIteration:
                return


class Threads:
    """Threads for sync methods: made when all are busy, kept for the next. Lighter than the standard library's pool."""

    MOST = 512
    RESTING_MOST = 4096

    def __init__(self, run: Any):
        self._run = run
        self._turns: queue.SimpleQueue[Turn] = queue.SimpleQueue()
        self._free = 0  # threads that wait, less turns that wait for one
        self._made = 0
        self.resting = 0
        """Threads whose turns wait and have given their places away; others are made for them."""
        self._lock = threading.Lock()

    def submit(self, turn: Turn) -> None:
        """On the loop's thread."""
        with self._lock:
            self._free -= 1
            make = self._free < 0 and self._made < self.MOST + min(self.resting, self.RESTING_MOST)
            if make:
                self._made += 1
                self._free += 1
        if make:
            threading.Thread(target=self._work, name=f"covey-sync-{self._made}", daemon=True).start()
        self._turns.put(turn)

    def rests(self, more: int) -> None:
        with self._lock:
            self.resting += more

    def _work(self) -> None:
        turns, run, lock = self._turns, self._run, self._lock
        while True:
            run(turns.get())
            with lock:
                self._free += 1


class HostSession(_session.Stores):
    """What `covey.get_actor`, handles and tasks use inside an actor: the worker's way to the cluster."""

    inside = True

    def __init__(self, client: Any):
        super().__init__()
        self.client = client
        self.registered: dict[str, str] = {}
        self.environment = Environment.inherited()

    @property
    def owner(self) -> str:
        turn = _context.turn_current.get()
        return turn.actor.owner if turn is not None else _context.turn_owner.get("")

    @property
    def store_session(self) -> str:
        return self.owner or "detached"

    call = _session.call

    def close(self) -> None:
        """Nothing: the worker owns the connection."""


class Process:
    def __init__(self, path: str, begun: str):
        # The worker deletes it once this process has dialled.
        with open(begun, "r+b") as table:
            self.begun = memoryview(mmap.mmap(table.fileno(), 0)).cast("Q")
        """The numbers of the calls that have begun, each at its number modulo the length; the worker reads it when this process is gone."""
        self.places = len(self.begun)
        self.host = _bridge.Host(path)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.get_ident()
        self.actors: dict[str, Actor] = {}
        self.code: dict[str, bytes] = {}
        self.classes: dict[str, type] = {}
        self.turns: dict[int, Turn] = {}
        self.ready: collections.deque[Turn] = collections.deque()
        """Async turns that may begin."""
        self.runs = False
        """A task is about to take them, or does."""
        self.makers = concurrent.futures.ThreadPoolExecutor(max_workers=32, thread_name_prefix="covey-start")
        self.threads = Threads(self._run_sync)
        self.alone = Alone(self)
        self.tasks: set[asyncio.Task[None]] = set()
        """The loop itself holds them weakly."""
        self.unwritten = False
        self.bounded = False
        self.reading = threading.Lock()
        """Held while frames are taken."""
        self.retired = False
        """The worker replaces this process: nothing begins here any more, and the loop reads nothing."""
        self.forked = False
        """This is a process that a turn forked."""
        os.register_at_fork(after_in_child=self._forked)
        _session.install(HostSession(self.host.client()))
        _session.after_call = self._after_call
        _context.begins_to_wait, _context.gives_place, _context.takes_place = self.waits, self.give_place, self.take_place
        _turns.host = self

    def run(self) -> None:
        self.loop.add_reader(self.host.fileno(), self._readable)
        _standby.begin(self)
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                # What a task of the user's raised to end the process ends that task: the process is not its own.
                traceback.print_exc()

    def _forked(self) -> None:
        self.forked = True

    def _leave(self, error: BaseException | None = None) -> None:
        """In a process that a turn forked: it ends with the turn, as a program does. The loop, the connection and the answer are
        the other process's."""
        code: Any = 0
        if isinstance(error, SystemExit):
            code = error.code
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
        os._exit((code or 0) & 0xFF)

    # ---- the socket ----------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        if self.forked:
            self._leave(RuntimeError("a process that an async method forked has no event loop: fork in a method that is not async"))
        with self.reading:
            if self.retired:
                return
            frames, more = self.receive()
            for frame in frames:
                self.take(frame)
        if more:
            self.loop.call_soon(self._readable)

    def receive(self) -> tuple[list[Any], bool]:
        """Frames that have come, and whether there are more."""
        try:
            return self.host.recv(ROUND)
        except _bridge.BridgeError:
            # The worker is gone, and with it everyone who could want an answer.
            os._exit(0)

    def take(self, frame: Any) -> None:
        """On the loop's thread."""
        kind = frame[0]
        if kind == "call":
            self._arrive(frame)
        elif kind == "credit":
            turn = self.turns.get(frame[1])
            if turn is not None:
                self._credit(turn, frame[2])
        elif kind == "say":
            turn = self.turns.get(frame[1])
            if turn is not None:
                turn.context_of().conversation.hear(json.loads(frame[2]))
        elif kind == "cancel":
            turn = self.turns.get(frame[1])
            if turn is not None:
                self._cancel(turn)
        elif kind == "start":
            # The code comes once; actors that start beside the first one find it here.
            self.code.setdefault(frame[3], frame[4])
            self._start(*frame[1:4], *frame[5:])
        elif kind == "snapshot":
            self.asked_for_state(frame)
        elif kind == "stop":
            if not frame[1]:
                self._write()
                _marks.finish()
                os._exit(0)
            self._stop(frame[1])

    def _after_call(self) -> None:
        if threading.get_ident() == self.thread:
            self.loop.call_soon(self._readable)

    def _write_soon(self) -> None:
        """On the loop's thread: what is queued by all turns of this round leaves in one write."""
        if not self.unwritten:
            self.unwritten = True
            self.loop.call_soon(self._write)

    def _write(self) -> None:
        self.unwritten = False
        self.host.flush()

    # ---- actors --------------------------------------------------------------------------------------------------

    def _start(self, actor: str, agent: str, digest: str, init: Any, about: Any) -> None:
        class_name, concurrency, model, owner, state, save_turns, reentrant, bounded = about
        self.bounded = self.bounded or bounded
        # What an actor makes lives for its own driver; what one without a driver makes stays until it is stopped.
        owner = owner.removeprefix("session:") if owner.startswith("session:") else ""
        context = contextvars.copy_context()
        context.run(_context.turn_owner.set, owner)
        mark = _marks.mark_of(actor, agent)
        context.run(_marks.maker.set, mark)
        # Loading code and making the object are the user's, and may block.
        make = functools.partial(context.run, self._make, actor, agent, digest, class_name, init, state)
        self.makers.submit(self._made, make, actor, mark, concurrency, model, owner, save_turns, reentrant)

    def _made(self, make: Any, actor: str, mark: str, *about: Any) -> None:
        """On a thread: the object of an actor, told to the worker."""
        instance, error = _tried(make)
        if error is not None:
            self._ran_out(error)
            text = _codec.trace_of(error)
            self.host.started(actor, ("application", _codec.message_of(error), _codec.dump_error(error, text)))
        else:
            # Calls come once it is told.
            self.actors[actor] = Actor(actor, mark, instance, *about)
            self.host.started(actor)
        self.host.flush()

    async def _on_thread(self, function: Any, *args: Any) -> Any:
        """The user's code may block, and the loop is for everyone."""
        value, error = await self.loop.run_in_executor(self.makers, _tried, function, *args)
        if error is not None:
            raise error
        return value

    def _make(self, actor: str, agent: str, digest: str, class_name: str, init: Any, state: Any) -> Any:
        cls = self.classes.get(digest)
        if cls is None:
            if class_name:
                module = types.ModuleType(f"covey_agent_{agent}")
                sys.modules[module.__name__] = module
                exec(compile(self.code[digest], f"<agent {agent}>", "exec"), module.__dict__)
                cls = module.__dict__[class_name]
            else:
                cls = _codec.loads(self.code[digest])
            cls = getattr(cls, "__covey_class__", cls)
            self.classes[digest] = cls
        args, kwargs = resolve(*from_payload(init))
        if init is None and "/" in actor:
            args, kwargs = with_key(cls, actor.split("/", 1)[1])
        instance = cls(*args, **kwargs)
        if state is not None:
            instance.__restore__(_codec.load(state))
        return instance

    def asked_for_state(self, frame: Any) -> None:
        """On any thread."""
        self.makers.submit(self._snapshot, frame[2], self.actors.get(frame[1]))

    def _snapshot(self, number: int, actor: Actor | None) -> None:
        """On a thread: what the object says of itself."""
        try:
            snapshot = getattr(actor.instance, "__snapshot__", None) if actor is not None else None
            self.host.state(number, 0, _codec.dump(snapshot()) if snapshot is not None else None)
        except BaseException as error:
            self.host.no_state(number, f"__snapshot__ raised {_codec.message_of(error)}")
        self.host.flush()

    def _stop(self, actor: str) -> None:
        gone = self.actors.pop(actor, None)
        if gone is None:
            return
        for turn in [turn for turn in self.turns.values() if turn.actor is gone]:
            self._cancel(turn, gone=True)
        _marks.finish(actor)

    # ---- turns ---------------------------------------------------------------------------------------------------

    def _arrive(self, frame: Any) -> None:
        _, call, actor_id, name, args, about = frame
        actor = self.actors.get(actor_id)
        if actor is None:
            # It was sent when the actor was about to go.
            self.host.refused(call)
            self._write_soon()
            return
        turn = Turn(call, actor, name, args)
        if about is not None:
            turn.about(*about)
        self.turns[call] = turn
        try:
            turn.method = actor.method(name)
        except BaseException as error:
            turn.group = actor.group
            self._failed(turn, error)
            self.turns.pop(call, None)
            self._write_soon()
            return
        turn.group = group = actor.group if turn.method.group is None else actor.groups.get(turn.method.group, actor.group)
        if turn.alone:
            self.alone.expect(turn)
        # Calls of this actor's own turns that this one comes out of.
        own = [int(link.rsplit(".", 1)[1]) for link in turn.chain.split("\n") if link.startswith(f"{actor_id}#")] if turn.chain else ()
        with actor.lock:
            if own and actor.reentrant:
                turn.group = Group(1)
                turn.group.running = 1
            elif group.running < group.limit:
                group.running += 1
                group.current = turn
            elif own and actor.lends:
                # What a turn waits for goes first, so that few wait at once.
                group.queue.appendleft(turn)
                return
            elif own and group.limit == 1 and group.current is not None and not group.current.waits.isdisjoint(own):
                turn.over = True
            else:
                group.queue.append(turn)
                return
        if turn.over:
            self._would_wait_for_itself(turn)
        else:
            self._begin(turn)

    def _would_wait_for_itself(self, turn: Turn) -> None:
        path = " → ".join(link.rsplit("#", 1)[0] for link in (*turn.chain.split("\n"), turn.actor.id))
        text = f"this call would wait for itself for ever: {path}; use reentrant=True, or concurrency above 1"
        self.host.failed(turn.call, "failed_precondition", text, None)
        self.turns.pop(turn.call, None)
        self.host.flush()

    def waits(self, turn: Turn, token: int) -> None:
        """A turn begins to wait for a call of its own. What came out of that call and waits for the turn never will run."""
        turn.waits |= {token}
        link, group = f"{turn.actor.id}#{turn.call}.{token}", turn.group
        if group.limit > 1 or turn.actor.lends:
            return
        with turn.actor.lock:
            stuck = [t for t in group.queue if link in t.chain.split("\n")]
            for t in stuck:
                group.queue.remove(t)
        for t in stuck:
            self._would_wait_for_itself(t)

    def give_place(self, turn: Turn) -> bool:
        """On any thread: a turn begins to wait for a call. `True` where its place is another's meanwhile."""
        actor = turn.actor
        if not actor.lends or not turn.placed:
            return False
        self.rest(turn)
        if turn.method.kind >= _SYNC_VALUE:
            self.threads.rests(1)
        if turn.group.running == 0 and not actor.lent:
            self.loop.call_soon_threadsafe(self.loop.call_later, LEND_AFTER, self._lend, actor)
        return True

    def take_place(self, turn: Turn) -> concurrent.futures.Future[None] | None:
        """On any thread: it waits no more, and goes on once the future is done if there is one."""
        if turn.method.kind >= _SYNC_VALUE:
            self.threads.rests(-1)
        return self.come_back(turn)

    def _lend(self, actor: Actor) -> None:
        """All turns of an actor have waited for a while: others may have its CPU."""
        with actor.lock:
            lend = actor.group.running == 0 and not actor.lent and actor.id in self.actors
            actor.lent = actor.lent or lend
            if lend:
                self.host.waits(actor.id, True)

    def _takes_back(self, actor: Actor) -> None:
        """A turn of an actor that lent its CPU goes on."""
        with actor.lock:
            if actor.lent:
                actor.lent = False
                self.host.waits(actor.id, False)

    def emit(self, turn: Turn, event: bytes) -> None:
        """On any thread: writes an event of a turn into its task's log."""
        self.host.event(turn.call, event)
        if threading.get_ident() == self.thread:
            self._write_soon()
        else:
            self.host.flush()

    def rest(self, turn: Turn) -> None:
        """On any thread: the turn waits for somebody outside; another has its place."""
        with turn.actor.lock:
            if not turn.placed:
                return
            turn.placed = False
            following = self._free(turn.group)
        if following is not None:
            self.hand(following)
        if self.alone.on:
            self.alone.ended(turn)

    def come_back(self, turn: Turn) -> concurrent.futures.Future[None] | None:
        """On any thread: the turn goes on, once the future is done if there is one."""
        group = turn.group
        with turn.actor.lock:
            if turn.placed or turn.over:
                return None
            if turn.coming is None:
                if group.running < group.limit:
                    group.running += 1
                    group.current = turn
                    turn.placed = True
                    if turn.actor.lent:
                        turn.actor.lent = False
                        self.host.waits(turn.actor.id, False)
                    return None
                turn.coming = concurrent.futures.Future()
                group.queue.appendleft(turn)
            return turn.coming

    def hand(self, turn: Turn) -> None:
        """On any thread: a turn with a place begins, or goes on."""
        if threading.get_ident() == self.thread:
            self._begin(turn)
        else:
            self.loop.call_soon_threadsafe(self._begin, turn)

    def _begin(self, turn: Turn) -> None:
        """With the turn counted as running; on the loop's thread, unless it comes back."""
        coming = turn.coming
        if turn.actor.lent:
            self._takes_back(turn.actor)
        if coming is not None:
            turn.coming, turn.placed = None, True
            if coming.set_running_or_notify_cancel():
                coming.set_result(None)
            return
        if turn.method.kind >= _SYNC_VALUE:
            self.threads.submit(turn)
            return
        self.ready.append(turn)
        if not self.runs:
            self._run_ready()

    def _run_ready(self) -> None:
        self.runs = True
        # Made straight: what the loop's own method adds is for names and factories, which are not used here.
        task = asyncio.Task(self._take_turns(), loop=self.loop, name="covey-turn")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _take_turns(self) -> None:
        """A task for turns: one after the other, until one has to wait. It then is that turn's own, and another takes the rest.

        A task for each turn is what asyncio has for this, and costs more than most turns do.
        """
        task, ready, copy = asyncio.current_task(), self.ready, contextvars.copy_context
        while ready:
            turn = ready.popleft()
            turn.task = task
            work = self._run_async(turn)
            # What a turn sets in its context is not there for the next.
            run = copy().run
            try:
                waits_for = run(work.send, None)
            except StopIteration:
                continue
            except BaseException:
                # No turn lets anything out; if one did, the others still have their turn.
                self.runs = False
                if ready:
                    self._run_ready()
                raise
            if ready:
                self._run_ready()
            else:
                self.runs = False
            await _Driven(run, work, waits_for)
            return
        self.runs = False

    def _enter(self, turn: Turn) -> bool:
        """In the context of the turn: what it calls knows where it comes from, and by when it must be over. `False` where it must
        not begin any more: it is answered then."""
        _context.turn_current.set(turn)
        # It has said so (`Turn.begun`) before this. In this order: who gives it up (`_cancel`, `_standby`) sees that, or this sees
        # that it must not.
        self.begun[turn.call % self.places] = turn.call
        if self.retired or turn.over:
            self._unrun(turn, turn.gone or self.retired)
            return False
        if turn.run_timeout:
            end = time.monotonic() + turn.run_timeout
            turn.deadline = min(turn.deadline or end, end)
            self.host.began(turn.call, turn.name)
        if turn.deadline:
            _context.turn_deadline.set(turn.deadline)
        return True

    def _next(self, turn: Turn) -> Turn | None:
        """The turn is over; gives the one that takes its place."""
        with turn.actor.lock:
            return self._free(turn.group) if turn.placed else None

    def _free(self, group: Group) -> Turn | None:
        """Under the actor's lock: a place is free; gives the turn that takes it."""
        if group.queue:
            group.current = group.queue.popleft()
            return group.current
        group.running -= 1
        group.current = None
        return None

    def _unrun(self, turn: Turn, gone: bool) -> None:
        """The turn does not begin. Where that is not what its caller wanted, it runs elsewhere."""
        if gone:
            self.host.refused(turn.call)
        else:
            self.host.failed(turn.call, "cancelled", "cancelled", None)

    def _cancel(self, turn: Turn, gone: bool = False) -> None:
        """The caller wants no answer any more, or the actor is `gone`. What waits ends here, what runs is told."""
        with turn.actor.lock:
            turn.gone = gone
            turn.over = True
            waiting, coming = turn in turn.group.queue, turn.coming
            if waiting:
                turn.group.queue.remove(turn)
        if turn.ctx is not None:
            turn.ctx._over.set()
        if turn.task is None and turn.ctx is not None:
            turn.ctx.conversation.cancel()
        if coming is not None:
            coming.cancel()
        if (waiting and coming is None) or (self.alone.on and self.alone.leaves(turn)):
            self.turns.pop(turn.call, None)
            if self.alone.on:
                self.alone.ended(turn)
            self._unrun(turn, gone)
            self._write_soon()
            return
        if turn.begun:
            # The worker counts from here how long it takes to stop.
            self.host.began(turn.call, turn.name)
        elif gone:
            # It waits for a thread, and will see that it is over.
            self._unrun(turn, gone)
            self._write_soon()
            return
        if turn.task is not None:  # where it has none, it is cancelled before it begins
            # Once: what it awaits in its `finally` is not cut off, also where its caller leaves and its actor stops then.
            if not turn.told:
                turn.told = True
                turn.task.cancel()
        elif turn.more is not None:
            turn.more.set()

    def _credit(self, turn: Turn, items: int) -> None:
        turn.credits += items
        if turn.more is not None:
            turn.more.set()

    async def _run_async(self, turn: Turn) -> None:
        host, call = self.host, turn.call
        turn.begun = True
        if self.alone.on and self.alone.holds(turn):
            return
        dump = dump_answer if turn.as_json else _objects.dump_answer
        try:
            if not self._enter(turn):
                return
            if turn.args[0] == _bridge.LENT:
                # Mapping is quick; fetching takes time, and the loop is for everyone.
                lent = turn.args
                turn.args = borrow(lent, fetch=False) or await self._on_thread(borrow, lent)
            args, kwargs = self._bind(turn)
            if has_refs(args, kwargs):
                # Fetching takes time, and the loop is for everyone.
                args, kwargs = await self._on_thread(resolve, args, kwargs)
            method = getattr(turn.actor.instance, turn.method.attribute)
            if turn.method.kind == _VALUE:
                answer = self._answer(turn, await method(*args, **kwargs), dump)
                if answer is not None:
                    if turn.actor.save_turns:
                        await self._on_thread(self._save, turn)
                    answer()
            else:
                items, made = method(*args, **kwargs), 0
                try:
                    async for item in items:
                        while made >= turn.credits:
                            turn.more = asyncio.Event()
                            await turn.more.wait()
                        made += 1
                        if self.forked:
                            self._leave()
                        if turn.as_json or not host.scalar(call, item):
                            host.item(call, *dump(item))
                        if not self.unwritten:
                            self._write_soon()
                finally:
                    await items.aclose()
                if turn.actor.save_turns:
                    await self._on_thread(self._save, turn)
                host.done(call)
        except asyncio.CancelledError:
            host.failed(call, "cancelled", "cancelled", None)
        except BaseException as error:
            self._failed(turn, error)
        finally:
            self.turns.pop(call, None)
            if not self.unwritten:
                self._write_soon()
            if self.alone.on:
                self.alone.ended(turn)
            following = self._next(turn)
            if following is not None:
                self._begin(following)

    def _run_sync(self, turn: Turn) -> None:
        """On a thread: this turn, and those that wait behind it, as long as they are sync too."""
        while True:
            turn.begun = True
            if self.alone.on and self.alone.holds(turn):
                self.host.flush()
                return
            contextvars.copy_context().run(self._one_sync, turn)
            if turn.actor.loops:
                # What it did for a coroutine of its actor (`event.set()`) is on the loop's list, and the loop sleeps.
                self.loop.call_soon_threadsafe(_nothing)
            self.turns.pop(turn.call, None)
            if self.alone.on:
                self.alone.ended(turn)
            following = self._next(turn)
            if following is None:
                self.host.flush()
                return
            self.host.flush_late()
            if following.coming is not None or following.method.kind < _SYNC_VALUE:
                self.host.flush()
                self.loop.call_soon_threadsafe(self._begin, following)
                return
            turn = following

    def _one_sync(self, turn: Turn) -> None:
        host, call = self.host, turn.call
        dump = dump_answer if turn.as_json else _objects.dump_answer
        if not self._enter(turn):
            return
        try:
            if turn.args[0] == _bridge.LENT:
                turn.args = borrow(turn.args)
            args, kwargs = self._bind(turn)
            args, kwargs = resolve(args, kwargs)
            method = getattr(turn.actor.instance, turn.method.attribute)
            if turn.method.kind == _SYNC_VALUE:
                answer = self._answer(turn, method(*args, **kwargs), dump)
                if answer is not None:
                    if turn.actor.save_turns:
                        self._save(turn)
                    answer()
                return
            turn.more = threading.Event()
            items, made = method(*args, **kwargs), 0
            try:
                for item in items:
                    while made >= turn.credits and not turn.over:
                        turn.more.clear()
                        if made >= turn.credits and not turn.over:
                            turn.more.wait()
                    if turn.over:
                        host.failed(call, "cancelled", "cancelled", None)
                        return
                    made += 1
                    if self.forked:
                        self._leave()
                    if turn.as_json or not host.scalar(call, item):
                        host.item(call, *dump(item))
                    host.flush_late()
            finally:
                items.close()
            if turn.actor.save_turns:
                self._save(turn)
            host.done(call)
        except BaseException as error:
            self._failed(turn, error)

    def _answer(self, turn: Turn, value: Any, dump: Any) -> Callable[[], None] | None:
        """Gives what tells the worker what a method returned; `None` where it is told: the usual answer, and nothing comes before it."""
        if self.forked:
            self._leave()
        host, call = self.host, turn.call
        if turn.as_json and isinstance(value, Reply):
            # The task ends with a mere message, and the worker has that.
            host.event(call, json.dumps(value.event()).encode())
            return functools.partial(host.done, call)
        if not (turn.as_json or turn.actor.save_turns) and host.scalar_value(call, value):
            return None
        return functools.partial(host.value, call, *dump(value))

    def _save(self, turn: Turn) -> None:
        """The state after this turn travels before its answer, which is given once the state is on disk."""
        snapshot = getattr(turn.actor.instance, "__snapshot__", None)
        if snapshot is not None:
            self.host.state(0, turn.call, _codec.dump(snapshot()))

    def _ran_out(self, error: BaseException) -> None:
        """A process with a bound that gets no more memory ends; the worker knows the code, and says why."""
        if self.bounded and isinstance(error, MemoryError):
            os._exit(RAN_OUT)

    def _failed(self, turn: Turn, error: BaseException) -> None:
        if self.forked:
            self._leave(error)
        self._ran_out(error)
        if isinstance(error, errors.Rejected) and turn.task_id:
            rejected = {"type": "finished", "outcome": {"is": "rejected", "reason": str(error)}}
            self.host.event(turn.call, json.dumps(rejected).encode())
        text = _codec.trace_of(error)
        retry = bool(turn.retry_on) and any(_codec.class_name(cls) in turn.retry_on for cls in type(error).__mro__)
        self.host.failed(turn.call, "application", _codec.message_of(error), _codec.dump_error(error, text), retry)

    def _bind(self, turn: Turn) -> tuple[Any, Any]:
        """Arguments for the method from whatever they travelled in, with the context put where it is asked for."""
        method, payload = turn.method, turn.args
        turn.args = None
        if payload[0] == _bridge.CONTENT:
            turn.content = _codec.load(payload) or []
            args, kwargs = from_content(turn.content, method.wanted, method.hints)
        else:
            args, kwargs = from_payload(payload)
        return method.places.fill(args, kwargs, turn.context_of()) if method.places.takes else (args, kwargs)


def main() -> None:
    wanted = os.environ.get("COVEY_VERSION")
    other = [version for version in (__version__, _bridge.__version__) if wanted and version != wanted]
    if other:
        # It may speak of what the worker does not know. The worker tells those who wait the same.
        sys.exit(f"the package `covey` is {other[0]}, the worker is {wanted}")
    # `covey stack`: all threads, by the interpreter's own hand, also when everything hangs. They go to a file that the worker
    # reads: what this process prints is shown to drivers.
    faulthandler.register(signal.SIGUSR1, file=os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND), all_threads=True)
    # Ctrl-C in the worker's terminal is the worker's: it ends this process when it is done with it.
    signal.signal(signal.SIGINT, lambda *_: None)
    # Lines reach the log when they are printed.
    _marks.install()
    process = Process(sys.argv[1], sys.argv[2])
    # What is there now stays: it need not be looked through again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])
    process.run()


if __name__ == "__main__":
    main()
