"""Pattern: parallelism within parallelism; small pieces are sorted at once."""

import random

import ray

ray.init(num_cpus=2)


def partition(values):
    pivot = values[len(values) // 2]
    return [v for v in values if v < pivot], [v for v in values if v == pivot], [v for v in values if v > pivot]


@ray.remote
def quick_sort(values):
    if len(values) <= 500:
        return sorted(values)
    less, same, more = partition(values)
    less, more = ray.get([quick_sort.remote(less), quick_sort.remote(more)])
    return less + same + more


values = [random.randint(0, 1_000_000) for _ in range(4_000)]
assert ray.get(quick_sort.remote(values)) == sorted(values)
