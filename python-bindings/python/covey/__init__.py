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

from . import errors, llm
from ._agent import Agent, Handle, NamedAgent, actor_id, agent, agents, gang, get_actor, method, remote_agent
from ._agent_method import AgentMethod
from ._content import File, Message, Reply
from ._context import Context, deadline, given
from ._context import current as current_context
from ._foreign import connect_a2a
from ._functions import Executor, RemoteFunction, task
from ._future import Future, Stream, as_completed, get, wait
from ._llm_agent import Mcp, llm_agent
from ._objects import Ref, put
from ._pool import Pool
from ._session import Session, connect, current, init, shutdown
from ._status import Status, actors, status
from ._task import Question, Task, TaskEvent, TaskInfo, TaskStream, get_task, submit, tasks
from ._topics import Topic, topic, topics
from ._typed import Actor
from ._work import Approval, ToolCall
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

__all__ = [
    "Actor", "ActorDied", "Agent", "AgentMethod", "Approval", "Cancelled", "ConnectionLost", "Context", "CoveyError",
    "DeadlineExceeded", "Executor", "File", "Future", "Handle", "Mcp", "Message", "NamedAgent", "Overloaded", "Pool",
    "Question", "Ref", "Rejected", "RemoteFunction", "Reply", "Session", "Status", "StorageFull", "Stream", "Task",
    "TaskEvent", "TaskInfo", "TaskStream", "ToolCall", "Topic", "Unauthenticated", "Unschedulable", "actor_id", "actors", "agent", "agents",
    "as_completed", "connect", "connect_a2a", "current", "current_context", "deadline", "embed", "errors", "gang",
    "get", "get_actor", "get_task", "given", "init", "llm", "llm_agent", "method", "put", "remote_agent", "shutdown",
    "status", "submit", "task", "tasks", "topic", "topics", "wait",
]  # fmt: skip
