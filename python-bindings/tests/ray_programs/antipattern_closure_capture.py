"""Anti-pattern: a large object in a function's closure travels with its code; better a reference as an argument."""

import numpy as np
import ray

ray.init(num_cpus=2)
table = np.arange(500_000)
table_ref = ray.put(table)


@ray.remote
def closes_over():
    return int(table.sum())


@ray.remote
def closes_over_reference():
    return int(ray.get(table_ref).sum())


@ray.remote
def takes(values):
    return int(values.sum())


@ray.remote
def makes(count):
    return int(np.arange(count).sum())


right = int(table.sum())
for refs in (
    [closes_over.remote() for _ in range(3)],
    [closes_over_reference.remote() for _ in range(3)],
    [takes.remote(table_ref) for _ in range(3)],
    [makes.remote(500_000) for _ in range(3)],
):
    assert ray.get(refs) == [right] * 3
