"""What runs alone in a process, as a machine: turns that ask whether they may begin, and end."""

import asyncio

import pytest

from covey import _alone
from covey._host.turn import Actor, Turn


class Machine:
    """A process as far as such calls are concerned: who has begun, in order."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.turns, self.retired, self.ran, self.calls = {}, False, [], 0
        self.alone = _alone.Alone(self)

    def actor(self, name, concurrency=16):
        return Actor(name, name, object(), concurrency, "", "", False, False)

    def arrives(self, actor, alone=False, of=None):
        self.calls += 1
        turn = Turn(self.calls, actor, "work", None)
        turn.alone, turn.group = alone, actor.group
        if of is not None:
            turn.chain = f"{of.chain}\n" * bool(of.chain) + f"{of.actor.id}#{of.call}.1"
        self.turns[turn.call] = turn
        if alone:
            self.alone.expect(turn)
        if turn.group.running < turn.group.limit:
            turn.group.running += 1
            self.hand(turn)
        else:
            turn.group.queue.append(turn)
        return turn

    def hand(self, turn):
        turn.begun = True
        if not (self.alone.on and self.alone.holds(turn)):
            self.ran.append(turn)

    def ends(self, turn):
        self.ran.remove(turn)
        del self.turns[turn.call]
        if self.alone.on:
            self.alone.ended(turn)
        if turn.group.queue:
            self.hand(turn.group.queue.popleft())
        else:
            turn.group.running -= 1


@pytest.fixture
def machine():
    made = Machine()
    yield made
    made.loop.close()


def test_it_begins_when_others_have_ended_and_others_when_it_has(machine):
    a, b = machine.actor("a", 2), machine.actor("b")
    first, second = machine.arrives(a), machine.arrives(b)
    alone, other = machine.arrives(b, alone=True), machine.arrives(a, alone=True)
    after = machine.arrives(b)
    assert machine.ran == [first, second]
    machine.ends(first)
    machine.ends(second)
    assert machine.ran == [alone]
    machine.ends(alone)
    assert machine.ran == [other]
    machine.ends(other)
    assert machine.ran == [after] and not machine.alone.on
    machine.ends(after)
    assert a.group.running == b.group.running == 0


def test_what_comes_out_of_it_begins_though_its_actor_has_one_place(machine):
    a, b = machine.actor("a", 1), machine.actor("b", 1)
    before = machine.arrives(b)
    alone = machine.arrives(a, alone=True)
    # It comes out of the turn that is waited for.
    nested = machine.arrives(a, of=before)
    assert machine.ran == [before, nested]
    machine.ends(nested)
    machine.ends(before)
    assert machine.ran == [alone]
    waiting = machine.arrives(b)
    inner = machine.arrives(b, of=alone)
    deeper = machine.arrives(machine.actor("c"), of=inner)
    assert machine.ran == [alone, inner, deeper]
    for turn in (deeper, inner, alone):
        machine.ends(turn)
    assert machine.ran == [waiting]


def test_order_is_kept(machine):
    a = machine.actor("a", 2)
    alone = machine.arrives(a, alone=True)
    turns = [machine.arrives(a) for _ in range(5)]
    assert machine.ran == [alone]
    machine.ends(alone)
    for n in range(4):
        assert machine.ran == turns[n : n + 2]
        machine.ends(turns[n])


def test_what_is_cancelled_holds_nobody(machine):
    a = machine.actor("a")
    before, alone = machine.arrives(a), machine.arrives(a, alone=True)
    after = [machine.arrives(a) for _ in range(2)]
    for held in (after[0], alone):
        held.over = True
        assert machine.alone.leaves(held)
        del machine.turns[held.call]
        machine.alone.ended(held)
    assert machine.ran == [before, after[1]] and not machine.alone.on and not machine.alone.leaves(before)
    assert a.group.running == 2


def test_nothing_waits_for_ever(machine, monkeypatch):
    monkeypatch.setattr(_alone, "WAIT", 0.0)
    a = machine.actor("a")
    endless, alone = machine.arrives(a), machine.arrives(a, alone=True)
    after, other = machine.arrives(a), machine.arrives(a, alone=True)
    assert machine.ran == [endless]

    def run(until):
        for _ in range(100):
            if machine.ran == until:
                return
            machine.loop.run_until_complete(asyncio.sleep(0))
        raise AssertionError(machine.ran)

    # It waits no longer, it has had its time, and those behind it too.
    run([endless, alone, after, other])
    machine.ends(other)
    assert not machine.alone._held
    # What has had its time is not waited for again.
    last = machine.arrives(a, alone=True)
    machine.ends(after)
    assert last in machine.ran


def test_a_process_that_is_replaced_holds_nothing(machine):
    a = machine.actor("a")
    alone = machine.arrives(a, alone=True)
    machine.retired = True
    after = machine.arrives(a)
    assert machine.ran == [alone, after]
