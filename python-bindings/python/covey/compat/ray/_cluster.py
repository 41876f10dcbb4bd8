"""The cluster as Ray's words tell of it: `init`, nodes, resources, where a method runs."""

from __future__ import annotations

import os
import time
from typing import Any

from ..._current import current_session, here
from ..._narrow import is_a
from ..._session import connect
from ..._session import init as covey_init
from ..._session import shutdown as covey_shutdown
from ._env import environment

_namespace = ""
START_SECONDS = 30
"""Ray's `init` returns when there is a node; here too."""


def full_name(name: str, namespace: str | None) -> str:
    """A name within its namespace: the one that is said, or the driver's."""
    if not is_a(name, str):
        raise TypeError(f"name must be None or a string, got: '{type(name)}'.")
    if name == "":
        raise ValueError("Actor name cannot be an empty string.")
    within = namespace if namespace is not None else namespace_here()
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
        connect(**more)
    elif address and address != "local":
        connect(address.removeprefix("ray://"), **more)
    else:
        covey_init(cpus=num_cpus, gpus=num_gpus, resources=resources, labels=labels, **more)
        end = time.monotonic() + START_SECONDS
        while not any(node["Alive"] for node in nodes()) and time.monotonic() < end:
            time.sleep(0.01)
    _namespace = namespace or ""
    return _context_of()


def namespace_here() -> str:
    """The namespace of this program."""
    return _namespace or os.environ.get("COVEY_RAY_NAMESPACE", "")


def _context_of() -> Context:
    session = current_session()
    return Context(address=getattr(session, "address", ""), node_id="", session_id=session.owner, namespace=_namespace)


def is_initialized() -> bool:
    return here.session is not None


def shutdown(*_: Any) -> None:
    global _namespace
    if here.session is not None and not here.session.inside:
        covey_shutdown()
        _namespace = ""


def nodes() -> list[dict[str, Any]]:
    """Workers, in the shape of Ray's list."""
    status = current_session().status()
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
    for node in current_session().status()["nodes"]:
        if node["state"] == "live":
            for key, value in _amounts(node[which]).items():
                total[key] = total.get(key, 0) + value
    return total
