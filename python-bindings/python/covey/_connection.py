"""What every session can do, a driver's and that of an actor's process: open calls, and know where objects are.

`_session.Session` is a driver's, `_host.process.HostSession` that of an actor's process.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _bridge, _codec, _files
from ._claimed import Claimed
from ._current import bridge_call, turn_current, turn_deadline
from ._future import Future, Stream
from ._objects import lend, take_back
from ._retry import PLAIN, How, check_left

if TYPE_CHECKING:
    from ._env import Environment
    from ._wire import Sent

_tokens = itertools.count(1)
_KINDS = {"actor": 0, "model": 1, "pool": 2, "topic": 3}


def _span() -> str:
    """The span that the caller's own OpenTelemetry has open, as a `traceparent`; empty without one."""
    module = sys.modules.get("opentelemetry.trace")
    if module is None:
        return ""
    at = module.get_current_span().get_span_context()
    return f"00-{at.trace_id:032x}-{at.span_id:016x}-{at.trace_flags:02x}" if at.is_valid else ""


def _milliseconds_left(timeout: float | None) -> int:
    """The time that a call has, also by the deadline that is set around it; 0: no bound. `DeadlineExceeded` where none is left."""
    end = turn_deadline.get()
    if end is not None:
        left = end - time.monotonic()
        timeout = left if timeout is None else min(timeout, left)
    check_left(timeout)
    return 0 if timeout is None else max(1, int(timeout * 1000))


class Connection:
    """A way to the cluster, and what is known of its stores of objects (`covey.put`)."""

    inside = False
    """Inside an actor's process."""

    def __init__(self, client: _bridge.Client) -> None:
        self.client = client
        self.store: tuple[str, str] | None = None
        """Node and folder where this process puts objects."""
        self.store_is_remote = False
        """That folder is private, and objects are sent on to the node."""
        self.near_nodes: set[str] = set()
        """Nodes on this machine."""
        self.all_near, self.near_asked = False, -math.inf
        self.store_paths: dict[str, str] = {}
        """Files of objects on this machine, by digest."""
        self.store_counts: dict[str, int] = {}
        """References of this process to each object that it put, by path."""
        self._private: Claimed | None = None
        self.environment: Environment | None = None
        """What all agents of this driver are started with, unless they say otherwise."""
        self.uploaded: set[str] = set()
        """Digests of working folders that the head has."""
        self.heard: set[str] = set()
        """Agents of others that it uses: what they print is shown too, where no driver owns the actor."""

    @property
    def registered(self) -> dict[str, str]:
        """Definitions of agents that the head has, by name."""
        raise NotImplementedError

    @property
    def owner(self) -> str:
        """Whom the actors made now live for; empty: for no driver."""
        raise NotImplementedError

    @property
    def store_session(self) -> str:
        """Whom objects live for."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the connection."""
        raise NotImplementedError

    def status(self) -> Any:
        """What the cluster says of itself."""
        return json.loads(bridge_call(self.client.status))

    def private_folder(self) -> str:
        """A folder in memory for objects of this process alone."""
        if self._private is None:
            self._private = Claimed("covey-objects-", "/dev/shm" if os.path.isdir("/dev/shm") else None)
        return self._private.path

    def drop_objects(self) -> None:
        """Takes away what this process alone has."""
        _files.drafts.close()
        if self._private is not None:
            self._private.drop()

    def dump_args(self, kind: Literal["actor", "pool"], target: str, value: object) -> Sent:
        """Arguments of a call: in the call itself, or lent when they are large and the target is near."""
        return _codec.dump(value, lambda body, buffers: lend(self, kind, target, body, buffers))

    @overload
    def call(
        self, kind: str, target: str, method: str, args: Sent, timeout: float | None, stream: Literal[False], how: How | None = None
    ) -> Future[Any]: ...
    @overload
    def call(
        self, kind: str, target: str, method: str, args: Sent, timeout: float | None, stream: Literal[True], how: How | None = None
    ) -> Stream[Any]: ...
    @overload
    def call(
        self, kind: str, target: str, method: str, args: Sent, timeout: float | None, stream: bool, how: How | None = None
    ) -> Future[Any] | Stream[Any]: ...
    def call(
        self, kind: str, target: str, method: str, args: Sent, timeout: float | None, stream: bool, how: How | None = None
    ) -> Future[Any] | Stream[Any]:
        """Opens a call on an `actor`, a `model`, a `pool` or a `topic`; a deadline that is set around it holds for it too."""
        how = how or PLAIN
        try:
            timeout_ms = _milliseconds_left(how.deadline if timeout is None else timeout)
            turn, token, chain, trace = turn_current.get(), 0, "", ""
            if turn is not None:
                trace = turn.traceparent
                token = next(_tokens)
                # Which turn of which actor, and which call of it.
                link = f"{turn.actor.id}#{turn.call}.{token}"
                chain = f"{turn.chain}\n{link}" if turn.chain else link
            span = _span() or trace
            started = self.client.start(
                _KINDS[kind], target, method, *args, timeout_ms, how.key, how.retries, chain, span, how.run_timeout_ms, how.retry
            )
        except BaseException as error:
            if args[0] == _bridge.LENT:
                take_back(None, args)
            if isinstance(error, _bridge.BridgeError):
                raise _codec.to_exception(error.args) from None
            raise
        if args[0] == _bridge.LENT:
            take_back(started, args)
        waiter = None if turn is None else (turn, token)
        return Stream(started, waiter) if stream else Future(started, waiter, keyed=bool(how.key))
