"""Pattern: a bound on tasks that are under way, held by `ray.wait`."""

import ray

ray.init(num_cpus=2)

MOST = 5


@ray.remote
def work(i):
    return i


results, running = [], []
for i in range(40):
    if len(running) >= MOST:
        ready, running = ray.wait(running, num_returns=1)
        results += ray.get(ready)
    running.append(work.remote(i))
    assert len(running) <= MOST
results += ray.get(running)
assert sorted(results) == list(range(40))
