"""What a turn tells the worker: its value, its failure, that it does not begin, and its actor's state before its answer."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _codec, errors
from .._content import Reply
from .._content import dump_answer as dump_task_answer
from .._objects import dump_answer

if TYPE_CHECKING:
    from .._wire import Payload
    from .link import WorkerLink
    from .turn import Turn


def dump_of(turn: Turn) -> Callable[[object], Payload]:
    """How the turn's values travel: JSON of a task, pickled of a call."""
    return dump_task_answer if turn.as_json else dump_answer


class Answers:
    """Queues answers; whoever runs the turn has them written."""

    def __init__(self, link: WorkerLink):
        self._link, self._host = link, link.host

    def value(self, turn: Turn, value: object) -> Callable[[], None] | None:
        """Gives what tells the worker what a method returned; `None` where it is told: the usual answer, and nothing comes before it."""
        if self._link.forked:
            self._link.leave_fork()
        host, call = self._host, turn.call
        if not (turn.as_json or turn.actor.save_turns) and host.scalar_value(call, value):
            return None
        if turn.as_json and isinstance(value, Reply):
            # The task ends with a mere message, and the worker has that.
            host.event(call, json.dumps(value.event()).encode())
            return functools.partial(host.done, call)
        return functools.partial(host.value, call, *dump_of(turn)(value))

    def item(self, turn: Turn, item: object, dump: Callable[[object], Payload]) -> None:
        """One item of a method that yields."""
        if self._link.forked:
            self._link.leave_fork()
        if turn.as_json or not self._host.scalar(turn.call, item):
            self._host.item(turn.call, *dump(item))

    def save(self, turn: Turn) -> None:
        """The state after this turn travels before its answer, which is given once the state is on disk."""
        snapshot: Callable[[], Any] | None = getattr(turn.actor.instance, "__snapshot__", None)
        if snapshot is not None:
            self._host.state(0, turn.call, _codec.dump(snapshot()))

    def failed(self, turn: Turn, error: BaseException) -> None:
        """The turn raised."""
        if self._link.forked:
            self._link.leave_fork(error)
        self._link.end_if_out_of_memory(error)
        if isinstance(error, errors.Rejected) and turn.task_id:
            rejected = {"type": "finished", "outcome": {"is": "rejected", "reason": str(error)}}
            self._host.event(turn.call, json.dumps(rejected).encode())
        text = _codec.trace_of(error)
        retry = bool(turn.retry_on) and any(_codec.class_name(cls) in turn.retry_on for cls in type(error).__mro__)
        self._host.failed(turn.call, "application", _codec.message_of(error), _codec.dump_error(error, text), retry)

    def cancelled(self, turn: Turn) -> None:
        """The turn stopped, or did not begin, because nobody wants its answer."""
        self._host.failed(turn.call, "cancelled", "cancelled", None)

    def unrun(self, turn: Turn, gone: bool) -> None:
        """The turn does not begin. Where that is not what its caller wanted (`gone`), it runs elsewhere."""
        if gone:
            self._host.refused(turn.call)
        else:
            self.cancelled(turn)

    def would_wait_for_itself(self, turn: Turn) -> None:
        """The turn comes out of one that keeps its place until the turn is over."""
        path = " → ".join(link.rsplit("#", 1)[0] for link in (*turn.chain.split("\n"), turn.actor.id))
        text = f"this call would wait for itself for ever: {path}; use reentrant=True, or concurrency above 1"
        self._host.failed(turn.call, "failed_precondition", text, None)
