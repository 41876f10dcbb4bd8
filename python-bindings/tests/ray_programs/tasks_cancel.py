"""Cancelling what runs, and what waits."""

import time

import ray
from ray.exceptions import GetTimeoutError, TaskCancelledError, WorkerCrashedError

ray.init(num_cpus=1)


@ray.remote(max_retries=0)
def long():
    for _ in range(600):
        time.sleep(0.1)


@ray.remote
def after(value):
    return value


running = long.remote()
behind = after.remote(running)
try:
    ray.get(running, timeout=1)
    raise SystemExit("it takes a minute")
except GetTimeoutError:
    pass
ray.cancel(behind)
ray.cancel(running, force=True)
for ref in (running, behind):
    try:
        ray.get(ref, timeout=30)
        raise SystemExit("it was cancelled")
    except (TaskCancelledError, WorkerCrashedError):
        pass
assert ray.get(after.remote(5), timeout=30) == 5
