"""Drivers live long: the head dies and comes back, the network breaks, and a session goes on."""

import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import BIN, ROOT, eventually

import covey
from covey import agent


@agent
class Counter:
    def __init__(self, start=0):
        self.count = start

    async def add(self, n=1):
        self.count += n
        return self.count

    async def slow(self, file, n):
        import asyncio

        with open(file, "a") as log:
            log.write(f"{n}\n")
        await asyncio.sleep(2)
        return n

    async def holds(self, file):
        import asyncio
        import os

        open(file + ".held", "w").close()
        while not os.path.exists(file):
            await asyncio.sleep(0.01)


def one(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)


def test_calls_on_lanes_outlive_the_head(nodes, tmp_path):
    one(nodes)
    file = str(tmp_path / "effects")
    actors = [Counter.remote() for _ in range(10)]
    assert covey.get([a.add.remote() for a in actors]) == [1] * 10
    calls = [a.slow.remote(file, n) for n, a in enumerate(actors)]
    eventually(lambda: os.path.exists(file) and len(open(file).readlines()) == 10)
    nodes.kill9("head")
    # What runs goes on, and so does what is called meanwhile.
    assert covey.get(calls, timeout=30) == list(range(10))
    assert covey.get([a.add.remote() for a in actors], timeout=30) == [2] * 10
    assert sorted(map(int, open(file).readlines())) == list(range(10))


@covey.task
def double(n):
    return 2 * n


def named_now(name):
    try:
        return covey.get_actor(name)
    except covey.errors.NotFound:
        return None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_session_goes_on_after_a_restart_of_the_head(nodes, end):
    one(nodes)
    named = Counter.options(name="the one").remote(100)
    other = Counter.remote()
    assert (named.add.remote().result(30), other.add.remote().result(30)) == (101, 1)
    assert double.remote(4).result(30) == 8
    topic = covey.topic("news")
    listener = topic.listen()
    got = iter(listener)
    assert topic.publish("before", sure=True).result(30) == 1
    nodes.running["head"].send_signal(end)
    nodes.running.pop("head").wait()
    # All that needs the head waits for it.
    waiting = {}

    def ask(name, what):
        waiting[name] = what()

    asks = [
        threading.Thread(target=ask, args=("status", lambda: covey.status()["version"] != "")),
        threading.Thread(target=ask, args=("new", lambda: Counter.remote(7).add.remote().result(60))),
        threading.Thread(target=ask, args=("named", lambda: covey.get_actor("the one").add.remote().result(60))),
        threading.Thread(target=ask, args=("task", lambda: covey.submit("echo", "", "hello").result(60))),
        threading.Thread(target=ask, args=("function", lambda: double.remote(5).result(60))),
    ]
    for thread in asks:
        thread.start()
    assert other.add.remote().result(30) == 2
    nodes.head()
    for thread in asks:
        thread.join(60)
    assert waiting.pop("task") == "hello"
    assert waiting == {"status": True, "new": 8, "named": 102, "function": 10}
    # The actors are the ones that were there.
    assert (named.add.remote().result(30), other.add.remote().result(30)) == (103, 3)
    assert topic.publish("after", sure=True).result(60) == 1
    assert [next(got), next(got)] == ["before", "after"]
    listener.close()
    # And end with their driver, by the head that was not there when they were made.
    covey.shutdown()
    nodes.connect()
    eventually(lambda: not named_now("the one"))


def test_actors_that_no_worker_brings_back_start_anew(nodes):
    one(nodes)
    actor = Counter.options(name="lasting").remote(10)
    assert actor.add.remote().result(30) == 11
    nodes.kill9("head")
    nodes.kill9("w1")
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    assert actor.add.remote().result(60) == 11
    assert covey.get_actor("lasting").add.remote().result(30) == 12


def test_linked_actors_end_together_after_a_restart_of_the_head(nodes):
    one(nodes)
    first, second = (Counter.options(cpus=0.1).remote() for _ in range(2))
    lasting = Counter.options(name="lasting", detached=True, cpus=0.1).remote()
    assert covey.get([a.add.remote() for a in (first, second, lasting)], timeout=30) == [1, 1, 1]
    first.link(second)
    second.link(lasting)
    nodes.kill9("head")
    nodes.head()
    nodes.live(1)
    assert covey.get([a.add.remote() for a in (first, second, lasting)], timeout=30) == [2, 2, 2]
    first.kill()

    def why(actor):
        """Why it is over; a call that it had when it was ended is answered with less."""
        try:
            return actor.add.remote().result(30) and None
        except covey.ActorDied as error:
            return str(error) if "which it is linked to" in str(error) else None

    assert eventually(lambda: why(second)) and eventually(lambda: why(lasting))


@pytest.mark.parametrize("detached", [False, True])
def test_a_gang_that_waits_is_placed_as_one_after_a_restart_of_the_head(nodes, detached):
    nodes.head()
    for name in ("w1", "w2"):
        nodes.worker(name, "--cpus", "1")
    nodes.connect()
    nodes.live(2)
    holds = Counter.options(cpus=1).remote()
    assert holds.add.remote().result(30) == 1
    gang = covey.gang([Counter.options(cpus=1, detached=detached).bind(n) for n in (10, 20)], strategy="strict_spread")
    asked = [member.add.remote() for member in gang]
    nodes.kill9("head")
    nodes.head()
    nodes.live(2)
    # One CPU is free, and neither of the two takes it.
    single = Counter.options(cpus=1).remote()
    assert single.add.remote().result(30) == 1
    states = {a["id"]: a["state"] for a in covey.status()["actors"]}
    assert [states[member._actor] for member in gang] == ["pending", "pending"]
    single.kill()
    holds.kill()
    assert covey.get(asked, timeout=60) == [11, 21]
    assert covey.get([member.add.remote() for member in gang], timeout=30) == [12, 22]


@covey.task(retries=3)
def ends_its_process():
    os._exit(1)


def test_dead_letters_outlive_the_head(nodes):
    one(nodes)
    with pytest.raises(covey.ActorDied):
        ends_its_process.remote().result(60)
    eventually(lambda: "covey.function" in nodes.cli("dead-letters").stdout)
    nodes.kill9("head")
    nodes.head()
    assert "covey.function" in nodes.cli("dead-letters").stdout


@covey.task
def waits_for(file):
    import os
    import time

    open(file + ".runs", "w").close()
    while not os.path.exists(file):
        time.sleep(0.01)
    return "done"


@pytest.mark.parametrize("way", ["stopped", "killed"])
def test_a_worker_that_had_to_stop_all_says_so_and_what_may_runs_again(nodes, tmp_path, way):
    """Longer without a head than its lease: what it had may run elsewhere by then. Nobody cancelled it."""
    one(nodes)
    file = str(tmp_path / "go")
    frail = Counter.options(max_restarts=0).remote()
    actor = Counter.remote()
    assert (actor.add.remote().result(30), frail.add.remote().result(30)) == (1, 1)
    function = waits_for.remote(file)
    held = actor.holds.remote(file)
    eventually(lambda: os.path.exists(file + ".held") and os.path.exists(file + ".runs"))
    if way == "stopped":
        nodes.running["head"].send_signal(signal.SIGSTOP)
    else:
        nodes.kill9("head")
    eventually(lambda: "stopping everything" in (nodes.home / "w1.log").read_text(), timeout=60)
    with pytest.raises(covey.errors.ActorDied):
        held.result(60)
    (tmp_path / "go").touch()
    if way == "stopped":
        nodes.running["head"].send_signal(signal.SIGCONT)
    else:
        nodes.head()
    assert function.result(90) == "done"
    assert actor.add.remote().result(60) == 1, "its state was not kept"
    assert [a["restarts"] for a in covey.status()["actors"] if a["id"] == actor._actor] == [1]
    with pytest.raises(covey.errors.ActorDied):
        frail.add.remote().result(60)


def test_functions_go_on_after_a_head_that_was_away_for_too_long(nodes):
    """Actors that ran them hold CPUs until they are stopped: a driver that gave up on them says so to the head all the same."""
    nodes.head("--session-grace", "1")
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    assert covey.get([double.remote(n) for n in range(8)], timeout=30) == [2 * n for n in range(8)]
    nodes.kill9("head")

    def gave_up():
        try:
            return double.remote(1).result(30) and False
        except covey.errors.ConnectionLost:
            return True

    eventually(gave_up)
    nodes.head("--session-grace", "1")
    assert covey.get([double.remote(n) for n in range(8)], timeout=60) == [2 * n for n in range(8)]


class Wire:
    """Carries bytes to and from a port, until it is cut."""

    def __init__(self, port):
        self.port, self.pairs, self.up = port, [], True
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.at = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if not self.up:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            self.pairs.append((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        self.up = False
        for pair in self.pairs:
            for end in pair:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self.pairs.clear()

    def close(self):
        self.cut()
        self.listener.close()


@pytest.fixture
def wire(nodes):
    nodes.head("--session-grace", "3")
    nodes.worker("w1", "--cpus", "2")
    made = Wire(int(nodes.port))
    covey.connect(f"127.0.0.1:{made.at}", nodes.keys["admin_key"])
    nodes.live(1)
    yield made
    covey.shutdown()
    made.close()


def test_a_connection_that_breaks_keeps_the_actors(wire):
    actor = Counter.remote()
    assert actor.add.remote().result(30) == 1
    for n in range(2, 6):
        wire.cut()
        assert actor.add.remote().result(30) == n
        wire.up = True
        assert Counter.remote(n).add.remote().result(30) == n + 1
    assert actor.add.remote().result(30) == 6


def test_a_driver_that_is_away_for_too_long_is_told_and_begins_again(wire, nodes):
    actor = Counter.options(name="mine").remote()
    assert actor.add.remote().result(30) == 1
    wire.cut()
    with pytest.raises(covey.ConnectionLost, match="head"):
        covey.status()
    with pytest.raises(covey.ConnectionLost, match="head"):
        Counter.remote()
    look = [BIN, "actors", "--json"]
    gone = subprocess.run(look, env=nodes.env, capture_output=True, text=True, timeout=60)
    assert gone.returncode == 0, gone.stderr
    wire.up = True
    eventually(lambda: covey.status())

    def asked():
        try:
            return actor.add.remote().result(30) and False
        except covey.ConnectionLost:
            return False  # its session is not back yet

    with pytest.raises((covey.ActorDied, covey.errors.NotFound)):
        eventually(asked)
    # What the driver does next is as if it had just come.
    assert Counter.options(name="mine").remote(1).add.remote().result(30) == 2
    assert double.remote(4).result(30) == 8


def test_a_driver_that_was_killed_leaves_nothing_behind(nodes):
    nodes.head("--session-grace", "1")
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    program = f"""
import covey, time
from covey import agent
covey.connect({nodes.address!r}, {nodes.keys["admin_key"]!r})
@agent
class Idle:
    def here(self): return 1
actor = Idle.options(name="of another").remote()
assert actor.here.remote().result(30) == 1
print("ready", flush=True)
time.sleep(600)
"""
    driver = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert driver.stdout.readline().strip() == "ready"
    assert covey.get_actor("of another")
    driver.kill()
    driver.wait()
    eventually(lambda: not named_now("of another"))


def test_init_connects_where_the_environment_says(nodes, monkeypatch):
    one(nodes)
    covey.shutdown()
    monkeypatch.setenv("COVEY_ADDRESS", nodes.address)
    monkeypatch.setenv("COVEY_TOKEN", nodes.keys["admin_key"])
    session = covey.init()
    assert session.address == nodes.keys["address"]
    with pytest.raises(covey.errors.FailedPrecondition, match="reinit"):
        covey.init()
    assert covey.current() is session
    with pytest.raises(covey.errors.FailedPrecondition, match=r"covey.connect\(reinit=True\)"):
        covey.connect()
    assert covey.current() is session and covey.status()["nodes"]
    second = covey.init(reinit=True)
    assert covey.current() is second is not session
    third = covey.connect(reinit=True)
    assert covey.current() is third is not second
    actor = Counter.remote()
    assert actor.add.remote().result(30) == 1
    covey.shutdown()
    for use in (actor.add.remote, covey.status, Counter.remote):
        with pytest.raises(covey.errors.FailedPrecondition, match="shut down"):
            use()
    covey.init()
    assert Counter.remote().add.remote().result(30) == 1


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("https://127.0.0.1:7420", "https:// does not lead to one"),
        ("127.0.0.1:99999", "'99999' is not a port, which is a number from 1 to 65535"),
        ("covey://127.0.0.1:0", "'0' is not a port, which is a number from 1 to 65535"),
        ("127.0.0.1:abc", "'abc' is not a port, which is a number from 1 to 65535"),
        ("127.0.0.1:-1#ab", "'-1' is not a port, which is a number from 1 to 65535"),
        ("abc", "it has no port"),
        ("covey://127.0.0.1:", "it has no port"),
        ("::1:7420", r"an IPv6 address stands in brackets, like \[::1\]:7420"),
        ("me@127.0.0.1:7420", "it is not a host and a port"),
        ("127.0.0.1:7420/path", "it is not a host and a port"),
        ("covey://", "it is not a host and a port"),
    ],
)
def test_an_address_of_another_form_is_told(monkeypatch, address, why):
    covey.shutdown()
    form = "write it as host:port, like 127.0.0.1:7420, or as host:port#fingerprint"
    with pytest.raises(ValueError, match=f"address '{address}' is not the address of a head: {why}; {form}".replace("#", ".")):
        covey.connect(address, "key")
    monkeypatch.setenv("COVEY_ADDRESS", address)
    for begin in (covey.init, covey.connect):
        with pytest.raises(ValueError, match="COVEY_ADDRESS '"):
            begin()


def test_forms_of_addresses(nodes):
    nodes.head()
    host = nodes.keys["address"]
    for address in (host, f" {host}\n", f"covey://{host}", f"covey://{host}/"):
        with covey.connect(address, nodes.keys["admin_key"]) as session:
            assert session.address.startswith(host)
    for address in ("[::1]:1", "localhost:1", "127.0.0.1:1"):
        with pytest.raises(covey.ConnectionLost, match="failed to reach a head"):
            covey.connect(address, "key")
    with pytest.raises(TypeError, match="address takes the address of a head as a text, not 7420"):
        covey.connect(7420, "key")


READS = """
import covey
reads = {
    "status": covey.status, "actors": lambda: next(covey.actors()), "tasks": lambda: next(covey.tasks()), "agents": covey.agents,
    "topics": covey.topics, "get_task": lambda: covey.get_task("x"), "get_actor": lambda: covey.get_actor("x"),
}
for name, read in reads.items():
    try:
        read()
    except covey.errors.FailedPrecondition as error:
        print(name, error)
"""


def test_what_reads_begins_no_cluster(nodes):
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    env |= {"COVEY_HOME": str(nodes.home), "COVEY_BIN": "/nowhere/covey"}

    def told(program):
        done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    why = "there is no session: covey.init() starts a cluster, covey.connect() takes a running one"
    names = ("status", "actors", "tasks", "agents", "topics", "get_task", "get_actor")
    assert told(READS) == [f"{name} {why}" for name in names]
    # Where the environment names a cluster, they read of that.
    nodes.head()
    env |= {"COVEY_ADDRESS": nodes.address, "COVEY_TOKEN": nodes.keys["admin_key"]}
    assert told("import covey; print(covey.status()['nodes'])") == ["[]"]


ALONE = """
import sys, numpy, covey
covey.init()
assert covey.status()["nodes"], "its worker is there"
ref = covey.put(numpy.zeros(300_000))

@covey.task
def total(array):
    return float(array.sum())

assert total.remote(ref).result(60) == 0
session = covey.current()
print(session._home.path, session._process.pid, session.private_folder(), flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_driver_that_is_killed_leaves_no_cluster_and_no_folders(tmp_path, how):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    left = lambda: set(temporary.glob("covey-*"))  # noqa: E731
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVEY_")}
    env |= {"TMPDIR": str(temporary), "COVEY_HOME": str(tmp_path / "home"), "COVEY_BIN": BIN, "PYTHONPATH": str(ROOT / "python-bindings/python")}

    def start():
        driver = subprocess.Popen([sys.executable, "-c", ALONE], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        home, pid, objects = driver.stdout.readline().split()
        assert pathlib.Path(home) in left() and os.path.isdir(objects)
        return driver, int(pid), pathlib.Path(objects)

    def end(driver):
        driver.stdin.close()
        driver.stdout.close()
        driver.wait(60)

    driver, _, lent = start()
    driver.send_signal(how)
    eventually(lambda: not left(), timeout=60)
    end(driver)
    # Where the cluster is killed with it, the next one takes away what they left.
    driver, cluster, _ = start()
    driver.kill()
    os.kill(cluster, signal.SIGKILL)
    driver.wait(60)
    killed = left()
    assert killed
    end(driver)
    driver, _, _ = start()
    eventually(lambda: not killed & left() and not lent.exists(), timeout=60)
    assert not [path for path in killed if (pathlib.Path("/dev/shm") / path.name).exists()]
    end(driver)
    eventually(lambda: not left(), timeout=60)
    notes = (tmp_path / "home/private").glob("*.json")
    assert not [note for note in notes if not os.path.isdir(json.loads(note.read_text())["home"])]


def test_what_is_under_way_ends_with_its_session(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)

    @covey.agent
    class Sleeps:
        def sleep(self) -> None:
            time.sleep(60)

    @covey.task
    def sleep(n: int) -> None:
        time.sleep(60)

    with Sleeps.pool(1) as pool:
        # Some run, some wait for an actor, nobody looks at any.
        begun = [sleep.remote(n) for n in range(5)] + [Sleeps.remote().sleep.remote()] + [pool.sleep.remote() for _ in range(3)]
        time.sleep(0.5)
        covey.shutdown()
        for future in begun:
            with pytest.raises(covey.ConnectionLost, match="session was closed"):
                future.result(20)
        assert covey.wait(begun, num_returns=len(begun), timeout=5)[0] == begun


def test_waits_for_a_task_end_with_their_session_and_do_not_say_that_it_is_done(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)

    @covey.agent
    class Sleeps:
        async def sleep(self) -> None:
            await asyncio.sleep(60)

    task = covey.submit(Sleeps, "sleep")
    eventually(lambda: task.state() == "working")

    async def awaited():
        return await task

    ways = {
        "result": lambda: task.result(),
        "result in time": lambda: task.result(timeout=40),
        "await": lambda: asyncio.run(awaited()),
        "wait": lambda: covey.wait([task]),
        "wait in time": lambda: covey.wait([task], timeout=40),
        "as_completed": lambda: list(covey.as_completed([task])),
        "events": lambda: list(task.events()),
        "items": lambda: list(task),
    }
    ended = {}

    def waits(way):
        try:
            ended[way] = ways[way]()
        except BaseException as error:
            ended[way] = error

    threads = [threading.Thread(target=waits, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    time.sleep(1)
    assert not ended
    covey.shutdown()
    eventually(lambda: len(ended) == len(ways))
    nodes.connect()
    assert task.state() == "working"
    task.cancel()
    assert {way: how for way, how in ended.items() if not isinstance(how, covey.ConnectionLost | covey.errors.FailedPrecondition)} == {}


def test_of_threads_that_begin_at_once_one_begins_the_session(tmp_path):
    program = tmp_path / "threads.py"
    program.write_text(
        """
import threading, covey, covey.errors

together, said = threading.Barrier(8), []

def begins(number):
    together.wait()
    try:
        said.append(covey.init(cpus=1) if number % 2 else covey.current())
    except covey.errors.FailedPrecondition:
        said.append(None)

threads = [threading.Thread(target=begins, args=(n,)) for n in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
made = {id(one) for one in said if one is not None}
print(len(said), len(made), made == {id(covey.current())})
"""
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVEY_")}
    ran = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "8 1 True\n" and ran.stderr.count("cluster of its own") == 1, (ran.stdout, ran.stderr)


def test_what_a_worker_offers_is_not_said_to_a_cluster_that_runs(nodes, monkeypatch):
    nodes.head()
    with pytest.raises(ValueError, match="cpus, labels: only for a cluster that is started here"):
        covey.init(nodes.address, nodes.keys["admin_key"], cpus=2, labels={"a": "b"}, reinit=True)
    monkeypatch.setenv("COVEY_ADDRESS", nodes.address)
    monkeypatch.setenv("COVEY_TOKEN", nodes.keys["admin_key"])
    with pytest.warns(RuntimeWarning, match="cpus: only .* COVEY_ADDRESS"):
        covey.init(cpus=2, reinit=True)
    covey.shutdown()


def test_waits_for_tasks_end_in_time_while_the_head_is_away(nodes):
    import asyncio

    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)

    @covey.agent(concurrency=2)
    class Sleeps:
        def sleep(self) -> None:
            time.sleep(30)

    task, future = covey.submit(Sleeps, "sleep"), Sleeps.remote().sleep.remote()
    eventually(lambda: task.state() == "working")
    nodes.running["head"].send_signal(signal.SIGSTOP)
    try:
        for wait in (lambda: task.result(1), lambda: covey.get([future, task], timeout=1), lambda: list(covey.as_completed([task], timeout=1))):
            with pytest.raises(covey.DeadlineExceeded):
                wait()
        assert covey.wait([future, task], timeout=1) == ([], [future, task])

        async def waits():
            return await asyncio.wait_for(task, 1)

        with pytest.raises(asyncio.TimeoutError):
            asyncio.run(waits())
    finally:
        nodes.running["head"].send_signal(signal.SIGCONT)
    task.cancel()


def test_a_childs_end_takes_nothing_from_its_parents_cluster(tmp_path):
    program = tmp_path / "forks.py"
    program.write_text(
        """
import os, sys
import covey

@covey.agent
class Plain:
    def run(self) -> int:
        return 1

with covey.init(cpus=2) as session:
    assert Plain.remote().run.remote().result(30) == 1
    with covey.topic("news").listen(), covey.Executor() as executor, Plain.pool(1) as pool:
        pool.run.remote().result(30)
        executor.submit(abs, -1).result(30)
        if os.fork() == 0:
            sys.exit(5)
        _, status = os.wait()
    print(os.waitstatus_to_exitcode(status), os.path.isdir(session._home.path), Plain.remote().run.remote().result(30))
"""
    )
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVEY_")}
    ran = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=90)
    assert ran.stdout == "5 True 1\n", (ran.stdout, ran.stderr)


@agent
class Tidy:
    async def run(self, path):
        try:
            pathlib.Path(path + ".begun").touch()
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            pathlib.Path(path).touch()


def test_a_worker_that_stops_while_the_head_is_away_lets_turns_end(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    path = tmp_path / "ended"
    future = Tidy.remote().run.remote(str(path))
    eventually((tmp_path / "ended.begun").exists)
    nodes.kill9("head")
    worker = nodes.running.pop("w1")
    worker.terminate()
    assert worker.wait(20) == 0
    assert path.exists()
    future.cancel()
