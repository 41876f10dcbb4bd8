"""`ray.wait`: results as they come, and a bound on waiting."""

import time

import ray

ray.init(num_cpus=4)


@ray.remote
def sleep(seconds):
    time.sleep(seconds)
    return seconds


ray.get([sleep.remote(0) for _ in range(4)])
slow, fast = sleep.remote(5), sleep.remote(0)
ready, rest = ray.wait([slow, fast], num_returns=1)
assert ready == [fast] and rest == [slow]
ready, rest = ray.wait([slow], timeout=0)
assert ready == [] and rest == [slow]

unfinished = [sleep.remote(s / 10) for s in (3, 1, 2)]
order = []
while unfinished:
    done, unfinished = ray.wait(unfinished)
    order += ray.get(done)
assert sorted(order) == [0.1, 0.2, 0.3]
ready, rest = ray.wait([slow], num_returns=1)
assert ray.get(ready) == [5] and not rest
try:
    ray.wait([fast], num_returns=2)
    raise SystemExit("two of one")
except ValueError:
    pass
