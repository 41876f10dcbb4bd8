"""What type checkers find here is compared with the comment of its line."""

import program

import covey

reader = program.Reader.remote("long")
reveal_type(reader)  # Reader
reveal_type(reader.count.remote("x"))  # Future[int]
reveal_type(reader.count.remote("x").result())  # int
reveal_type(reader.name.remote("x"))  # Future[str]
reveal_type(reader.name.options(deadline="5s").remote("x"))  # Future[str]
reveal_type(reader.words.remote("x"))  # Stream[str]
reveal_type(reader.letters.remote("x"))  # Stream[bytes]
reveal_type(program.square.remote(1))  # Future[float]
reveal_type(program.shout.remote("a"))  # Future[str]
reveal_type(program.numbers.remote(1))  # Stream[int]
reveal_type(program.square.map([1]))  # list[float]
reveal_type(covey.get(program.square.remote(1)))  # float
reveal_type(covey.get([program.shout.remote("a")]))  # list[str]
reveal_type(program.square.map_unordered([1]))  # Iterator[float]
reveal_type(program.square.map_unordered([1], with_input=True))  # Iterator[tuple[int, float]]
reveal_type(program.square.map_unordered([1], return_exceptions=True))  # Iterator[float | Exception]
reveal_type(program.square.map_unordered([1], with_input=True, return_exceptions=True))  # Iterator[tuple[int, float | Exception]]
reveal_type(program.square.map_unordered([1], with_input=bool(reader)))  # Iterator[object]
reveal_type(program.square.map([1], return_exceptions=True))  # list[float | Exception]
reveal_type(program.numbers.map([1]))  # list[list[int]]
reveal_type(program.numbers.options(cpus=1).remote(1))  # Stream[int]
reveal_type(program.numbers(3))  # Iterator[int]
reveal_type(program.square(3))  # float
reveal_type(covey.get([program.shout.remote("a"), covey.put("x")]))  # list[str]
reveal_type(covey.get(covey.put(3)))  # int
reveal_type(covey.get(reader.words.remote("x")))  # list[str]
reveal_type(covey.get(program.Reader.count.submit("x")))  # int
reveal_type(covey.put(3).get())  # int
text, number = covey.put("x"), covey.put(1)
reveal_type(reader.count.remote(text))  # Future[int]
reveal_type(reader.name.remote(text, upper=True))  # Future[str]
reveal_type(reader.name.options(retries=1).remote("x", covey.put(True)))  # Future[str]
reveal_type(reader.words.remote(text))  # Stream[str]
reveal_type(program.square.remote(number))  # Future[float]
reveal_type(program.square.options(cpus=1).remote(number))  # Future[float]
reveal_type(program.shout.remote(text))  # Future[str]
reveal_type(program.numbers.remote(number))  # Stream[int]
reveal_type(covey.Executor().submit(len, "abc"))  # Future[int]
reveal_type(program.Reader.count.submit("x"))  # Task[int]
reveal_type(program.Reader.count.submit("x").result())  # int
reveal_type(program.Reader.count.options(retries=2).submit("x"))  # Task[int]
reveal_type(program.Reader.pairs.submit(2))  # Task[object]
reveal_type(program.Reader.says.submit())  # Task[Message]
reveal_type(program.Reader.words.submit("x"))  # Task[str]
reveal_type(program.Reader.words.stream("x"))  # TaskStream[str]
reveal_type(program.Reader.letters.stream("x"))  # TaskStream[object]
reveal_type(program.Reader.count.map(["x"]))  # list[int]
reveal_type(program.Reader.pairs.map([1]))  # list[tuple[int, str]]
reveal_type(program.Reader.count.map(["x"], return_exceptions=True))  # list[int | Exception]
reveal_type(program.Reader.count.map_unordered(["x"], actors=2))  # Iterator[int]
reveal_type(program.Reader.count.map_unordered(["x"], with_input=True))  # Iterator[tuple[str, int]]
reveal_type(program.Reader.count.map_unordered(["x"], return_exceptions=True))  # Iterator[int | Exception]
reveal_type(program.Reader.count.map_unordered(["x"], with_input=True, return_exceptions=True))  # Iterator[tuple[str, int | Exception]]
reveal_type(program.Reader.map(["x"]))  # list[object]
reveal_type(program.Reader.map_unordered(["x"]))  # Iterator[object]
reveal_type(program.Reader.map_unordered(["x"], with_input=True))  # Iterator[tuple[str, object]]
reveal_type(program.Reader.submit("x"))  # Task[object]
reveal_type(program.Reader.stream("x"))  # TaskStream[object]
reveal_type(program.Reader.at("x"))  # Reader
reveal_type(program.Reader.options(cpus=1).remote("long"))  # Reader
reveal_type(program.Reader.options(cpus=1).count.map(["x"]))  # list[int]
reveal_type(program.Reader.pool(2, "long"))  # ActorPool[Reader]
reveal_type(program.Reader.bind("long"))  # Bound[Reader]
reveal_type(covey.gang([program.Reader.bind("long")]))  # list[Reader]
reveal_type(program.Reader.register())  # str
reveal_type(covey.get_actor("x"))  # Handle
reveal_type(covey.get_actor("x").name)  # Method
reveal_type(covey.get_actor("x", program.Reader).count.remote("x"))  # Future[int]
reveal_type(covey.current())  # Session
reveal_type(covey.status()["tasks"])  # dict[str, int]
reveal_type(covey.status()["nodes"][0]["name"])  # str
reveal_type([actor["id"] for actor in covey.actors()])  # list[str]
reveal_type(covey.topic("x").publish(1))  # Future[int]
reveal_type(covey.submit(program.Reader, "count", "x"))  # Task[object]
reveal_type(covey.submit(program.Reader, "count", "x").id)  # str
reveal_type(covey.get_task("x").result())  # object
reveal_type(next(covey.tasks()).task)  # Task[object]
reveal_type(program.plain.submit(1))  # Task[object]
reveal_type(program.plain.remote())  # Handle
reveal_type(program.plain.at("x"))  # Handle
reveal_type(program.plain.map([1]))  # list[object]
reveal_type(program.plain.map_unordered([1], with_input=True))  # Iterator[tuple[int, object]]
reveal_type(program.plain.options(cpus=1).stream(1))  # TaskStream[object]
reveal_type(covey.llm_agent("x", temperature=0.5).submit("hi"))  # Task[object]
reveal_type(covey.llm_agent("x").remote())  # Handle
reveal_type(covey.connect_a2a("http://x").stream("hi"))  # TaskStream[object]
reveal_type(covey.llm.complete("x", max_tokens=3))  # str


async def waits() -> None:
    reveal_type(await reader.count.remote("x"))  # int
    reveal_type(await program.Reader.count.submit("x"))  # int
    reveal_type(await covey.submit(program.Reader, "count", "x"))  # object
    reveal_type(await program.shout("x"))  # str
    async for item in program.Reader.words.stream("x"):
        reveal_type(item)  # str
    async for word in reader.words.remote("x"):
        reveal_type(word)  # str


with program.Reader.pool(2, "long") as pool:
    reveal_type(pool.count.remote("x"))  # Future[int]
    reveal_type(pool.words.remote("x"))  # Stream[str]
    reveal_type(pool.count.remote(text))  # Future[int]
    reveal_type(pool.count.map(["x"]))  # list[int]
    reveal_type(pool.count.map(["x"], return_exceptions=True))  # list[int | Exception]
    reveal_type(pool.count.options(retries=3).map(["x"]))  # list[int]
    reveal_type(pool.count.map_unordered(["x"]))  # Iterator[int]
    reveal_type(pool.count.map_unordered(["x"], with_input=True))  # Iterator[tuple[str, int]]
    reveal_type(pool.count.map_unordered(["x"], with_input=True, return_exceptions=True))  # Iterator[tuple[str, int | Exception]]
