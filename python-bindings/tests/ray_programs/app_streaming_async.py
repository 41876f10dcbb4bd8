"""Application: a service that streams to many clients at once, in an event loop, with named actors and a queue of work."""

import asyncio

import ray
from ray._raylet import ObjectRefGenerator
from ray.util.queue import Queue

ray.init(num_cpus=2)


@ray.remote
class Writer:
    async def words(self, count, prefix):
        for i in range(count):
            await asyncio.sleep(0)
            yield f"{prefix}{i}"


@ray.remote
def drain(queue, count):
    return sorted(queue.get(timeout=60) for _ in range(count))


async def read(writer, prefix):
    stream = writer.words.remote(5, prefix)
    assert isinstance(stream, ObjectRefGenerator)
    return [await ref async for ref in stream]


async def main():
    Writer.options(name="writer", get_if_exists=True).remote()
    writer = ray.get_actor("writer")
    answers = await asyncio.gather(*[read(writer, prefix) for prefix in "abc"])
    assert answers == [[f"{prefix}{i}" for i in range(5)] for prefix in "abc"]
    queue = Queue()
    drained = drain.remote(queue, 3)
    for item in (3, 1, 2):
        await queue.put_async(item)
    assert await drained == [1, 2, 3]


asyncio.run(main())
