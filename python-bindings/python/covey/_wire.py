"""The shapes of what crosses the bridge to Rust (`_bridge`), for type checkers and for readers of its stub.

They are tuples because the bridge makes and reads tuples fastest. Nothing here runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

Payload: TypeAlias = tuple[int, bytes, list[bytes]]
"""Codec (`_bridge.RAW` and the others), body, and out-of-band buffers."""

Buffers: TypeAlias = Sequence["bytes | memoryview"]
"""Out-of-band buffers on their way in: bytes, or views of a mapped file."""

Sent: TypeAlias = "tuple[int, bytes, Buffers]"
"""A payload on its way to the bridge, which copies what it is given."""

Failure: TypeAlias = "tuple[str, str, str | None, bool | None, str | None]"
"""Kind of the error, message, hint, whether the call was executed (`None`: nobody knows), detail."""

StartFailure: TypeAlias = "tuple[str, str, str | None]"
"""Why an actor did not start: kind of the error, message, detail."""

Retry: TypeAlias = tuple[list[str], int, int]
"""Exceptions by `module.name`, bound of the first pause in milliseconds, bound of all later pauses (0: the cluster's)."""

Line: TypeAlias = tuple[str, str, int, bool, bool, str]
"""A printed line: what its actor is called, agent, process id, whether it went to standard error, whether the actor is the
driver's own, text."""

Made: TypeAlias = tuple[str, str, str, str, bool]
"""An actor: id, agent, state, the agent's spec as JSON, whether it was made by this request."""

GangMember: TypeAlias = "tuple[str, str, Sent | None, str, bool]"
"""An actor to be: agent, name, constructor's arguments, overrides as JSON, whether it is detached."""

Asked: TypeAlias = tuple[bytes, str, bytes, str]
"""What a task was asked with: history as JSON, model, sampling as JSON, id of the message."""

About: TypeAlias = "tuple[bool, str, str, int, str, str, Asked | None, int, list[str], bool]"
"""What most calls do not carry: whether the answer is JSON, task, context, timeout in milliseconds (0: none), chain of calls,
`traceparent`, what the task was asked with, run timeout in milliseconds (0: none), exceptions that are tried again, whether the
call runs alone."""

StartAbout: TypeAlias = "tuple[str, int, str, str, Payload | None, bool, bool, bool]"
"""Class name (empty: the code is a pickle), concurrency, model, owner, saved state, whether the state is saved after each turn,
whether the agent is reentrant, whether the process has a bound on its memory."""

CallFrame: TypeAlias = "tuple[Literal['call'], int, str, str, Payload, About | None]"
"""Number of the call, actor, method, arguments."""
StartFrame: TypeAlias = "tuple[Literal['start'], str, str, str, bytes, Payload | None, StartAbout]"
"""Actor, agent, digest of the code, the code (empty where the process has it), constructor's arguments."""
SnapshotFrame: TypeAlias = tuple[Literal["snapshot"], str, int]
"""Actor, number of the request."""
SayFrame: TypeAlias = tuple[Literal["say"], int, bytes]
"""Call, message as JSON."""
CancelFrame: TypeAlias = tuple[Literal["cancel"], int]
CreditFrame: TypeAlias = tuple[Literal["credit"], int, int]
"""Call, items that its reader takes beyond those of before."""
StopFrame: TypeAlias = tuple[Literal["stop"], str]
"""Actor; empty: the process."""

Frame: TypeAlias = "CallFrame | StartFrame | SnapshotFrame | SayFrame | CancelFrame | CreditFrame | StopFrame"
"""What a worker tells its Python process."""
