"""Waiting for futures, streams and durable tasks: many at once, with bounds, and interrupted."""

import asyncio
import os
import signal
import threading

import pytest

import covey
from covey import agent
from covey._bridge import Port
from covey._watch import THREADS_MAX, Watch


@agent(name="waiting", concurrency=16)
class Waits:
    """Turns wait for a file, so that a test says when they are over."""

    async def wait(self, path, value=None):
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        return value

    async def items(self, path):
        yield "begun"
        while not os.path.exists(path):
            await asyncio.sleep(0.01)
        yield "over"

    async def now(self, value):
        return value

    async def fail(self):
        raise ValueError("as asked")

    async def both(self, path):
        """Waits inside of an actor."""
        tasks = [covey.submit(Waits, "now", 1), covey.submit(Waits, "wait", path)]
        done, rest = await asyncio.to_thread(covey.wait, tasks, 1, 60)
        return [task.id for task in done] == [tasks[0].id] and [task.id for task in rest] == [tasks[1].id]


@pytest.fixture
def gate(tmp_path):
    """A file that opens; it does at the end whatever happened."""
    path = tmp_path / "open"
    yield path
    path.touch()


@pytest.fixture
def actor(cluster):
    Waits.register()
    return Waits.remote()


@covey.task
def add(one, two):
    return one + two


def test_a_task_is_waited_for(actor, gate):
    task = covey.submit(Waits, "wait", str(gate), 7)
    assert covey.wait([task], timeout=0.2) == ([], [task]) and not task.done()
    with pytest.raises(covey.DeadlineExceeded, match="not all done within 0.2 s"):
        list(covey.as_completed([task], timeout=0.2))
    with pytest.raises(covey.DeadlineExceeded, match="result 2 of 3 was not there within 0.2 s"):
        covey.get([add.remote(1, 2), task, task], timeout=0.2)
    opens = threading.Timer(0.1, gate.touch)
    opens.start()
    assert covey.wait([task], timeout="60s") == ([task], []) and task.done()
    assert task.result() == 7
    opens.join()


def test_tasks_futures_and_references_are_waited_for_together(actor, gate):
    late = [covey.submit(Waits, "wait", str(gate), "task"), actor.wait.remote(str(gate), "future")]
    soon = [covey.submit(Waits, "now", "task"), actor.now.remote("future"), covey.put("ref"), covey.submit(Waits, "fail")]
    with covey.Executor() as executor:
        soon.append(executor.submit(abs, -1))
        done, rest = covey.wait([*late, *soon], num_returns=len(soon), timeout=60)
    assert done == soon and rest == late
    order = covey.as_completed([*late, *soon], timeout=60)
    assert sorted(map(id, [next(order) for _ in soon])) == sorted(map(id, soon))
    gate.touch()
    assert sorted(one.result() for one in order) == ["future", "task"]
    with pytest.raises(ValueError, match="as asked"):
        soon[3].result()


def test_many_tasks_are_waited_for(actor):
    tasks = [covey.submit(Waits, "now", n) for n in range(60)]
    assert sorted(task.id for task in covey.as_completed(tasks, timeout=120)) == sorted(task.id for task in tasks)
    assert covey.get(tasks, timeout="60s") == list(range(60))


def test_few_threads_look_at_many_things():
    port, looks, threads = Port(), dict.fromkeys(range(100), 0), set()

    def thing(token):
        def ended(seconds):
            threads.add(threading.get_ident())
            looks[token] += 1
            if token == 7:
                raise covey.ConnectionLost("gone")
            return looks[token] == 3

        return ended

    watch = Watch(port)
    for token in looks:
        watch.add(token, thing(token))
    watch.start()
    seen = []
    while len(seen) < 100:
        seen += port.wait(30)
    assert sorted(seen) == list(looks) and len(threads) <= THREADS_MAX
    assert looks == {token: 1 if token == 7 else 3 for token in looks}


def test_a_stream_of_a_task_is_waited_for(actor, gate):
    stream = Waits.stream(str(gate), method="items")
    assert covey.wait([stream], timeout=0.2) == ([], [stream])
    gate.touch()
    assert covey.wait([stream], timeout=60) == ([stream], [])


def test_an_actor_waits_for_tasks(actor, gate):
    assert actor.both.remote(str(gate)).result(60)


def test_what_cannot_be_waited_for_is_refused(actor):
    for wrong in (7, actor):
        with pytest.raises(TypeError, match="futures, tasks"):
            covey.wait([wrong])
        with pytest.raises(TypeError, match="futures, tasks"):
            list(covey.as_completed([wrong]))


def interrupted(wait):
    """Ctrl-C while `wait` waits."""
    # A shell that starts its jobs in the background has them ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            thread.start()
            wait()
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_wait_cancels_nothing(actor, gate):
    future = actor.wait.remote(str(gate), 7)
    stream = actor.items.remote(str(gate))
    task = covey.submit(Waits, "wait", str(gate), 8)
    for wait in (future.result, stream.result, task.result, lambda: covey.get([future]), lambda: covey.wait([future, task], 2)):
        interrupted(wait)
    assert not future.done()
    gate.touch()
    assert future.result(60) == 7 and stream.result(60) == ["begun", "over"] and task.result(60) == 8


def test_bounds_on_waiting_are_times(actor, gate):
    future, stream = actor.wait.remote(str(gate), 7), actor.items.remote(str(gate))
    for wait in (
        future.result,
        future.exception,
        stream.result,
        lambda timeout: covey.get(future, timeout=timeout),
        lambda timeout: covey.get([future], timeout=timeout),
        lambda timeout: list(covey.as_completed([future], timeout=timeout)),
    ):
        with pytest.raises(covey.DeadlineExceeded, match=r"within 0\.05 s"):
            wait("50ms")
        with pytest.raises(ValueError, match="not a time"):
            wait("soon")
    assert covey.wait([future], timeout="50ms") == ([], [future])
    gate.touch()
    assert future.result("1m") == 7 and covey.get([future], timeout="1m") == [7] and stream.result("1m") == ["begun", "over"]


def test_a_stream_gives_the_rest_of_its_items(actor, gate):
    gate.touch()
    stream = actor.items.remote(str(gate))
    reader = iter(stream)
    assert next(reader) == "begun" and stream.result(60) == ["over"]


@pytest.mark.parametrize("bound", [0, -1, "0s"])
def test_a_run_without_time_is_refused(cluster, bound):
    actor = Waits.remote()
    for give in (
        lambda: actor.now.options(run_timeout=bound),
        lambda: add.options(timeout=bound),
        lambda: covey.submit(Waits, "now", 1, run_timeout=bound),
    ):
        with pytest.raises(ValueError, match="takes a time above 0: seconds, or a text"):
            give()


def test_asyncios_wait_says_what_it_wants(actor):
    async def drive():
        future = actor.now.remote(1)
        with pytest.raises(TypeError, match=r"asyncio.ensure_future\(future\)"):
            await asyncio.wait([future])
        done, rest = await asyncio.wait([asyncio.ensure_future(future)])
        return [one.result() for one in done]

    assert asyncio.run(drive()) == [1]


def test_what_is_shown_of_things_says_what_they_are(actor, cluster, gate):
    future, failed, stream = actor.wait.remote(str(gate)), actor.fail.remote(), actor.items.remote(str(gate))
    assert repr(future) == "<future that waits>" and repr(stream) == "<stream that goes on>"
    assert isinstance(failed.exception(60), ValueError) and repr(failed) == "<future that raised ValueError>"
    gate.touch()
    future.result(60)
    stream.result(60)
    assert repr(future) == "<future that is done>" and repr(stream) == "<stream that is over>"
    assert repr(add) == "<function add for the cluster>"
    assert repr(covey.current()) == f"<session with {covey.current().address}>"
    with Waits.pool(2) as pool:
        assert repr(pool) == "<pool of 2 actors of waiting>" and repr(pool.now) == "<method now of <pool of 2 actors of waiting>>"
    shown = Waits.stream(str(gate), method="items")
    assert repr(shown) == f"<stream of {shown.task!r}>"


@agent(name="waiting-async", concurrency=4)
class Async:
    async def first(self, gate: str) -> list[object]:
        """A coroutine takes what is done, as it is done."""
        slow, quick, task = self.begins(gate)
        got: list[object] = []
        async for done in covey.as_completed([slow, quick, task]):
            got.append("slow" if done is slow else "quick" if done is quick else "task")
            if len(got) == 2:
                open(gate, "w").close()
        return got

    async def late(self, gate: str) -> str:
        slow, quick, _ = self.begins(gate)
        try:
            async for done in covey.as_completed([slow, quick], timeout=0.5):
                assert done is quick
        except covey.DeadlineExceeded as error:
            return str(error)
        return "none"

    async def blocks(self) -> list[str]:
        task, said = covey.submit(Waiter, "run", "x"), []
        for way in (lambda: next(task.events()), lambda: list(Waiter.stream("x")), lambda: list(task.chunks()), lambda: list(covey.as_completed([task]))):
            try:
                way()
            except RuntimeError as error:
                said.append(str(error))
        return said

    async def events(self) -> list[str]:
        task = covey.submit(Waiter, "run", "x")
        return [event.type async for event in task.events(1)]

    @staticmethod
    def begins(gate: str):
        return wait_for.remote(gate), wait_for.remote("/"), covey.submit(Waiter, "run", "x")


@agent(name="waiting-waiter")
class Waiter:
    def run(self, text: str) -> str:
        return text


@covey.task
def wait_for(path: str) -> str:
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def test_a_coroutine_takes_futures_and_tasks_as_they_finish(cluster, gate):
    actor = Async.remote()
    got = actor.first.remote(str(gate)).result(60)
    assert sorted(got[:2]) == ["quick", "task"] and got[2] == "slow"
    gate.unlink()
    assert "not all done within 0.5 s" in actor.late.remote(str(gate)).result(60)
    gate.touch()


def test_a_coroutine_reads_events_and_is_told_where_it_would_block(cluster):
    actor = Async.remote()
    assert actor.events.remote().result(60)[-1] == "finished"
    said = actor.blocks.remote().result(60)
    assert len(said) == 4 and all("async for" in text for text in said), said


def test_a_driver_takes_them_in_a_loop_of_its_own(cluster, gate):
    import asyncio

    async def main():
        slow, quick = wait_for.remote(str(gate)), wait_for.remote("/")
        got = []
        async for done in covey.as_completed([slow, quick]):
            got.append(await done)
            gate.touch()
        return got

    assert asyncio.run(main()) == ["/", str(gate)]


def test_what_is_no_future_is_named(cluster):
    for wrong in (1, "", b"", {}, [1], [wait_for.remote("/"), "x"]):
        with pytest.raises(TypeError, match="only futures, tasks and references can be waited for, not"):
            covey.get(wrong)


def test_a_callback_that_raises_is_logged_and_nobody_waits_for_it(cluster, gate, caplog):
    future = wait_for.remote(str(gate))
    future.add_done_callback(lambda _: 1 / 0)
    called = []
    future.add_done_callback(called.append)
    gate.touch()
    assert future.result(30) == str(gate)
    with covey.Executor() as executor:
        assert executor.submit(abs, -1).result(30) == 1
    assert called == [future] and "ZeroDivisionError" in caplog.text


def test_many_awaited_tasks_take_no_thread_of_the_loop(cluster, gate):
    import asyncio

    async def main():
        tasks = [asyncio.ensure_future(covey.submit(Waits, "wait", str(gate))._result()) for _ in range(40)]
        await asyncio.sleep(0.2)
        # All threads of the loop's own pool would wait for the tasks.
        assert await asyncio.wait_for(asyncio.to_thread(int), 4) == 0
        gate.touch()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [None] * 40


def test_wait_takes_whole_numbers(cluster):
    future = wait_for.remote("/")
    assert covey.wait([future], num_returns=0) in (([], [future]), ([future], []))
    for wrong, error in ((-1, ValueError), (2, ValueError), ("1", TypeError)):
        with pytest.raises(error):
            covey.wait([future], num_returns=wrong)
    assert covey.get([Waits.remote().items.remote("/")]) == [["begun", "over"]]
