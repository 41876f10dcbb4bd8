"""Topics: what one publishes, all who listen hear."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from . import _codec
from ._agent import Handle, actor_id, handle_of
from ._current import bridge_call, current_session, is_forked, present_session
from ._future import Future
from ._marks import actor_current
from ._option_checks import check_value, seconds_of
from ._retry import How

if TYPE_CHECKING:
    from ._typed import Actor

_SURE = 1
"""Stands for "at least once" where calls have their number of retries."""


class Topic:
    """A name that messages are published to. Making one costs nothing; it exists as long as somebody listens."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self) -> str:
        return f"<topic {self.name}>"

    def __reduce__(self) -> Any:
        return Topic, (self.name,)

    def publish(self, value: Any, *, sure: bool = False, timeout: float | str | None = None) -> Future[int]:
        """Sends `value` to all who listen now, one copy to each node.

        Gives a future of how many: at once, of those it is sent to, and what a full mailbox or a dying listener loses is lost;
        with `sure`, of those that have heard it (at least once each), once all have. Messages of one publisher reach each
        listener in order, but one that is sent again for `sure` may come after later ones.
        """
        payload = _codec.dump(((value,), _codec.NO_NAMES))
        timeout = seconds_of("timeout", timeout)
        how = How(retries=_SURE) if sure else None
        told: Future[int] = current_session().call("topic", self.name, "", payload, timeout, False, how)
        return told

    def add(self, actor: Handle | Actor, method: str) -> None:
        """Has `actor.method(value)` called for each message, until the actor ends or is removed.

        A virtual actor is woken for it, and listens on while it sleeps and through restarts of the head, as detached ones do.
        """
        self._set(actor_id(actor), method)

    def remove(self, actor: Handle | Actor) -> None:
        """Messages do not reach the actor any more. Raises `NotFound` when they did not."""
        self._set(actor_id(actor), "")

    def join(self, method: str) -> None:
        """Inside an actor, also in its `__init__`: has the own `method` called for each message."""
        self._set(self._own(), method)

    def leave(self) -> None:
        """Inside an actor: messages do not reach it any more."""
        self._set(self._own(), "")

    def listen(self, *, depth: int | None = 10_000) -> Listener:
        """An iterator over the messages from now on, for drivers and actors alike: `for value in topic.listen():`, or `async for`.

        Up to `depth` messages (1 or more) are held for a slow reader; beyond that they are lost, or make a `sure` publisher wait.
        """
        return Listener(self, check_value("depth", depth))

    def _own(self) -> str:
        actor = actor_current()
        if not actor:
            raise RuntimeError("join and leave are for actors, in their methods and `__init__`; use add, remove or listen")
        return actor

    def _set(self, actor: str, method: str) -> None:
        bridge_call(current_session().client.set_listener, self.name, actor, method)


class Listener:
    """Messages of a topic, in the order they came. A context manager; leaving it, or closing it, ends listening."""

    def __init__(self, topic: Topic, depth: int | None):
        session = current_session()
        init = _codec.dump_json({"args": [depth], "kwargs": {}})
        made = bridge_call(session.client.create_actor, "inbox", session.owner, "", False, init, "{}")
        self._inbox: Any = handle_of(made)
        try:
            topic.add(self._inbox, "put")
        except BaseException:
            self._inbox.kill()
            raise
        self._messages = self._inbox.take.remote()

    def __iter__(self) -> Iterator[Any]:
        for (value,), _ in self._messages:
            yield value

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for (value,), _ in self._messages:
            yield value

    def close(self) -> None:
        """Ends listening; the iterator ends with `ActorDied` where it is still read."""
        if is_forked():
            # It is the other process that listens.
            return
        self._messages.cancel()
        self._inbox.kill()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def topic(name: str) -> Topic:
    """The topic of this name: 1 to 256 bytes, all printable."""
    return Topic(name)


def topics() -> dict[str, list[tuple[str, str]]]:
    """Topics that somebody listens to, with the actor and method of each listener."""
    return dict(bridge_call(present_session().client.topics))


__all__ = ["Listener", "Topic", "topic", "topics"]
