"""A swarm reads many files; what is wrong with one costs that one, and no other."""

import asyncio
import os
import pathlib
import time

import pytest

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


def outcome(result):
    try:
        return result()
    except covey.CoveyError as error:
        return error
