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
