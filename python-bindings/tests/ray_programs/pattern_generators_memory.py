"""Pattern: a generator for large results, one at a time in memory."""

import numpy as np
import ray

ray.init(num_cpus=2)


@ray.remote
def blocks(count):
    for i in range(count):
        yield np.full(100_000, i, dtype=np.float64)


@ray.remote
def mean(block):
    return float(block.mean())


assert ray.get([mean.remote(ref) for ref in blocks.remote(5)]) == [0.0, 1.0, 2.0, 3.0, 4.0]
