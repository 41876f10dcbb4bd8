"""Actors that crash: restarts, calls that are tried again, and the end."""

import os
import tempfile

import ray
from ray.exceptions import ActorDiedError, RayActorError

ray.init(num_cpus=2)
marker = os.path.join(tempfile.mkdtemp(), "crashed")


@ray.remote(max_restarts=1, max_task_retries=-1)
class Phoenix:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

    def crash_once(self, path):
        if not os.path.exists(path):
            open(path, "w").close()
            os._exit(1)
        return "again"


@ray.remote
class Mortal:
    def crash(self):
        os._exit(1)

    def ping(self):
        return "pong"


phoenix = Phoenix.remote()
assert ray.get([phoenix.add.remote() for _ in range(3)]) == [1, 2, 3]
assert ray.get(phoenix.crash_once.remote(marker)) == "again"
assert ray.get(phoenix.add.remote()) == 1, "its state began anew"

mortal = Mortal.remote()
assert ray.get(mortal.ping.remote()) == "pong"
for ref in (mortal.crash.remote(), mortal.ping.remote()):
    try:
        ray.get(ref, timeout=60)
        raise SystemExit("it has crashed")
    except RayActorError:
        pass
try:
    ray.get(mortal.ping.remote(), timeout=60)
    raise SystemExit("it is dead")
except ActorDiedError:
    pass
