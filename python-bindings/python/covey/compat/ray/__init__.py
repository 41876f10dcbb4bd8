"""Ray core's words on Covey: `from covey.compat import ray` instead of `import ray`.

Of `from ray.util.queue import Queue` the change is the same: `from covey.compat.ray.util.queue import Queue`. What works, what
differs and what is not here: `docs/ray.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import actor, cloudpickle, exceptions, runtime_env, util
from ._calls import ActorClass, ActorHandle, RemoteFunction, get_actor, kill, method, remote
from ._cluster import (
    available_resources,
    cluster_resources,
    init,
    is_initialized,
    nodes,
    shutdown,
)
from ._runtime import get_gpu_ids, get_runtime_context
from ._refs import DynamicObjectRefGenerator, ObjectRef, ObjectRefGenerator, cancel, get, put, wait

__version__ = "2.60.0+covey"
"""The release of Ray whose words these are."""
LOCAL_MODE, WORKER_MODE, SCRIPT_MODE = 2, 1, 0

if not TYPE_CHECKING:

    def __getattr__(name):
        raise AttributeError(f"Covey has no `ray.{name}`; what of Ray is here and what is not: docs/ray.md")


__all__ = [
    "ActorClass", "ActorHandle", "DynamicObjectRefGenerator", "ObjectRef", "ObjectRefGenerator", "RemoteFunction", "actor",
    "available_resources", "cancel", "cloudpickle", "cluster_resources", "exceptions", "get", "get_actor", "get_gpu_ids",
    "get_runtime_context", "init", "is_initialized", "kill", "method", "nodes", "put", "remote", "runtime_env", "shutdown", "util", "wait",
]  # fmt: skip
