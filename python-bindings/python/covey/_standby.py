"""Inside an actor's process: what happens once the worker replaces it, because a turn goes on that was given up.

That turn may block the event loop, so a thread of its own stands by. From then on nothing begins here: what waits goes back
unrun and runs in another process, and so does what still comes. Turns that run go on, and the states of actors are given, until
the worker ends the process. Where one turn keeps the loop, the other turns of the loop cannot go on: their calls end, and may be
tried again elsewhere. Where code keeps the interpreter (a long call of a C extension) this thread cannot run either; the worker
waits for its answer for a while only.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING

from . import _bridge

if TYPE_CHECKING:
    from ._host.process import Process
    from ._host.turn import Turn
    from ._wire import Frame

_LOOK = 0.02
"""Seconds between two looks at the socket. A thread that waits for a verb may read it too, and keeps the frames."""


_TURNS = 1.0
"""A loop that does not answer for so many seconds is blocked, where a turn that was given up seconds ago blocks it."""


def begin(process: Process) -> None:
    threading.Thread(target=_run, args=(process,), name="covey-standby", daemon=True).start()


def _run(process: Process) -> None:
    process.link.host.wait_replaced()
    try:
        _retire(process)
        while True:
            _frames, more = _read(process)
            if not more:
                time.sleep(_LOOK)
    except _bridge.BridgeError:
        # The worker is gone, and with it everyone who could want an answer.
        os._exit(0)


def _retire(process: Process) -> None:
    with process.link.reading:
        process.link.retired = True
    # The loop would look at it again and again.
    process.link.loop.call_soon_threadsafe(process.link.loop.remove_reader, process.link.host.fileno())
    # A turn that begins now says so first and sees then that it must not; one that has said so is not refused here.
    for turn in process.scheduler.turns.copy().values():
        if not turn.begun:
            _refuse(process, turn)
    process.link.host.flush()
    # Calls that were given up and actors that were stopped, of which the loop has not heard.
    unread: set[int | str] = set()
    while (read := _read(process))[0]:
        unread.update(frame[1] for frame in read[0] if frame[0] == "cancel" or frame[0] == "stop")
    if _is_blocked(process, unread):
        for turn in process.scheduler.turns.copy().values():
            if turn.begun and turn.task is not None and not _given_up(turn, unread):
                _end(process, turn)
    process.link.host.retired()


def _given_up(turn: Turn, unread: set[int | str]) -> bool:
    return turn.over or turn.call in unread or turn.actor.id in unread


def _is_blocked(process: Process, unread: set[int | str]) -> bool:
    """What was given up keeps the loop from all others."""
    answers = threading.Event()
    process.link.loop.call_soon_threadsafe(answers.set)
    if answers.wait(_TURNS):
        return False
    task = asyncio.current_task(process.link.loop)
    # A turn that has the loop, or one that could not even be told; a loop that is merely busy goes on later.
    return any(
        turn.begun and turn.task is not None and (turn.call in unread or (turn.task is task and _given_up(turn, unread)))
        for turn in process.scheduler.turns.copy().values()
    )


def _end(process: Process, turn: Turn) -> None:
    """It waits for a loop that does not come back to it."""
    process.scheduler.turns.pop(turn.call, None)
    text = f"its Python process is replaced: another async method blocks the event loop, so that {turn.name!r} cannot go on"
    process.link.host.lost(turn.call, text)
    if turn.task is not None:
        process.link.loop.call_soon_threadsafe(turn.task.cancel)


def _read(process: Process) -> tuple[list[Frame], bool]:
    frames, more = process.link.receive()
    for frame in frames:
        _take(process, frame)
    if frames:
        process.link.host.flush()
    return frames, more


def _refuse(process: Process, turn: Turn) -> None:
    with turn.actor.lock:
        if turn in turn.group.queue:
            turn.group.queue.remove(turn)
    process.scheduler.turns.pop(turn.call, None)
    process.link.host.refused(turn.call)


def _take(process: Process, frame: Frame) -> None:
    if frame[0] == "call":
        process.link.host.refused(frame[1])
    elif frame[0] == "start":
        process.link.host.started(frame[1], ("unavailable", "its Python process is replaced", None))
    elif frame[0] == "snapshot":
        process.actors.asked_for_state(frame)
    else:
        process.link.loop.call_soon_threadsafe(process.take, frame)
