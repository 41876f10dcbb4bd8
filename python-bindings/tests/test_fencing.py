"""Who may act, and until when: stopped workers, stopped heads, silent links, twins, jumping clocks, restarts.

What "acts" is watched from outside: a task writes a line for each thing it does, and no line of an older run may come after
the first of a newer one.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import BIN, eventually
from test_mesh import Net

import covey
from covey import agent

# The head waits this long for a silent worker, the worker itself a tenth less.
LEASE = 10


@agent(pool=4)
class Effects:
    def act(self, path: str, seconds: float):
        """Writes a line every 20 ms, as a method that notices nothing of what goes on around it."""
        import os
        import time
        import uuid

        run, end = uuid.uuid4().hex, time.monotonic() + seconds
        with open(path, "a", buffering=1) as out:
            while time.monotonic() < end:
                out.write(f"{run} {os.getpid()} {time.monotonic_ns()}\n")
                time.sleep(0.02)
        return run


@agent(idle="10m")
class Counter:
    """Keeps its count in memory, and gives it away only when it is asked to."""

    def __init__(self, key=""):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def __snapshot__(self):
        return self.n

    def __restore__(self, n):
        self.n = n


def lines(path):
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def runs(path):
    """The runs in the order of their first lines."""
    return list(dict.fromkeys(run for run, _, _ in lines(path)))


def check_effects(path):
    """No line of an older run after the first of a newer one."""
    newest = {}
    for at, (run, _, ns) in enumerate(lines(path)):
        newest.setdefault(run, (int(ns), at))
    order = sorted(newest, key=lambda run: newest[run][0])
    for run, _, ns in lines(path):
        younger = order[order.index(run) + 1 :]
        assert all(int(ns) <= newest[other][0] for other in younger), f"{run} acted after {younger[0]} began"


def states():
    return {n["name"]: n["state"] for n in covey.status()["nodes"]}


def test_a_worker_that_stood_still_stops_in_time_and_comes_back(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    path = tmp_path / "effects"
    task = covey.submit(Effects, "act", str(path), 20)
    eventually(lambda: len(lines(path)) > 10)
    nodes.worker("w2", "--cpus", "1")
    nodes.live(2)
    stopped = nodes.running["w1"]
    stopped.send_signal(signal.SIGSTOP)
    # Its Python process runs on, and must end by itself before another one begins.
    eventually(lambda: len(runs(path)) == 2)
    check_effects(path)
    stopped.send_signal(signal.SIGCONT)
    eventually(lambda: states()["w1"] == "live")
    assert task.result(60) == runs(path)[-1]
    check_effects(path)
    # Both take work again.
    more = [covey.submit(Effects, "act", str(tmp_path / f"more-{n}"), 1) for n in range(4)]
    assert len({t.result(60) for t in more}) == 4


def test_a_head_that_stood_still_loses_no_worker(nodes):
    nodes.head()
    for name in ("w1", "w2", "w3"):
        nodes.worker(name, "--cpus", "1")
    nodes.connect()
    nodes.live(3)
    nodes.running["head"].send_signal(signal.SIGSTOP)
    time.sleep(LEASE + 1)
    nodes.running["head"].send_signal(signal.SIGCONT)
    eventually(lambda: set(states().values()) == {"live"})
    tasks = [covey.submit("echo", "", f"hello {n}") for n in range(8)]
    assert [t.result(60) for t in tasks] == [f"hello {n}" for n in range(8)]


def test_a_second_process_of_a_name_is_told_so(nodes):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    token = f"{nodes.keys['join_secret']}@{nodes.address}"
    here = nodes.cli("worker", "--join", token, "--name", "w1")
    assert here.returncode == 73 and "w1" in here.stderr and "--name" in here.stderr, here.stderr
    # The same key on another machine: only the head can see that.
    other = nodes.home / "other"
    shutil.copytree(nodes.home / "workers", other / "workers")
    # And another key, which wants the name; by a label it is not had either.
    def elsewhere(home, *args):
        command = [BIN, "worker", "--join", token, "--name", "w1", *args]
        return subprocess.Popen(command, env={**nodes.env, "COVEY_HOME": str(home)}, stderr=subprocess.PIPE, text=True)

    ends = [(elsewhere(other), 73, "another process of worker `w1`"), (elsewhere(nodes.home / "new"), 73, "is called `w1` already")]
    ends.append((elsewhere(nodes.home / "third", "--label", "node=w1"), 64, "`--name` sets `node`"))
    for process, code, text in ends:
        said = process.communicate(timeout=90)[1]
        assert process.returncode == code and text in said, said
    assert states() == {"w1": "live"}
    assert covey.submit("echo", "", "still here").result(30) == "still here"


def test_a_worker_that_was_killed_has_its_name_back_at_once(nodes):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    for n in range(3):
        nodes.kill9("w1")
        nodes.worker("w1")
        assert covey.submit("echo", "", "back").result(60) == "back"
        # Its death was proven; its lease was not waited for.
        log = (nodes.home / "head.log").read_text()
        assert log.count("the worker's process is over") == n + 1, log


@pytest.mark.parametrize("round_", range(3))
def test_what_a_virtual_actor_counted_outlives_the_head(nodes, round_):
    """Calls race the worker that comes back after a restart of the head: the activation that lives is found again."""
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    keys = [f"k{n}" for n in range(8)]
    with nodes.connect():
        nodes.live(1)
        for key in keys:
            for n in range(3):
                assert Counter.at(key).add.remote().result(30) == n + 1
    # The worker stands still while the head comes back, so that every call is there before it.
    nodes.running["w1"].send_signal(signal.SIGSTOP)
    nodes.kill9("head")
    nodes.head()
    with nodes.connect():
        calls = [Counter.at(key).add.remote() for key in keys]
        time.sleep(1)
        nodes.running["w1"].send_signal(signal.SIGCONT)
        assert [call.result(60) for call in calls] == [4] * len(keys)


@agent(idle="10m", snapshot="turn")
class Ledger(Counter):
    """Gives no answer before its count is on the head's disk."""


def test_a_turn_whose_state_came_too_late_is_tried_again_where_it_may_be(nodes):
    """Head and worker die at one moment, and answers wait for states that only the next head can take. The activations are over
    then: a call with `retries` runs again in the next one, and another one is told that its actor died."""
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.worker("w2", "--cpus", "2")
    keys = [f"k{n}" for n in range(16)]
    ended, refused, acknowledged = threading.Event(), [], dict.fromkeys(keys, 0)

    def calls(key):
        retries = 5 * (keys.index(key) % 2)
        while not ended.is_set():
            try:
                acknowledged[key] = Ledger.at(key).add.options(retries=retries).remote().result(120)
            except covey.CoveyError as error:
                refused.append((retries, type(error).__name__, str(error)))

    with nodes.connect():
        nodes.live(2)
        threads = [threading.Thread(target=calls, args=(key,), daemon=True) for key in keys]
        [thread.start() for thread in threads]
        for _ in range(2):
            before = dict(acknowledged)
            eventually(lambda: all(acknowledged[key] > before[key] + 20 for key in keys), 60)
            nodes.kill9("head")
            nodes.kill9("w1")
            nodes.head()
            nodes.worker("w1", "--cpus", "2")
        before = dict(acknowledged)
        eventually(lambda: all(acknowledged[key] > before[key] + 20 for key in keys), 60)
        ended.set()
        [thread.join(120) for thread in threads]
    assert {kind for _, kind, _ in refused} <= {"ActorDied"}, refused
    assert not [told for told in refused if told[0]], refused


def test_virtual_actors_that_were_starting_come_up_under_the_next_head(nodes):
    """Nobody stays in *starting* when the head restarts while actors are on their way up."""

    @agent
    class SlowToRise:
        def __init__(self, key=None):
            time.sleep(1.5)

        def hello(self):
            return "up"

    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    keys = [f"k{n}" for n in range(8)]
    with nodes.connect():
        nodes.live(1)
        for key in keys:
            SlowToRise.at(key).hello.remote()
        eventually(lambda: any(a["state"] == "starting" for a in covey.status()["actors"]))
        nodes.kill9("head")
    nodes.head()
    with nodes.connect():
        calls = [SlowToRise.at(key).hello.remote() for key in keys]
        assert [call.result(60) for call in calls] == ["up"] * len(keys)
        eventually(lambda: all(a["state"] in ("live", "dead") for a in covey.status()["actors"]))


@pytest.mark.skipif(not shutil.which("faketime"), reason="wants `faketime` (Debian: faketime)")
def test_clocks_that_jump_kill_nobody_and_expire_nothing(nodes, tmp_path):
    """The head's wall clock jumps an hour ahead, an hour back, and starts a year ahead."""
    now = tmp_path / "now"
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))

    def shows(offset):
        fresh = tmp_path / "now.new"
        fresh.write_text(offset)
        fresh.rename(now)

    shows("+0")
    fake = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    plain = nodes.env
    nodes.env = {**plain, **fake}
    nodes.head()
    nodes.env = plain
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    path = tmp_path / "effects"
    within = agent(name="Within", timeout="10m")(Effects.__covey_class__)
    bounded = covey.submit(within, "act", str(path), 8)
    eventually(lambda: len(lines(path)) > 10)
    for offset in ("+3600s", "-3600s", "+0"):
        shows(offset)
        time.sleep(1.5)
        assert states() == {"w1": "live"}
        assert covey.submit("echo", "", offset).result(30) == offset
    assert bounded.result(60) and len(runs(path)) == 1
    waits = covey.submit(Effects, "act", str(tmp_path / "waits"), 5)
    nodes.kill9("head")
    shows("+365d")
    nodes.env = {**plain, **fake}
    nodes.head()
    nodes.env = plain
    nodes.connect()
    nodes.live(1)
    assert waits.result(60)


@pytest.mark.skipif(not shutil.which("faketime"), reason="wants `faketime` (Debian: faketime)")
def test_machines_that_wake_after_a_year_find_each_other(nodes, tmp_path):
    """All certificates are over then: the head makes its own anew, the worker gets another by its join token."""
    now = tmp_path / "now"
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    now.write_text("+0")
    nodes.env = {
        **nodes.env,
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    # With TLS on loopback, too.
    nodes.head("--host", "0.0.0.0")
    nodes.worker("w1", "--cpus", "1")
    eventually(lambda: any(n["state"] == "live" for n in json.loads(nodes.cli("status", "--json").stdout or '{"nodes": []}')["nodes"]))
    fresh = tmp_path / "now.new"
    fresh.write_text("+375d")
    fresh.rename(now)
    # What is open stays open; the link breaks, as a machine's that slept does.
    nodes.running["head"].send_signal(signal.SIGSTOP)
    time.sleep(13)
    nodes.running["head"].send_signal(signal.SIGCONT)
    eventually(lambda: "hello" in nodes.cli("submit", "echo", "hello").stdout, timeout=90)


SILENT = """
table bridge cut {
  chain apart { type filter hook forward priority 0
    ip saddr 10.99.0.21 drop
    ip daddr 10.99.0.21 drop
  }
}
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nft")),
    reason="network namespaces want root, `ip` and `nft`",
)
def test_behind_a_silent_link_nobody_acts_any_more(nodes, tmp_path):
    net = Net()
    try:
        for name, address in (("head", "10.99.0.2"), ("w1", "10.99.0.21"), ("w2", "10.99.0.22")):
            net.machine(name, address)
            nodes.inside[name] = net.inside(name)
        nodes.env["COVEY_MACHINE"] = "each its own"
        nodes.head("--host", "0.0.0.0")
        nodes.worker("w1", "--cpus", "1")
        path = tmp_path / "effects"
        env = {**nodes.env, "COVEY_ADDRESS": nodes.address, "COVEY_TOKEN": nodes.keys["admin_key"]}
        command = [*net.inside("head"), sys.executable, __file__, str(path)]
        driver = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        eventually(lambda: len(lines(path)) > 10, timeout=60)
        nodes.worker("w2", "--cpus", "1")
        time.sleep(2)
        net.run("net", "nft", "-f", "-", text=SILENT)
        eventually(lambda: len(runs(path)) == 2, timeout=60)
        check_effects(path)
        net.run("net", "nft", "delete", "table", "bridge", "cut")
        out, _ = driver.communicate(timeout=90)
        said = json.loads(out)
        assert said["result"] == runs(path)[-1]
        assert said["nodes"] == {"w1": "live", "w2": "live"}, "it is back once the network is"
        check_effects(path)
    finally:
        nodes.stop()
        net.close()


def main(path):
    with covey.connect(os.environ["COVEY_ADDRESS"], os.environ["COVEY_TOKEN"]):
        eventually(lambda: "live" in states().values())
        result = covey.submit(Effects, "act", path, 25).result(120)
        eventually(lambda: set(states().values()) == {"live"}, timeout=60)
        print(json.dumps({"result": result, "nodes": states()}))


if __name__ == "__main__":
    main(sys.argv[1])
