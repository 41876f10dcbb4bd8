"""`ray.get_runtime_context()`: where this code runs, and what it was given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..._agent import Handle, agents
from ..._context import current
from ..._current import current_session, turn_current
from ..._status import ActorStatus, actors
from ._calls import ActorHandle
from ._cluster import Id, namespace_here, nodes
from ._placement import assigned_here

if TYPE_CHECKING:
    from ..._host.turn import Actor


class RuntimeContext:
    """Where this code runs."""

    @property
    def _actor(self) -> Actor | None:
        """The actor of this turn; `None` in a driver, and in functions."""
        turn = turn_current.get()
        return None if turn is None or turn.actor.lends else turn.actor

    def get_node_id(self) -> str:
        """The node that this runs on; of a driver, which is on none, one that lives."""
        own = os.environ.get("COVEY_NODE", "")
        return own or next((str(node["NodeID"]) for node in nodes() if node["Alive"]), "")

    def get_job_id(self) -> str:
        return str(current_session().owner)

    def get_worker_id(self) -> str:
        return f"{os.getpid():x}"

    def get_task_id(self) -> str | None:
        turn = turn_current.get()
        return None if turn is None else f"{turn.actor.id}#{turn.call}"

    def get_actor_id(self) -> str | None:
        return None if self._actor is None else Id(self._actor.id)

    def get_actor_name(self) -> str | None:
        mine = self._listed()
        return "" if mine is None else (mine.get("name") or "").rsplit("/", 1)[-1]

    def _listed(self) -> ActorStatus | None:
        mine = self._actor
        return None if mine is None else next((a for a in actors(node=self.get_node_id()) if a["id"] == mine.id), None)

    @property
    def namespace(self) -> str:
        return namespace_here()

    @property
    def current_actor(self) -> ActorHandle:
        mine = self._actor
        if mine is None:
            raise RuntimeError("This method is only available in an actor.")
        spec = next(a for a in agents() if a["name"] == type(mine.instance).__name__)
        return ActorHandle(Handle(mine.id, spec))

    @property
    def was_current_actor_reconstructed(self) -> bool:
        mine = self._listed()
        return mine is not None and mine["restarts"] > 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What this task or actor was given: `{"CPU": 1.0}` of a task that says nothing, nothing of such an actor."""
        return assigned_here()

    def is_canceled(self) -> bool:
        ctx = current()
        return ctx is not None and ctx.cancelled

    node_id = property(get_node_id)
    job_id = property(get_job_id)
    task_id = property(get_task_id)
    actor_id = property(get_actor_id)


def get_runtime_context() -> RuntimeContext:
    return RuntimeContext()


def get_gpu_ids() -> list[int]:
    """The cards that this process may use, by number."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [int(n) for n in said.split(",") if n.strip().isdigit()]
