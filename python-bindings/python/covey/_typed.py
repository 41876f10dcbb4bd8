"""What type checkers are told of agents. At run time nothing of this is used.

A class that derives from `covey.Actor` and marks its methods by `@covey.method` has checked handles: `Reader.remote(…)` takes what
`__init__` takes, `reader.read.remote(…)` what `read` takes, and the future or stream has the type of what it gives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from ._future import Future, Stream
    from ._options import ActorOptions, CallOptions, Unpack

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C")
T_co = TypeVar("T_co", covariant=True)
R_co = TypeVar("R_co", covariant=True)


class Remote(Protocol[P, T_co, R_co]):
    """A method of a handle: `R` is what a local call gives, `T` what the cluster's future or stream does."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class Calls(Remote[P, T_co, R_co], Protocol[P, T_co, R_co]):
    """A method that gives one value."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Future[T_co]: ...

    def options(self, **options: Unpack[CallOptions]) -> Calls[P, T_co, R_co]: ...


class Streams(Remote[P, T_co, R_co], Protocol[P, T_co, R_co]):
    """A method that yields."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Stream[T_co]: ...

    def options(self, **options: Unpack[CallOptions]) -> Streams[P, T_co, R_co]: ...


class CallSkill(Generic[P, T, C]):
    """A marked method in its class."""

    def __get__(self, instance: object, owner: type | None = None) -> Calls[P, T, C]: ...


class StreamSkill(Generic[P, T, C]):
    """A marked method that yields, in its class."""

    def __get__(self, instance: object, owner: type | None = None) -> Streams[P, T, C]: ...


class Mark(Protocol):
    """What `@covey.method` does to a method."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], AsyncIterator[T]], /) -> StreamSkill[P, T, AsyncIterator[T]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Iterator[T]], /) -> StreamSkill[P, T, Iterator[T]]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]], /
    ) -> CallSkill[P, T, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], T], /) -> CallSkill[P, T, T]: ...


class Optioned(Protocol[P, T_co]):
    """An agent with other options for its next actors."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> T_co: ...


class Actor:
    """Base class of agents whose handles are checked by mypy and pyright; see `covey.method`."""

    if TYPE_CHECKING:

        @classmethod
        def remote(cls: Callable[P, C], *args: P.args, **kwargs: P.kwargs) -> C:  # type: ignore[misc]
            """Makes an actor and gives its handle."""

        @classmethod
        def at(cls: Callable[..., C], key: str) -> C:  # type: ignore[misc]
            """The virtual actor of this key."""

        @classmethod
        def options(cls: Callable[P, C], **options: Unpack[ActorOptions]) -> Optioned[P, C]:  # type: ignore[misc]
            """The same agent with other options for its next actors."""

        @classmethod
        def register(cls) -> str:
            """Makes the agent known to the cluster; gives its name."""

        @classmethod
        def map(cls, inputs: Iterable[Any], **options: Any) -> list[Any]:
            """Results of one method over many inputs."""

        def stop(self, drain: bool = False) -> None:
            """Ends the actor; with `drain`, after what is in its mailbox."""

        def kill(self) -> None:
            """Ends the actor now."""
