"""The options of agents, actors, calls, functions, tasks and models: which there are for what, for type checkers and for `check`.

What each of them takes is in the table of `_option_checks`. Times are seconds or text like "500ms", "30s" and "2m"; amounts of
memory are bytes or text like "256MiB". `None` is as good as nothing said, but for times, where it is no bound, and
`max_restarts`, where it is no limit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypedDict

from ._option_checks import check as check
from ._option_checks import listed as listed

if TYPE_CHECKING:
    from typing import Literal

    from typing_extensions import Unpack as Unpack

    from ._agent import Handle
    from ._card import Card
    from ._typed import Actor


class PlaceOptions(TypedDict, total=False):
    """What something needs of its node, and which one."""

    cpus: float | None
    """CPUs, also fractions of one."""
    gpus: float | None
    """Cards, also fractions of one."""
    memory: float | str | None
    """Kept free for it, and its bound: it gets a process of its own, which ends when it uses more."""
    resources: Mapping[str, float] | None
    """Custom ones, by name."""
    labels: Mapping[str, str] | None
    """Of its node."""
    node: str | None
    """The worker of this name and no other."""
    near: Handle | Actor | None
    """On the node of the actor that this handle is for."""
    strategy: Literal["spread", "pack"] | None
    """`spread` or `pack`."""


class RunOptions(TypedDict, total=False):
    """Bounds and tries."""

    deadline: float | str | None
    """From the call to its answer, what it waits counted; 0 and less raise `DeadlineExceeded`, and nothing is sent."""
    run_timeout: float | str | None
    """Of each run from the start of its turn."""
    timeout: float | str | None
    """Another word for `run_timeout`."""
    retries: int | None
    """Times it is run again when its actor dies under it."""
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None
    """Exceptions after which it is run again, too."""
    backoff: float | str | None
    """The pause before that is drawn at random up to this; it doubles each time."""


class CallOptions(RunOptions, total=False):
    """Of a call on an actor's method."""

    key: str | None
    """The actor answers a second call of the same key from memory."""


class TaskOptions(RunOptions, total=False):
    """Of a durable task."""

    message_id: str | None
    """The same one makes the same task."""
    context_id: str | None
    """The conversation that it goes on with."""
    model: str | None
    """The model asked for."""


class ProcessOptions(TypedDict, total=False):
    """What a process is started with."""

    env_vars: Mapping[str, str] | None
    """Variables of its environment, beside those that the worker gives."""
    working_dir: str | os.PathLike[str] | None
    """A folder that is shipped, importable and current."""
    pip: list[str] | None
    """Packages, installed once on each node."""


class FunctionOptions(PlaceOptions, RunOptions, ProcessOptions, total=False):
    """Of `covey.task` and `covey.Executor`."""

    ahead: int | None
    """Calls that are sent to an actor before it asks for them, at most."""
    retry_exceptions: bool | None
    """All exceptions are worth another try."""
    schedule_timeout: float | str | None
    """So long calls wait while no worker there could run them (default "5m")."""
    max_restarts: int | None
    """Of the actors that run it, after which they are given up."""
    own_process: bool | None
    """It shares its process with no other function."""
    isolation: Literal["none", "default", "strict"] | None
    """What its process is kept from, see `covey.agent`."""


class SpecOptions(PlaceOptions, total=False):
    """Of an agent, and of single actors."""

    model: str | None
    """The model that it asks where it names none."""
    concurrency: int | None
    """Turns at once (default 1)."""
    max_restarts: int | None
    """Default: no limit."""
    run_timeout: float | str | None
    """Of each turn from its start; one that goes on after it has its process replaced."""
    timeout: float | str | None
    """Another word for `run_timeout`."""
    schedule_timeout: float | str | None
    """So long its actors and tasks wait while no worker there could run them (default "5m")."""
    pool: int | None
    """Actors that tasks may use at once."""
    own_process: bool | None
    """Each actor has a process of its own."""
    isolation: Literal["none", "default", "strict"] | None
    """What its processes are kept from, beyond what their worker says: files of others (`default`), the network too (`strict`)."""
    reentrant: bool | None
    """A call out of an own turn does not wait for it."""
    snapshot: float | str | None
    """When `__snapshot__` becomes durable: `idle` before sleep and moves, `turn` before each answer, or a time."""
    idle: float | str | None
    """A virtual actor sleeps after this time without calls (default "60s")."""
    a2a: Card | Mapping[str, object] | None
    """How it shows itself to A2A. A name that `Card` has not is refused where the agent is made."""


class AgentOptions(SpecOptions, ProcessOptions, total=False):
    """Of `covey.agent`."""

    name: str | None
    """Its name in the cluster (default: that of the class)."""
    groups: Mapping[str, int] | None
    """Methods that are counted apart, by group, see `covey.method`."""


class ActorOptions(SpecOptions, total=False):
    """Of the next actors of an agent."""

    name: str | None
    """Unique in the cluster, for `covey.get_actor`."""
    get_if_exists: bool | None
    """Take the one that has the name."""
    detached: bool | None
    """It stays when its driver goes."""


class BarOptions(TypedDict, total=False):
    """Of mapping over inputs, but for what the results depend on."""

    progress: bool | None
    """A bar."""


class MapOptions(BarOptions, total=False):
    """Of mapping over inputs."""

    return_exceptions: bool | None
    """An exception takes the place of a result."""


class ActorsOptions(BarOptions, RunOptions, total=False):
    """Of mapping with a swarm of actors, but for what the results depend on."""

    actors: int | None
    """Default 4."""


class MethodMapOptions(MapOptions, ActorsOptions, total=False):
    """Of mapping one method over inputs with a swarm of actors."""


class SwarmOptions(MethodMapOptions, total=False):
    """Of mapping over inputs with a swarm of actors."""

    method: str | None
    """Default: `run`, else the first."""


class SamplingOptions(TypedDict, total=False):
    """How a model answers."""

    max_tokens: int | None
    """Tokens of the answer at most."""
    temperature: float | None
    """0: always the likeliest token."""
    top_p: float | None
    """The likeliest tokens that have this share together."""
    top_k: int | None
    """So many of the likeliest tokens."""
    min_p: float | None
    """Tokens that are at least this likely, as a share of the likeliest."""
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    """How much likelier tokens are made, by their numbers."""
    seed: int | None
    """The same one gives the same answer."""
    stop: str | list[str] | None
    """The answer ends before one of these texts."""
    ignore_eos: bool | None
    """The answer goes on to `max_tokens`."""
    json_schema: Any
    """A dict or a pydantic model. Of this and the next three one at most."""
    regex: str | None
    """The answer matches this regular expression."""
    choice: list[str] | None
    """The answer is one of these."""
    grammar: str | None
    """The answer is of this grammar, in Lark's notation."""


class ChatOptions(SamplingOptions, total=False):
    """Of a request to a model."""

    tools: list[dict[str, Any]]
    """Declared as OpenAI does."""
    tool_choice: str | None
    """`auto`, `none`, `required`, or a tool's name."""
    think: bool
    """Whether the model thinks before it answers, where it can do both."""
