"""Calls with keys run once, whatever becomes of the activation that ran them."""

import os

import pytest
from conftest import eventually

import covey
from covey import agent


def lines(file):
    return open(file).read().split() if os.path.exists(file) else []


@agent
class Once:
    async def act(self, file, seconds=0):
        import asyncio

        with open(file, "a") as log:
            log.write("ran\n")
        await asyncio.sleep(seconds)
        return "done"


def test_a_call_with_a_key_does_not_run_again_elsewhere(nodes, tmp_path):
    nodes.pair()
    file = str(tmp_path / "effects")
    actor = Once.remote()
    call = actor.act.options(key="k").remote(file, 3600)
    eventually(lambda: lines(file))
    where = next(a["node"] for a in covey.actors() if a["id"] == actor._actor)
    nodes.kill9(next(n["name"] for n in covey.status()["nodes"] if n["id"] == where))
    with pytest.raises(covey.ActorDied) as died:
        call.result(60)
    assert died.value.executed is None
    assert lines(file) == ["ran"]
    # Who allows it says so.
    again = actor.act.options(key="k", retries=1).remote(file)
    assert again.result(60) == "done"
    assert lines(file) == ["ran", "ran"]


@agent(idle=0.3)
class Sleeper:
    def __init__(self, key):
        self.count = 0

    def __snapshot__(self):
        return self.count

    def __restore__(self, count):
        self.count = count

    async def add(self):
        self.count += 1
        return self.count

    async def pid(self):
        return os.getpid()


def asleep(actor):
    return lambda: not any(a["id"] == actor._actor for a in covey.actors())


def test_answers_go_with_the_state(nodes):
    nodes.pair()
    actor = Sleeper.at("one")
    assert actor.add.options(key="first").remote().result(60) == 1
    assert actor.add.options(key="second").remote().result(60) == 2
    eventually(asleep(actor))
    # Another activation, which answers what the one before has answered.
    assert actor.add.options(key="first").remote().result(60) == 1
    assert actor.add.options(key="third").remote().result(60) == 3
    # And a third one, on another node.
    where = next(a["node"] for a in covey.actors() if a["id"] == actor._actor)
    name = next(n["name"] for n in covey.status()["nodes"] if n["id"] == where)
    drained = nodes.cli("drain", name)
    assert drained.returncode == 0, drained.stderr
    assert actor.add.options(key="second").remote().result(60) == 2
    assert actor.add.remote().result(60) == 4
