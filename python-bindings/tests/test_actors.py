"""Actors at full strength: order, retries, functions, virtual actors and their state, actors that call actors."""

import asyncio
import concurrent.futures
import gc
import os
import pathlib
import signal
import time

import numpy as np
import pytest
from conftest import eventually

import covey
from covey import Context, _objects, _session, agent
from covey._schema import of_hint


@agent
class Log:
    def __init__(self):
        self.seen = []

    def add(self, x):
        self.seen.append(x)
        return len(self.seen)

    def all(self):
        return self.seen

    def pid(self):
        return os.getpid()


@agent(own_process=True)
class Alone(Log.__covey_class__):
    def nap(self, path, seconds):
        with open(path, "a") as file:
            file.write("ran\n")
        time.sleep(seconds)
        return os.getpid()


@agent(idle="1s")
class Visitor:
    def __init__(self, key):
        self.key, self.visits = key, 0

    def visit(self):
        self.visits += 1
        return self.key, self.visits, os.getpid()

    def __snapshot__(self):
        return self.visits

    def __restore__(self, state):
        self.visits = state


@agent(name="careful", snapshot="turn", own_process=True)
class Careful:
    def __init__(self, key):
        self.total = 0

    def add(self, n):
        self.total += n
        return self.total

    def pid(self):
        return os.getpid()

    def __snapshot__(self):
        return self.total

    def __restore__(self, state):
        self.total = state


# What other tests do to processes does not end what it has heard.
@agent(own_process=True)
class Alarm:
    def __init__(self, key="made"):
        self.rung = []

    def set(self, ctx: Context, name, after, every=None):
        ctx.remind(name, after=after, every=every, method="ring", args=(name,))

    def forget(self, ctx: Context, name):
        ctx.forget_reminder(name)

    def tick(self, ctx: Context):
        ctx.timer("50ms", "ring", "timer")

    def ring(self, name):
        self.rung.append(name)

    def heard(self):
        return self.rung


@covey.task(retries=3)
def slow_square(x, folder):
    pathlib.Path(folder, f"{x}-{os.getpid()}").touch()
    time.sleep(0.3)
    return x * x


@covey.task
def plus_one(x):
    return x + 1


def test_calls_of_one_caller_keep_their_order(cluster):
    log = Log.remote()
    futures = [log.add.remote(i) for i in range(3000)]
    assert covey.get(futures) == list(range(1, 3001))
    assert log.all.remote().result(20) == list(range(3000))


def test_order_survives_the_move_to_another_worker(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "1")
    nodes.worker("b", "--cpus", "1")
    with nodes.connect():
        nodes.live(2)
        log = Log.options(name="moved").remote()
        first = covey.status()["actors"][0]
        log.add.remote(-1).result(20)
        at = {n["id"]: n["name"] for n in covey.status()["nodes"]}
        on = at[eventually(lambda: covey.status()["actors"][0].get("node"))]
        nodes.kill9(on)
        # Sent while nobody knows yet: each runs on the new actor in order, or fails saying that it may have run.
        futures = [log.add.options(retries=5).remote(i) for i in range(500)]
        covey.get(futures, timeout=60)
        seen = log.all.remote().result(20)
        assert seen == sorted(seen) and set(seen) >= set(range(500)), first


def test_through_the_head_when_a_worker_has_no_port(nodes):
    nodes.head()
    nodes.worker("w", "--cpus", "1", "--no-listen")
    with nodes.connect():
        nodes.live(1)
        log = Log.remote()
        assert covey.get([log.add.remote(i) for i in range(1000)], timeout=60) == list(range(1, 1001))
        assert plus_one.map(range(50)) == list(range(1, 51))


def test_a_key_runs_once_and_retries_run_again(cluster, tmp_path):
    path = tmp_path / "ran"
    one = Alone.remote()
    keyed = one.nap.options(key="k1")
    assert keyed.remote(str(path), 0).result(20) == keyed.remote(str(path), 0).result(20)
    assert path.read_text() == "ran\n"
    pid = one.pid.remote().result(20)
    again = one.nap.options(retries=2).remote(str(path), 1.0)
    eventually(lambda: path.read_text().count("ran") == 2)
    os.kill(pid, signal.SIGKILL)
    assert again.result(30) != pid
    assert path.read_text().count("ran") == 3
    pid = one.pid.remote().result(20)
    lost = one.nap.remote(str(path), 30)
    eventually(lambda: path.read_text().count("ran") == 4)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(covey.ActorDied) as caught:
        lost.result(30)
    assert caught.value.executed is None


def test_functions_map_and_survive_a_killed_process(cluster, tmp_path):
    assert plus_one.remote(1).result(20) == 2
    assert plus_one(1) == 2
    assert plus_one.map(range(2000)) == list(range(1, 2001))
    assert sorted(plus_one.map_unordered([1, 2, 3])) == [2, 3, 4]
    bad = covey.task(lambda x: 1 // x)
    assert [type(r) for r in bad.map([1, 0], return_exceptions=True)] == [int, ZeroDivisionError]
    futures = [slow_square.remote(i, str(tmp_path)) for i in range(4)]
    first = eventually(lambda: [p.name for p in tmp_path.iterdir()])[0]
    os.kill(int(first.split("-")[1]), signal.SIGKILL)
    assert covey.get(futures, timeout=60) == [0, 1, 4, 9]


def test_the_executor_is_one_of_the_standard_library(cluster):
    with covey.Executor(max_workers=3) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor.submit(pow, 2, 10).result(20) == 1024
        assert list(executor.map(lambda a, b: a * b, range(10), range(10), chunksize=4)) == [i * i for i in range(10)]
        done, waiting = concurrent.futures.wait([executor.submit(abs, -i) for i in range(20)], timeout=30)
        assert sorted(f.result() for f in done) == list(range(20)) and not waiting

        async def main():
            return await asyncio.get_running_loop().run_in_executor(executor, divmod, 7, 2)

        assert asyncio.run(main()) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(20)
        assert list(executor.map(lambda x: x + 1, [1, 2], chunksize=2)) == [2, 3]
        sleeping = executor.submit(time.sleep, 60)
        assert sleeping.cancel() and sleeping.cancelled()
    with pytest.raises(RuntimeError, match="shutdown"):
        executor.submit(abs, 1)
    runs = lambda: [a for a in covey.status()["actors"] if a["agent"] == "covey.function" and a["state"] != "dead"]  # noqa: E731
    eventually(lambda: not runs())


def test_actors_call_actors_and_make_them(cluster):
    @agent
    class Boss:
        def __init__(self, log):
            self.log = log

        def sync(self, n):
            return covey.get([self.log.add.remote(i) for i in range(n)])

        async def later(self, n):
            return await asyncio.gather(*[self.log.add.remote(i) for i in range(n)])

        async def hire(self):
            return await Log.remote().add.remote("x")

        def functions(self):
            return plus_one.map(range(20))

        def fail(self):
            return covey.task(lambda: 1 // 0).remote().result()

    log = Log.remote()
    boss = Boss.remote(log)
    assert boss.sync.remote(5).result(20) == [1, 2, 3, 4, 5]
    assert boss.later.remote(5).result(20) == [6, 7, 8, 9, 10]
    assert boss.hire.remote().result(20) == 1
    assert boss.functions.remote().result(20) == list(range(1, 21))
    with pytest.raises(ZeroDivisionError):
        boss.fail.remote().result(20)


def test_a_call_that_would_wait_for_itself_says_so(cluster):
    @agent(name="looped")
    class Looped:
        def a(self, me):
            return me.b.remote().result()

        def b(self):
            return "b"

        async def later(self, me):
            return await me.b.remote()

        def round(self, other, me):
            return other.a.remote(me).result()

        def to_itself(self, me, log):
            # Nobody waits: it runs after this turn.
            me.note.remote(log)
            time.sleep(0.2)

        def note(self, log):
            log.add.remote("noted").result()

        async def echo_later(self, me, log):
            async def soon():
                await asyncio.sleep(0.2)
                me.note.remote(log)

            self.soon = asyncio.get_running_loop().create_task(soon())

        def busy_after(self, other, me, log):
            # The wait is over when the other's late call comes: it has its turn after this one.
            other.echo_later.remote(me, log).result()
            time.sleep(0.6)

    one, other = Looped.remote(), Looped.remote()
    for call in (one.a.remote(one), one.later.remote(one), one.round.remote(other, one)):
        with pytest.raises(covey.CoveyError, match="wait for itself.*reentrant=True"):
            call.result(20)
    log = Log.remote()
    one.to_itself.remote(one, log).result(20)
    eventually(lambda: log.all.remote().result(20) == ["noted"])
    one.busy_after.remote(other, one, log).result(20)
    eventually(lambda: log.all.remote().result(20) == ["noted", "noted"])
    two = agent(name="reentrant", reentrant=True)(Looped.__covey_class__).remote()
    assert two.a.remote(two).result(20) == "b"


def test_a_deadline_travels(cluster):
    @agent
    class Hop:
        def __init__(self, target=None):
            self.target = target

        def through(self):
            return self.target.end.remote().result()

        def end(self):
            time.sleep(30)

    hop = Hop.remote(Hop.remote())
    # It would come back with an answer were the deadline not kept.
    with covey.deadline("1s"), pytest.raises(covey.DeadlineExceeded):
        hop.through.remote().result(60)


def test_virtual_actors_sleep_and_wake_with_their_state(cluster):
    Visitor.at("ada").visit.remote().result(20)
    assert Visitor.at("ada").visit.remote().result(20)[:2] == ("ada", 2)
    assert Visitor.at("bob").visit.remote().result(20)[:2] == ("bob", 1)

    def awake():
        return [a for a in covey.status()["actors"] if a["id"].startswith("Visitor/") and a["state"] != "dead"]

    assert len(awake()) == 2
    eventually(lambda: not awake())
    # Many callers at once wake one.
    answers = covey.get([Visitor.at("ada").visit.remote() for _ in range(50)], timeout=30)
    assert sorted(a[1] for a in answers) == list(range(3, 53)) and len({a[2] for a in answers}) == 1
    with pytest.raises(ValueError, match="key"):
        Visitor.at("")


def test_the_state_of_each_turn_survives_kill_9(cluster):
    actor = Careful.at("till")
    assert [actor.add.remote(10).result(20) for _ in range(3)] == [10, 20, 30]
    for n in range(3):
        os.kill(actor.pid.remote().result(20), signal.SIGKILL)
        assert actor.add.options(retries=9).remote(1).result(30) == 31 + n


def test_virtual_and_detached_actors_survive_the_head(nodes):
    nodes.head()
    nodes.worker("w", "--cpus", "2")
    with nodes.connect():
        nodes.live(1)
        Careful.at("a").add.remote(5).result(20)
        named = Careful.options(name="kept", detached=True).remote("x")
        assert named.add.remote(7).result(20) == 7
    nodes.kill9("head")
    nodes.head()
    with nodes.connect():
        nodes.live(1)
        assert Careful.at("a").add.options(retries=9).remote(1).result(30) == 6
        assert covey.get_actor("kept").add.options(retries=9).remote(1).result(30) == 8


def test_joblib_runs_on_the_cluster(cluster):
    import joblib

    from covey.compat.joblib import register

    register()

    def work(x):
        if x == 999:
            raise ValueError("not this one")
        return os.getpid(), x * x

    with joblib.parallel_config("covey"):
        done = joblib.Parallel(n_jobs=2)(joblib.delayed(work)(i) for i in range(500))
        assert [square for _, square in done] == [i * i for i in range(500)]
        assert os.getpid() not in {pid for pid, _ in done}
        assert joblib.effective_n_jobs(-1) == 2
        streamed = joblib.Parallel(n_jobs=-1, return_as="generator")(joblib.delayed(divmod)(i, 3) for i in range(20))
        assert list(streamed) == [divmod(i, 3) for i in range(20)]
        with pytest.raises(ValueError, match="not this one"):
            joblib.Parallel(n_jobs=2)(joblib.delayed(work)(i) for i in (1, 999, 2))


def test_reminders_and_timers_ring(cluster):
    alarm = Alarm.at("desk")
    alarm.set.remote("once", "100ms").result(20)
    alarm.set.remote("often", "100ms", "150ms").result(20)
    alarm.tick.remote().result(20)
    eventually(lambda: alarm.heard.remote().result(20).count("often") >= 3)
    alarm.forget.remote("often").result(20)
    heard = alarm.heard.remote().result(20)
    assert heard.count("once") == 1 and heard.count("timer") == 1
    with pytest.raises(covey.errors.NotFound):
        alarm.forget.remote("often").result(20)


def test_drain_lets_what_is_in_the_mailbox_finish(cluster):
    log = Alone.remote()
    futures = [log.add.remote(i) for i in range(200)]
    log.stop(drain=True)
    assert covey.get(futures, timeout=30) == list(range(1, 201))
    with pytest.raises(covey.ActorDied):
        log.add.remote(1).result(20)


def test_why_something_waits_is_told_within_seconds(cluster, terminal):
    # Of its own: what other tests left stuck in a shared one has its process replaced meanwhile, and moves who is in it.
    @agent(cpus=1.5, own_process=True)
    class Big:
        def hello(self):
            return 1

    first, second = Big.remote(), Big.remote()
    first.hello.remote().result(20)
    waiting = second.hello.remote()
    terminal.has("needs cpus=1.5, 0.5 free", err=True)
    first.stop()
    assert waiting.result(20) == 1


def test_shared_values_travel_once_to_each_worker(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "1")
    nodes.env["COVEY_MACHINE"] = "another"
    nodes.worker("b", "--cpus", "1")

    @agent(cpus=1)
    class Sum:
        def total(self, array, by=1):
            return float(array.sum()) * by, os.environ["COVEY_OBJECTS"]

        def keep(self):
            return covey.put(np.full(10, 3.0))

    with nodes.connect():
        nodes.live(2)
        ref = covey.put(np.ones(1 << 20))
        actors = [Sum.remote() for _ in range(2)]
        answers = covey.get([a.total.remote(ref, by=2) for a in actors for _ in range(3)], timeout=60)
        folders = {folder for _, folder in answers}
        assert {total for total, _ in answers} == {2.0 * (1 << 20)} and len(folders) == 2
        for folder in folders:
            assert pathlib.Path(folder, ref.session, ref.digest).stat().st_size == ref.size
        for a in actors:
            assert covey.get(a.keep.remote().result(20)).sum() == 30.0
        assert covey.put(np.ones(1 << 20)).digest == ref.digest


def test_a_rolling_restart_of_all_workers_loses_no_retryable_call_and_no_task(nodes):
    nodes.head()
    for name in ("a", "b"):
        nodes.worker(name, "--cpus", "2")
    with nodes.connect():
        nodes.live(2)
        actors = [Careful.at(f"k{i}") for i in range(6)]
        tasks = [covey.submit("echo", "run", "slow: one two three") for _ in range(6)]
        totals, calls = [0] * 6, []
        stop = []

        def load():
            while not stop:
                for i, actor in enumerate(actors):
                    calls.append((i, actor.add.options(retries=9).remote(1)))
                time.sleep(0.01)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(load)
            for name in ("a", "b"):
                eventually(lambda: len(calls) > 50)
                nodes.running[name].terminate()
                assert nodes.running.pop(name).wait(30) == 0
                nodes.worker(name, "--cpus", "2")
                eventually(lambda: sum(n["state"] == "live" for n in covey.status()["nodes"]) >= 2)
                calls_before = len(calls)
                eventually(lambda: len(calls) > calls_before + 30)
            stop.append(True)
            running.result(30)
        for i, call in calls:
            totals[i] = max(totals[i], call.result(30))
        sent = [sum(1 for j, _ in calls if j == i) for i in range(6)]
        assert totals == sent
        assert [t.result(timeout=60) for t in tasks] == ["one two three"] * 6


def test_drain_moves_actors_with_their_state(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "1")
    with nodes.connect():
        nodes.live(1)
        kept = Careful.options(name="drained", detached=True).remote("x")
        kept.add.remote(3).result(20)
        nodes.worker("b", "--cpus", "1")
        nodes.live(2)
        out = nodes.cli("drain", "a")
        assert out.returncode == 0 and "empty" in out.stdout, out.stderr
        assert kept.add.remote(1).result(20) == 4
        names = {n["id"]: n["name"] for n in covey.status()["nodes"]}
        assert {names[a["node"]] for a in covey.status()["actors"] if a["state"] == "live"} == {"b"}
        assert nodes.cli("drain", "nobody").returncode == 66


def test_code_ships_with_variables_a_folder_and_packages(cluster, tmp_path):
    folder, package = tmp_path / "work", tmp_path / "shipped-package"
    (folder / "inner").mkdir(parents=True)
    (folder / "helper.py").write_text("ANSWER = 42\n")
    (folder / "inner" / "data.txt").write_text("inside")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "junk").write_text("no")
    package.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n[project]\nname = "shipped"\nversion = "1.0"\n'
    )
    # A build backend of its own, so that pip needs nothing from anywhere.
    (package / "backend.py").write_text(
        "import zipfile\n"
        "def build_wheel(folder, config_settings=None, metadata_directory=None):\n"
        "    name = 'shipped-1.0-py3-none-any.whl'\n"
        "    with zipfile.ZipFile(folder + '/' + name, 'w') as wheel:\n"
        "        wheel.writestr('shipped.py', 'WHO = \\'pip\\'')\n"
        "        wheel.writestr('shipped-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: shipped\\nVersion: 1.0\\n')\n"
        "        wheel.writestr('shipped-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "        wheel.writestr('shipped-1.0.dist-info/RECORD', '')\n"
        "    return name\n"
    )

    @agent(name="shipped", env_vars={"FLAVOUR": "mint"}, working_dir=folder, pip=[str(package)])
    class Shipped:
        def look(self):
            import helper
            import shipped

            return helper.ANSWER, shipped.WHO, os.environ["FLAVOUR"], open("inner/data.txt").read(), os.path.exists("__pycache__/junk")

    assert Shipped.remote().look.remote().result(120) == (42, "pip", "mint", "inside", False)
    # Others are not touched by it.
    assert "FLAVOUR" not in covey.task(lambda: dict(os.environ)).remote().result(20)
    assert covey.task(lambda: os.environ["FLAVOUR"], env_vars={"FLAVOUR": "lime"}).remote().result(20) == "lime"
    broken = agent(name="broken-env", pip=[str(tmp_path / "nowhere")])(Shipped.__covey_class__)
    with pytest.raises(covey.CoveyError, match="failed to install .*nowhere"):
        broken.remote().look.remote().result(120)
    with pytest.raises(covey.errors.NotFound, match="no folder"):
        agent(working_dir=tmp_path / "none")(Shipped.__covey_class__)


def test_a_future_may_be_awaited_watched_and_waited_for_at_once(cluster):
    napper = Alone.remote()
    future, heard = napper.nap.remote(os.devnull, 0.3), []
    future.add_done_callback(lambda f: heard.append(f.result()))
    assert covey.wait([future], timeout=0.01) == ([], [future])

    async def main():
        return await asyncio.gather(future, future)

    first, second = asyncio.run(main())
    assert first == second == future.result()
    eventually(lambda: heard == [first])


def test_methods_of_a_group_are_counted_apart(cluster, tmp_path):
    @agent(name="grouped", groups={"io": 2})
    class Grouped:
        @covey.method(group="io")
        def wait_for(self, path):
            while not os.path.exists(path):
                time.sleep(0.01)
            return "there"

        def work(self):
            return "worked"

    one, path = Grouped.remote(), str(tmp_path / "go")
    waiting = [one.wait_for.remote(path) for _ in range(3)]
    # Two of them run, the third waits for a turn of the group; the rest of the actor goes on.
    assert one.work.remote().result(20) == "worked"
    open(path, "w").close()
    assert covey.get(waiting, timeout=20) == ["there"] * 3
    with pytest.raises(ValueError, match="groups"):
        agent(groups={"io": 0})(Grouped.__covey_class__)


@agent
class Taker:
    def total(self, array):
        array += 1  # it is the actor's own
        return float(array.sum())

    async def total_async(self, array, other=None):
        if other is not None:
            return await other.total.remote(array)
        return float(array.sum())

    def pieces(self, array, n):
        for i in range(n):
            yield float(array[i])

    def size(self, pair, *, also):
        return pair[0].nbytes + len(pair[1]) + also.nbytes


@covey.task
def total_of(array):
    return float(array.sum())


def lent(session):
    folder = pathlib.Path(_objects._own_store(session)[1]) / session.store_session
    return list(folder.glob("lent-*"))


def test_large_arguments_are_lent(cluster):
    session = _session.current()
    taker, other = Taker.remote(), Taker.remote()
    array = np.ones(200_000)
    result = taker.total.remote(array)
    array[:] = 7  # after the call was made: no business of the actor's
    assert result.result(30) == 400_000
    assert taker.total_async.remote(np.ones(100_000)).result(30) == 100_000
    assert taker.total_async.remote(np.ones(100_000), other).result(30) == 200_000
    assert list(taker.pieces.remote(np.arange(100_000.0), 600)) == [float(i) for i in range(600)]
    assert taker.size.remote((np.ones((300, 300), order="F")[::1], b"x" * 400_000), also=np.ones(3)).result(30) == 720_000 + 400_000 + 24
    assert total_of.remote(np.ones(150_000)).result(30) == 150_000
    assert covey.get([taker.total.remote(np.full(100_000, float(i))) for i in range(40)], timeout=30) == [100_000.0 * (i + 1) for i in range(40)]
    with pytest.raises(TypeError):
        taker.total.remote(np.ones(200_000), 1, 2, 3).result(30)
    eventually(lambda: not lent(session))
    # An unread stream and a call that is given up give theirs back too.
    stream = taker.pieces.remote(np.ones(100_000), 5)
    stream.cancel()
    taker.stop()
    with pytest.raises(covey.errors.CoveyError):
        taker.total.remote(np.ones(100_000)).result(30)
    eventually(lambda: not lent(session))


def test_puts_in_a_series(cluster):
    taker = Taker.remote()
    arrays = [np.full(200_000, float(i)) for i in range(12)]
    refs = [covey.put(a) for a in arrays]
    assert [r.get()[0] for r in refs] == list(range(12))
    assert covey.get([taker.total_async.remote(r) for r in refs], timeout=30) == [200_000.0 * i for i in range(12)]
    twice = [covey.put(arrays[0]) for _ in range(2)]
    assert twice[0].digest == twice[1].digest == refs[0].digest and len(refs[0].digest) == 64
    large = covey.put(np.ones(1_000_000))  # read for its digest while it is written
    assert taker.total_async.remote(large).result(30) == 1_000_000
    folder = pathlib.Path(_objects._own_store(_session.current())[1]) / _session.current().store_session
    unsent = covey.put(np.arange(90_000))
    path = folder / unsent.digest
    assert path.exists()
    del unsent
    gc.collect()
    eventually(lambda: not path.exists())
    eventually(lambda: not list(folder.glob(".draft-*")), timeout=20)  # what was made ahead is given back


@agent
class Order:
    def __init__(self):
        self.seen = []

    def note(self, number, load=b""):
        self.seen.append((number, len(load)))
        return number, load

    def all(self):
        return self.seen


def test_large_messages_to_another_machine_go_in_pieces(nodes, monkeypatch):
    nodes.head()
    nodes.worker("w", "--cpus", "2")
    # What is on another machine cannot be lent.
    monkeypatch.setenv("COVEY_MACHINE", "elsewhere")
    with nodes.connect():
        nodes.live(1)
        one, other = Order.remote(), Order.remote()
        sizes = [0, 6_000_000, 10, 300_000, 0, 20_000_000, 1, 262_144, 262_145, 0]
        calls = []
        for number, size in enumerate(sizes):
            calls.append(one.note.remote(number, bytes([number]) * size))
            calls += [other.note.remote(number), other.note.remote(number, b"x" * 40_000)]
        answers = covey.get(calls, timeout=60)
        assert answers[::3] == [(number, bytes([number]) * size) for number, size in enumerate(sizes)]
        assert one.all.remote().result(30) == list(enumerate(sizes))
        assert [n for n, _ in other.all.remote().result(30)] == [n for n in range(10) for _ in range(2)]
        with pytest.raises(covey.errors.CoveyError, match="limit is 32 MiB"):
            one.note.remote(0, b"x" * (33 << 20)).result(30)


@agent(concurrency=8, own_process=True)
class Signal:
    def __init__(self):
        self.event, self.waiting = asyncio.Event(), 0

    async def wait(self):
        self.waiting += 1
        await self.event.wait()
        return "told"

    def waiters(self):
        return self.waiting

    def send(self):
        self.event.set()


def test_a_plain_method_wakes_a_coroutine_that_waits_for_it(cluster):
    signal = Signal.remote()
    calls = [signal.wait.remote() for _ in range(3)]
    eventually(lambda: signal.waiters.remote().result(30) == 3)
    signal.send.remote().result(30)
    assert covey.get(calls, timeout=30) == ["told"] * 3


def test_methods_may_have_the_names_of_a_handles_verbs(cluster):
    @agent
    class Player:
        def stop(self, track: int) -> str:
            return f"stopped {track}"

        def kill(self) -> str:
            return "killed"

        def alive(self) -> bool:
            return True

    player = Player.remote()
    assert player.stop.remote(3).result(30) == "stopped 3" and player.kill.remote().result(30) == "killed"
    assert player.stop.options(deadline="30s").remote(4).result(30) == "stopped 4"
    player.stop()
    with pytest.raises(covey.ActorDied):
        player.alive.remote().result(30)


def test_a_handle_and_a_gang_say_what_they_do_not_take(cluster):
    @agent
    class Plain:
        def run(self) -> int:
            return 1

    handle = Plain.remote()
    with pytest.raises(AttributeError, match="the actor is elsewhere"):
        handle.count = 3
    with pytest.raises(TypeError, match=r"Agent.bind\(…\)"):
        covey.gang([handle])
    with Plain.pool(1) as pool, pytest.raises(TypeError, match="run.remote"):
        pool.run(1)
    for key, error in (("", ValueError), (None, TypeError)):
        with pytest.raises(error, match="key"):
            Plain.at(key)
    with pytest.raises(ValueError, match="'a2a' takes a dict of version"):
        agent(a2a={"verson": "2"})(type("Wrong", (), {"run": lambda self: 1}))
    with pytest.raises(TypeError, match="Wrong.__init__ takes a Context"):

        @agent
        class Wrong:
            def __init__(self, ctx: Context):
                pass

            def run(self) -> int:
                return 1

    with pytest.raises(covey.CoveyError, match="control characters"):
        Plain.options(name="a\nnode fake").remote()


def test_functions_end_when_their_packages_cannot_be_had(cluster):
    @covey.task(pip=["no-such-package-of-covey-anywhere"])
    def never() -> int:
        return 1

    with pytest.raises(covey.ActorDied, match="failed to install no-such-package-of-covey-anywhere"):
        never.remote().result(300)


@agent(name="actors-chain")
class Chain(covey.Actor):
    """Its methods take handles of its own kind, and say so."""

    @covey.method
    def length(self, rest: "Chain | None" = None) -> int:
        return 1 + (rest.length.remote().result(30) if rest is not None else 0)

    @covey.method
    def total(self, others: "list[Chain]", named: "dict[str, Chain]") -> int:
        return sum(other.length.remote().result(30) for other in [*others, *named.values()])


def test_a_method_takes_handles_of_its_own_agent(cluster):
    first, second = Chain.remote(), Chain.remote()
    assert first.length.remote(second).result(30) == 2
    assert first.total.remote([second], {"again": second}).result(30) == 2
    with pytest.raises(AttributeError, match="has no method 'lenght'; it has: length, total"):
        Chain.lenght  # noqa: B018


def test_an_annotation_that_is_an_agent_makes_no_actor():
    class Unasked(covey.Agent):
        def __init__(self):
            pass

        def __getattr__(self, name):
            raise AssertionError(f"asked for {name}")

    assert of_hint(Unasked()) == of_hint(list[Unasked()]).get("items") == {}
