"""Calls that go through the head, because the worker has no port of its own: what a new link makes of them."""

import subprocess
import sys

import pytest
from conftest import eventually
from test_sessions import Wire

import covey
from covey import agent


@agent(concurrency=8)
class Gated:
    """Its calls end once a file is there."""

    def wait(self, gate: str, name: str) -> str:
        import os
        import time

        with open(f"{gate}-{name}", "a") as begun:
            begun.write("x")
        while not os.path.exists(gate):
            time.sleep(0.01)
        return name

    def ping(self) -> str:
        return "pong"


def begun(gate):
    return sorted(gate.parent.glob(f"{gate.name}-*"))


@pytest.fixture
def relayed(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "4", "--no-listen")
    nodes.connect()
    nodes.live(1)
    return nodes


def restart(nodes):
    nodes.kill9("head")
    nodes.head()
    nodes.live(1)


OTHER = """
import sys, covey
address, key, gate = sys.argv[1:]
covey.connect(address, key)
actor = covey.get_actor("first")
calls = [actor.wait.options(key=f"old{n}").remote(gate, f"old{n}") for n in range(24)]
covey.get(calls, timeout=60)
"""


def test_an_answer_of_before_the_restart_reaches_nobody_elses_call(relayed, tmp_path):
    first, then = Gated.options(name="first").remote(), Gated.remote()
    assert covey.get([first.ping.remote(), then.ping.remote()], timeout=30) == ["pong"] * 2
    early, late = tmp_path / "early", tmp_path / "late"
    argv = [sys.executable, "-c", OTHER, relayed.address, relayed.keys["admin_key"], str(early)]
    other = subprocess.Popen(argv, env=relayed.env)
    eventually(lambda: len(begun(early)) == 8)
    other.kill()
    other.wait()
    restart(relayed)
    # The new head counts its calls anew: these have the numbers of those that still run.
    calls = [then.wait.remote(str(late), f"new{n}") for n in range(24)]
    eventually(lambda: len(begun(late)) == 8)
    early.touch()
    # It comes after the answers of the calls that held all turns.
    assert first.ping.remote().result(30) == "pong"
    late.touch()
    assert covey.get(calls, timeout=30) == [f"new{n}" for n in range(24)]


def answers(actor):
    """A call without a key that is sent into the break is lost with it."""
    try:
        return actor.ping.remote().result(30) == "pong"
    except covey.ConnectionLost:
        return False


def goes_on(actor, folder, breaks):
    """The way to a call that runs breaks; who asks again by the same key gets its answer."""
    gate = folder / "gate"
    call = actor.wait.options(key="order-7").remote(str(gate), "once")
    eventually(lambda: len(begun(gate)) == 1)
    breaks()
    again = actor.wait.options(key="order-7").remote(str(gate), "once")
    eventually(lambda: answers(actor))
    gate.touch()
    assert (again.result(30), call.result(30)) == ("once", "once")
    assert [file.read_text() for file in begun(gate)] == ["x"], "it ran once"


def test_a_call_with_a_key_goes_on_when_the_head_dies(relayed, tmp_path):
    actor = Gated.remote()
    assert actor.ping.remote().result(30) == "pong"
    goes_on(actor, tmp_path, lambda: restart(relayed))


def test_a_call_with_a_key_goes_on_when_the_connection_to_the_head_breaks(relayed, tmp_path):
    covey.shutdown()
    wire = Wire(int(relayed.port))
    covey.connect(f"127.0.0.1:{wire.at}", relayed.keys["admin_key"])

    def breaks():
        wire.cut()
        wire.up = True

    try:
        actor = Gated.remote()
        assert actor.ping.remote().result(30) == "pong"
        goes_on(actor, tmp_path, breaks)
    finally:
        covey.shutdown()
        wire.close()

