"""Anti-pattern: results in the order of submission wait for the slowest; better is as they come."""

import time

import ray

ray.init(num_cpus=4)


@ray.remote
def work(i):
    time.sleep(1.0 if i == 0 else 0.0)
    return i


ray.get([work.remote(1) for _ in range(4)])
unfinished, order = [work.remote(i) for i in range(4)], []
while unfinished:
    finished, unfinished = ray.wait(unfinished, num_returns=1)
    order.append(ray.get(finished[0]))
assert order[-1] == 0 and sorted(order) == [0, 1, 2, 3]
assert sorted(ray.util.as_completed([work.remote(i) for i in range(3)])) == [0, 1, 2]
assert sorted(ray.util.map_unordered(work, [1, 2, 3])) == [1, 2, 3]
