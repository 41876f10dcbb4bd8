"""Threaded actors and concurrency groups."""

import threading

import ray

ray.init(num_cpus=2)


@ray.remote(max_concurrency=3)
class Barrier:
    def __init__(self):
        self.barrier = threading.Barrier(3)

    def meet(self):
        self.barrier.wait(timeout=60)
        return True


@ray.remote(concurrency_groups={"io": 2, "compute": 1})
class Grouped:
    def __init__(self):
        self.barrier = threading.Barrier(2)

    @ray.method(concurrency_group="io")
    def read(self):
        self.barrier.wait(timeout=60)
        return "read"

    @ray.method(concurrency_group="compute")
    def compute(self):
        return "computed"

    def other(self):
        return "other"


barrier = Barrier.remote()
assert ray.get([barrier.meet.remote() for _ in range(3)]) == [True] * 3
grouped = Grouped.remote()
first = grouped.read.remote()
assert ray.get([grouped.compute.remote(), grouped.other.remote()]) == ["computed", "other"]
assert ray.get([first, grouped.read.remote()]) == ["read", "read"]
