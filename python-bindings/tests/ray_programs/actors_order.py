"""Calls of one caller keep their order, also when their arguments are not there yet."""

import time

import ray

ray.init(num_cpus=2)


@ray.remote
def late(value, seconds):
    time.sleep(seconds)
    return value


@ray.remote
class Log:
    def __init__(self):
        self.lines = []

    def add(self, line):
        self.lines.append(line)

    def read(self):
        return self.lines


log = Log.remote()
log.add.remote("first")
log.add.remote(late.remote("second", 0.5))
log.add.remote("third")
log.add.remote(late.remote("fourth", 0))
assert ray.get(log.read.remote()) == ["first", "second", "third", "fourth"]
