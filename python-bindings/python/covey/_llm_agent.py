"""Agents that are a prompt around a model, and the tools they may call."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from ._current import bridge_call, current_session
from ._agent import Agent, Handle, NamedAgent, agent_name_of
from ._narrow import JsonObject
from ._retry import parse_seconds
from ._context import sampling_of
from ._option_checks import check_values, seconds_of

if TYPE_CHECKING:
    from ._options import SamplingOptions, Unpack


class Mcp:
    """A server of the Model Context Protocol, as a tool of an agent.

    A program with its arguments (`env` is its environment) or a `url` (with `headers`); `only` names the tools that may be called.
    The model is told of a call that is not answered within `timeout` (seconds or "2m"; five minutes unless said).
    """

    def __init__(
        self,
        *command: str,
        url: str = "",
        env: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        only: Iterable[str] = (),
        timeout: float | str | None = None,
    ):
        if bool(command) == bool(url):
            raise ValueError("an MCP server is reached by a command or by a url: Mcp('uvx', 'mcp-server-time'), Mcp(url='http://…/mcp')")
        seconds = parse_seconds(timeout)
        if seconds is not None and seconds <= 0:
            raise ValueError(f"a call of an MCP server needs some time, not timeout={timeout!r}")
        self.spec: JsonObject = {
            "command": list(command), "url": url, "env": env or {}, "headers": headers or {}, "only": list(only),
            "timeout_ms": None if seconds is None else max(round(seconds * 1000), 1),
        }  # fmt: skip


Tool = Callable[..., Any] | Agent[Any, Any] | Handle | Mcp | str


def llm_agent(
    name: str,
    *,
    system: str = "",
    model: str = "tiny",
    description: str = "",
    tools: Iterable[Tool] = (),
    steps: int | None = None,
    tokens: int | None = None,
    time: float | str | None = None,
    concurrency: int = 16,
    isolation: Literal["none", "default", "strict"] | None = None,
    **sampling: Unpack[SamplingOptions],
) -> NamedAgent:
    """Declares a prompt around a model as an agent: `llm_agent("guide", system="Be kind.").stream("hi")`.

    `tools`: Python functions (run by actors of an agent `<name>-tools`), agent classes (all their skills), handles (the
    agent of each, by its main skill), names of agents (`"Searcher"`, `"Searcher.find"`), and `Mcp` servers. Calls of one
    answer run side by side. The budget of a turn: `steps` requests to the model (default 8; in the last one it can call no tool), `tokens` read and made, `time`
    ("2m"). `isolation`, as of `covey.agent`, holds for its functions and for its MCP servers that are programs. Sampling: max_tokens, temperature, top_p, … The agent's text is its name, and its name does wherever an agent is asked for.
    """
    options = check_values({"model": model, "steps": steps, "tokens": tokens, "concurrency": concurrency, "isolation": isolation})
    budget = {"steps": options.get("steps"), "tokens": options.get("tokens"), "ms": None}
    if (seconds := seconds_of("time", time)) is not None:
        budget["ms"] = max(1, round(seconds * 1000))
    spoken = sampling_of(dict(sampling))
    session = current_session()
    tools = list(tools)
    functions = [t for t in tools if inspect.isfunction(t)]
    sources: list[JsonObject] = []
    if functions:
        made = _agent_of(f"{name}-tools", functions, options.get("isolation"))
        made.register()
        sources += [{"agent": {"agent": f"{name}-tools", "skill": f.__name__, "name": f.__name__}} for f in functions]
    for tool in tools:
        if isinstance(tool, Mcp):
            sources.append({"mcp": tool.spec})
        elif isinstance(tool, NamedAgent):
            sources.append({"agent": {"agent": tool.name}})
        elif isinstance(tool, Agent):
            agent = tool.register()
            sources += [{"agent": {"agent": agent, "skill": s["id"]}} for s in tool.spec()[0]["skills"]]
        elif isinstance(tool, Handle):
            sources.append({"agent": {"agent": agent_name_of(tool)}})
        elif isinstance(tool, str):
            agent, _, skill = tool.partition(".")
            sources.append({"agent": {"agent": agent, **({"skill": skill} if skill else {})}})
        elif not inspect.isfunction(tool):
            raise TypeError(f"a tool is a function, an agent, an agent's name or an Mcp server, not {tool!r}")
    spec = {
        "name": name,
        "description": description,
        "kind": {"type": "llm", "system": system, "sampling": spoken, "tools": sources, "budget": budget},
        "model": model,
        "concurrency": options.get("concurrency", 16),
    }
    if "isolation" in options:
        spec["isolation"] = options["isolation"]
    bridge_call(session.client.register, json.dumps(spec), b"")
    return NamedAgent(name)


def _agent_of(name: str, functions: list[Callable[..., Any]], isolation: str | None) -> Agent[Any, Any]:
    """An agent with a method for each function."""
    methods = {f.__name__: _as_method(f) for f in functions}
    if len(methods) < len(functions):
        raise ValueError("two tools have the same name")
    if hidden := next((n for n in methods if n.startswith("_")), None):
        raise ValueError(f"a tool's name begins with a letter, unlike {hidden!r}")
    made = type("Tools", (), {"__doc__": f"Functions of {name.removesuffix('-tools')}.", **methods})
    return Agent(made, {"name": name, "concurrency": 16, "isolation": isolation})


def _as_method(function: Callable[..., Any]) -> Callable[..., Any]:
    async def method_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    def method_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    method: Any = method_async if inspect.iscoroutinefunction(function) else method_sync
    functools.update_wrapper(method, function)
    signature = inspect.signature(function)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])
    return method
