"""What raises is tried again where that was asked for: calls, functions, jobs of pools, tasks."""

import os

import pytest
from conftest import eventually

import covey
from covey import agent


@agent(concurrency=4)
class Flaky:
    def __init__(self):
        self.tried = {}

    def work(self, name: str, times: int, error: str = "ConnectionResetError") -> int:
        self.tried[name] = self.tried.get(name, 0) + 1
        if self.tried[name] <= times:
            import builtins

            raise getattr(builtins, error)(f"try {self.tried[name]}")
        return self.tried[name]

    def count(self, name: str) -> int:
        return self.tried.get(name, 0)


def test_calls_are_tried_again_after_named_exceptions(cluster):
    flaky = Flaky.remote()
    often = flaky.work.options(retries=3, retry_on=(OSError, KeyError), backoff="5ms")
    assert often.remote("heals", 3).result(30) == 4
    with pytest.raises(ConnectionResetError, match="try 4"):
        often.remote("stays", 100).result(30)
    assert flaky.count.remote("stays").result(30) == 4
    # Another exception is none of them.
    with pytest.raises(ValueError, match="try 1"):
        often.remote("other", 100, "ValueError").result(30)
    # Nothing is tried again that nobody asked for.
    with pytest.raises(ConnectionResetError, match="try 1"):
        flaky.work.options(retries=3).remote("plain", 1).result(30)
    # With a key the tries are one call: what succeeded is remembered.
    keyed = flaky.work.options(retry_on=OSError, backoff=0.005, key="once")
    assert keyed.remote("keyed", 2).result(30) == 3 and keyed.remote("keyed", 2).result(30) == 3
    assert flaky.count.remote("keyed").result(30) == 3


def test_functions_and_pools_are_tried_again(cluster, tmp_path):
    class Mine(Exception):
        pass

    class Nearer(Mine):
        pass

    def fails(path, times):
        with open(path, "a+") as file:
            file.write("x")
            file.seek(0)
            tried = len(file.read())
        if tried <= times:
            raise Nearer(f"try {tried}")
        return tried

    retried = covey.task(retries=2, retry_on=(Mine,), backoff="5ms")(fails)
    assert retried.remote(str(tmp_path / "a"), 2).result(30) == 3
    with pytest.raises(Exception, match="try 3"):
        retried.remote(str(tmp_path / "b"), 9).result(30)
    assert covey.task(retries=2, retry_exceptions=True, backoff="5ms")(fails).remote(str(tmp_path / "c"), 1).result(30) == 2
    with pytest.raises(Exception, match="try 1"):
        covey.task(retries=2, retry_on=OSError)(fails).remote(str(tmp_path / "d"), 1).result(30)

    class Reads:
        def read(self, n: int) -> int:
            return fails(str(tmp_path / f"p{n}"), n % 3)

    assert agent(Reads).map(range(9), method="read", retry_on=Mine, backoff="5ms") == [n % 3 + 1 for n in range(9)]


def test_tasks_are_tried_again_and_their_log_says_so(cluster, tmp_path):
    @agent
    class Fetches:
        def run(self, path: str, times: int):
            with open(path, "a+") as file:
                file.write("x")
                file.seek(0)
                tried = len(file.read())
            yield f"part {tried} "
            if tried <= times:
                raise TimeoutError(f"try {tried}")

    # More often than a task may be lost: these runs say nothing against processes.
    task = covey.submit(Fetches, "run", str(tmp_path / "a"), 6, retries=6, retry_on=(OSError,), backoff="5ms")
    assert task.result(60) == "part 7 "
    events = [e["event"] for e in task.events()]
    assert sum(e["type"] == "step_reset" for e in events) == 6
    assert any("trying again in" in (e.get("message") or "") and "TimeoutError: try 1" in e["message"] for e in events)
    task = covey.submit(Fetches, "run", str(tmp_path / "b"), 9, retries=1, retry_on=(OSError,), backoff="5ms")
    with pytest.raises(TimeoutError, match="try 2"):
        task.result(60)
    assert (tmp_path / "b").read_text() == "xx"


def test_wrong_options_are_named(cluster):
    flaky = Flaky.remote()
    with pytest.raises(TypeError, match="option 'retry_on' takes exception classes"):
        flaky.work.options(retry_on="OSError")
    with pytest.raises(TypeError, match="backoff is the pause before a retry"):
        flaky.work.options(backoff="1s")
    with pytest.raises(TypeError, match="option 'concurrency' takes a number"):
        agent(concurrency="8")(Flaky.__covey_class__)
    with pytest.raises(TypeError, match=r"work\(\) runs on another process: call it with .work.remote"):
        flaky.work("x", 1)


def test_an_answer_that_does_not_fit_is_asked_for_again(cluster):
    @agent
    class Asks:
        async def run(self, ctx: covey.Context):
            coats = await ctx.ask("how many coats?", schema={"type": "integer", "minimum": 1})
            color = await ctx.ask("which color?", options=["red", "blue"])
            return f"{coats.data} {color} {ctx.cancelled}"

    task = covey.submit(Asks, "run")
    for said in ("many", "0", "3", "green", "red"):
        asked = next(e for e in task.events() if e["event"]["type"] == "interrupt_raised" and e["seq"] > getattr(task, "last", 0))
        task.last = asked["seq"]
        task.send(said)
    assert task.result(30) == "3 red False"
    prompts = [e["event"]["prompt"] for e in task.events() if e["event"]["type"] == "interrupt_raised"]
    assert prompts[1] == "how many coats?\n(it must be of type integer, not 'many')"
    assert prompts[2] == "how many coats?\n(it must be at least 1, not 0)"
    assert prompts[4] == "which color?\n('green' is none of red, blue)"


def test_the_key_of_a_virtual_actor_reaches_its_constructor_by_any_name(cluster):
    @agent
    class Room:
        def __init__(self, name, size=3):
            self.name, self.size = name, size

        def about(self):
            return self.name, self.size

    @agent
    class Plain:
        def __init__(self, size=3):
            self.size = size

        def about(self):
            return self.size

    assert Room.at("kitchen").about.remote().result(30) == ("kitchen", 3)
    assert Plain.at("x").about.remote().result(30) == 3


def test_functions_that_crash_leave_no_actors_behind(cluster):
    @covey.task(retries=0)
    def crash():
        os._exit(1)

    for _ in range(4):
        with pytest.raises(covey.ActorDied):
            crash.remote().result(60)
    # An actor that was started again for a pool that had given it up would have its CPU for good.
    alive = lambda: [a for a in covey.actors(agent="covey.function") if a["state"] != "dead"]
    eventually(lambda: not alive())
