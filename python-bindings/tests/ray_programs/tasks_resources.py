"""Logical resources: fractions, names of one's own, and what is free."""

import time

import ray

ray.init(num_cpus=2, resources={"licence": 1})


@ray.remote(num_cpus=0.25)
def light(i):
    return i


@ray.remote(num_cpus=0, resources={"licence": 1})
def licensed():
    begin = time.time()
    time.sleep(0.3)
    return begin, time.time()


@ray.remote(num_cpus=0.25, resources={"licence": 1})
def given():
    return ray.get_runtime_context().get_assigned_resources()


assert ray.get(given.remote()) == {"CPU": 0.25, "licence": 1.0}
assert ray.cluster_resources()["CPU"] == 2 and ray.cluster_resources()["licence"] == 1
assert ray.get([light.remote(i) for i in range(8)]) == list(range(8))
spans = sorted(ray.get([licensed.remote() for _ in range(3)]))
assert all(before[1] <= after[0] + 0.01 for before, after in zip(spans, spans[1:])), "one at a time"


@ray.remote(num_cpus=1)
class Holder:
    def ready(self):
        return True


holder = Holder.remote()
assert ray.get(holder.ready.remote())
assert ray.available_resources().get("CPU", 0) == 1
