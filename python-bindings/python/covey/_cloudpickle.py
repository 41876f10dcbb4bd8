"""The door to cloudpickle, which has no types of its own: what this package uses of it.

It is imported when it is needed first: `import covey` stays quick.
"""

from __future__ import annotations

import pickle
from collections import ChainMap
from collections.abc import Callable
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:

    class CodePickler(pickle.Pickler):
        """Pickles functions and classes that cannot be imported elsewhere by value."""

        # cloudpickle's is one that looks into others, which pickle takes as well.
        dispatch_table: ChainMap[type, Callable[[Any], tuple[Any, ...]]]  # pyright: ignore[reportIncompatibleVariableOverride]


class CloudPickle(Protocol):
    """The module."""

    @property
    def Pickler(self) -> type[CodePickler]: ...

    @property
    def CloudPickler(self) -> type[CodePickler]: ...

    def dump(self, obj: object, file: IO[bytes], protocol: int | None = None) -> None: ...

    def dumps(self, obj: object, protocol: int | None = None) -> bytes: ...

    def load(self, file: IO[bytes]) -> Any: ...

    def loads(self, data: bytes) -> Any: ...

    def list_registry_pickle_by_value(self) -> set[str]:
        """Names of modules whose code travels by value."""
        ...

    def register_pickle_by_value(self, module: ModuleType) -> None: ...

    def unregister_pickle_by_value(self, module: ModuleType) -> None: ...


def load_cloudpickle() -> CloudPickle:
    """The module `cloudpickle`."""
    import cloudpickle  # pyright: ignore[reportMissingTypeStubs]  # it has none; `CloudPickle` says what is used

    return cast(CloudPickle, cloudpickle)
