"""Python processes of a worker die: what ran in them runs again, what is next finds another."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import eventually

import covey
from covey import agent, errors


def children(pid):
    """Python processes of a worker."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = open(f"/proc/{entry}/stat").read()
                line = open(f"/proc/{entry}/cmdline", "rb").read()
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == pid and b"covey._host" in line:
                found.append(int(entry))
    return found


def kill_all(nodes, name="w1"):
    killed = children(nodes.running[name].pid)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    return killed


@pytest.fixture
def worker(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    nodes.connect()
    nodes.live(1)
    return nodes


def story(task):
    """Kinds of events of a task's log, and its terminal ones."""
    events = list(task.events())
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1))
    ends = [e for e in events if e["event"]["type"] == "finished"]
    assert len(ends) == 1 and events[-1] is ends[0]
    return [e["event"] for e in events]


def gated(folder):
    """Agents whose tasks run until a file is there."""

    class Waits:
        async def run(self, name: str) -> str:
            import asyncio
            import pathlib

            with open(f"{folder}/{name}.begun", "a") as begun:
                begun.write("x")
            while not pathlib.Path(f"{folder}/go").exists():
                await asyncio.sleep(0.01)
            return name

    one = agent(name="WaitsOne", concurrency=2)(Waits)
    other = agent(name="WaitsOther", concurrency=2)(type("Other", (Waits,), {}))
    return one, other


def test_tasks_run_again_when_all_python_processes_are_killed(worker, tmp_path):
    one, other = gated(tmp_path)
    tasks = [covey.submit(a, "run", f"{i}") for i, a in enumerate((one, one, other, other))]
    eventually(lambda: len(list(tmp_path.glob("*.begun"))) == 4)
    assert kill_all(worker)
    eventually(lambda: all((tmp_path / f"{i}.begun").read_text() == "xx" for i in range(4)))
    (tmp_path / "go").touch()
    for i, task in enumerate(tasks):
        events = story(task)
        assert task.result(30) == f"{i}"
        assert sum(e["type"] == "step_reset" for e in events) == 1
        assert [e["step"] for e in events if e["type"] == "step_started"] == [1, 2]


@pytest.mark.parametrize("own", [False, True])
def test_a_task_that_ends_its_process_runs_again_and_fails_after_its_attempts(worker, tmp_path, own):
    @agent(name=f"Exits{own}", own_process=own)
    class Exits:
        def once(self, path: str) -> str:
            import os

            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)
            return "survived"

        def always(self) -> None:
            import os

            os._exit(1)

        def sour(self) -> None:
            raise ValueError("no")

    task = covey.submit(Exits, "once", str(tmp_path / "once"))
    assert task.result(60) == "survived"
    assert [e["step"] for e in story(task) if e["type"] == "step_started"] == [1, 2]
    task = covey.submit(Exits, "always")
    with pytest.raises(errors.ActorDied, match="after 5 attempts"):
        task.result(60)
    assert len([e for e in story(task) if e["type"] == "step_started"]) == 5
    # What raises is over at once.
    task = covey.submit(Exits, "sour")
    with pytest.raises(ValueError, match="no"):
        task.result(60)
    assert len([e for e in story(task) if e["type"] == "step_started"]) == 1


def test_a_task_that_ends_its_process_ends_nobody_elses_attempts(worker, tmp_path):
    one, _ = gated(tmp_path)

    @agent
    class Poison:
        def run(self) -> None:
            import os

            os._exit(1)

    innocent = covey.submit(one, "run", "innocent")
    eventually(lambda: (tmp_path / "innocent.begun").exists())
    with pytest.raises(errors.ActorDied):
        covey.submit(Poison, "run").result(60)
    (tmp_path / "go").touch()
    assert innocent.result(60) == "innocent"
    # Twice they may have shared a process: before anybody knew, and in the one that was chosen before it was known.
    assert len([e for e in story(innocent) if e["type"] == "step_started"]) <= 3


@agent
class Plain:
    def pid(self) -> int:
        import os

        return os.getpid()

    def waits(self, path: str) -> int:
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.01)
        return os.getpid()

    def exit(self, code: int) -> None:
        import os

        os._exit(code)

    def raises(self, name: str) -> None:
        import builtins

        raise getattr(builtins, name)("stop it")

    async def raises_async(self, name: str) -> None:
        import builtins

        raise getattr(builtins, name)("stop it")

    async def raises_aside(self) -> str:
        import asyncio
        import sys

        async def leave():
            sys.exit(5)

        task = asyncio.create_task(leave())
        await asyncio.wait([task])
        return type(task.exception()).__name__

    def items(self):
        yield 1
        raise KeyboardInterrupt


def test_what_is_placed_after_a_crash_of_a_shared_process_starts(worker):
    for _ in range(3):
        first = Plain.remote()
        before = first.pid.remote().result(30)
        with pytest.raises(errors.ActorDied):
            first.exit.remote(3).result(30)
        # At once: nobody has written to the dead process.
        others = [Plain.remote() for _ in range(3)]
        assert before not in covey.get([other.pid.remote() for other in others], timeout=30)
        assert first.pid.remote().result(30) != before
        for actor in (first, *others):
            actor.kill()


def test_actors_start_after_all_processes_were_killed_spare_included(worker):
    first = Plain.remote()
    first.pid.remote().result(30)
    eventually(lambda: len(children(worker.running["w1"].pid)) >= 2)
    for _ in range(3):
        killed = kill_all(worker)
        assert len(killed) >= 2
        fresh = Plain.remote()
        assert fresh.pid.remote().result(30) not in killed
        assert eventually(lambda: _pid(first)) not in killed
        fresh.kill()


def _pid(actor):
    try:
        return actor.pid.remote().result(30)
    except errors.ActorDied:
        return 0


def test_what_waited_behind_the_one_that_ended_the_process_runs_elsewhere_once(worker, tmp_path):
    ran = tmp_path / "ran"
    ran.mkdir()

    def work(i):
        if i == 30:
            # What was answered before is told before.
            time.sleep(0.3)
            os._exit(3)
        with open(ran / f"{i:03}", "a") as said:
            said.write("ran\n")
        return i

    function = covey.task(cpus=4, retries=0)(work)
    results = function.map(range(200), return_exceptions=True)
    assert [i for i, result in enumerate(results) if isinstance(result, Exception)] == [30]
    assert isinstance(results[30], errors.ActorDied)

    @agent
    class Works:
        def work(self, i):
            return work(i)

    works = Works.remote()
    futures = [works.work.remote(i) for i in range(20, 60)]
    ends = [future.exception(timeout=60) for future in futures]
    assert [i for i, end in zip(range(20, 60), ends) if end is not None] == [30]
    times = {path.name: path.read_text().count("ran") for path in ran.iterdir()}
    assert times == {f"{i:03}": 2 if 20 <= i < 60 else 1 for i in range(200) if i != 30}


def test_a_child_that_outlives_its_process_does_not_hide_its_end(worker):
    @agent
    class Forks:
        def fork(self) -> tuple[int, int]:
            import os
            import time

            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            return os.getpid(), child

        def pid(self) -> int:
            import os

            return os.getpid()

    forks = Forks.remote()
    pid, child = forks.fork.remote().result(30)
    try:
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: _pid(forks)) not in (pid, child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_python_that_does_not_start_is_told_of_and_comes_back(nodes, tmp_path):
    broken = tmp_path / "broken"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nif [ "$2" = covey._host ] && [ -e "{broken}" ]; then echo "no more room" >&2; exit 9; fi\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    nodes.env["COVEY_PYTHON"] = str(python)
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    broken.touch()
    actor = Plain.remote()
    task = covey.submit(Plain, "pid")
    future = actor.pid.remote()

    def reasons():
        status = covey.status()
        whys = [a.get("why") or "" for a in status["actors"]] + [p["why"] for p in status["pending"]]
        return sum("no more room" in why for why in whys) >= 2 and any("tasks of Plain" in p["what"] and "no more room" in p["why"] for p in status["pending"])

    eventually(reasons)
    assert "no more room" in nodes.cli("status").stdout
    broken.unlink()
    assert isinstance(future.result(60), int) and isinstance(task.result(60), int)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration"])
def test_what_would_end_a_program_is_a_remote_error(worker, name):
    actor = Plain.remote()
    before = actor.pid.remote().result(30)
    for method in (actor.raises, actor.raises_async):
        future = method.remote(name)
        # A coroutine that raises StopIteration raises a RuntimeError, says Python.
        with pytest.raises((errors.RemoteError, RuntimeError), match=name):
            future.result(30)
        assert not isinstance(future.exception(), (SystemExit, KeyboardInterrupt, GeneratorExit))
    task = covey.submit(Plain, "raises", name)
    with pytest.raises(errors.RemoteError):
        task.result(30)
    assert len([e for e in story(task) if e["type"] == "step_started"]) == 1
    assert actor.pid.remote().result(30) == before, "its process goes on"


def test_exits_aside_and_in_streams_and_constructors_end_no_process(worker):
    actor = Plain.remote()
    before = actor.pid.remote().result(30)
    assert actor.raises_aside.remote().result(30) == "SystemExit"
    with pytest.raises(errors.RemoteError, match="KeyboardInterrupt"):
        list(actor.items.remote())

    @agent
    class Leaves:
        def __init__(self):
            sys.exit("not me")

        def run(self) -> int:
            return 1

    with pytest.raises(errors.CoveyError, match="SystemExit"):
        Leaves.remote().run.remote().result(30)

    @covey.task
    def leave():
        sys.exit(7)

    with pytest.raises(errors.RemoteError, match="SystemExit: 7"):
        leave.remote().result(30)
    assert actor.pid.remote().result(30) == before


def test_waiting_for_a_result_ends_when_it_should_and_cancels_nothing(worker, tmp_path):
    one, _ = gated(tmp_path)
    task = covey.submit(one, "run", "slow")
    actor = one.remote()
    future = actor.run.remote("call")
    eventually(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    for wait in (task.result, future.result, lambda timeout: covey.get([future], timeout=timeout)):
        with pytest.raises(errors.DeadlineExceeded):
            wait(timeout=0.3)
    # All came back before the work was over, without a word of the work.
    assert task.state() == "working" and not future.done()
    (tmp_path / "go").touch()
    assert task.result(30) == "slow" and future.result(30) == "call"


def test_a_forked_driver_says_what_to_do_and_harms_nobody(worker, tmp_path):
    import pickle

    actor = Plain.remote()
    known = actor.pid.remote()
    pid = known.result(30)
    begun = actor.waits.remote(str(tmp_path / "go"))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        try:
            anew = lambda: covey.connect(worker.address, worker.keys["admin_key"])  # noqa: E731
            for attempt in (lambda: actor.pid.remote(), covey.status, lambda: covey.submit(Plain, "pid"), begun.result, anew, known.result):
                try:
                    told.append(repr(attempt()))
                except errors.FailedPrecondition as error:
                    told.append(str(error))
        except BaseException as error:
            told.append(repr(error))
        os.write(write, pickle.dumps(told))
        os._exit(0)
    os.waitpid(child, 0)
    told = pickle.loads(os.read(read, 1 << 16))
    assert len(told) == 6 and told.pop() == str(pid) and all("fork" in text for text in told), told
    (tmp_path / "go").touch()
    assert begun.result(30) == actor.pid.remote().result(30)


@pytest.mark.parametrize("shown", ["0", "1"])
def test_a_forked_driver_waits_for_nothing_of_the_other_and_ends(worker, tmp_path, shown):
    """The driver is a program: its child ends as one, and drops all that its parent has."""
    program = tmp_path / "driver.py"
    program.write_text(
        """
import os, sys
import covey, covey.errors

covey.connect()

@covey.agent(name="forked-driver")
class Counts:
    def count(self, n: int):
        yield from range(n)

    def waits(self):
        import time
        time.sleep(60)

def slow(n):
    import time
    time.sleep(60)

actor, idle, function = Counts.remote(), Counts.remote(), covey.task(slow)
stream = actor.count.remote(100_000)
items = iter(stream)
next(items)
begun = [actor.waits.remote(), function.remote(1)]
executor = covey.Executor()
lent, completed = executor.submit(slow, 1), covey.as_completed([idle.count.remote(1), *begun])
large = covey.put(b"x" * (9 << 20))
next(completed)
ways = [
    lambda: next(completed), lent.result, lent.exception, large.result,
    lambda: list(stream), lambda: list(items), stream.result, lambda: covey.wait(begun), lambda: list(covey.as_completed(begun)),
    lambda: covey.get(begun), begun[1].result,
]
child = os.fork()
if child == 0:
    for number, way in enumerate(ways):
        try:
            way()
        except covey.errors.FailedPrecondition as error:
            assert "fork" in str(error), error
        else:
            print("way", number, "gave something", flush=True)
    stream.cancel()
    begun[0].cancel()
    executor.shutdown()
    sys.exit(7)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), begun[0].done(), begun[1].done(), flush=True)
"""
    )
    env = {
        **os.environ,
        "COVEY_ADDRESS": worker.address,
        "COVEY_TOKEN": worker.keys["admin_key"],
        "COVEY_LOG_TO_DRIVER": shown,
    }
    ran = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "7 False False\n", (ran.stdout, ran.stderr)


def test_a_traceback_begins_with_the_users_own_frame(worker):
    with pytest.raises(ValueError) as raised:
        covey.task(lambda: int("x")).remote().result(30)
    lines = [line for line in str(raised.value.__cause__).splitlines() if line.strip().startswith("File")]
    assert "test_processes.py" in lines[0], lines
