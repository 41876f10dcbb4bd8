"""Tasks that call tasks, deeper than the machine has CPUs."""

import ray

ray.init(num_cpus=2)


@ray.remote
def depth(n):
    return 0 if n == 0 else 1 + ray.get(depth.remote(n - 1))


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def tree(n):
    if n == 0:
        return 1
    return ray.get(add.remote(tree.remote(n - 1), tree.remote(n - 1)))


assert ray.get(depth.remote(6)) == 6
assert ray.get(tree.remote(3)) == 8
