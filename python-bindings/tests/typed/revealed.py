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
reveal_type(covey.submit(program.Reader, "count", "x").id)  # str
reveal_type(program.plain.submit(1))  # Task
reveal_type(program.plain.options(cpus=1).stream(1))  # TaskStream
reveal_type(covey.llm_agent("x", temperature=0.5).submit("hi"))  # Task
reveal_type(covey.llm_agent("x").remote())  # Handle
reveal_type(covey.connect_a2a("http://x").stream("hi"))  # TaskStream
reveal_type(covey.llm.complete("x", max_tokens=3))  # str


async def waits() -> None:
    reveal_type(await reader.count.remote("x"))  # int
    async for word in reader.words.remote("x"):
        reveal_type(word)  # str
