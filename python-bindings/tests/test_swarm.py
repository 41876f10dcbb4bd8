"""A swarm reads many files; what is wrong with one costs that one, and no other."""

import asyncio
import os
import pathlib
import time

import pytest
from conftest import eventually

import covey

FILES, READERS = 200, 8
TROUBLE = {"017.txt": "raise", "090.txt": "hang", "151.txt": "eat"}


def read(path):
    """What is asked of each file: its words, or trouble."""
    text = pathlib.Path(path).read_text()
    if text == "raise":
        raise ValueError("this file is none")
    if text == "hang":
        while True:
            time.sleep(1)
    if text == "eat":
        eaten = []
        while True:
            eaten.append(bytes(16 << 20))
    return len(text.split())


@covey.agent(memory="200MiB")
class Reader:
    def read(self, path):
        return read(path)


@pytest.fixture
def files(tmp_path):
    made = [tmp_path / f"{i:03}.txt" for i in range(FILES)]
    for i, path in enumerate(made):
        path.write_text(TROUBLE.get(path.name, "word " * (i + 1)))
    return [str(path) for path in made]


def check(files, results):
    named = {pathlib.Path(path).name: result for path, result in zip(files, results, strict=True)}
    failed = {name: type(result) for name, result in named.items() if isinstance(result, Exception)}
    assert failed == {"017.txt": ValueError, "090.txt": covey.DeadlineExceeded, "151.txt": covey.ActorDied}
    assert all(result == int(name[:3]) + 1 for name, result in named.items() if name not in failed)


def test_exactly_the_three_are_failed_by_readers(cluster, files):
    results = Reader.map(files, actors=READERS, run_timeout="8s", return_exceptions=True)
    check(files, results)
    assert "memory" in str(results[151])


def test_exactly_the_three_are_failed_by_functions(cluster, files):
    function = covey.task(memory="200MiB", cpus=0.25, run_timeout="8s", retries=1)(read)
    check(files, function.map(files, return_exceptions=True))


class Mortal:
    async def work(self, n: int) -> int:
        await asyncio.sleep(0.05)
        if n == 30:
            os._exit(1)
        return n


def test_a_durable_task_that_kills_fails_alone(cluster):
    several = covey.agent(name="mortal-several", concurrency=16)(Mortal)
    tasks = [covey.submit(several, "work", n) for n in range(60)]
    ended = [outcome(lambda task=task: task.result(120)) for task in tasks]
    assert [n for n, end in enumerate(ended) if end != n] == [30], ended
    assert isinstance(ended[30], covey.ActorDied)


def test_a_call_of_a_swarm_that_kills_fails_alone(cluster):
    alone = covey.agent(name="mortal-alone")(Mortal)
    ended = list(alone.work.map(range(60), actors=8, return_exceptions=True))
    assert [n for n, end in enumerate(ended) if end != n] == [30], ended


@pytest.mark.parametrize("retries", [1, 3])
def test_a_call_that_kills_fails_alone_among_the_turns_of_its_actor(cluster, retries):
    several = covey.agent(name=f"mortal-turns-{retries}", concurrency=16)(Mortal).remote()
    futures = [several.work.options(retries=retries).remote(n) for n in range(100)]
    only_30_failed([outcome(lambda future=future: future.result(120)) for future in futures])


@pytest.mark.parametrize("retries", [1, 3])
def test_a_function_that_kills_fails_alone(cluster, retries):
    # Twenty actors in two processes.
    @covey.task(cpus=0.1, retries=retries)
    def work(n):
        time.sleep(0.05)
        if n == 30:
            os._exit(1)
        return n

    only_30_failed(work.map(range(100), return_exceptions=True))


@pytest.mark.parametrize("retries", [1, 3])
def test_a_job_that_kills_fails_alone_among_the_turns_of_its_pool(cluster, retries):
    several = covey.agent(name=f"mortal-pool-{retries}", concurrency=16)(Mortal)
    only_30_failed(several.work.map(range(100), actors=4, retries=retries, return_exceptions=True))


def test_what_runs_alone_may_call_its_own_actor_and_is_cancelled_as_others_are(cluster, tmp_path):
    @covey.agent(concurrency=4)
    class Calls:
        async def outer(self, path: str, wait: bool) -> int:
            """Ends its process twice; the third time it is alone."""
            with open(path, "a+") as file:
                file.write("x")
                file.seek(0)
                lost = len(file.read())
            if lost < 3:
                os._exit(1)
            if wait:
                await asyncio.Event().wait()
            return await covey.get_actor("calls-itself").inner.remote(lost)

        async def inner(self, n: int) -> int:
            return n

    calls = Calls.options(name="calls-itself").remote()
    assert calls.outer.options(retries=3).remote(str(tmp_path / "a"), False).result(60) == 3
    alone = calls.outer.options(retries=3).remote(str(tmp_path / "b"), True)
    eventually(lambda: (tmp_path / "b").exists() and (tmp_path / "b").read_text() == "xxx")
    held = [calls.inner.remote(n) for n in range(3)]
    held.pop().cancel()
    alone.cancel()
    assert covey.get(held, timeout=60) == [0, 1]


def only_30_failed(ended):
    assert [n for n, end in enumerate(ended) if end != n] == [30], ended
    assert isinstance(ended[30], covey.CoveyError)


def outcome(result):
    try:
        return result()
    except covey.CoveyError as error:
        return error
