"""Makes actors from definitions: loads their code, makes their objects, gives their states, and forgets them.

Loading code and making objects is the user's code, and may block: it runs on the threads of `Makers`.
"""

from __future__ import annotations

import contextvars
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import _codec, _marks
from .._arguments import from_payload, with_key
from .._current import turn_owner
from .._objects import resolve
from .threads import Raised, attempt
from .turn import Actor

if TYPE_CHECKING:
    from .._wire import Payload, SnapshotFrame, StartFrame
    from .link import WorkerLink
    from .threads import Makers


class Actors:
    """The actors of a process, and the code they are made of."""

    def __init__(self, link: WorkerLink, makers: Makers):
        self._link, self._host, self._makers = link, link.host, makers
        self.live: dict[str, Actor] = {}
        """Those that are made and not stopped, by id."""
        self._code: dict[str, bytes] = {}
        self._classes: dict[str, Any] = {}
        """Both by digest of the code."""

    def start(self, frame: StartFrame) -> None:
        """On the loop's thread: an actor is to be made here. The worker is told when it is, or why not."""
        _, actor, agent, digest, code, init, about = frame
        class_name, concurrency, model, owner, state, save_turns, reentrant, bounded = about
        # The code comes once; actors that start beside the first one find it here.
        self._code.setdefault(digest, code)
        self._link.bounded = self._link.bounded or bounded
        # What an actor makes lives for its own driver; what one without a driver makes stays until it is stopped.
        owner = owner.removeprefix("session:") if owner.startswith("session:") else ""
        mark = _marks.mark_of(actor, agent)
        context = contextvars.copy_context()
        context.run(turn_owner.set, owner)
        context.run(_marks.maker.set, mark)

        def make() -> object:
            return context.run(self._make, actor, agent, digest, class_name, init, state)

        def actor_of(instance: object) -> Actor:
            return Actor(actor, mark, instance, concurrency, model, owner, save_turns, reentrant)

        self._makers.submit(self._made, actor, make, actor_of)

    def _made(self, actor: str, make: Callable[[], object], actor_of: Callable[[object], Actor]) -> None:
        """On a thread: the object of an actor, told to the worker."""
        made = attempt(make)
        if isinstance(made, Raised):
            self._link.end_if_out_of_memory(made.error)
            text = _codec.trace_of(made.error)
            self._host.started(actor, ("application", _codec.message_of(made.error), _codec.dump_error(made.error, text)))
        else:
            # Calls come once it is told.
            self.live[actor] = actor_of(made)
            self._host.started(actor)
        self._host.flush()

    def _make(self, actor: str, agent: str, digest: str, class_name: str, init: Payload | None, state: Payload | None) -> object:
        cls = self._class_of(agent, digest, class_name)
        args, kwargs = resolve(*from_payload(init))
        if init is None and "/" in actor:
            args, kwargs = with_key(cls, actor.split("/", 1)[1])
        instance = cls(*args, **kwargs)
        if state is not None:
            instance.__restore__(_codec.load(state))
        return instance

    def _class_of(self, agent: str, digest: str, class_name: str) -> Any:
        """The class of an agent: of a file (its `class_name`), or of a pickle."""
        cls = self._classes.get(digest)
        if cls is None:
            if class_name:
                module = types.ModuleType(f"covey_agent_{agent}")
                sys.modules[module.__name__] = module
                exec(compile(self._code[digest], f"<agent {agent}>", "exec"), module.__dict__)
                cls = module.__dict__[class_name]
            else:
                cls = _codec.loads(self._code[digest])
            cls = getattr(cls, "__covey_class__", cls)
            self._classes[digest] = cls
        return cls

    def asked_for_state(self, frame: SnapshotFrame) -> None:
        """On any thread: the worker wants an actor's state."""
        _, actor, number = frame
        self._makers.submit(self._snapshot, number, self.live.get(actor))

    def _snapshot(self, number: int, actor: Actor | None) -> None:
        """On a thread: what the object says of itself."""
        try:
            snapshot: Callable[[], Any] | None = getattr(actor.instance, "__snapshot__", None) if actor is not None else None
            self._host.state(number, 0, _codec.dump(snapshot()) if snapshot is not None else None)
        except BaseException as error:
            self._host.no_state(number, f"__snapshot__ raised {_codec.message_of(error)}")
        self._host.flush()

    def forget(self, actor: str) -> Actor | None:
        """On the loop's thread: an actor is stopped; gives it, where it was here."""
        return self.live.pop(actor, None)
