"""Anti-pattern: globals that tasks and the driver would share; better is an actor."""

import ray

ray.init(num_cpus=2)
setting = 3


@ray.remote
def reads():
    return setting


@ray.remote
class Setting:
    def __init__(self, value):
        self.value = value

    def read(self):
        return self.value

    def write(self, value):
        self.value = value


@ray.remote
def asks(holder):
    return ray.get(holder.read.remote())


assert ray.get(reads.remote()) == 3
setting = 4
assert ray.get(reads.remote()) == 3, "what it closed over travelled with it at its first call"
holder = Setting.remote(3)
ray.get(holder.write.remote(4))
assert ray.get(asks.remote(holder)) == 4
