"""Inside an actor's process: calls that run with no other beside them.

A call whose process died while it ran, time after time, may be why, or may have run beside what is. That is told apart when it runs
alone: it begins once what runs has ended, and nothing else begins before it has. What comes out of a turn that is waited for does
begin, or that turn would never end. A turn may also wait for one that is held here in a way that nobody sees (an event that another
method sets): so nothing is held up for longer than `WAIT` by one turn.

Turns ask here only while such calls are in the process. A turn that is held has given its place in its group back; it gets one again
before those that came later.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ._host.turn import Turn

WAIT = 30.0
"""Seconds that a call waits for those that run, and that others wait for it."""


def _link(turn: Turn) -> str:
    """What it is called in the chains of the calls that come out of it, without their numbers."""
    return f"{turn.actor.id}#{turn.call}"


def _links(turn: Turn) -> set[str]:
    """Turns that wait for it."""
    return {link.rsplit(".", 1)[0] for link in turn.chain.split("\n")} if turn.chain else set()


class Process(Protocol):
    """What must be known of the process: `_host.scheduler.Scheduler`."""

    turns: dict[int, Turn]
    loop: asyncio.AbstractEventLoop

    @property
    def retired(self) -> bool:
        """The process is replaced: nothing begins here any more."""
        ...

    def hand(self, turn: Turn) -> None:
        """A turn with a place begins, or goes on."""
        ...


class Alone:
    """Which turns may begin, while calls that run alone are in the process."""

    def __init__(self, process: Process):
        self.process = process
        self.on = False
        """Calls that run alone are in the process."""
        self._lock = threading.Lock()
        self._calls: set[int] = set()
        self._first: Turn | None = None
        """The one that runs alone, or is the next to."""
        self._runs = False
        self._beside: dict[int, str] = {}
        """Turns that it waits for."""
        self._held: list[Turn] = []
        self._ready: list[Turn] = []
        """Turns with a place, to be handed on once the lock is given back."""
        self._phase = 0

    def expect(self, turn: Turn) -> None:
        """On the loop's thread: one has come."""
        with self._lock:
            self._calls.add(turn.call)
            self.on = True

    def holds(self, turn: Turn) -> bool:
        """On the thread of a turn that has said that it begins: whether it must not yet. It is begun again later."""
        with self._handing():
            if turn.over or (turn is self._first and self._runs):
                return False
            if self._first is None:
                if not turn.alone:
                    return False
                links = _links(turn)
                others = [t for t in self.process.turns.copy().values() if t.begun and t.placed and not t.long and t is not turn]
                self._first, self._beside = turn, {t.call: _link(t) for t in others if _link(t) not in links}
                self._runs = not self._beside
                self._watch()
                if self._runs:
                    return False
            elif turn.call in self._beside:
                return False  # it was seen as one that has begun
            elif self._lets(turn):
                if not self._runs:
                    self._beside[turn.call] = _link(turn)
                return False
            task, turn.task = turn.task, None
            turn.begun = False
            if self.process.retired or turn.over:
                # Whoever refuses or cancels what has not begun may have looked before.
                turn.begun, turn.task = True, task
                return False
            self._held.append(turn)
            self._gives_place(turn)
            return True

    def ended(self, turn: Turn) -> None:
        """On any thread: a turn is over, or waits for somebody outside."""
        with self._handing():
            if turn is self._first and turn.call not in self.process.turns:
                self._open()
            elif self._beside.pop(turn.call, None) is not None and not self._beside:
                self._run_first()
            elif self._first is None:
                self._recount()

    def leaves(self, turn: Turn) -> bool:
        """On the loop's thread: a turn is over before it began; `True` where it was held. It begins nowhere any more."""
        with self._handing():
            if turn not in self._held:
                return False
            self._held.remove(turn)
            if turn is self._first:
                self._open()
            return True

    @contextlib.contextmanager
    def _handing(self) -> Generator[None, None, None]:
        """Under the lock; who may begin by what is done there begins after it."""
        with self._lock:
            yield
            ready, self._ready = self._ready, []
        for turn in ready:
            self.process.hand(turn)

    def _lets(self, turn: Turn) -> bool:
        """It comes out of what is waited for. A turn that comes back is one that has begun."""
        if turn is self._first:
            return self._runs
        waited = {_link(self._first)} if self._runs and self._first is not None else self._beside.values()
        return turn.coming is not None or not _links(turn).isdisjoint(waited)

    def _gives_place(self, turn: Turn) -> None:
        group = turn.group
        with turn.actor.lock:
            following = next((t for t in group.queue if self._lets(t)), None)
            if following is None:
                group.running -= 1
                group.current = None
                return
            group.queue.remove(following)
            group.current = following
        self._ready.append(following)

    def _watch(self) -> None:
        """From now on one phase of the first has its time."""
        self._phase += 1
        loop = self.process.loop
        loop.call_soon_threadsafe(loop.call_later, WAIT, self._late, self._phase)

    def _late(self, phase: int) -> None:
        with self._handing():
            first = self._first
            if phase != self._phase or first is None:
                return
            if self._runs:
                first.long = True
                return self._open()
            for call in self._beside:
                turn = self.process.turns.get(call)
                if turn is not None:
                    turn.long = True
            self._run_first()

    def _run_first(self) -> None:
        """Nothing runs that it waits for."""
        first = self._first
        if first is None or self._runs:
            return
        self._beside, self._runs = {}, True
        self._watch()
        if first in self._held:
            self._held.remove(first)
            self._admit([first])

    def _open(self) -> None:
        """Others may begin; the next one that runs alone is the first among them."""
        self._first, self._runs, self._beside = None, False, {}
        self._phase += 1
        held, self._held = self._held, []
        self._recount()
        self._admit(held)

    def _recount(self) -> None:
        self._calls = {call for call in self._calls if call in self.process.turns}
        self.on = bool(self._calls)

    def _admit(self, turns: list[Turn]) -> None:
        """Gives each a place, before those that came later."""
        groups: dict[int, Turn] = {}
        for turn in reversed(turns):
            with turn.actor.lock:
                turn.group.queue.appendleft(turn)
            groups[id(turn.group)] = turn
        ready: list[Turn] = []
        for one in groups.values():
            with one.actor.lock:
                group = one.group
                while group.queue and group.running < group.limit:
                    group.running += 1
                    group.current = group.queue.popleft()
                    ready.append(group.current)
        order = {turn.call: n for n, turn in enumerate(turns)}
        self._ready += sorted(ready, key=lambda turn: order.get(turn.call, len(order)))
