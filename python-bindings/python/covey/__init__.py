"""Covey: a cluster of agent actors, from Python.

    import covey
    from covey import agent

    covey.init()                       # a cluster on this machine, stopped at exit

    @agent
    class Greeter:
        def greet(self, name: str) -> str:
            return f"hello {name}"

    g = Greeter.remote()
    print(g.greet.remote("you").result())
"""

from collections.abc import Iterator as _Iterator

from . import errors, llm
from ._agent import Agent, Handle, NamedAgent, agent, agents, gang, get_actor, method, remote_agent
from ._content import File, Message, Reply
from ._context import Context, deadline, given
from ._context import current as current_context
from ._foreign import connect_a2a
from ._functions import Executor, Pool, RemoteFunction, task
from ._future import Future, Stream, as_completed, get, wait
from ._llm_agent import Mcp, llm_agent
from ._objects import Ref, put
from ._session import Session, connect, current, init, shutdown
from ._session import bridge_call as _bridge_call
from ._task import Question, Task, TaskEvent, TaskInfo, TaskStream, get_task, submit, tasks
from ._topics import Topic, topic, topics
from ._typed import Actor
from .errors import (
    ActorDied,
    Cancelled,
    ConnectionLost,
    CoveyError,
    DeadlineExceeded,
    Overloaded,
    StorageFull,
    Rejected,
    Unauthenticated,
    Unschedulable,
)
from .llm import embed

__version__ = "0.1.0"


def status() -> dict:
    """Nodes, actors (a thousand of them; `actors()` has all), tasks, and why something waits: what `covey status --json` prints."""
    import json

    return json.loads(_bridge_call(current().client.status))


def actors(agent: str = "", state: str = "", node: str = "") -> _Iterator[dict]:
    """All actors in the order of their ids, or those of an agent, in a state, on a node (by id); fetched page by page."""
    import json

    after = ""
    while True:
        page, after = _bridge_call(current().client.actors, agent, state, node, after)
        yield from map(json.loads, page)
        if not after:
            return


__all__ = [
    "Actor", "ActorDied", "Agent", "Cancelled", "ConnectionLost", "Context", "CoveyError", "DeadlineExceeded", "Future", "Handle",
    "Executor", "File", "Mcp", "Message", "NamedAgent", "Overloaded", "Pool", "Question", "Ref", "Rejected", "RemoteFunction", "Reply", "Session", "StorageFull", "Stream", "Task", "TaskEvent", "TaskInfo", "TaskStream", "Topic", "Unauthenticated", "Unschedulable", "actors", "agent", "agents", "as_completed",
    "connect", "connect_a2a", "current", "current_context", "deadline", "embed", "errors", "gang", "get", "get_actor", "get_task", "given", "init", "llm", "llm_agent", "method", "put", "remote_agent", "shutdown",
    "status", "submit", "task", "tasks", "topic", "topics", "wait",
]  # fmt: skip
