"""Anti-pattern: `ray.get` in a loop runs one after the other; better is to start all, and get once."""

import time

import ray

ray.init(num_cpus=4)


@ray.remote
def sleep(i):
    time.sleep(0.3)
    return i


ray.get([sleep.remote(i) for i in range(4)])
begin = time.time()
one_by_one = [ray.get(sleep.remote(i)) for i in range(4)]
slow = time.time() - begin
begin = time.time()
at_once = ray.get([sleep.remote(i) for i in range(4)])
fast = time.time() - begin
assert one_by_one == at_once == [0, 1, 2, 3]
assert slow >= 1.2 and fast < slow
