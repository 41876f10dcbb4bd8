"""What the cluster says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypedDict, cast

from ._current import bridge_call, present_session

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from ._bridge import Client


class Resources(TypedDict):
    """Of a node: all of them, or those that are free."""

    cpu_milli: int
    """Thousandths of a CPU."""
    memory_bytes: int
    gpu_milli: int
    custom: NotRequired[dict[str, int]]
    """Those that only their users know, in thousandths."""


class ModelStatus(TypedDict):
    """A model of a node."""

    name: str
    family: str
    task: str
    loaded: bool
    bytes: int
    memory: int
    engine: NotRequired[dict[str, object]]
    """What it did so far, where it is loaded."""


class NodeStatus(TypedDict):
    """A worker."""

    id: str
    name: str
    state: str
    total: Resources
    free: Resources
    labels: dict[str, str]
    models: list[ModelStatus]
    pid: int
    no_python: NotRequired[str]
    """Why it serves no Python agents, where it does not."""
    actors: int
    tasks_running: int
    tasks_done: int


class ActorStatus(TypedDict):
    """An actor."""

    id: str
    name: NotRequired[str]
    agent: str
    function: NotRequired[str]
    """Of an actor that runs functions: the one that it was made for; it runs others of the same options too."""
    state: str
    node: NotRequired[str]
    """Where it is; of one that is dead, where it was."""
    epoch: int
    restarts: int
    why: NotRequired[str]
    """Why it waits, or how it ended."""


class Pending(TypedDict):
    """Something that waits."""

    what: str
    why: str


class Status(TypedDict):
    """What `status` gives."""

    version: str
    uptime_s: int
    nodes: list[NodeStatus]
    actor_counts: dict[str, int]
    actors: list[ActorStatus]
    tasks: dict[str, int]
    pending: list[Pending]


def status() -> Status:
    """Nodes, actors (a thousand; `actors()` has all), tasks, and why something waits: what `covey status --json` prints."""
    return cast(Status, present_session().status())


def actors(agent: str = "", state: str = "", node: str = "") -> Iterator[ActorStatus]:
    """All actors in the order of their ids, or those of an agent, in a state, on a node (by id); fetched page by page."""
    return _pages(present_session().client, agent, state, node)


def _pages(client: Client, agent: str, state: str, node: str) -> Iterator[ActorStatus]:
    after = ""
    while True:
        page, after = bridge_call(client.actors, agent, state, node, after)
        yield from map(json.loads, page)
        if not after:
            return
