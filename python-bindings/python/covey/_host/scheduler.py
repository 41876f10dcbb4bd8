"""Which turn has a place, and which waits: arrival, order, concurrency and groups, cancelling, and places that are given away.

A turn with a place goes to the `Runner`, which says when it is over. The places of an actor are counted under its lock. What is called
"on any thread" may be called by the event loop's thread, threads of sync methods, and threads of the user's.
"""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

from .._alone import Alone
from .answers import Answers
from .runner import Runner
from .turn import Group, Turn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._wire import CallFrame
    from .link import WorkerLink
    from .threads import Makers
    from .turn import Actor

LEND_AFTER = 0.05
"""An actor of functions whose turns all wait lends its CPU after this time, seconds."""


def _calls_of(actor: str, chain: str) -> list[int]:
    """Tokens of the calls of an actor's own turns that a call comes out of."""
    return [int(link.rsplit(".", 1)[1]) for link in chain.split("\n") if link.startswith(f"{actor}#")] if chain else []


class Scheduler:
    """The turns of a process; it is the `_current.TurnHost` of an actor's process."""

    def __init__(self, link: WorkerLink, actors: Mapping[str, Actor], makers: Makers):
        self._link, self._host, self._actors = link, link.host, actors
        self.loop, self.thread = link.loop, link.thread
        self.turns: dict[int, Turn] = {}
        """Those that are not over, by call."""
        self.alone = Alone(self)
        self._answers = Answers(link)
        self._runner = Runner(link, self, self._answers, makers)

    @property
    def retired(self) -> bool:
        """The process is replaced."""
        return self._link.retired

    # ---- arrival -------------------------------------------------------------------------------------------------

    def arrive(self, frame: CallFrame) -> None:
        """On the loop's thread: a call has come. It begins, or waits for a place."""
        _, call, actor_id, name, args, about = frame
        actor = self._actors.get(actor_id)
        if actor is None:
            # It was sent when the actor was about to go.
            self._host.refused(call)
            self._link.write_soon()
            return
        turn = Turn(call, actor, name, args)
        if about is not None:
            turn.about(about)
        self.turns[call] = turn
        try:
            turn.method = actor.method(name)
        except BaseException as error:
            turn.group = actor.group
            self._answers.failed(turn, error)
            self.turns.pop(call, None)
            self._link.write_soon()
            return
        turn.group = actor.group_of(turn.method)
        if turn.alone:
            self.alone.expect(turn)
        if self._place(turn):
            self.begin(turn)

    def _place(self, turn: Turn) -> bool:
        """Gives a turn that has come a place, or has it wait for one."""
        actor, group = turn.actor, turn.group
        own = _calls_of(actor.id, turn.chain) if turn.chain else ()
        with actor.lock:
            if own and actor.reentrant:
                turn.group = Group(1)
                turn.group.running = 1
                return True
            if group.running < group.limit:
                group.running += 1
                group.current = turn
                return True
            if own and actor.lends:
                # What a turn waits for goes first, so that few wait at once.
                group.queue.appendleft(turn)
                return False
            if own and group.limit == 1 and group.current is not None and not group.current.waits.isdisjoint(own):
                turn.over = True
            else:
                group.queue.append(turn)
                return False
        self._refuse_waiting_for_itself(turn)
        return False

    def _refuse_waiting_for_itself(self, turn: Turn) -> None:
        self._answers.would_wait_for_itself(turn)
        self.turns.pop(turn.call, None)
        self._host.flush()

    # ---- beginning and ending ------------------------------------------------------------------------------------

    def hand(self, turn: Turn) -> None:
        """On any thread: a turn with a place begins, or goes on."""
        if self._link.is_loop_thread():
            self.begin(turn)
        else:
            self.loop.call_soon_threadsafe(self.begin, turn)

    def begin(self, turn: Turn) -> None:
        """With the turn counted as running; on the loop's thread, unless it comes back."""
        coming = turn.coming
        if turn.actor.lent:
            self._take_cpu_back(turn.actor)
        if coming is not None:
            turn.coming, turn.placed = None, True
            if coming.set_running_or_notify_cancel():
                coming.set_result(None)
            return
        self._runner.start(turn)

    def next(self, turn: Turn) -> Turn | None:
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

    def cancel(self, turn: Turn, gone: bool = False) -> None:
        """The caller wants no answer any more, or the actor is `gone`. What waits ends here, what runs is told."""
        with turn.actor.lock:
            turn.gone = gone
            turn.over = True
            waiting, coming = turn in turn.group.queue, turn.coming
            if waiting:
                turn.group.queue.remove(turn)
        if turn.task is None and turn.ctx is not None:
            turn.ctx.conversation.cancel()
        if coming is not None:
            coming.cancel()
        if (waiting and coming is None) or (self.alone.on and self.alone.leaves(turn)):
            self.turns.pop(turn.call, None)
            if self.alone.on:
                self.alone.ended(turn)
            self._answers.unrun(turn, gone)
            self._link.write_soon()
            return
        if turn.begun:
            # The worker counts from here how long it takes to stop.
            self._host.began(turn.call, turn.name)
        elif gone:
            # It waits for a thread, and will see that it is over.
            self._answers.unrun(turn, gone)
            self._link.write_soon()
            return
        self._runner.stop(turn)

    def stop_all(self, actor: Actor) -> None:
        """On the loop's thread: an actor is stopped, and its turns with it."""
        for turn in [turn for turn in self.turns.values() if turn.actor is actor]:
            self.cancel(turn, gone=True)

    # ---- places that are given away ------------------------------------------------------------------------------

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
            self._refuse_waiting_for_itself(t)

    def give_place(self, turn: Turn) -> bool:
        """On any thread: a turn begins to wait for a call. `True` where its place is another's meanwhile."""
        actor = turn.actor
        if not actor.lends or not turn.placed:
            return False
        self.rest(turn)
        if not turn.method.is_async:
            self._runner.threads.rests(1)
        if turn.group.running == 0 and not actor.lent:
            self.loop.call_soon_threadsafe(self.loop.call_later, LEND_AFTER, self._lend_cpu, actor)
        return True

    def take_place(self, turn: Turn) -> concurrent.futures.Future[None] | None:
        """On any thread: it waits no more, and goes on once the future is done if there is one."""
        if not turn.method.is_async:
            self._runner.threads.rests(-1)
        return self.come_back(turn)

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
                        self._host.waits(turn.actor.id, False)
                    return None
                turn.coming = concurrent.futures.Future()
                group.queue.appendleft(turn)
            return turn.coming

    def _lend_cpu(self, actor: Actor) -> None:
        """All turns of an actor have waited for a while: others may have its CPU."""
        with actor.lock:
            lend = actor.group.running == 0 and not actor.lent and actor.id in self._actors
            actor.lent = actor.lent or lend
            if lend:
                self._host.waits(actor.id, True)

    def _take_cpu_back(self, actor: Actor) -> None:
        """A turn of an actor that lent its CPU goes on."""
        with actor.lock:
            if actor.lent:
                actor.lent = False
                self._host.waits(actor.id, False)

    # ---- while a turn runs ---------------------------------------------------------------------------------------

    def credit(self, turn: Turn, items: int) -> None:
        """Its reader takes so many items more."""
        turn.credits += items
        if turn.more is not None:
            turn.more.set()

    def emit(self, turn: Turn, event: bytes) -> None:
        """On any thread: writes an event of a turn into its task's log."""
        self._host.event(turn.call, event)
        if self._link.is_loop_thread():
            self._link.write_soon()
        else:
            self._host.flush()

    def fail(self, turn: Turn, error: BaseException) -> None:
        """On any thread: answers a turn with an error, before it ends; it is written when this returns."""
        self._answers.failed(turn, error)
        self._host.flush()

    def after_call(self) -> None:
        """On any thread: what came while a verb was waited for is looked at."""
        self._link.after_call()
