"""Pi by chance, with an actor that tells how far it is."""

import random

import ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Progress:
    def __init__(self, total):
        self.total, self.done = total, {}

    def report(self, task, done):
        self.done[task] = done

    def fraction(self):
        return sum(self.done.values()) / self.total


@ray.remote
def sample(count, task, progress):
    inside = sum(random.random() ** 2 + random.random() ** 2 <= 1 for _ in range(count))
    ray.get(progress.report.remote(task, count))
    return inside


progress = Progress.remote(40_000)
inside = sum(ray.get([sample.remote(10_000, i, progress) for i in range(4)]))
assert abs(4 * inside / 40_000 - 3.1416) < 0.1
assert ray.get(progress.fraction.remote()) == 1.0
