"""What is current in this process: the session in use, the turn that runs, and what gives turns their places.

Modules that need one of these import this module, and the modules that make them (`_session`, `_host`) tell it. So those need not
import each other. There is one object, `here`; it is changed by its methods alone, and after a fork it refuses by itself.
"""

from __future__ import annotations

import contextvars
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, ParamSpec, Protocol, TypeVar, cast

from . import _bridge, _codec, errors

if TYPE_CHECKING:
    import concurrent.futures

    from ._host.turn import Turn
    from ._connection import Connection

P = ParamSpec("P")
T = TypeVar("T")

turn_owner: contextvars.ContextVar[str] = contextvars.ContextVar("covey_owner")
"""While an actor is made: whom it lives for, and so whatever it makes. A turn knows it by its actor."""
turn_deadline: contextvars.ContextVar[float | None] = contextvars.ContextVar("covey_deadline", default=None)
"""When the work under way must be over, by the monotonic clock."""
turn_current: contextvars.ContextVar[Turn | None] = contextvars.ContextVar("covey_turn", default=None)
"""The turn that runs."""


class TurnHost(Protocol):
    """What runs the turns of this process, where that is an actor's. Any thread may call it."""

    @property
    def thread(self) -> int:
        """The thread of the event loop."""
        ...

    def waits(self, turn: Turn, token: int) -> None:
        """The turn begins to wait for a call of its own."""
        ...

    def give_place(self, turn: Turn) -> bool:
        """The turn has nothing to do but to wait. `True` where another has its place meanwhile."""
        ...

    def take_place(self, turn: Turn) -> concurrent.futures.Future[None] | None:
        """It waits no more, and goes on once the future is done; `None`: at once."""
        ...

    def rest(self, turn: Turn) -> None:
        """The turn waits for somebody outside."""
        ...

    def come_back(self, turn: Turn) -> concurrent.futures.Future[None] | None:
        """It goes on, once the future is done; `None`: at once."""
        ...

    def emit(self, turn: Turn, event: bytes) -> None:
        """Writes an event into the log of the turn's task."""
        ...

    def fail(self, turn: Turn, error: BaseException) -> None:
        """Answers the turn with an error, now."""
        ...

    def after_call(self) -> None:
        """What came while this thread waited for the worker is looked at."""
        ...


class Forked:
    """The session of a process that was forked from one that has a session: it says what to do."""

    def __init__(self, lost: object):
        self._lost = lost
        """Kept for ever: its threads are not here, and its end would wait for them."""

    def __getattr__(self, name: str) -> NoReturn:
        raise _forked_error()

    def close(self) -> None:
        """Nothing: the connection is the other process's."""


class Current:
    """The session of this process, and what runs its turns."""

    def __init__(self) -> None:
        self.session: Connection | Forked | None = None
        """The session in use, if there is one."""
        self.host: TurnHost | None = None
        """Inside an actor's process: what runs its turns."""
        self.opening = threading.RLock()
        """Held while a session is begun: of threads that ask at once, one begins it."""
        self._lock = threading.Lock()
        self._ended = False
        """The session in use was shut down, and none has taken its place."""
        self._begin: Callable[[], Connection] | None = None
        os.register_at_fork(after_in_child=self._forked)

    def begins_with(self, begin: Callable[[], Connection]) -> None:
        """How a session is begun where none was yet."""
        self._begin = begin

    def hosts(self, host: TurnHost) -> None:
        """This is an actor's process, and `host` runs its turns."""
        self.host = host

    def install(self, session: Connection) -> None:
        """Makes `session` the one in use; an earlier one is closed."""
        with self._lock:
            previous, self.session, self._ended = self.session, session, False
        if previous is not None:
            previous.close()

    def leave(self, session: Connection) -> None:
        """`session` is closed."""
        with self._lock:
            if self.session is session:
                self.session, self._ended = None, True

    def get(self) -> Connection:
        """As `current_session`."""
        session = self.session
        if session is not None:
            return cast("Connection", session)  # one of before a fork refuses by itself
        if self._ended:
            raise errors.FailedPrecondition("the session was shut down; covey.init() or covey.connect() begins another")
        with self.opening:
            # Another thread may have begun it meanwhile.
            if self.session is None:
                assert self._begin is not None, "_session says how a session is begun, and whoever asks for one has imported it"
                return self._begin()
            return cast("Connection", self.session)

    def get_present(self) -> Connection:
        """As `present_session`."""
        if self.session is None and not self._ended and not os.environ.get("COVEY_ADDRESS"):
            raise errors.FailedPrecondition("there is no session: covey.init() starts a cluster, covey.connect() takes a running one")
        return self.get()

    def take(self) -> Connection | Forked | None:
        """The session in use, for who closes it."""
        with self._lock:
            return self.session

    def _forked(self) -> None:
        self._lock, self.opening = threading.Lock(), threading.RLock()
        if self.session is not None:
            self.session = Forked(self.session)


here = Current()


def current_session() -> Connection:
    """The session in use; `init()` is called when there was none yet. `FailedPrecondition` after `shutdown()`."""
    return here.get()


def present_session() -> Connection:
    """The session in use, for what only reads of a cluster: a new private one would have nothing to read, so none is begun."""
    return here.get_present()


def turn_host() -> TurnHost:
    """What runs the turns of this process, for code that only turns run."""
    assert here.host is not None, "only turns of an actor's process come here"
    return here.host


def bridge_call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls the bridge; its errors become the package's."""
    try:
        return function(*args, **kwargs)
    except _bridge.BridgeError as error:
        raise _codec.to_exception(error.args) from None
    finally:
        if here.host is not None:
            here.host.after_call()


def is_forked() -> bool:
    """What was begun before the fork cannot be waited for here."""
    return isinstance(here.session, Forked)


def refuse_fork() -> None:
    """Raises where this process was forked from one that is connected."""
    if is_forked():
        raise _forked_error()


def _forked_error() -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "this process was forked from one that is connected, and neither the connection nor its threads outlast a fork: start a"
        " program of its own for it (multiprocessing: the start method 'spawn')"
    )

