"""Exceptions that are hard to tell, and turns that fork: who waits hears of it all the same."""

import os
import sys

import pytest

import covey
from covey import agent


class Mute(Exception):
    """Nothing can be said of it."""

    def __str__(self):
        raise RuntimeError("no words")


class Leaves(Exception):
    """It ends the program that looks at it closely."""

    def __reduce__(self):
        raise SystemExit(3)


def trouble(kind):
    if kind == "stop":
        next(iter(()))
    if kind == "mute":
        raise Mute
    if kind == "leaves":
        raise Leaves("it leaves")


@agent(name="raising", concurrency=4)
class Raising:
    def __init__(self, kind=""):
        trouble(kind)

    def sync(self, kind: str) -> None:
        trouble(kind)

    async def coroutine(self, kind: str) -> None:
        trouble(kind)

    def items(self, kind: str):
        yield 1
        trouble(kind)

    async def some(self, kind: str):
        yield 1
        trouble(kind)

    def pid(self) -> int:
        return os.getpid()


WORDS = {"stop": "StopIteration", "mute": "Mute (its text cannot be made", "leaves": "it leaves"}


@pytest.mark.parametrize("kind", WORDS)
def test_whatever_is_raised_is_told(cluster, kind):
    raising = Raising.remote()
    pid = raising.pid.remote().result(60)
    for call in (
        lambda: raising.sync.remote(kind).result(60),
        lambda: raising.coroutine.remote(kind).result(60),
        lambda: list(raising.items.remote(kind)),
        lambda: list(raising.some.remote(kind)),
        lambda: covey.task(trouble).remote(kind).result(60),
        lambda: covey.submit(Raising, "sync", kind).result(60),
        lambda: Raising.remote(kind).pid.remote().result(60),
    ):
        with pytest.raises(Exception) as raised:
            call()
        assert isinstance(raised.value, Mute) or WORDS[kind] in str(raised.value)
    assert raising.pid.remote().result(60) == pid


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("method", ["set", "set_async"])
def test_a_state_that_cannot_be_given_is_told(cluster, kind, method):
    @agent(name=f"raising-state-{kind}", snapshot="turn")
    class State:
        def __init__(self):
            self.kind = ""

        def set(self, kind: str) -> str:
            self.kind = kind
            return kind

        async def set_async(self, kind: str) -> str:
            return self.set(kind)

        def __snapshot__(self):
            trouble(self.kind)
            return self.kind

    state = State.at(method)
    with pytest.raises(Exception) as raised:
        getattr(state, method).remote(kind).result(60)
    assert isinstance(raised.value, Mute) or WORDS[kind] in str(raised.value)
    assert getattr(state, method).remote("").result(60) == ""


@agent(name="raising-forks", concurrency=4)
class Forks:
    def sync(self, how: str) -> int:
        return self.fork(how)

    async def coroutine(self, how: str) -> int:
        return self.fork(how)

    def items(self, how: str):
        yield self.fork(how)

    def fork(self, how: str) -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if how == "exit":
            sys.exit(4)
        if how == "raise":
            raise ValueError("the other process's")
        return -1

    def pid(self) -> int:
        return os.getpid()


@pytest.mark.parametrize("method", ["sync", "coroutine", "items"])
def test_a_forked_process_ends_with_its_turn_and_answers_nobody(cluster, method):
    forks = Forks.remote()
    pid = forks.pid.remote().result(60)
    for how, code in (("exit", 4), ("raise", 1), ("return", 0)):
        started = getattr(forks, method).remote(how)
        assert (list(started) if method == "items" else [started.result(60)]) == [code]
    assert forks.pid.remote().result(60) == pid
