"""Actors with async methods: many calls at once in one actor, references that are awaited."""

import asyncio

import ray

ray.init(num_cpus=2)


@ray.remote
def half(x):
    return x / 2


@ray.remote
class Meeting:
    def __init__(self):
        self.here = 0
        self.all = asyncio.Event()

    async def come(self, wanted):
        self.here += 1
        if self.here == wanted:
            self.all.set()
        await self.all.wait()
        return self.here

    async def ask(self, x):
        return await half.remote(x)


meeting = Meeting.remote()
assert ray.get([meeting.come.remote(5) for _ in range(5)]) == [5] * 5
assert ray.get(meeting.ask.remote(3)) == 1.5


async def main():
    values = await asyncio.gather(*[half.remote(i) for i in range(4)])
    first, second = await asyncio.gather(meeting.ask.remote(1), asyncio.wrap_future(meeting.ask.remote(2).future()))
    return values, first, second


assert asyncio.run(main()) == ([0, 0.5, 1, 1.5], 0.5, 1.0)
