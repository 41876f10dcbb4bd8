"""What `python-api` promises: actors, futures, streams, errors, cancellation, map, models."""

import asyncio
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import eventually

import covey
from covey import Context, agent


class Sour(Exception):
    def __init__(self, word, number):
        super().__init__(word, number)
        self.word, self.number = word, number


@agent(concurrency=8)
class Worker:
    """Does a bit of everything."""

    def __init__(self, prefix="hi"):
        self.prefix, self.seen = prefix, []

    def greet(self, name: str) -> str:
        return f"{self.prefix} {name}"

    async def double(self, x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def count(self, n: int):
        for i in range(n):
            yield i

    def count_sync(self, n: int):
        for i in range(n):
            yield i

    def sour(self):
        raise Sour("lemon", 7)

    async def half(self):
        yield "one "
        raise ValueError("broke in the middle")

    async def forever(self, path: str):
        try:
            while True:
                await asyncio.sleep(0.01)
        finally:
            open(path, "w").close()

    def endless(self, path: str):
        try:
            i = 0
            while True:
                yield i
                i += 1
        finally:
            open(path, "w").close()

    async def think(self, text: str, ctx: Context) -> str:
        return await ctx.llm.complete(f"Repeat: {text}", model="tiny")

    def pid(self) -> int:
        return os.getpid()

    def exit(self):
        os._exit(3)

    def size(self, data) -> int:
        return len(data)

    def text(self, size: int) -> str:
        return "x" * size


def test_values_streams_and_both_worlds(cluster):
    w = Worker.remote("hello")
    assert w.greet.remote("you").result(20) == "hello you"
    assert w.double.remote(21).result(20) == 42
    assert list(w.count.remote(1000)) == list(range(1000))
    assert list(w.count_sync.remote(1000)) == list(range(1000))

    async def world():
        values = await asyncio.gather(*[w.double.remote(i) for i in range(100)])
        items = [x async for x in w.count.remote(600)]
        return values, items

    values, items = asyncio.run(world())
    assert values == [2 * i for i in range(100)] and items == list(range(600))


def test_a_remote_exception_is_its_own_class_with_the_traceback_over_there(cluster):
    with pytest.raises(Sour) as caught:
        Worker.remote().sour.remote().result(20)
    assert (caught.value.word, caught.value.number) == ("lemon", 7)
    assert "in sour" in str(caught.value.__cause__)
    stream = Worker.remote().half.remote()
    got = []
    with pytest.raises(ValueError, match="middle"):
        for item in stream:
            got.append(item)
    assert got == ["one "]


def test_cancel_and_timeout_reach_the_coroutine(cluster, tmp_path):
    w = Worker.remote()
    future = w.forever.remote(str(tmp_path / "cancelled"))
    w.greet.remote("x").result(20)
    future.cancel()
    with pytest.raises(covey.Cancelled):
        future.result(20)
    eventually((tmp_path / "cancelled").exists)
    waited = w.forever.remote(str(tmp_path / "late"))
    with pytest.raises(covey.DeadlineExceeded):
        waited.result(timeout=0.2)
    # Waiting cancels nothing.
    assert not waited.done() and not (tmp_path / "late").exists()
    waited.cancel()
    eventually((tmp_path / "late").exists)
    with pytest.raises(covey.DeadlineExceeded):
        w.forever.options(timeout="100ms").remote(str(tmp_path / "bound")).result(20)
    eventually((tmp_path / "bound").exists)


def test_leaving_a_stream_stops_its_producer(cluster, tmp_path):
    for item in Worker.remote().endless.remote(str(tmp_path / "left")):
        if item == 10:
            break
    eventually((tmp_path / "left").exists)


def test_a_slow_reader_stops_the_producer(cluster):
    @agent
    class Producer:
        def __init__(self):
            self.made = 0

        async def stream(self):
            while True:
                self.made += 1
                yield self.made

    @agent(concurrency=2)
    class Counted(Producer.__covey_class__):
        async def count(self):
            return self.made

    c = Counted.remote()
    stream = iter(c.stream.remote())
    next(stream)
    seen = [c.count.remote().result(20)]
    eventually(lambda: seen.append(c.count.remote().result(20)) or seen[-1] == seen[-2])
    assert seen[-1] < 2000
    stream.close()


def test_blocking_inside_asyncio_is_refused_with_the_fix(cluster):
    async def wrong():
        Worker.remote().forever.remote("/dev/null").result()

    with pytest.raises(RuntimeError, match="await"):
        asyncio.run(wrong())


def test_map_wait_and_as_completed(cluster):
    assert Worker.map([str(i) for i in range(50)], actors=3) == [f"hi {i}" for i in range(50)]
    pairs = dict(Worker.map_unordered(range(20), method="double", with_input=True))
    assert pairs == {i: 2 * i for i in range(20)}
    w = Worker.remote()
    futures = [w.double.remote(i) for i in range(10)]
    done, rest = covey.wait(futures, num_returns=10, timeout=20)
    assert len(done) == 10 and not rest
    assert sorted(f.result() for f in covey.as_completed(futures)) == [2 * i for i in range(10)]
    assert covey.get(futures, timeout=20) == [2 * i for i in range(10)]
    with pytest.raises(Sour):
        covey.get([w.double.remote(1), w.sour.remote()], timeout=20)


def test_big_buffers_and_what_cannot_be_pickled(cluster):
    w = Worker.remote()
    assert w.size.remote(bytearray(5 << 20)).result(30) == 5 << 20
    with pytest.raises(TypeError, match=r"\['lock'\]"):
        w.size.remote({"fine": 1, "lock": threading.Lock()})


def test_an_oversized_message_is_a_clear_error_and_harms_nobody(cluster):
    w = Worker.remote()
    other = covey.remote_agent("counter")
    assert other.add.remote(1).result(20) == 1
    with pytest.raises(covey.errors.TooLarge, match="limit is 32 MiB; send it in pieces.*covey.put"):
        w.size.remote(bytes(70 << 20)).result(60)
    kept = "the limit is 32 MiB; a task keeps it: give what is large as a file, in Python `covey.File"
    with pytest.raises(covey.errors.TooLarge, match=f"the answer has 70 MiB, {kept}"):
        covey.submit(Worker, "text", 70 << 20).result(60)
    with pytest.raises(covey.errors.TooLarge, match=f"the task's input has 93 MiB, {kept}"):
        covey.submit(Worker, "size", bytes(70 << 20))
    with pytest.raises(covey.errors.TooLarge, match=f"the message has 40 MiB, {kept}"):
        covey.submit(Worker, "text", 1).send("x" * (40 << 20))
    # Many big ones at once pass each on its own.
    assert covey.get([w.size.remote(bytes(9 << 20)) for _ in range(8)], timeout=60) == [9 << 20] * 8
    assert other.add.remote(1).result(20) == 2


def test_a_dead_python_process_restarts_its_actors(cluster):
    alone = agent(name="alone", own_process=True)(Worker.__covey_class__)
    w = alone.remote("still")
    first = w.pid.remote().result(20)
    with pytest.raises(covey.ActorDied) as caught:
        w.exit.remote().result(20)
    assert caught.value.executed is None

    def answers():
        # A call that meets the crash fails with it; nothing is retried that may have run.
        try:
            return w.pid.remote().result(20)
        except covey.ActorDied:
            return None

    assert eventually(answers) != first
    assert w.greet.remote("here").result(20) == "still here"


def test_max_restarts_ends_in_a_reason(cluster):
    fragile = agent(name="fragile", own_process=True, max_restarts=0)(Worker.__covey_class__)
    w = fragile.remote()
    w.pid.remote().result(20)
    with pytest.raises(covey.ActorDied):
        w.exit.remote().result(20)
    with pytest.raises(covey.ActorDied, match="Python process .* ended"):
        w.greet.remote("x").result(20)


def test_a_constructor_that_raises_says_so(cluster):
    @agent
    class Broken:
        def __init__(self):
            raise OSError("no disk")

        def run(self):
            return 1

    with pytest.raises(covey.ActorDied, match="OSError: no disk"):
        Broken.remote().run.remote().result(20)
    with pytest.raises(OSError, match="no disk"):
        covey.submit(Broken, "run").result(20)


def test_names_options_and_unschedulable(cluster):
    a = Worker.options(name="one", get_if_exists=True).remote("first")
    b = Worker.options(name="one", get_if_exists=True).remote("second")
    assert b.greet.remote("x").result(20) == a.greet.remote("x").result(20) == "first x"
    assert covey.get_actor("one").greet.remote("y").result(20) == "first y"
    with pytest.raises(covey.errors.AlreadyExists):
        Worker.options(name="one").remote()
    with pytest.raises(covey.Unschedulable, match="gpus=8"):
        Worker.options(gpus=8).remote().greet.remote("x").result(20)
    a.kill()
    with pytest.raises(covey.ActorDied):
        a.greet.remote("x").result(20)
    with pytest.raises(AttributeError, match="it has: .*greet"):
        a.grete


def test_models_from_the_driver_and_from_inside(cluster):
    assert covey.llm.complete("Repeat: sun moon star") == "sun moon star"
    pieces = list(covey.llm.stream("Repeat: sun moon star"))
    assert len(pieces) > 1 and "".join(pieces) == "sun moon star"
    assert Worker.remote().think.remote("river stone").result(20) == "river stone"
    with pytest.raises(covey.errors.NotFound, match="tiny"):
        covey.llm.complete("x", model="nonsense")
    name = covey.llm_agent("parrot", model="tiny")
    assert covey.submit(name, "", "Repeat: blue").result(20) == "blue"


def test_native_agents_from_python(cluster):
    c = covey.remote_agent("counter")
    assert [c.add.remote(5).result(20), c.add.remote(2).result(20), c.get.remote().result(20)] == [5, 7, 7]
    assert "".join(covey.remote_agent("echo").run.remote("a b c")) == "a b c"


def test_tasks_are_durable_idempotent_and_readable_from_any_point(cluster):
    t = covey.submit(Worker, "count", 5, message_id="count-5")
    assert covey.submit(Worker, "count", 5, message_id="count-5").id == t.id
    events = list(t.events())
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    assert [e["seq"] for e in covey.Task.from_id(t.id).events(after=3)] == list(range(4, len(events) + 1))
    assert t.result() == [0, 1, 2, 3, 4] and t.state() == "completed"
    with pytest.raises(covey.errors.FailedPrecondition):
        t.cancel()
    slow = covey.submit(Worker, "forever", "/dev/null")
    slow.cancel("enough")
    with pytest.raises(covey.Cancelled, match="enough"):
        slow.result()
    with pytest.raises(covey.DeadlineExceeded):
        covey.submit(Worker, "forever", "/dev/null", timeout="200ms").result()
    with pytest.raises(Sour, match="lemon"):
        covey.submit(Worker, "sour").result()
    with pytest.raises(covey.errors.NotFound):
        covey.Task.from_id("task-nonsense")


def test_init_starts_a_cluster_and_stops_it():
    began = time.monotonic()
    with covey.init() as session:
        assert covey.submit("echo", "", "ready").result() == "ready"
        process = session._process
        assert process.poll() is None
    assert process.poll() is not None and time.monotonic() > began


DRIVER = """
import os, signal, sys, threading, time, covey
from covey import agent

# A shell that starts its jobs in the background has them ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)

@agent
class Endless:
    async def run(self, path):
        import asyncio
        try:
            open(path + ".begun", "w").close()
            await asyncio.sleep(3600)
        finally:
            open(path, "w").close()

def stop():
    while not os.path.exists(sys.argv[1] + ".begun"):
        time.sleep(0.01)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))

session = covey.init()
print(session._process.pid, flush=True)
future = Endless.remote().run.remote(sys.argv[1])
threading.Thread(target=stop, daemon=True).start()
future.result()
"""


@pytest.mark.parametrize("by", ["SIGINT", "SIGKILL"])
def test_a_driver_that_is_stopped_takes_its_work_and_its_cluster_along(tmp_path, by):
    path = tmp_path / "stopped"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(path), by], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    cluster = int(driver.stdout.readline())
    errors = driver.communicate(timeout=30)[1]
    if by == "SIGINT":
        assert "KeyboardInterrupt" in errors
        eventually(path.exists)
    eventually(lambda: not os.path.exists(f"/proc/{cluster}") or "State:\tZ" in open(f"/proc/{cluster}/status").read())


def test_wrong_keys_are_told(cluster):
    with pytest.raises(covey.Unauthenticated, match="credentials"):
        covey.connect(cluster.keys["address"], "wrong", reinit=True)
    with pytest.raises(covey.ConnectionLost, match="covey up"):
        covey.connect("127.0.0.1:1", "x", reinit=True)
    assert covey.status()["nodes"], "the session that was open is open"


class Counted(Exception):
    """Its constructor takes other arguments than it gives on."""

    def __init__(self, code, why):
        super().__init__(f"{code}: {why}")
        self.code = code


@agent(concurrency=4)
class Raises:
    async def waits(self, seconds):
        await asyncio.sleep(seconds)
        return "alive"

    async def large(self, size):
        raise ValueError("e" * size)

    async def counted(self):
        raise Counted(7, "seven")


def test_an_exception_keeps_its_class_whatever_its_constructor_takes(cluster):
    with pytest.raises(Counted, match="7: seven") as caught:
        Raises.remote().counted.remote().result(30)
    assert caught.value.code == 7


@pytest.mark.parametrize("size", [100_000, 20 << 20])
def test_a_large_exception_costs_its_own_call_alone(cluster, size):
    raises = Raises.remote()
    others = [raises.waits.remote(1.0), Raises.remote().waits.remote(1.0)]
    kind = ValueError if size < 1 << 20 else covey.errors.RemoteError
    with pytest.raises(kind, match="eee") as caught:
        raises.large.remote(size).result(60)
    if kind is not ValueError:
        assert "too large to travel" in str(caught.value.__cause__)
    assert [other.result(30) for other in others] == ["alive", "alive"]
