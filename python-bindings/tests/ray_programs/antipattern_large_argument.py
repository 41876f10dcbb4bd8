"""Anti-pattern: the same large value by value, again and again; better is `ray.put`, once."""

import numpy as np
import ray

ray.init(num_cpus=2)


@ray.remote
def norm(array, i):
    return float(array[i])


large = np.arange(500_000, dtype=np.float64)
assert ray.get([norm.remote(large, i) for i in range(3)]) == [0.0, 1.0, 2.0]
ref = ray.put(large)
assert ray.get([norm.remote(ref, i) for i in range(20)]) == [float(i) for i in range(20)]
