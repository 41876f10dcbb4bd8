"""The options of agents, actors, calls, functions, tasks and models, each list once: type checkers read it, and who gives an option that
there is not is told those that there are.

Times are seconds or text like "500ms", "30s" and "2m"; amounts of memory are bytes or text like "256MiB".
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

if TYPE_CHECKING:
    from typing_extensions import Unpack as Unpack


class PlaceOptions(TypedDict, total=False):
    """What something needs of its node, and which one."""

    cpus: float
    gpus: float
    memory: int | str
    """Kept free for it, and its bound: it gets a process of its own, which ends when it uses more."""
    resources: dict[str, float]
    """Custom ones, by name."""
    labels: dict[str, str]
    """Of its node."""
    node: str
    """The worker of this name and no other."""
    near: Any
    """On the node of the actor that this handle is for."""
    strategy: str
    """`spread` or `pack`."""


class RunOptions(TypedDict, total=False):
    """Bounds and tries."""

    deadline: float | str | None
    """From now on to the answer, what it waits counted."""
    run_timeout: float | str | None
    """Of each run from the start of its turn."""
    timeout: float | str | None
    """Another word for `run_timeout`."""
    retries: int
    """Times it is run again when its actor dies under it."""
    retry_on: type[BaseException] | tuple[type[BaseException], ...]
    """Exceptions after which it is run again, too."""
    backoff: float | str | None
    """The pause before that is drawn at random up to this; it doubles each time."""


class CallOptions(RunOptions, total=False):
    """Of a call on an actor's method."""

    key: str
    """The actor answers a second call of the same key from memory."""


class TaskOptions(RunOptions, total=False):
    """Of a durable task."""

    message_id: str
    """The same one makes the same task."""
    context_id: str
    """The conversation that it goes on with."""
    model: str
    """The model asked for."""


class ProcessOptions(TypedDict, total=False):
    """What a process is started with."""

    env_vars: dict[str, str]
    working_dir: str | os.PathLike[str]
    """A folder that is shipped, importable and current."""
    pip: list[str]
    """Packages, installed once on each node."""


class FunctionOptions(PlaceOptions, RunOptions, ProcessOptions, total=False):
    """Of `covey.task` and `covey.Executor`."""

    ahead: int
    """Calls that are sent to an actor before it asks for them, at most."""
    retry_exceptions: bool
    """All exceptions are worth another try."""
    schedule_timeout: float | str | None
    max_restarts: int | None
    own_process: bool


class SpecOptions(PlaceOptions, total=False):
    """Of an agent, and of single actors."""

    model: str
    concurrency: int
    """Turns at once (default 1)."""
    max_restarts: int | None
    """Default: no limit."""
    run_timeout: float | str | None
    """Of each turn from its start; one that goes on after it has its process replaced."""
    timeout: float | str | None
    """Another word for `run_timeout`."""
    schedule_timeout: float | str | None
    """So long its actors and tasks wait while no worker there could run them (default "5m")."""
    pool: int
    """Actors that tasks may use at once."""
    own_process: bool
    reentrant: bool
    """A call out of an own turn does not wait for it."""
    snapshot: float | str
    """When `__snapshot__` becomes durable: `idle` before sleep and moves, `turn` before each answer, or a time."""
    idle: float | str | None
    """A virtual actor sleeps after this time without calls (default "60s")."""
    a2a: dict[str, Any]
    """How it shows itself to A2A, see `covey.agent`."""


class AgentOptions(SpecOptions, ProcessOptions, total=False):
    """Of `covey.agent`."""

    name: str
    groups: dict[str, int]
    """Methods that are counted apart, by group, see `covey.method`."""


class ActorOptions(SpecOptions, total=False):
    """Of the next actors of an agent."""

    name: str
    """Unique in the cluster, for `covey.get_actor`."""
    get_if_exists: bool
    """Take the one that has the name."""
    detached: bool
    """It stays when its driver goes."""


class MapOptions(TypedDict, total=False):
    """Of mapping over inputs."""

    progress: bool
    """A bar."""
    return_exceptions: bool
    """An exception takes the place of a result."""


class SwarmOptions(MapOptions, RunOptions, total=False):
    """Of mapping over inputs with a swarm of actors."""

    method: str | None
    """Default: `run`, else the first."""
    actors: int
    """Default 4."""


class SamplingOptions(TypedDict, total=False):
    """How a model answers."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop: str | list[str] | None
    ignore_eos: bool | None
    json_schema: Any
    """A dict or a pydantic model. Of this and the next three one at most."""
    regex: str | None
    choice: list[str] | None
    grammar: str | None


class ChatOptions(SamplingOptions, total=False):
    """Of a request to a model."""

    tools: list[dict[str, Any]]
    """Declared as OpenAI does."""
    tool_choice: str | None
    """`auto`, `none`, `required`, or a tool's name."""
    think: bool


def check(options: Mapping[str, Any], kind: Any, hint: str = "") -> dict[str, Any]:
    """The options, or a `TypeError` that names the one that there is not."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            raise TypeError(f"unknown option {name!r}; there are: {', '.join(sorted(known))}{hint}")
    return dict(options)
