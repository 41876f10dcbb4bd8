"""A method of an agent that no actor is chosen for yet: `Crawler.fetch.submit("a")`, `Crawler.fetch.map(urls)`.

Type checkers know by it what the method takes and gives, where its name as a text tells them nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, overload

from ._option_checks import check, listed
from ._options import MethodMapOptions, TaskOptions
from ._task import Task, TaskStream, submit_call

if TYPE_CHECKING:
    from typing import Literal

    from ._agent import Agent
    from ._content import Message, Reply
    from ._options import ActorsOptions, Unpack

    Kept = (
        None | bool | int | float | str | list[str] | list[int] | list[float] | list[bool]
        | dict[str, str] | dict[str, int] | dict[str, float] | dict[str, bool]
    )  # fmt: skip
    """What a task's log, which is JSON, gives back as it was. A dataclass is a dict there, and a tuple a list."""
    J = TypeVar("J", bound=Kept)

P = ParamSpec("P")
T = TypeVar("T")
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)


class TakesOne(Protocol[X_contra]):
    """A method that one input is enough for."""

    def submit(self, item: X_contra, /) -> object: ...


class AgentMethod(Generic[P, T]):
    """One method of an agent, run by any of its actors."""

    __slots__ = ("_agent", "_name", "_options")

    def __init__(self, agent: Agent[Any, Any], name: str, options: dict[str, Any] | None = None):
        self._agent, self._name, self._options = agent, name, options or {}

    def __repr__(self) -> str:
        return f"<method {self._name} of agent {self._agent.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: there is no actor."""
        name = self._name
        raise TypeError(f"{name}() runs on an actor: call .{name}.remote(…) of a handle, or .{name}.submit(…) for a task")

    @listed(TaskOptions, retries=0)
    def options(self, **options: Unpack[TaskOptions]) -> AgentMethod[P, T]:
        """The same method with options for its next tasks, see `covey.submit`."""
        return AgentMethod(self._agent, self._name, {**self._options, **check(options, TaskOptions)})

    @overload
    def submit(self: AgentMethod[P, J], *args: P.args, **kwargs: P.kwargs) -> Task[J]: ...
    @overload
    def submit(self: AgentMethod[P, Reply], *args: P.args, **kwargs: P.kwargs) -> Task[Message]: ...
    @overload
    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Task[object]: ...
    def submit(self, *args: Any, **kwargs: Any) -> Task[Any]:
        """Makes a durable task of it; all keyword arguments are the method's. See `covey.submit`."""
        return submit_call(self._agent, self._name, args, kwargs, **self._options)

    @overload
    def stream(self: AgentMethod[P, J], *args: P.args, **kwargs: P.kwargs) -> TaskStream[J]: ...
    @overload
    def stream(self, *args: P.args, **kwargs: P.kwargs) -> TaskStream[object]: ...
    def stream(self, *args: Any, **kwargs: Any) -> TaskStream[Any]:
        """A durable task of it, read while it is made."""
        return TaskStream(self.submit(*args, **kwargs))

    @overload
    def map(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        return_exceptions: Literal[False] | None = None,
        **options: Unpack[ActorsOptions],
    ) -> list[T]: ...
    @overload
    def map(
        self: TakesOne[X], inputs: Iterable[X], *, return_exceptions: bool, **options: Unpack[ActorsOptions]
    ) -> list[T | Exception]: ...
    @listed(MethodMapOptions, actors=4, retries=2, progress=False, return_exceptions=False)
    def map(self: Any, inputs: Iterable[Any], **options: Any) -> Any:
        """Results for all inputs, in order, on a swarm of actors. See `Agent.map_unordered` for the options."""
        return self._agent.map(inputs, method=self._name, **check(options, MethodMapOptions))

    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        return_exceptions: Literal[False] | None = None,
        **options: Unpack[ActorsOptions],
    ) -> Iterator[T]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[True],
        return_exceptions: Literal[False] | None = None,
        **options: Unpack[ActorsOptions],
    ) -> Iterator[tuple[X, T]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        return_exceptions: bool,
        **options: Unpack[ActorsOptions],
    ) -> Iterator[T | Exception]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[True],
        return_exceptions: bool,
        **options: Unpack[ActorsOptions],
    ) -> Iterator[tuple[X, T | Exception]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: bool,
        return_exceptions: bool | None = None,
        **options: Unpack[ActorsOptions],
    ) -> Iterator[object]: ...
    @listed(MethodMapOptions, actors=4, retries=2, progress=False, return_exceptions=False)
    def map_unordered(self: Any, inputs: Iterable[Any], *, with_input: bool = False, **options: Any) -> Any:
        """Results as they come, or pairs of input and result."""
        return self._agent.map_unordered(inputs, with_input=with_input, method=self._name, **check(options, MethodMapOptions))
