"""Placement groups and scheduling strategies."""

from __future__ import annotations

import contextvars
import itertools
import json
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import errors
from ..._agent import Handle, handle_of, spec_fields
from ..._current import bridge_call, current_session, turn_current
from ..._future import Future, refuse_loop
from ..._narrow import is_a
from ..._units import parse_bytes
from ._refs import Failed, ObjectRef, place_given, wait
from .exceptions import TaskPlacementGroupRemoved

if TYPE_CHECKING:
    from ..._wire import GangMember

ASK_AGAIN_SECONDS = 0.5
"""Between two looks at a group that no present node could hold."""


def _needs(bundle: dict[str, float]) -> dict[str, Any]:
    """A bundle in Covey's words."""
    own = {"CPU": "cpus", "GPU": "gpus", "memory": "memory"}
    needs: dict[str, Any] = {own[k]: v for k, v in bundle.items() if k in own}
    custom = {k: v for k, v in bundle.items() if k not in own}
    return {**needs, "resources": custom} if custom else needs


class _Held:
    """A group that is there when all of its bundles are.

    A bundle that no present node could hold refuses calls; as in Ray the group waits then, for nodes that may come.
    """

    def __init__(self, group: PlacementGroup):
        self._group = group
        self._over, self._lock = threading.Event(), threading.Lock()
        self._callbacks: list[Callable[[Any], None]] = []
        self._told = False
        self.error: BaseException | None = None
        self._ask()

    def _ask(self) -> None:
        """Asks the holders of all bundles: they answer once they have their places."""
        try:
            asked = [holder.get.remote() for holder in self._group.holders]
        except Exception as error:  # the session is over
            return self._finish(error)
        left, lock = [len(asked)], threading.Lock()

        def one(_: Any) -> None:
            with lock:
                left[0] -= 1
                last = left[0] == 0
            if last:
                self._answered(asked)

        for future in asked:
            future.add_done_callback(one)

    def _answered(self, asked: list[Future[Any]]) -> None:
        failures = [error for future in asked if (error := future.exception()) is not None]
        if not failures:
            return self._finish(None)
        if self._group.removed or any(isinstance(error, errors.ActorDied) for error in failures):
            return self._finish(TaskPlacementGroupRemoved())
        if not isinstance(failures[0], errors.Unschedulable):
            return self._finish(failures[0])
        if not self._told:
            self._told = True
            name = self._group.name or self._group.id
            print(f"covey: placement group {name} waits: {failures[0]}", file=sys.stderr, flush=True)
        again = threading.Timer(ASK_AGAIN_SECONDS, self._ask)
        again.daemon = True
        again.start()

    def _finish(self, error: BaseException | None) -> None:
        with self._lock:
            self.error = error
            self._over.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    def done(self) -> bool:
        return self._over.is_set()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        with self._lock:
            if not self._over.is_set():
                self._callbacks.append(callback)
                return
        callback(self)

    def result(self, timeout: float | None = None) -> PlacementGroup:
        if not self._over.is_set():
            refuse_loop("ray.get()")
            with place_given():
                if not self._over.wait(timeout):
                    raise errors.DeadlineExceeded(f"the placement group has no place within {timeout} s")
        if self.error is not None:
            raise self.error
        return self._group

    def cancel(self) -> None:
        """Nothing: the group is there for others too."""


class PlacementGroup:
    """Room that is held: each bundle by an actor that does nothing, all of them placed at once or not at all."""

    def __init__(self, bundles: list[dict[str, float]], holders: list[Handle], strategy: str = "PACK", name: str = ""):
        self.bundle_specs, self.holders, self.turn = bundles, holders, itertools.cycle(range(len(bundles)))
        self.strategy, self.name, self.removed = strategy, name, False
        self._held: _Held | None = None
        self.inside: list[Any] = []
        """Weak references to the handles of actors that this process put into it."""

    @property
    def bundle_count(self) -> int:
        return len(self.bundle_specs)

    @property
    def id(self) -> str:
        return self.holders[0].__covey_actor__

    @property
    def is_empty(self) -> bool:
        return not self.bundle_specs

    def held(self) -> _Held:
        if self._held is None:
            self._held = _Held(self)
        return self._held

    def ready(self) -> ObjectRef:
        """A reference that is there once all bundles are; where no present node could hold them it waits for others."""
        return ObjectRef(Failed(TaskPlacementGroupRemoved()) if self.removed else self.held())

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Whether all bundles are there within this time."""
        if self.removed:
            return False
        done, _ = wait([self.ready()], timeout=timeout_seconds)
        return bool(done) and self.held().error is None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> Any:
        return PlacementGroup, (self.bundle_specs, self.holders, self.strategy, self.name)


_groups: dict[str, PlacementGroup] = {}
"""Those that were made here, by id."""


def placement_group(
    bundles: list[dict[str, float]], strategy: str = "PACK", name: str = "", lifetime: str | None = None, **_: Any
) -> PlacementGroup:
    """Holds room for all of these bundles at once. Strategies: PACK, SPREAD, STRICT_PACK, STRICT_SPREAD."""
    if not is_a(bundles, list):
        raise ValueError("The type of bundles must be list")
    if not bundles or not all(bundles) or any(not any(bundle.values()) for bundle in bundles):
        raise ValueError("a placement group needs bundles, and each of them something to hold")
    if strategy not in ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"):
        raise ValueError(f"Invalid strategy type {strategy}")
    session = current_session()
    asks: list[GangMember] = []
    for index, bundle in enumerate(bundles):
        overrides = json.dumps(spec_fields(_needs(bundle)))
        asks.append(("counter", f"{name}#{index}" if name else "", None, overrides, lifetime == "detached"))
    made = bridge_call(session.client.create_gang, session.owner, asks, strategy.lower())
    group = PlacementGroup(bundles, [handle_of(one) for one in made], strategy, name)
    _groups[group.id] = group
    return group


def get_placement_group(name: str) -> PlacementGroup:
    """The group of this name, of those that this process made."""
    for group in _groups.values():
        if group.name == name and not group.removed:
            return group
    raise ValueError(f"Failed to look up placement group with name: {name}")


def remove_placement_group(group: PlacementGroup) -> None:
    """Gives the room back, and ends the actors that this process put into it."""
    group.removed = True
    for inside in group.inside:
        handle = inside()
        if handle is not None:
            handle.__covey_handle__.kill()
    for holder in group.holders:
        holder.kill()


def placement_group_table(group: PlacementGroup | None = None) -> dict[str, Any]:
    """What is known of one group, or of all that this process made."""
    if group is None:
        return {id: placement_group_table(known) for id, known in _groups.items()}
    state = "CREATED" if group.wait(1) else "PENDING"
    if group.removed or isinstance(group.held().error, TaskPlacementGroupRemoved):
        state = "REMOVED"
    return {
        "placement_group_id": group.id,
        "name": group.name,
        "bundles": dict(enumerate(group.bundle_specs)),
        "strategy": group.strategy,
        "state": state,
    }


class Place(NamedTuple):
    """The group that something runs in, and whether what it starts goes there too."""

    group: PlacementGroup
    capture: bool


class Given(NamedTuple):
    """What a task was given. A turn keeps it (`_host.turn.Turn.given`)."""

    assigned: dict[str, float]
    place: Place | None


_here: contextvars.ContextVar[Place | None] = contextvars.ContextVar("covey_ray_place", default=None)
"""Of a constructor. A task knows it by its turn, a method by its actor."""
_assigned_here: contextvars.ContextVar[dict[str, float]] = contextvars.ContextVar("covey_ray_assigned")
"""The same of its resources."""


def _place_here() -> Place | None:
    turn = turn_current.get()
    if turn is None:
        return _here.get()
    given = turn.given if isinstance(turn.given, Given) else None
    return (given and given.place) or getattr(turn.actor.instance, "__ray_place__", None)


def get_current_placement_group() -> PlacementGroup | None:
    """The group that this task or actor runs in; `None` in a driver, and outside of groups."""
    place = _place_here()
    return None if place is None else place.group


def captured(options: dict[str, Any]) -> PlacementGroupSchedulingStrategy | None:
    """Where something goes that does not say it, started by what captures its children."""
    if options.get("scheduling_strategy") is not None or options.get("placement_group") is not None:
        return None
    place = _place_here()
    return PlacementGroupSchedulingStrategy(place.group, -1, True) if place is not None and place.capture else None


class Inside:
    """A function that knows what it was given: its resources, and the group that it runs in where there is one."""

    def __init__(self, function: Any, assigned: dict[str, float], place: Place | None):
        self._function, self._assigned, self._place = function, assigned, place
        self.__name__ = getattr(function, "__name__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        turn = turn_current.get()
        if turn is not None:
            turn.given = Given(self._assigned, self._place)
        return self._function(*args, **kwargs)


def _enter(assigned: dict[str, float], place: Place | None) -> None:
    # Apart from what travels: a variable of a context cannot.
    _assigned_here.set(assigned)
    _here.set(place)


def constructor_in(cls: type, assigned: dict[str, float], place: Place | None) -> Any:
    """The constructor of an actor that knows what it was given."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _enter(assigned, place)
        cls.__init__(self, *args, **kwargs)

    return __init__


def assigned(options: dict[str, Any], cpus: float) -> dict[str, float]:
    """What something with these options is given, by Ray's names; `cpus` where they do not say it. What is none is left out."""
    said = options.get("num_cpus")
    amounts = {"CPU": cpus if said is None else said, "GPU": options.get("num_gpus"), "memory": options.get("memory")}
    amounts |= options.get("resources") or {}
    return {name: float(parse_bytes(amount) if name == "memory" else amount) for name, amount in amounts.items() if amount}


def assigned_here() -> dict[str, float]:
    """What this task or actor was given; nothing in a driver."""
    turn = turn_current.get()
    if turn is None:
        return dict(_assigned_here.get({}))
    given = turn.given if isinstance(turn.given, Given) else None
    return dict((given and given.assigned) or getattr(turn.actor.instance, "__ray_assigned__", {}))


class PlacementGroupSchedulingStrategy:
    """In a bundle of a group: the one of this index, or the next in turn that has the room. Without a group: in none, also where
    the caller's group captures its children."""

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ):
        if placement_group is not None and placement_group_bundle_index >= placement_group.bundle_count:
            count = placement_group.bundle_count
            raise ValueError(f"the placement group has {count} bundles, there is no number {placement_group_bundle_index}")
        self.placement_group, self.placement_group_bundle_index = placement_group, placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def index_in(self, group: PlacementGroup, asked: dict[str, Any]) -> int:
        """The bundle that has what is asked for."""
        count, index = group.bundle_count, self.placement_group_bundle_index
        first = next(group.turn) if index < 0 else index
        tried = [(first + i) % count for i in range(count)] if index < 0 else [index]
        why = ""
        for at in tried:
            held = _needs(group.bundle_specs[at])
            lacks = [key for key in ("cpus", "gpus") if (asked.get(key) or 0) > held.get(key, 0)]
            if not lacks:
                return at
            why = why or f"asks for {lacks[0]}={asked[lacks[0]]}, its bundle holds {held.get(lacks[0], 0)}"
        raise ValueError(why)

    def place(self, asked: dict[str, Any]) -> dict[str, Any]:
        group = self.placement_group
        if group is None:
            return {}
        # The bundle has what it needs.
        return {"near": group.holders[self.index_in(group, asked)], "cpus": 0, "gpus": 0, "resources": {}}


class NodeAffinitySchedulingStrategy:
    """On the node of this id; with `soft`, anywhere."""

    def __init__(self, node_id: str, soft: bool = False, **_: Any):
        self.node_id, self.soft = node_id, soft


class NodeLabelSchedulingStrategy:
    """On nodes with these labels; what is only wished (`soft`) is not looked at."""

    def __init__(self, hard: dict[str, Any], *, soft: dict[str, Any] | None = None):
        self.hard = hard

    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = {}
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


def _strategy(options: dict[str, Any]) -> Any:
    strategy, group = options.get("scheduling_strategy"), options.get("placement_group")
    if strategy is None and isinstance(group, PlacementGroup):
        capture = options.get("placement_group_capture_child_tasks")
        return PlacementGroupSchedulingStrategy(group, options.get("placement_group_bundle_index", -1), capture)
    return strategy


def place_of(options: dict[str, Any]) -> Place | None:
    """The group that these options name."""
    strategy = _strategy(options)
    if not isinstance(strategy, PlacementGroupSchedulingStrategy) or strategy.placement_group is None:
        return None
    return Place(strategy.placement_group, bool(strategy.placement_group_capture_child_tasks))


def place(options: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Where something shall run, in Covey's words."""
    strategy = _strategy(options)
    if strategy in (None, "DEFAULT"):
        return {}
    if strategy == "SPREAD":
        return {"strategy": "spread"}
    if isinstance(strategy, PlacementGroupSchedulingStrategy):
        return strategy.place(asked)
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return {} if strategy.soft else {"labels": {"node_id": strategy.node_id}}
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        return {"labels": strategy.labels()}
    raise ValueError(f"scheduling_strategy {strategy!r} is not one of Ray's that Covey knows")
