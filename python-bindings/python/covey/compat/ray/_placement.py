"""Placement groups and scheduling strategies."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from ... import _agent, _session
from ..._future import Future
from . import _refs


def _needs(bundle: dict[str, float]) -> dict[str, Any]:
    """A bundle in Covey's words."""
    own = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
    needs: dict[str, Any] = {own[k]: v for k, v in bundle.items() if k in own}
    custom = {k: v for k, v in bundle.items() if k not in own}
    return {**needs, "resources": custom} if custom else needs


class _Held:
    """A group that is there when all of its bundles are."""

    def __init__(self, group: PlacementGroup, bundles: list[Future[Any]]):
        self._group, self._bundles = group, bundles

    def done(self) -> bool:
        return all(bundle.done() for bundle in self._bundles)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        left, lock = [len(self._bundles)], threading.Lock()

        def one(_: Any) -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                callback(self)

        for bundle in self._bundles:
            bundle.add_done_callback(one)

    def result(self, timeout: float | None = None) -> PlacementGroup:
        end = None if timeout is None else time.monotonic() + timeout
        for bundle in self._bundles:
            bundle.result(None if end is None else max(0.0, end - time.monotonic()))
        return self._group

    def cancel(self) -> None:
        for bundle in self._bundles:
            bundle.cancel()


class PlacementGroup:
    """Room that is held: each bundle by an actor that does nothing, all of them placed at once or not at all."""

    def __init__(self, bundles: list[dict[str, float]], holders: list[_agent.Handle], strategy: str = "PACK", name: str = ""):
        self.bundle_specs, self._holders, self._turn = bundles, holders, itertools.cycle(range(len(bundles)))
        self._strategy, self._name, self._removed = strategy, name, False
        self._inside: list[Any] = []
        """Weak references to the handles of actors that this process put into it."""

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    @property
    def id(self) -> str:
        return self._holders[0]._actor

    def ready(self) -> _refs.ObjectRef:
        """A reference that is there once all bundles are."""
        return _refs.ObjectRef(_Held(self, [holder.get.remote() for holder in self._holders]), kind="actor")

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether all bundles are there within this time."""
        done, _ = _refs.wait([self.ready()], timeout=timeout_seconds)
        return bool(done)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> Any:
        return PlacementGroup, (self.bundle_specs, self._holders, self._strategy, self._name)


_groups: dict[str, PlacementGroup] = {}
"""Those that were made here, by id."""


def placement_group(
    bundles: list[dict[str, float]], strategy: str = "PACK", name: str = "", lifetime: str | None = None, **_: Any
) -> PlacementGroup:
    """Holds room for all of these bundles at once. Strategies: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD."""
    if not isinstance(bundles, list):
        raise ValueError("The type of bundles must be list")
    if not bundles or not all(bundles) or any(not any(bundle.values()) for bundle in bundles):
        raise ValueError("a placement group needs bundles, and each of them something to hold")
    if strategy not in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
        raise ValueError(f"Invalid strategy type {strategy}")
    session = _session.current()
    asks = []
    for index, bundle in enumerate(bundles):
        overrides = json.dumps(_agent._options(_needs(bundle)))
        asks.append(("counter", f"{name}#{index}" if name else "", None, overrides, lifetime == "detached"))
    made = _session.bridge_call(session.client.create_gang, session.owner, asks, strategy.lower())
    group = PlacementGroup(bundles, [_agent.Handle(m[0], json.loads(m[3])) for m in made], strategy, name)
    _groups[group.id] = group
    return group


def get_placement_group(name: str) -> PlacementGroup:
    """The group of this name, of those that this process made."""
    for group in _groups.values():
        if group._name == name and not group._removed:
            return group
    raise ValueError(f"Failed to look up placement group with name: {name}")


def remove_placement_group(group: PlacementGroup) -> None:
    """Gives the room back, and ends the actors that this process put into it."""
    group._removed = True
    for inside in group._inside:
        handle = inside()
        if handle is not None:
            handle._handle.kill()
    for holder in group._holders:
        holder.kill()


def placement_group_table(group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of one group, or of all that this process made."""
    if group is None:
        return {id: placement_group_table(known) for id, known in _groups.items()}
    state = "REMOVED" if group._removed else "CREATED" if group.wait(1) else "PENDING"
    return {
        "placement_group_id": group.id,
        "name": group._name,
        "bundles": dict(enumerate(group.bundle_specs)),
        "strategy": group._strategy,
        "state": state,
    }


class PlacementGroupSchedulingStrategy:
    """In a bundle of a group: the one of this index, or the next in turn."""

    def __init__(self, placement_group: PlacementGroup, placement_group_bundle_index: int = -1, placement_group_capture_child_tasks: bool | None = None):
        if placement_group_bundle_index >= placement_group.bundle_count:
            raise ValueError(f"the placement group has {placement_group.bundle_count} bundles, there is no number {placement_group_bundle_index}")
        self.placement_group, self.placement_group_bundle_index = placement_group, placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def _place(self, asked: dict[str, Any]) -> dict[str, Any]:
        group, index = self.placement_group, self.placement_group_bundle_index
        if index < 0:
            index = next(group._turn)
        held = _needs(group.bundle_specs[index])
        for key in ("cpus", "gpus"):
            if (asked.get(key) or 0) > held.get(key, 0):
                raise ValueError(f"asks for {key}={asked[key]}, its bundle holds {held.get(key, 0)}")
        # The bundle has what it needs.
        return {"near": group._holders[index], "cpus": 0, "gpus": 0, "resources": {}}


class NodeAffinitySchedulingStrategy:
    """On the node of this id; with `soft`, anywhere."""

    def __init__(self, node_id: str, soft: bool = False, **_: Any):
        self.node_id, self.soft = node_id, soft


class NodeLabelSchedulingStrategy:
    """On nodes with these labels; what is only wished (`soft`) is not looked at."""

    def __init__(self, hard: dict[str, Any], *, soft: dict[str, Any] | None = None):
        self.hard = hard

    def _labels(self) -> dict[str, str]:
        labels = {}
        for key, wanted in self.hard.items():
            values = getattr(wanted, "values", None)
            if not isinstance(wanted, In) or len(values or ()) != 1:
                raise ValueError("of NodeLabelSchedulingStrategy Covey knows In() with one value")
            labels[key] = wanted.values[0]
        return labels


class In:
    """One of these values."""

    def __init__(self, *values: str):
        self.values = values


def place(options: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Where something shall run, in Covey's words."""
    strategy = options.get("scheduling_strategy")
    if strategy is None and isinstance(options.get("placement_group"), PlacementGroup):
        strategy = PlacementGroupSchedulingStrategy(options["placement_group"], options.get("placement_group_bundle_index", -1))
    if strategy in (None, "DEFAULT"):
        return {}
    if strategy == "SPREAD":
        return {"strategy": "spread"}
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        return strategy._place(asked)
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return {} if strategy.soft else {"labels": {"node_id": strategy.node_id}}
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        return {"labels": strategy._labels()}
    raise ValueError(f"scheduling_strategy {strategy!r} is not one of Ray's that Covey knows")
