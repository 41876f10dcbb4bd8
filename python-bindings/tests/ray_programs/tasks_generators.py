"""Generators: references while items are made, in loops and with asyncio, and errors in the middle."""

import asyncio

import ray

ray.init(num_cpus=2)


@ray.remote
def numbers(n):
    for i in range(n):
        yield i


@ray.remote
def breaks():
    yield 1
    raise RuntimeError("half way")


@ray.remote
class Speaker:
    async def words(self, text):
        for word in text.split():
            await asyncio.sleep(0.01)
            yield word


assert [ray.get(ref) for ref in numbers.remote(5)] == [0, 1, 2, 3, 4]

generator = breaks.remote()
assert ray.get(next(generator)) == 1
try:
    ray.get(next(generator))
    raise SystemExit("it raises")
except RuntimeError:
    pass
try:
    next(generator)
    raise SystemExit("it has ended")
except StopIteration:
    pass


async def listen():
    speaker = Speaker.remote()
    return [await ref async for ref in speaker.words.remote("what is said")]


assert asyncio.run(listen()) == ["what", "is", "said"]

ready, waiting = ray.wait([numbers.remote(3)], num_returns=1, timeout=30)
assert len(ready) == 1 and not waiting
assert ray.get(next(ready[0])) == 0
