"""The cluster as Ray's words tell of it: `init`, nodes, resources, where a method runs."""

from __future__ import annotations

import os
import time
from typing import Any

from ... import _context, _session
from ._env import environment

_namespace = ""
START_SECONDS = 30
"""Ray's `init` returns when there is a node; here too."""


def full_name(name: str, namespace: str | None) -> str:
    """A name within its namespace: the one that is said, or the driver's."""
    if not isinstance(name, str):
        raise TypeError(f"name must be None or a string, got: '{type(name)}'.")
    if name == "":
        raise ValueError("Actor name cannot be an empty string.")
    within = namespace if namespace is not None else _namespace or os.environ.get("COVEY_RAY_NAMESPACE", "")
    return f"{within}/{name}" if within else name


class Id(str):
    """An id as text, with the methods of Ray's."""

    def hex(self) -> str:
        return str(self)


class Context(dict[str, Any]):
    """What `ray.init()` gives: a dict, and a context manager that shuts down."""

    @property
    def address_info(self) -> dict[str, Any]:
        return dict(self)

    @property
    def dashboard_url(self) -> str:
        return ""

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        shutdown()

    def disconnect(self) -> None:
        shutdown()


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: dict[str, float] | None = None,
    labels: dict[str, str] | None = None,
    runtime_env: dict[str, Any] | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    log_to_driver: bool | None = None,
    **_: Any,
) -> Context:
    """Connects, or starts a cluster on this machine. `"auto"` takes the one of this user.

    What tasks and actors print is shown here, unless `log_to_driver` is false. What concerns Ray's own processes (its dashboard,
    object store, the format of logs) is accepted, and does nothing.
    """
    global _namespace
    if is_initialized():
        plain = all(given is None for given in (address, num_cpus, num_gpus, resources, labels, runtime_env))
        if not (ignore_reinit_error or plain):
            raise RuntimeError("Maybe you called ray.init twice by accident? use ignore_reinit_error=True, or ray.shutdown() before")
        _namespace = namespace or _namespace
        return _context_of()
    more: dict[str, Any] = {**environment(runtime_env), "log_to_driver": log_to_driver}
    if namespace:
        more["env_vars"] = {**more.get("env_vars", {}), "COVEY_RAY_NAMESPACE": namespace}
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address in ("auto", "ray://") or (address is None and os.environ.get("COVEY_ADDRESS")):
        _session.connect(**more)
    elif address and address != "local":
        _session.connect(address.removeprefix("ray://"), **more)
    else:
        _session.init(cpus=num_cpus, gpus=num_gpus, resources=resources, labels=labels, **more)
        end = time.monotonic() + START_SECONDS
        while not any(node["Alive"] for node in nodes()) and time.monotonic() < end:
            time.sleep(0.01)
    _namespace = namespace or ""
    return _context_of()


def _context_of() -> Context:
    session = _session.current()
    return Context(address=getattr(session, "address", ""), node_id="", session_id=session.owner, namespace=_namespace)


def is_initialized() -> bool:
    return _session._current is not None


def shutdown(*_: Any) -> None:
    global _namespace
    if _session._current is not None and not _session._current.inside:
        _session.shutdown()
        _namespace = ""


def nodes() -> list[dict[str, Any]]:
    """Workers, in the shape of Ray's list."""
    status = _session.current().status()
    return [
        {
            "NodeID": n["id"], "Alive": n["state"] == "live", "NodeName": n["name"], "NodeManagerAddress": "127.0.0.1", "NodeManagerHostname": n["name"],
            "Resources": _amounts(n["total"]), "Labels": n["labels"], "alive": n["state"] == "live",
        }
        for n in status["nodes"]
    ]  # fmt: skip


def _amounts(resources: dict[str, Any]) -> dict[str, float]:
    out = {"CPU": resources["cpu_milli"] / 1000, "memory": float(resources["memory_bytes"])}
    if resources["gpu_milli"]:
        out["GPU"] = resources["gpu_milli"] / 1000
    return out | {k: v / 1000 for k, v in resources.get("custom", {}).items()}


def cluster_resources() -> dict[str, float]:
    """What all live workers have."""
    return _sum("total")


def available_resources() -> dict[str, float]:
    """What is free on all live workers."""
    return {name: amount for name, amount in _sum("free").items() if amount}


def _sum(which: str) -> dict[str, float]:
    total: dict[str, float] = {}
    for node in _session.current().status()["nodes"]:
        if node["state"] == "live":
            for key, value in _amounts(node[which]).items():
                total[key] = total.get(key, 0) + value
    return total


class RuntimeContext:
    """Where this code runs."""

    @property
    def _actor(self) -> Any:
        """The actor of this turn; `None` in a driver, and in functions."""
        turn = _context.turn_current.get()
        return None if turn is None or turn.actor.lends else turn.actor

    def get_node_id(self) -> str:
        """The node that this runs on; of a driver, which is on none, one that lives."""
        own = os.environ.get("COVEY_NODE", "")
        return own or next((str(node["NodeID"]) for node in nodes() if node["Alive"]), "")

    def get_job_id(self) -> str:
        return str(_session.current().owner)

    def get_worker_id(self) -> str:
        return f"{os.getpid():x}"

    def get_task_id(self) -> str | None:
        turn = _context.turn_current.get()
        return None if turn is None else f"{turn.actor.id}#{turn.call}"

    def get_actor_id(self) -> str | None:
        return None if self._actor is None else Id(self._actor.id)

    def get_actor_name(self) -> str | None:
        mine = self._listed()
        return "" if mine is None else (mine.get("name") or "").rsplit("/", 1)[-1]

    def _listed(self) -> dict[str, Any] | None:
        from ... import actors

        if self._actor is None:
            return None
        return next((a for a in actors(node=self.get_node_id()) if a["id"] == self._actor.id), None)

    @property
    def namespace(self) -> str:
        return _namespace or os.environ.get("COVEY_RAY_NAMESPACE", "")

    @property
    def current_actor(self) -> Any:
        from ... import _agent
        from ._calls import ActorHandle

        mine = self._actor
        if mine is None:
            raise RuntimeError("This method is only available in an actor.")
        spec = next(a for a in _agent.agents() if a["name"] == type(mine.instance).__name__)
        return ActorHandle(_agent.Handle(mine.id, spec))

    @property
    def was_current_actor_reconstructed(self) -> bool:
        mine = self._listed()
        return mine is not None and mine["restarts"] > 0

    def get_assigned_resources(self) -> dict[str, float]:
        """What this task or actor was given: `{"CPU": 1.0}` of a task that says nothing, nothing of such an actor."""
        from . import _placement

        return _placement.assigned_here()

    def is_canceled(self) -> bool:
        ctx = _context.current()
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
