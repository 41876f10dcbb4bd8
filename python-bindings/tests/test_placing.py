"""Where actors go and how they end: gangs, neighbours, links, bounds on memory, and calls that kill."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from conftest import eventually

import covey
from covey import agent


@agent
class Member:
    def where(self):
        return os.environ["COVEY_NODE"]

    def pid(self):
        return os.getpid()

    def die(self):
        os._exit(9)

    def eat(self, mib):
        self.kept = bytearray(mib << 20)
        self.kept[:: 4096] = b"x" * len(self.kept[:: 4096])
        return mib

    def groups(self):
        return pathlib.Path("/proc/self/cgroup").read_text()

    def child_eats(self, mib):
        return subprocess.run([sys.executable, "-c", f"bytearray(b'x' * ({mib} << 20))"]).returncode

    def echo(self, x):
        return x


@pytest.fixture
def three(nodes):
    nodes.head()
    for name in ("n1", "n2", "n3"):
        nodes.worker(name, "--cpus", "2")
    session = nodes.connect()
    nodes.live(3)
    yield nodes
    session.close()


def test_gangs_and_neighbours(three, terminal):
    apart = covey.gang([Member.options(cpus=1).bind() for _ in range(3)], strategy="strict_spread")
    assert len(set(covey.get([m.where.remote() for m in apart], timeout=30))) == 3
    together = covey.gang([Member.options(cpus=0.5).bind() for _ in range(2)], strategy="strict_pack")
    assert len(set(covey.get([m.where.remote() for m in together], timeout=30))) == 1

    # One node is full, two have one CPU each: three more of 0.8 do not fit, and hold nothing while they wait.
    waiting = covey.gang([Member.options(cpus=0.8).bind() for _ in range(3)])
    first = waiting[0].where.remote()
    terminal.has("all 3 of its gang do not fit at once", err=True)
    single = Member.options(cpus=0.9).remote()
    assert single.where.remote().result(30), "a gang that waits takes no place"
    single.kill()
    apart[0].kill()
    assert first.result(30)
    assert len(covey.get([m.where.remote() for m in waiting], timeout=30)) == 3
    for member in [*apart[1:], *together, *waiting]:
        member.kill()

    with pytest.raises(covey.errors.Unschedulable, match="each wants a node of its own, there are 3"):
        covey.gang([Member.bind() for _ in range(4)], strategy="strict_spread")[0].where.remote().result(30)
    with pytest.raises(covey.errors.InvalidArgument):
        covey.gang([Member.bind()], strategy="nonsense")
    with pytest.raises(covey.errors.InvalidArgument):
        covey.gang([])

    anchor = Member.options(node="n2").remote()
    home = anchor.where.remote().result(30)
    beside = [Member.options(near=anchor, cpus=0.1).remote() for _ in range(3)]
    assert set(covey.get([m.where.remote() for m in beside], timeout=30)) == {home}
    too_big = Member.options(near=anchor, cpus=3).remote()
    with pytest.raises(covey.errors.Unschedulable, match="needs cpus=3"):
        too_big.where.remote().result(30)
    anchor.kill()
    with pytest.raises(covey.errors.Unschedulable, match="which is over"):
        Member.options(near=anchor).remote().where.remote().result(30)
    with pytest.raises(covey.errors.Unschedulable, match="node=nowhere"):
        Member.options(node="nowhere").remote().where.remote().result(30)


def test_linked_actors_end_together(cluster):
    one, other, third = (Member.options(max_restarts=0, own_process=True).remote() for _ in range(3))
    covey.get([m.pid.remote() for m in (one, other, third)], timeout=30)
    one.link(other)
    other.link(third)
    with pytest.raises(covey.ActorDied):
        one.die.remote().result(30)

    def why(member):
        """Why it is over; a call that it had when it was ended is answered with less."""
        try:
            return member.echo.remote(1).result(30) and None
        except covey.ActorDied as error:
            return str(error) if "linked" in str(error) else None

    for late in (other, third):
        assert re.search("which it is linked to, ended: .*process .* ended", eventually(lambda m=late: why(m)))
    with pytest.raises(covey.ActorDied):
        one.link(Member.remote())
    # A gentle end is no cause.
    calm, stays = Member.remote(), Member.remote()
    calm.link(stays)
    calm.stop(drain=True)
    with pytest.raises(covey.ActorDied):
        calm.echo.remote(1).result(30)
    assert stays.echo.remote(2).result(30) == 2


def test_an_actor_that_runs_out_of_memory_dies_alone_and_says_so(cluster):
    small = Member.options(memory="200MiB", max_restarts=1).remote()
    neighbour = Member.remote()
    pid = neighbour.pid.remote().result(30)
    assert small.pid.remote().result(30) != pid
    assert small.eat.remote(20).result(30) == 20
    with pytest.raises(covey.ActorDied, match="ran out of memory: .*its bound is 200 MiB"):
        small.eat.remote(400).result(30)
    assert small.echo.options(retries=5).remote("back").result(30) == "back"
    with pytest.raises(covey.ActorDied, match="ran out of memory: (.* )?its bound is 200 MiB"):
        small.eat.remote(5000).result(30)  # more than the kernel gives: the process ends itself
    with pytest.raises(covey.ActorDied, match="ran out of memory.*after 1 restarts"):
        eventually(lambda: small.echo.remote(1).result(30) and None)
    assert neighbour.pid.remote().result(30) == pid


def test_children_count_where_there_are_control_groups(cluster):
    small = Member.options(memory="200MiB").remote()
    if "covey-" not in small.groups.remote().result(30):
        pytest.skip("the worker may not make control groups here")
    assert small.child_eats.remote(20).result(30) == 0
    assert small.child_eats.remote(400).result(30) == -signal.SIGKILL
    assert small.echo.remote("unharmed").result(30) == "unharmed"


def test_a_call_that_kills_is_not_tried_for_ever(cluster):
    victim = Member.options(own_process=True).remote()
    with pytest.raises(covey.errors.FailedPrecondition, match="3 processes died while they ran this call"):
        victim.die.options(retries=20).remote().result(60)
    assert victim.echo.options(retries=5).remote("alive").result(30) == "alive"
    letters = cluster.cli("dead-letters").stdout
    assert "Member.die" in letters and "tried 3 times" in letters


@covey.task(retries=3)
def ends_its_process(log):
    with open(log, "a") as runs:
        runs.write("x")
    os._exit(1)


def test_a_function_that_kills_runs_as_often_as_was_said_and_is_listed_then(cluster, tmp_path):
    log = tmp_path / "runs"
    with pytest.raises(covey.ActorDied, match="4 processes died while they ran this call"):
        ends_its_process.remote(str(log)).result(60)
    assert log.read_text() == "xxxx"
    eventually(lambda: "tried 4 times" in cluster.cli("dead-letters").stdout)
    assert "covey.function.ends_its_process" in cluster.cli("dead-letters").stdout


@covey.task
def plus_one(n):
    return n + 1


def test_functions_without_a_place_say_why(nodes, terminal):
    nodes.head()
    nodes.worker("n1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    holds = Member.options(cpus=1).remote()
    assert holds.echo.remote(1).result(60) == 1
    waits = [plus_one.remote(n) for n in range(3)]
    terminal.has("3 calls wait for an actor that runs functions: ", err=True)
    assert re.search(r"functions: .*cpu", terminal.err)
    with Member.options(cpus=1).pool(1) as pool:
        pooled = pool.echo.remote(4)
        terminal.has("1 call waits for an actor of the pool of Member: ", err=True)
        assert terminal.err.count("that runs functions") == 1, "each reason is told once"
        holds.stop()
        assert covey.get(waits, timeout=60) == [1, 2, 3]
        assert pooled.result(60) == 4


@agent(cpus=1)
class One:
    def run(self):
        return "one"


@agent(cpus=1)
class Two:
    def run(self):
        return "two"


@covey.task(cpus=1)
def double(n):
    return 2 * n


def test_actors_of_tasks_that_are_over_are_in_nobodys_way(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    assert [covey.submit(agent, "run").result(30) for agent in (One, Two)] == ["one", "two"]
    # Both have their actor still, and these hold all CPUs.
    assert double.remote(4).result(30) == 8
    held = One.remote()
    assert held.run.remote().result(30) == "one"
    assert covey.submit(Two, "run").result(30) == "two"
