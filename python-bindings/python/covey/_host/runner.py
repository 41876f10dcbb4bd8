"""Runs turns that have a place: async methods on the event loop, sync ones on threads.

A task for each async turn is what asyncio has for this, and costs more than most turns do. So a task takes turns one after the other,
until one has to wait: the task is then that turn's own, and another takes the rest.
"""

from __future__ import annotations

import asyncio
import collections
import contextvars
import functools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any

from .. import _bridge, _codec
from .._arguments import from_content, from_payload
from .._current import turn_current, turn_deadline
from .._objects import borrow, has_refs, resolve
from .answers import dump_of
from .threads import TurnThreads

if TYPE_CHECKING:
    from .answers import Answers
    from .link import WorkerLink
    from .scheduler import Scheduler
    from .threads import Makers
    from .turn import Turn

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]
    Step = Callable[[Any], Any]


class _Driven:
    """The rest of a coroutine that has begun already: each step in the context it began in."""

    __slots__ = ("run", "work", "waits_for")

    def __init__(self, run: Callable[..., Any], work: Coroutine[Any, Any, None], waits_for: Any):
        self.run, self.work, self.waits_for = run, work, waits_for

    def __await__(self) -> Generator[Any, Any, None]:
        run, work, waits_for = self.run, self.work, self.waits_for
        while True:
            step: Step
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


def _nothing() -> None:
    """Called for the wake."""


class Runner:
    """The two ways in which a turn runs."""

    def __init__(self, link: WorkerLink, scheduler: Scheduler, answers: Answers, makers: Makers):
        self._link, self._host, self._loop = link, link.host, link.loop
        self._scheduler, self._answers, self._makers = scheduler, answers, makers
        self._turns, self._alone = scheduler.turns, scheduler.alone
        self.threads = TurnThreads(self._run_sync)
        self._ready: collections.deque[Turn] = collections.deque()
        """Async turns that may begin."""
        self._runs = False
        """A task is about to take them, or does."""
        self._tasks: set[asyncio.Task[None]] = set()
        """The loop itself holds them weakly."""

    def start(self, turn: Turn) -> None:
        """On the loop's thread: the turn begins as soon as the loop, or a thread, is free."""
        if not turn.method.is_async:
            self.threads.submit(turn)
            return
        self._ready.append(turn)
        if not self._runs:
            self._take_ready()

    def stop(self, turn: Turn) -> None:
        """On the loop's thread: the turn is over, and is told where it runs."""
        if turn.task is not None:  # where it has none, it is cancelled before it begins
            # Once: what it awaits in its `finally` is not cut off, also where its caller leaves and its actor stops then.
            if not turn.told:
                turn.told = True
                turn.task.cancel()
        elif turn.more is not None:
            turn.more.set()

    # ---- both ways -----------------------------------------------------------------------------------------------

    def _enter(self, turn: Turn) -> bool:
        """In the context of the turn: what it calls knows where it comes from, and by when it must be over. `False` where it must
        not begin any more: it is answered then."""
        turn_current.set(turn)
        # It has said so (`Turn.begun`) before this. In this order: who gives it up (`Scheduler.cancel`, `_standby`) sees that, or this
        # sees that it must not.
        self._link.note_begun(turn.call)
        if self._link.retired or turn.over:
            self._answers.unrun(turn, turn.gone or self._link.retired)
            return False
        if turn.run_timeout:
            end = time.monotonic() + turn.run_timeout
            turn.deadline = min(turn.deadline or end, end)
            self._host.began(turn.call, turn.name)
        if turn.deadline:
            turn_deadline.set(turn.deadline)
        return True

    def _bind(self, turn: Turn) -> Arguments:
        """Arguments for the method from whatever they travelled in, with the context put where it is asked for."""
        method, payload = turn.method, turn.args
        turn.args = None
        if payload is not None and payload[0] == _bridge.CONTENT:
            turn.content = _codec.load(payload) or []
            args, kwargs = from_content(turn.content or [], method.wanted, method.hints)
        else:
            args, kwargs = from_payload(payload)
        return method.places.fill(args, kwargs, turn.context_of()) if method.places.takes else (args, kwargs)

    # ---- on the event loop ---------------------------------------------------------------------------------------

    def _take_ready(self) -> None:
        self._runs = True
        # Made straight: what the loop's own method adds is for names and factories, which are not used here.
        task = asyncio.Task(self._take_turns(), loop=self._loop, name="covey-turn")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_turns(self) -> None:
        """One turn after the other, until one has to wait."""
        task, ready, copy = asyncio.current_task(), self._ready, contextvars.copy_context
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
                self._runs = False
                if ready:
                    self._take_ready()
                raise
            if ready:
                self._take_ready()
            else:
                self._runs = False
            await _Driven(run, work, waits_for)
            return
        self._runs = False

    async def _run_async(self, turn: Turn) -> None:
        # One coroutine for all of the usual turn: another one below it would cost a twentieth of what the turn does.
        link, answers, method = self._link, self._answers, turn.method
        turn.begun = True
        if self._alone.on and self._alone.holds(turn):
            return
        try:
            if not self._enter(turn):
                return
            lent = turn.args
            if lent is not None and lent[0] == _bridge.LENT:
                # Mapping is quick; fetching takes time, and the loop is for everyone.
                turn.args = borrow(lent, fetch=False) or await self._makers.run(borrow, lent)
            args, kwargs = self._bind(turn)
            if has_refs(args, kwargs):
                # Fetching takes time, and the loop is for everyone.
                args, kwargs = await self._makers.run(resolve, args, kwargs)
            function = getattr(turn.actor.instance, method.attribute)
            if method.yields:
                await self._send_items_async(turn, function(*args, **kwargs))
                answer = functools.partial(self._host.done, turn.call)
            else:
                answer = answers.value(turn, await function(*args, **kwargs))
            if answer is not None:
                if turn.actor.save_turns:
                    await self._makers.run(answers.save, turn)
                answer()
        except asyncio.CancelledError:
            answers.cancelled(turn)
        except BaseException as error:
            answers.failed(turn, error)
        finally:
            self._turns.pop(turn.call, None)
            if not link.unwritten:
                link.write_soon()
            if self._alone.on:
                self._alone.ended(turn)
            following = self._scheduler.next(turn)
            if following is not None:
                self._scheduler.begin(following)

    async def _send_items_async(self, turn: Turn, items: Any) -> None:
        link, answers, dump, made = self._link, self._answers, dump_of(turn), 0
        source: AsyncIterator[object] = items
        try:
            async for item in source:
                while made >= turn.credits:
                    more = turn.more = asyncio.Event()
                    await more.wait()
                made += 1
                answers.item(turn, item, dump)
                if not link.unwritten:
                    link.write_soon()
        finally:
            await items.aclose()

    # ---- on threads ----------------------------------------------------------------------------------------------

    def _run_sync(self, turn: Turn) -> None:
        """On a thread: this turn, and those that wait behind it, as long as they are sync too."""
        while True:
            turn.begun = True
            if self._alone.on and self._alone.holds(turn):
                self._host.flush()
                return
            contextvars.copy_context().run(self._one_sync, turn)
            if turn.actor.loops:
                # What it did for a coroutine of its actor (`event.set()`) is on the loop's list, and the loop sleeps.
                self._loop.call_soon_threadsafe(_nothing)
            self._turns.pop(turn.call, None)
            if self._alone.on:
                self._alone.ended(turn)
            following = self._scheduler.next(turn)
            if following is None:
                self._host.flush()
                return
            self._host.flush_late()
            if following.coming is not None or following.method.is_async:
                self._host.flush()
                self._loop.call_soon_threadsafe(self._scheduler.begin, following)
                return
            turn = following

    def _one_sync(self, turn: Turn) -> None:
        if not self._enter(turn):
            return
        answers = self._answers
        try:
            if turn.args is not None and turn.args[0] == _bridge.LENT:
                turn.args = borrow(turn.args)
            args, kwargs = resolve(*self._bind(turn))
            function = getattr(turn.actor.instance, turn.method.attribute)
            if turn.method.yields:
                if not self._send_items(turn, function(*args, **kwargs)):
                    return
                answer = functools.partial(self._host.done, turn.call)
            else:
                answer = answers.value(turn, function(*args, **kwargs))
            if answer is not None:
                if turn.actor.save_turns:
                    answers.save(turn)
                answer()
        except BaseException as error:
            answers.failed(turn, error)

    def _send_items(self, turn: Turn, items: Any) -> bool:
        """Sends what a generator yields; `False` where nobody wants more, and the worker is told."""
        host, answers, dump, made = self._host, self._answers, dump_of(turn), 0
        more = turn.more = threading.Event()
        source: Iterator[object] = items
        try:
            for item in source:
                while made >= turn.credits and not turn.over:
                    more.clear()
                    if made >= turn.credits and not turn.over:
                        more.wait()
                if turn.over:
                    answers.cancelled(turn)
                    return False
                made += 1
                answers.item(turn, item, dump)
                host.flush_late()
            return True
        finally:
            items.close()
