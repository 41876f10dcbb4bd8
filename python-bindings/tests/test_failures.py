"""Machines die: nothing acknowledged is lost, nothing ends twice, readers miss nothing."""

import sqlite3
import threading

from conftest import eventually

import covey
from covey import agent


@agent(pool=8, concurrency=4)
class Slow:
    async def work(self, n: int):
        import asyncio

        for i in range(4):
            yield f"{n}.{i} "
            await asyncio.sleep(0.02)


def check(tasks):
    """Each task: contiguous numbers, one terminal event at the end, the whole answer."""
    for n, task in enumerate(tasks):
        events = list(task.events())
        assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
        ends = [e for e in events if e["event"]["type"] == "finished"]
        assert len(ends) == 1 and events[-1] is ends[0]
        assert task.result() == "".join(f"{n}.{i} " for i in range(4))


def finished():
    return covey.status()["tasks"].get("completed", 0)


def test_200_tasks_survive_kill_9_of_a_worker(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.worker("w2", "--cpus", "1")
    nodes.connect()
    nodes.live(2)
    tasks = [covey.submit(Slow, "work", n) for n in range(200)]
    eventually(lambda: finished() > 20)
    nodes.kill9("w2")
    check(tasks)
    assert covey.status()["tasks"] == {"completed": 200}


def test_200_tasks_survive_kill_9_of_the_head(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    tasks = [covey.submit(Slow, "work", n) for n in range(200)]
    seen = {}

    def read(n):
        seen[n] = [e["seq"] for e in tasks[n].events()]

    # Readers that are connected when the head dies, and come back with their last number.
    readers = [threading.Thread(target=read, args=(n,)) for n in (0, 50, 100, 199)]
    for reader in readers:
        reader.start()
    eventually(lambda: finished() > 20)
    nodes.kill9("head")
    nodes.head()
    nodes.connect()
    check(tasks)
    for reader in readers:
        reader.join(30)
    for n, numbers in seen.items():
        assert numbers == list(range(1, len(numbers) + 1)), n
    assert set(seen) == {0, 50, 100, 199}
    assert covey.status()["tasks"] == {"completed": 200}


def test_a_call_on_a_killed_worker_says_that_it_may_have_run(nodes):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)

    @agent
    class Waits:
        async def forever(self):
            import asyncio

            yield 1
            await asyncio.sleep(3600)

    stream = iter(Waits.remote().forever.remote())
    assert next(stream) == 1
    nodes.kill9("w1")
    try:
        next(stream)
        raise AssertionError("the stream must fail")
    except covey.ActorDied as error:
        assert error.executed is None


def test_a_second_head_of_one_folder_says_so_and_changes_nothing(nodes):
    nodes.head()
    before = (nodes.home / "credentials.json").read_text()
    second = nodes.cli("head", "--port", "0")
    assert second.returncode == 73 and "another head uses this store" in second.stderr, second.stderr
    assert "--data" in second.stderr
    assert (nodes.home / "credentials.json").read_text() == before
    # The first goes on, and what it wrote is in the tables before long.
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    task = covey.submit("echo", "", "hello")
    assert task.result(30)
    tables = sqlite3.connect(f"file:{nodes.home}/head/covey.db?mode=ro", uri=True)
    state = "SELECT state FROM tasks WHERE id = ?"
    eventually(lambda: tables.execute(state, (task.id,)).fetchone() == ("completed",))
