"""`ray.util`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ...._current import current_session
from ...._status import actors
from .._cluster import namespace_here
from .._refs import ObjectRef, get, wait
from .._placement import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from . import actor_pool, queue, scheduling_strategies
from .actor_pool import ActorPool
from .check_serialize import inspect_serializability


def as_completed(refs: list[ObjectRef], *, chunk_size: int = 10, yield_obj_refs: bool = False, **_: Any) -> Iterator[Any]:
    """Values as they come, or the references."""
    left = list(refs)
    while left:
        ready, left = wait(left, num_returns=1)
        yield from ready if yield_obj_refs else map(get, ready)


def map_unordered(fn: Any, items: Iterable[Any], *, backpressure_size: int | None = 100, **_: Any) -> Iterator[Any]:
    """Results of a remote function or method over items, as they come; so many at once."""
    running: list[ObjectRef] = []
    for item in items:
        running.append(fn.remote(item))
        if backpressure_size is not None and len(running) >= backpressure_size:
            ready, running = wait(running, num_returns=1)
            yield from map(get, ready)
    yield from as_completed(running)


def get_node_ip_address() -> str:
    return "127.0.0.1"


def list_named_actors(all_namespaces: bool = False) -> list[Any]:
    """Names of the actors that live: of this namespace, or of all with their namespaces."""
    current_session()  # as in Ray, there is a cluster now
    own = namespace_here()
    found: list[Any] = []
    for one in actors():
        full = one.get("name")
        if full and one["state"] != "dead":
            namespace, _, name = full.rpartition("/")
            if all_namespaces:
                found.append({"name": name, "namespace": namespace})
            elif namespace == own:
                found.append(name)
    return found


def register_serializer(cls: type, *, serializer: Callable[[Any], Any], deserializer: Callable[[Any], Any]) -> None:
    """Objects of this class travel as what `serializer` makes of them."""
    import copyreg

    copyreg.pickle(cls, lambda value: (deserializer, (serializer(value),)))


def deregister_serializer(cls: type) -> None:
    import copyreg

    copyreg.dispatch_table.pop(cls, None)


__all__ = [
    "ActorPool", "actor_pool", "as_completed", "deregister_serializer", "get_current_placement_group", "get_node_ip_address",
    "get_placement_group", "inspect_serializability", "list_named_actors", "map_unordered", "placement_group", "placement_group_table", "queue", "register_serializer", "remove_placement_group",
    "scheduling_strategies",
]  # fmt: skip
