"""Actors keep their state; calls of one caller are served in order."""

import ray

ray.init(num_cpus=2)


@ray.remote
class Counter:
    def __init__(self, start=0):
        self.value = start

    def add(self, by=1):
        self.value += by
        return self.value

    def read(self):
        return self.value


counters = [Counter.remote(start=i * 10) for i in range(3)]
assert ray.get([c.add.remote() for c in counters]) == [1, 11, 21]
first = counters[0]
assert ray.get([first.add.remote() for _ in range(20)]) == list(range(2, 22))
assert ray.get(first.read.remote()) == 21
try:
    Counter()
    raise SystemExit("classes of actors are not called")
except TypeError:
    pass
try:
    first.add()
    raise SystemExit("methods of actors are not called")
except TypeError:
    pass
try:
    first.subtract
    raise SystemExit("there is no such method")
except AttributeError:
    pass
