"""The parts of an actor's process, and which of them each frame of the worker is for."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, NoReturn

from .. import _marks, _standby
from .._connection import Connection
from .._current import here, turn_current, turn_owner
from .._env import Environment
from .actors import Actors
from .link import WorkerLink
from .scheduler import Scheduler
from .threads import Makers

if TYPE_CHECKING:
    from .. import _bridge
    from .._wire import Frame, StopFrame


class HostSession(Connection):
    """What `covey.get_actor`, handles and tasks use inside an actor: the worker's way to the cluster."""

    inside = True

    def __init__(self, client: _bridge.Client):
        super().__init__(client)
        self._registered: dict[str, str] = {}
        self.environment = Environment.inherited()

    @property
    def registered(self) -> dict[str, str]:
        return self._registered

    @property
    def owner(self) -> str:
        turn = turn_current.get()
        return turn.actor.owner if turn is not None else turn_owner.get("")

    @property
    def store_session(self) -> str:
        return self.owner or "detached"

    def close(self) -> None:
        """Nothing: the worker owns the connection."""


class Process:
    """One process: its link to the worker, its actors, their turns."""

    def __init__(self, path: str, begun: str):
        self.link = WorkerLink(path, begun)
        makers = Makers(self.link.loop)
        self.actors = Actors(self.link, makers)
        self.scheduler = Scheduler(self.link, self.actors.live, makers)
        here.install(HostSession(self.link.host.client()))
        here.hosts(self.scheduler)

    def run(self) -> NoReturn:
        """Runs until the worker ends the process."""
        self.link.listen(self.take)
        _standby.begin(self)
        self.link.run()

    def take(self, frame: Frame) -> None:
        """On the loop's thread: does what the worker says."""
        if frame[0] == "call":
            self.scheduler.arrive(frame)
        elif frame[0] == "credit":
            turn = self.scheduler.turns.get(frame[1])
            if turn is not None:
                self.scheduler.credit(turn, frame[2])
        elif frame[0] == "say":
            turn = self.scheduler.turns.get(frame[1])
            if turn is not None:
                turn.context_of().conversation.hear(json.loads(frame[2]))
        elif frame[0] == "cancel":
            turn = self.scheduler.turns.get(frame[1])
            if turn is not None:
                self.scheduler.cancel(turn)
        elif frame[0] == "start":
            self.actors.start(frame)
        elif frame[0] == "snapshot":
            self.actors.asked_for_state(frame)
        else:
            self._stop(frame)

    def _stop(self, frame: StopFrame) -> None:
        _, actor = frame
        if not actor:
            self.link.write()
            _marks.finish()
            os._exit(0)
        gone = self.actors.forget(actor)
        if gone is not None:
            self.scheduler.stop_all(gone)
            _marks.finish(actor)
