"""Anti-pattern: `ray.get` in a coroutine blocks its loop; better to await references."""

import asyncio
import time

import ray

ray.init(num_cpus=2)


@ray.remote
def slow(value):
    time.sleep(0.1)
    return value


async def blocks():
    assert ray.get(slow.remote(1)) == 1
    assert ray.get([slow.remote(2), slow.remote(3)]) == [2, 3]
    ready, _ = ray.wait([slow.remote(4)])
    assert ray.get(ready) == [4]


async def awaits():
    assert await slow.remote(1) == 1
    assert await asyncio.gather(slow.remote(2), slow.remote(3)) == [2, 3]
    assert await asyncio.wait_for(slow.remote(4), 60) == 4
    assert await asyncio.wrap_future(slow.remote(5).future()) == 5


asyncio.run(blocks())
asyncio.run(awaits())
