"""Pattern: an async actor as a signal that tasks wait for."""

import asyncio

import ray

ray.init(num_cpus=2)


@ray.remote(num_cpus=0)
class Signal:
    def __init__(self):
        self.event = asyncio.Event()

    def send(self, clear=False):
        self.event.set()
        if clear:
            self.event.clear()

    async def wait(self):
        await self.event.wait()


@ray.remote(num_cpus=0.1)
def waits(signal, i):
    ray.get(signal.wait.remote())
    return i


signal = Signal.remote()
tasks = [waits.remote(signal, i) for i in range(5)]
ready, waiting = ray.wait(tasks, num_returns=5, timeout=1)
assert not ready and len(waiting) == 5
ray.get(signal.send.remote())
assert sorted(ray.get(tasks)) == [0, 1, 2, 3, 4]
