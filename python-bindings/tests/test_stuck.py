"""Turns that do not end when they should: nothing is sent behind them, others go beside them, their process is replaced."""

import threading
import time

import pytest
from conftest import eventually
from test_processes import children

import covey
from covey import agent, errors


@pytest.fixture
def worker(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    nodes.connect()
    nodes.live(1)
    return nodes


def hang(path):
    """A function that hangs until a file is there, where it is asked to."""
    import os
    import time

    while not os.path.exists(path):
        time.sleep(0.02)
    return path


@covey.task(run_timeout="300ms", retries=0)
def bounded(path):
    return hang(path)


def log(nodes, name="w1"):
    return (nodes.home / f"{name}.log").read_text(errors="replace")


def test_a_function_over_its_run_timeout_starves_nobody(worker, tmp_path):
    there = tmp_path / "there"
    there.touch()
    assert bounded.map([str(there)] * 4) == [str(there)] * 4
    stuck = bounded.remote(str(tmp_path / "never"))
    with pytest.raises(errors.DeadlineExceeded, match="run timeout of 0.3 s"):
        stuck.result(30)
    assert bounded.map([str(there)] * 8) == [str(there)] * 8
    results = bounded.map([str(tmp_path / "never2"), *[str(there)] * 20], return_exceptions=True)
    assert isinstance(results[0], errors.DeadlineExceeded) and results[1:] == [str(there)] * 20
    # Its process is replaced.
    eventually(lambda: "a python process is replaced" in log(worker))


@pytest.mark.parametrize("method", ["wait", "wait_sync"])
def test_the_stacks_of_a_process_are_in_the_workers_log_and_not_shown_to_drivers(one_process, tmp_path, terminal, method):
    blocks = Blocks.remote()
    first = blocks.pid.remote().result(30)
    stuck = getattr(blocks, method).options(run_timeout="300ms").remote(str(tmp_path / "never"))
    actor = blocks._actor
    with pytest.raises(errors.DeadlineExceeded):
        stuck.result(30)
    assert blocks.say.remote("it is over").result(60) != first
    heading = f"stacks of python process {first}, replaced because of actor {actor}:"
    said = eventually(lambda: (text := log(one_process).partition(heading)[2]) and "in hang" in text and text)
    assert said.lstrip("\n").startswith(("Thread 0x", "Current thread 0x")), said
    assert f"in {method}" in said
    terminal.has("it is over")
    # What was printed until now is shown before the session ends.
    covey.shutdown()
    shown = terminal.out + terminal.err + one_process.cli("logs", actor).stdout
    assert "it is over" in shown
    assert "Current thread" not in shown and "Thread 0x" not in shown and "in hang" not in shown, shown


def test_a_cancelled_sync_function_starves_nobody(worker, tmp_path):
    there = tmp_path / "there"
    there.touch()
    free = covey.task(hang)
    assert free.remote(str(there)).result(30)
    stuck = [free.remote(str(tmp_path / f"never{i}")) for i in range(2)]
    time.sleep(0.3)  # they run, or will: either way they are cancelled
    for future in stuck:
        future.cancel()
        with pytest.raises(errors.Cancelled):
            future.result(30)
    assert covey.get([free.remote(str(there)) for _ in range(8)], timeout=30) == [str(there)] * 8


@agent
class Counter:
    def __init__(self):
        self.count = 0

    def add(self) -> int:
        self.count += 1
        return self.count

    def pid(self) -> int:
        import os

        return os.getpid()

    def hang(self, path: str) -> None:
        hang(path)

    def __snapshot__(self):
        return self.count

    def __restore__(self, count):
        self.count = count


def test_the_process_of_a_stuck_method_is_replaced_and_the_others_move_with_their_state(worker, tmp_path):
    # More actors than processes, so that some share.
    actors = [Counter.remote() for _ in range(6)]
    for n, actor in enumerate(actors):
        for _ in range(n + 1):
            actor.add.remote().result(30)
    pids = [actor.pid.remote().result(30) for actor in actors]
    first = pids[0]
    beside = [n for n in range(1, 6) if pids[n] == first]
    stuck = actors[0].hang.options(run_timeout="200ms").remote(str(tmp_path / "never"))
    behind = actors[0].pid.remote()
    with pytest.raises(errors.DeadlineExceeded):
        stuck.result(30)
    why = "goes on after its time was over"
    eventually(lambda: any(why in (a.get("why") or "") for a in covey.status()["actors"]))
    # What waited behind it never ran, and runs in another process; status says what happened.
    assert behind.result(60) != first
    eventually(lambda: first not in children(worker.running["w1"].pid))
    for n in range(1, 6):
        assert actors[n].add.remote().result(30) == n + 2
        assert (actors[n].pid.remote().result(30) != first) and (n in beside or actors[n].pid.remote().result(30) == pids[n])
    # That one was started again stays to be seen; that others moved is over.
    whys = [a.get("why") or "" for a in covey.status()["actors"]]
    assert sum(why in text for text in whys) == 1 and sum("restarted" in text for text in whys) == 1, whys
    assert not any("moving" in text for text in whys), whys


def test_tasks_go_beside_a_stuck_one(worker, tmp_path):
    @agent(pool=1, run_timeout="300ms")
    class Pool:
        def run(self, path: str) -> str:
            return hang(path)

    there = tmp_path / "there"
    there.touch()
    stuck = covey.submit(Pool, "run", str(tmp_path / "never"))
    with pytest.raises(errors.DeadlineExceeded, match="run timeout"):
        stuck.result(30)
    assert covey.submit(Pool, "run", str(there)).result(30) == str(there)
    # The same after a cancel.
    stuck = covey.submit(Pool, "run", str(tmp_path / "never"), run_timeout="1h")
    eventually(lambda: stuck.state() == "working")
    stuck.cancel()
    assert covey.submit(Pool, "run", str(there)).result(30) == str(there)


def test_time_in_the_queue_is_no_run_time_but_counts_for_a_deadline(worker):
    @agent
    class Slow:
        def work(self, seconds: float) -> float:
            import time

            time.sleep(seconds)
            return seconds

    slow = Slow.remote()
    bound = slow.work.options(run_timeout=2)
    assert covey.get([bound.remote(0.3) for _ in range(10)], timeout=60) == [0.3] * 10
    first = slow.work.remote(1.0)
    late = slow.work.options(deadline=0.2).remote(0.0)
    with pytest.raises(errors.DeadlineExceeded):
        late.result(30)
    assert first.result(30) == 1.0
    task = covey.submit(Slow, "work", 30.0, deadline=0.3)
    with pytest.raises(errors.DeadlineExceeded):
        task.result(30)
    with pytest.raises(TypeError, match="two words for one thing"):
        slow.work.options(run_timeout=1, timeout=1)


def test_a_method_that_ends_within_the_grace_keeps_its_process(worker):
    @agent
    class Polite:
        def work(self, ctx: covey.Context) -> str:
            import time

            while not ctx.cancelled:
                time.sleep(0.01)
            time.sleep(0.5)
            return "stopped"

        def pid(self) -> int:
            import os

            return os.getpid()

    polite = Polite.remote()
    before = polite.pid.remote().result(30)
    with pytest.raises(errors.DeadlineExceeded):
        polite.work.options(run_timeout=0.2).remote().result(30)
    assert polite.pid.remote().result(30) == before


def test_a_killed_actor_leaves_no_turn_behind(worker, tmp_path):
    @agent
    class Hangs:
        def hang(self, path: str) -> None:
            open(path, "w").close()
            hang(path + ".never")

    before = Counter.remote()
    count, pid = before.add.remote().result(30), before.pid.remote().result(30)
    hanging = [Hangs.remote() for _ in range(4)]
    for n, actor in enumerate(hanging):
        actor.hang.remote(str(tmp_path / str(n)))
    eventually(lambda: all((tmp_path / str(n)).exists() for n in range(4)))
    for actor in hanging:
        actor.kill()
    # Their threads go with their processes; whoever shared one of those moves.
    eventually(lambda: log(worker).count("goes on after its actor was stopped") >= 1)
    assert before.add.remote().result(60) == count + 1
    assert isinstance(before.pid.remote().result(30), int) and pid


def test_what_waits_for_a_thread_when_its_actor_is_stopped_is_known_to_be_unrun(worker, tmp_path):
    @agent(concurrency=600)
    class Many:
        def hang(self, path: str, ctx: covey.Context) -> None:
            import time

            open(path, "w").close()
            while not ctx.cancelled:
                time.sleep(0.02)

    def left_unrun(folder):
        folder.mkdir()
        many = Many.remote()
        # A process has 512 threads for such methods.
        futures = [many.hang.remote(str(folder / f"{n:03}")) for n in range(520)]
        eventually(lambda: len(list(folder.glob("???"))) >= 512, 60)
        # Threads become free at this moment.
        many.kill()
        ends = [future.exception(120) for future in futures]
        return [ends[n] for n in range(520) if not (folder / f"{n:03}").exists()]

    # On a busy machine all that waited may have begun before they were told.
    unrun = next(filter(None, (left_unrun(tmp_path / f"try{n}") for n in range(8))))
    assert all(isinstance(end, errors.ActorDied) and end.executed is False for end in unrun)


def test_a_swarm_with_one_that_hangs_and_one_that_raises_loses_only_those(worker):
    @agent
    class Reader:
        def read(self, n: int) -> int:
            import time

            if n == 17:
                raise ValueError("seventeen")
            if n == 100:
                time.sleep(3600)
            time.sleep(0.005)
            return n

    results = Reader.map(range(200), method="read", actors=8, run_timeout="2s", retries=0, return_exceptions=True)
    assert [n for n, result in enumerate(results) if result != n] == [17, 100]
    assert isinstance(results[17], ValueError) and isinstance(results[100], errors.DeadlineExceeded)


def test_threads_that_wait_for_nested_calls_count_as_waiting(worker):
    @covey.task(run_timeout="30s")
    def inner(n):
        return n

    @covey.task
    def outer(n):
        done = []
        thread = threading.Thread(target=lambda: done.append(1))
        thread.start()
        thread.join()
        return sum(inner.map(range(n))) + len(done)

    assert outer.remote(20).result(60) == 191


@agent
class Blocks:
    """Async methods that do not give the loop back, and others behind them."""

    async def wait(self, path: str) -> str:
        open(f"{path}.begun", "w").close()
        return hang(path)

    def wait_sync(self, path: str) -> str:
        return hang(path)

    async def keep_the_interpreter(self) -> None:
        import re

        re.match("(a+)+$", "a" * 60 + "b")

    def say(self, text: str) -> int:
        import os

        print(text)
        return os.getpid()

    async def note(self, path: str) -> int:
        import os

        with open(path, "a") as file:
            file.write("x")
        return os.getpid()

    async def pid(self) -> int:
        import os

        return os.getpid()


@pytest.fixture
def one_process(nodes):
    """A worker whose actors all share one process."""
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    return nodes


@pytest.mark.parametrize("method", ["wait", "wait_sync", "keep_the_interpreter"])
def test_what_waits_behind_a_stuck_turn_runs_once_in_the_next_process(one_process, tmp_path, method):
    blocks = Blocks.remote()
    first = blocks.pid.remote().result(30)
    args = () if method == "keep_the_interpreter" else (str(tmp_path / "never"),)
    stuck = getattr(blocks, method).options(run_timeout="300ms").remote(*args)
    behind = [blocks.note.remote(str(tmp_path / f"note{n}")) for n in range(20)]
    with pytest.raises(errors.DeadlineExceeded):
        stuck.result(30)
    pids = covey.get([*behind, blocks.note.remote(str(tmp_path / "late"))], timeout=120)
    assert len(set(pids)) == 1 and pids[0] != first
    assert [(tmp_path / f"note{n}").read_text() for n in range(20)] == ["x"] * 20 and (tmp_path / "late").read_text() == "x"


@pytest.mark.parametrize("method", ["wait", "wait_sync"])
def test_an_idle_neighbour_of_a_stuck_turn_moves_with_its_state(one_process, tmp_path, method):
    blocks, idle, spoken_to = Blocks.remote(), Counter.remote(), Counter.remote()
    first = blocks.pid.remote().result(30)
    for counter in (idle, spoken_to):
        assert covey.get([counter.add.remote() for _ in range(3)], timeout=30) == [1, 2, 3]
        assert counter.pid.remote().result(30) == first
    stuck = getattr(blocks, method).options(run_timeout="300ms").remote(str(tmp_path / "never"))
    with pytest.raises(errors.DeadlineExceeded):
        stuck.result(30)
    # In the process that is going to be replaced, or after it.
    assert spoken_to.add.remote().result(120) == 4
    eventually(lambda: first not in children(one_process.running["w1"].pid), 120)
    assert spoken_to.add.remote().result(120) == 5
    assert idle.add.remote().result(120) == 4
    assert idle.pid.remote().result(30) != first


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_blocked_loop_is_known_whoever_gave_its_turn_up(one_process, tmp_path, how):
    blocks, counter = Blocks.remote(), Counter.remote()
    first = blocks.pid.remote().result(30)
    assert counter.add.remote().result(30) == 1 and counter.pid.remote().result(30) == first
    stuck = blocks.wait.remote(str(tmp_path / "never"))
    eventually(lambda: (tmp_path / "never.begun").exists())
    if how == "cancel":
        stuck.cancel()
    else:
        blocks.kill()
    assert counter.add.remote().result(120) == 2
    assert counter.pid.remote().result(30) != first


@agent
class Waits:
    """A coroutine that waits, with a state."""

    def __init__(self):
        self.count = 0

    async def wait_for(self, path: str) -> int:
        import asyncio
        import os

        self.count += 1
        with open(f"{path}.begun", "a") as file:
            file.write("x")
        while not os.path.exists(path):
            await asyncio.sleep(0.02)
        return self.count

    def __snapshot__(self):
        return self.count

    def __restore__(self, count):
        self.count = count


def test_coroutines_beside_one_that_blocks_the_loop_do_not_wait_for_it(one_process, tmp_path):
    plain, again, sync, blocks = Waits.remote(), Waits.remote(), Blocks.remote(), Blocks.remote()
    paths = {name: tmp_path / name for name in ("plain", "again", "task", "sync", "never")}
    begun = lambda name: (tmp_path / f"{name}.begun").exists() and (tmp_path / f"{name}.begun").read_text()
    calls = [plain.wait_for.remote(str(paths["plain"])), again.wait_for.options(retries=1).remote(str(paths["again"]))]
    task = covey.submit(Waits, "wait_for", str(paths["task"]))
    eventually(lambda: all(begun(name) for name in ("plain", "again", "task")))
    pids = covey.get([one.pid.remote() for one in (blocks, sync)], timeout=30)
    assert len(set(pids)) == 1
    # A thread needs no loop.
    goes_on = sync.wait_sync.remote(str(paths["sync"]))
    with pytest.raises(errors.DeadlineExceeded):
        blocks.wait.options(run_timeout="300ms").remote(str(paths["never"])).result(30)
    # All of them hear of it, or run again, before the process is gone.
    error = calls[0].exception(60)
    assert isinstance(error, errors.ActorDied) and error.executed is None and "blocks the event loop" in str(error)
    eventually(lambda: begun("again") == "xx" and begun("task") == "xx", 60)
    assert not goes_on.done() and pids[0] in children(one_process.running["w1"].pid)
    for name in ("sync", "again", "task"):
        paths[name].touch()
    assert goes_on.result(60) == str(paths["sync"])
    # The state of a turn that was cut is kept as it was.
    assert calls[1].result(60) == 2 and task.result(60) == 1
    paths["plain"].touch()
    assert plain.wait_for.remote(str(paths["plain"])).result(60) == 2


def test_a_loop_that_is_busy_for_a_while_keeps_its_coroutines(one_process, tmp_path):
    waits, busy, stuck = Waits.remote(), Blocks.remote(), Counter.remote()
    there, begun, path = tmp_path / "there", tmp_path / "there.begun", tmp_path / "busy"
    waiting = waits.wait_for.remote(str(there))
    eventually(begun.exists)
    with pytest.raises(errors.DeadlineExceeded):
        stuck.hang.options(run_timeout="300ms").remote(str(tmp_path / "never")).result(30)
    # It has the loop when the process is replaced, and nobody has given it up.
    blocking = busy.wait.remote(str(path))
    eventually(lambda: "a python process is replaced" in log(one_process), 60)
    eventually(lambda: "the process begins nothing more" in log(one_process), 60)
    assert not waiting.done() and not blocking.done()
    there.touch()
    path.touch()
    assert (waiting.result(60), blocking.result(60)) == (1, str(path))
