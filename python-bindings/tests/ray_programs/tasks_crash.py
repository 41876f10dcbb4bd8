"""Tasks and methods that crash whenever they run: an error of Ray's after their retries."""

import os

import ray
from ray.exceptions import RayActorError, WorkerCrashedError

ray.init(num_cpus=1)


@ray.remote(max_retries=5)
def crash():
    os._exit(1)


@ray.remote(max_restarts=-1, max_task_retries=5)
class Crashing:
    def crash(self):
        os._exit(1)

    def ping(self):
        return "pong"


try:
    ray.get(crash.remote(), timeout=100)
    raise SystemExit("it crashes")
except WorkerCrashedError:
    pass
actor = Crashing.remote()
try:
    ray.get(actor.crash.remote(), timeout=100)
    raise SystemExit("it crashes")
except RayActorError:
    pass
assert ray.get(actor.ping.remote(), timeout=100) == "pong"
