"""Drivers live long: the head dies and comes back, the network breaks, and a session goes on."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import BIN, eventually

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
    second = covey.init(reinit=True)
    assert covey.current() is second is not session
    actor = Counter.remote()
    assert actor.add.remote().result(30) == 1
    covey.shutdown()
    for use in (actor.add.remote, covey.status, Counter.remote):
        with pytest.raises(covey.errors.FailedPrecondition, match="shut down"):
            use()
    covey.init()
    assert Counter.remote().add.remote().result(30) == 1
