"""Cancelling calls of actors: async ones are interrupted, others look whether they should go on, waiting ones never start."""

import asyncio
import time

import ray
from ray.exceptions import RayTaskError, TaskCancelledError

ray.init(num_cpus=2)


@ray.remote
class Async:
    def __init__(self):
        self.cleaned = 0

    async def work(self):
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.cleaned += 1
            raise

    async def count(self):
        return self.cleaned


@ray.remote
class Plain:
    def __init__(self):
        self.stopped = False

    def work(self):
        for _ in range(6000):
            if ray.get_runtime_context().is_canceled():
                self.stopped = True
                return
            time.sleep(0.01)

    def was_stopped(self):
        return self.stopped


actor = Async.remote()
ref = actor.work.remote()
assert ray.get(actor.count.remote(), timeout=60) == 0
ray.cancel(ref)
try:
    ray.get(ref, timeout=60)
    raise SystemExit("it was cancelled")
except (RayTaskError, TaskCancelledError):
    pass
deadline = time.monotonic() + 60
while not ray.get(actor.count.remote(), timeout=60):
    assert time.monotonic() < deadline

plain = Plain.remote()
ray.get(plain.__ray_ready__.remote(), timeout=60)
running, waiting = plain.work.remote(), plain.work.remote()
ready, _ = ray.wait([running], timeout=0.3)
assert not ready
ray.cancel(waiting)
ray.cancel(running)
try:
    ray.get(waiting, timeout=60)
    raise SystemExit("it never began")
except TaskCancelledError:
    pass
assert ray.get(plain.was_stopped.remote(), timeout=60) is True
