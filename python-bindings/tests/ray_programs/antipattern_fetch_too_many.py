"""Anti-pattern: fetching the results of all tasks at once; better a batch at a time."""

import numpy as np
import ray

ray.init(num_cpus=2)
COUNT, BATCH = 60, 10


@ray.remote
def measure(i):
    return np.full(20_000, i)


def total(values):
    return sum(int(value[0]) for value in values)


assert total(ray.get([measure.remote(i) for i in range(COUNT)])) == sum(range(COUNT))

refs, seen = [measure.remote(i) for i in range(COUNT)], 0
while refs:
    ready, refs = ray.wait(refs, num_returns=min(BATCH, len(refs)))
    assert len(ready) <= BATCH
    seen += total(ray.get(ready))
assert seen == sum(range(COUNT))
