"""What type checkers are told of agents. At run time nothing of this is used.

A class that derives from `covey.Actor` and marks its methods by `@covey.method` has checked handles: `Reader.remote(…)` takes what
`__init__` takes, `reader.read.remote(…)` what `read` takes, and the future or stream has the type of what it gives.
`Reader.read.map(…)` and `Reader.read.submit(…)` are checked in the same way, see `AgentMethod`.

`self`, a handle and what `with Reader.pool(2) as pool` gives have one type, the class itself: what a marked method is depends on
whether it is taken from the class or from an instance, and on nothing else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from abc import ABCMeta
    from typing import Literal

    from ._agent import Bound, Handle
    from ._agent_method import AgentMethod, J
    from ._functions import TakesOne
    from ._future import Future, Stream
    from ._objects import Ref
    from ._pool import Pool
    from ._options import ActorOptions, CallOptions, SwarmOptions, TaskOptions, Unpack
    from ._task import Task, TaskStream

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
X = TypeVar("X")
C = TypeVar("C")
T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Remote(Protocol[P, T_co, R_co]):
    """A method of a handle: `R` is what a local call gives, `T` what the cluster's future or stream does."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class Calls(Remote[P, T, R_co], Protocol[P, T, R_co]):
    """A method that gives one value."""

    # References of `covey.put` stand for values as the first two arguments. The plain form is last: messages of checkers tell of it.
    @overload
    def remote(
        self: Calls[Concatenate[A, Q], T, Any], a: Ref[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[T]: ...
    @overload
    def remote(
        self: Calls[Concatenate[A, B, Q], T, Any], a: Ref[A], b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[T]: ...
    @overload
    def remote(
        self: Calls[Concatenate[A, B, Q], T, Any], a: A, b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Future[T]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Future[T]: ...

    def options(self, **options: Unpack[CallOptions]) -> Calls[P, T, R_co]: ...

    # The methods of a pool only.

    @overload
    def map(
        self: TakesOne[X], inputs: Iterable[X], *, progress: bool = False, return_exceptions: Literal[False] = False
    ) -> list[T]: ...
    @overload
    def map(
        self: TakesOne[X], inputs: Iterable[X], *, progress: bool = False, return_exceptions: bool
    ) -> list[T | Exception]: ...

    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> Iterator[T]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[True],
        progress: bool = False,
        return_exceptions: Literal[False] = False,
    ) -> Iterator[tuple[X, T]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X],
        inputs: Iterable[X],
        *,
        with_input: Literal[False] = False,
        progress: bool = False,
        return_exceptions: bool,
    ) -> Iterator[T | Exception]: ...
    @overload
    def map_unordered(
        self: TakesOne[X], inputs: Iterable[X], *, with_input: Literal[True], progress: bool = False, return_exceptions: bool
    ) -> Iterator[tuple[X, T | Exception]]: ...
    @overload
    def map_unordered(
        self: TakesOne[X], inputs: Iterable[X], *, with_input: bool, progress: bool = False, return_exceptions: bool = False
    ) -> Iterator[object]: ...


class Streams(Remote[P, T_co, R_co], Protocol[P, T_co, R_co]):
    """A method that yields."""

    @overload
    def remote(
        self: Streams[Concatenate[A, Q], T, Any], a: Ref[A], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Stream[T]: ...
    @overload
    def remote(
        self: Streams[Concatenate[A, B, Q], T, Any], a: Ref[A], b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Stream[T]: ...
    @overload
    def remote(
        self: Streams[Concatenate[A, B, Q], T, Any], a: A, b: Ref[B], /, *args: Q.args, **kwargs: Q.kwargs
    ) -> Stream[T]: ...
    @overload
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Stream[T_co]: ...

    def options(self, **options: Unpack[CallOptions]) -> Streams[P, T_co, R_co]: ...


class CallSkill(Generic[P, T, C]):
    """A marked method in its class."""

    @overload
    def __get__(self, instance: None, owner: type) -> AgentMethod[P, T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Calls[P, T, C]: ...
    def __get__(self, instance: object, owner: type | None = None) -> object: ...


class StreamSkill(Generic[P, T, C]):
    """A marked method that yields, in its class."""

    @overload
    def __get__(self, instance: None, owner: type) -> AgentStream[P, T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None) -> Streams[P, T, C]: ...
    def __get__(self, instance: object, owner: type | None = None) -> object: ...


class Mark(Protocol):
    """What `@covey.method` does to a method."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]  # the first that fits is meant
        self, function: Callable[Concatenate[Any, P], AsyncIterator[T]], /
    ) -> StreamSkill[P, T, AsyncIterator[T]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Iterator[T]], /) -> StreamSkill[P, T, Iterator[T]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /
    ) -> CallSkill[P, T, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], T], /) -> CallSkill[P, T, T]: ...


if TYPE_CHECKING:
    K = TypeVar("K", bound="AgentClass")

    class AgentStream(Generic[P, T]):
        """A method that yields, of an agent that no actor is chosen for yet."""

        def options(self, **options: Unpack[TaskOptions]) -> AgentStream[P, T]: ...

        @overload
        def submit(self: AgentStream[P, str], *args: P.args, **kwargs: P.kwargs) -> Task[str]: ...
        @overload
        def submit(self, *args: P.args, **kwargs: P.kwargs) -> Task[object]: ...
        def submit(self, *args: Any, **kwargs: Any) -> Task[Any]: ...

        @overload
        def stream(self: AgentStream[P, J], *args: P.args, **kwargs: P.kwargs) -> TaskStream[J]: ...
        @overload
        def stream(self, *args: P.args, **kwargs: P.kwargs) -> TaskStream[object]: ...
        def stream(self, *args: Any, **kwargs: Any) -> TaskStream[Any]: ...

    class ActorPool(Pool, Generic[C]):
        """A pool of actors whose methods are known inside of its `with`."""

        def __enter__(self) -> C: ...  # pyright: ignore[reportIncompatibleMethodOverride]  # a pool, seen as its agent

    class AgentClass(ABCMeta):
        """What an agent has and its handles have not: of a metaclass, so that the agent's methods may have the same names."""

        @property
        def name(cls) -> str:
            """Its name in the cluster."""
            ...

        def remote(cls: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> C:
            """Makes an actor and gives its handle."""
            ...

        def at(cls: type[C], key: str) -> C:
            """The virtual actor of this key."""
            ...

        def bind(cls: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> Bound[C]:
            """An actor to be, for `covey.gang`."""
            ...

        def options(cls: K, **options: Unpack[ActorOptions]) -> K:
            """The same agent with other options for its next actors."""
            ...

        def register(cls) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]  # `ABCMeta` has another of this name
            """Makes the agent known to the cluster; gives its name."""
            ...

        def submit(cls, *args: Any, method: str = "", **options: Unpack[TaskOptions]) -> Task[object]:
            """Makes a durable task of a method, by its name; `Reader.read.submit(…)` is checked."""
            ...

        def stream(cls, *args: Any, method: str = "", **options: Unpack[TaskOptions]) -> TaskStream[object]:
            """A durable task, read while it is made."""
            ...

        def map(cls, inputs: Iterable[Any], **options: Unpack[SwarmOptions]) -> list[object]:
            """Results of one method over many inputs; of `Reader.read.map(…)` they have their type."""
            ...

        @overload
        def map_unordered(
            cls, inputs: Iterable[Any], *, with_input: Literal[False] = False, **options: Unpack[SwarmOptions]
        ) -> Iterator[object]: ...
        @overload
        def map_unordered(
            cls, inputs: Iterable[X], *, with_input: Literal[True], **options: Unpack[SwarmOptions]
        ) -> Iterator[tuple[X, object]]: ...
        @overload
        def map_unordered(
            cls, inputs: Iterable[Any], *, with_input: bool, **options: Unpack[SwarmOptions]
        ) -> Iterator[object]: ...
        def map_unordered(
            cls, inputs: Iterable[Any], *, with_input: bool = False, **options: Unpack[SwarmOptions]
        ) -> Iterator[object]:
            """Results as they come."""
            ...

        def pool(cls: Callable[P, C], actors: int, *args: P.args, **kwargs: P.kwargs) -> ActorPool[C]:
            """So many actors behind one name."""
            ...

    class Actor(metaclass=AgentClass):
        """Base class of agents whose handles are checked by mypy and pyright; see `covey.method`."""

        def stop(self, drain: bool = False) -> None:
            """Ends the actor; with `drain`, after what is in its mailbox."""

        def kill(self) -> None:
            """Ends the actor now."""

        def link(self, other: Actor | Handle) -> None:
            """From now on each of the two ends when the other does."""

else:

    class Actor:
        """Base class of agents whose handles are checked by mypy and pyright; see `covey.method`."""
