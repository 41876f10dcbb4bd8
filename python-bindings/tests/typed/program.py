"""A program that type checkers know whole: agents, handles, streams, functions, tasks. It also runs."""

from collections.abc import AsyncIterator, Iterator

import covey
from covey import Actor, Context, agent


@agent(concurrency=8)
class Reader(Actor):
    """Reads and counts."""

    def __init__(self, style: str = "short", *, limit: int = 10) -> None:
        self.style, self.limit = style, limit

    @covey.method
    async def count(self, text: str, ctx: Context = covey.given) -> int:
        return len(text.split()) if not ctx.cancelled else 0

    @covey.method(group="io")
    def name(self, prefix: str, upper: bool = False) -> str:
        return (prefix + self.style).upper() if upper else prefix + self.style

    @covey.method
    async def words(self, text: str) -> AsyncIterator[str]:
        for word in text.split():
            yield word

    @covey.method
    def pairs(self, n: int) -> tuple[int, str]:
        return n, self.style

    @covey.method
    def says(self) -> covey.Reply:
        return covey.Reply("done")

    @covey.method
    def letters(self, text: str) -> Iterator[bytes]:
        yield from (letter.encode() for letter in text)


@covey.task(cpus=0.5, retries=1)
def square(x: int) -> float:
    return float(x * x)


@covey.task
async def shout(text: str) -> str:
    return text.upper()


@covey.task
def numbers(n: int) -> Iterator[int]:
    yield from range(n)


class Plain:
    def twice(self, n: int) -> int:
        return 2 * n


plain = agent(cpus=0.1, run_timeout="1m")(Plain)


def everywhere() -> None:
    """What an agent has beside its methods."""
    first, second = covey.gang([Reader.bind("a"), Reader.options(cpus=0).bind("b", limit=2)])
    first.link(second)
    with Reader.pool(2, "long") as pool:
        print(pool.name.remote("pool ").result(60), Reader.name, Reader.submit("one two", method="count").result(60))
    shared = covey.put("one two three")
    counts: list[int] = covey.get([first.count.remote("x"), second.count.remote("x y")])
    prefix, upper = covey.put("ref "), covey.put(True)
    shown: list[str] = covey.get([first.name.remote(prefix, upper=True), first.name.remote("and ", upper), first.name.remote(prefix, upper)])
    print(shown, first.count.remote(shared).result(60), square.remote(covey.put(3)).result(60), list(numbers.remote(covey.put(2))))
    print(covey.get(shared), counts, list(Reader.stream("a b", method="words")))
    print(sorted(square.map_unordered([1, 2], with_input=True)), list(Reader.map_unordered(["a"], method="count")))
    news = covey.topic("typed-news")
    news.add(first, "count")
    heard: int = news.publish("extra", sure=True).result(60)
    news.remove(first)
    outcomes = {n: root for n, root in square.map_unordered([3], with_input=True, return_exceptions=True)}
    print(heard, outcomes)
    status = covey.status()
    free: int = status["nodes"][0]["free"]["cpu_milli"]
    print(free >= 0, covey.current().address == covey.current().address, type(first.link).__name__)
    same = covey.get_actor("typed", Reader)
    ids: list[str] = [covey.actor_id(same), covey.actor_id(covey.get_actor("typed"))]
    items: list[object] = list(Reader.words.submit("a b"))
    print(same.name.remote("same ").result(60), ids[0] == ids[1], items)


def main() -> None:
    reader = Reader.options(name="typed").remote("long", limit=3)
    counted = reader.count.remote("one two three")
    total: int = counted.result(timeout=60) + covey.get([counted, counted])[0]
    named: str = covey.get(reader.name.options(retries=1).remote("a ", upper=True))
    said: list[str] = [word for word in reader.words.remote("to be")]
    spelt: list[bytes] = list(reader.letters.remote("ab"))
    squares: list[float] = covey.get([square.remote(i) for i in range(3)])
    loud: str = shout.remote("hey").result()
    some: list[int] = list(numbers.remote(3))
    first: float = square(2) + sum(square.map([1, 2]))
    task: covey.Task[int] = Reader.count.submit("four words are here")
    known: int = task.result(60) + sum(Reader.count.map(["one", "and two"], actors=2))
    doubled: list[object] = [plain.submit(4).result(60), *plain.stream(5, method="twice", deadline="1m")]
    echo: covey.Agent[..., object] = covey.NamedAgent("echo")
    said_by: covey.TaskStream = echo.stream("to be")
    print(doubled, "".join(map(str, said_by)), said_by.task.state())
    spoken: list[str] = list(Reader.words.stream("to be"))
    reply: covey.Message = Reader.says.submit().result(60)
    print(reply, Reader.pairs.submit(2).result(60), Reader.pairs.map([3], actors=1))
    print(known, spoken, Reader.words.submit("to be").result(60), covey.submit(Reader, "count", "one two").result(60))
    everywhere()
    print(total, named, said, spelt, squares, loud, some, first, bool(task.id))
    reader.stop(drain=True)


if __name__ == "__main__":
    with covey.init(cpus=2):
        main()
