"""A method that yields: the caller reads each item while the next one is made, and may stop in the middle."""

import asyncio
from collections.abc import AsyncIterator

import covey
from covey import Actor, Context, agent


@agent(concurrency=8)
class Narrator(Actor):
    """Says things piece by piece."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    @covey.method
    async def count(self) -> AsyncIterator[int]:
        number = 0
        try:
            while True:
                number += 1
                yield number
        finally:
            # Also runs when the reader leaves its loop: nothing is made that nobody reads.
            self.stopped.set()

    @covey.method
    async def has_stopped(self) -> bool:
        return await self.stopped.wait()

    @covey.method
    async def repeat(self, text: str, ctx: Context = covey.given) -> AsyncIterator[str]:
        async for token in ctx.llm.stream(f"Repeat: {text}", model="tiny"):
            yield token


def count_to_five(narrator: Narrator) -> None:
    for number in narrator.count.remote():
        print(number, end=" ", flush=True)
        if number == 5:
            break
    print("is enough")
    assert narrator.has_stopped.remote().result(timeout=30)


async def repeat(narrator: Narrator) -> None:
    # The same object works in asyncio. These are the tokens of a language model, as it makes them.
    said: list[str] = []
    async for token in narrator.repeat.remote("sun moon star"):
        print(token, end="|", flush=True)
        said.append(token)
    print()
    assert "".join(said) == "sun moon star" and len(said) > 1


if __name__ == "__main__":
    with covey.init():
        actor = Narrator.remote()
        count_to_five(actor)
        asyncio.run(repeat(actor))
