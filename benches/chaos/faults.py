"""Processes that are killed, stopped, started again and doubled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from agents import Counter
from conftest import BIN, eventually
from world import LONG, TASKS, Count, Round, World

import covey


def python_killed(count: Count, times: int) -> None:
    with World() as world:
        for _ in range(times):
            at_work = Round(world.nodes, count)
            pids = {pid for number in range(TASKS) for pid in at_work.effects.pids(number)}
            at_work.strike(lambda pids=pids: [os.kill(pid, signal.SIGKILL) for pid in pids])
            at_work.settle()


def worker_killed(count: Count, times: int) -> None:
    with World() as world:
        for n in range(times):
            at_work, name = Round(world.nodes, count), f"w{1 + n % 2}"
            at_work.strike(lambda name=name: world.nodes.kill9(name))
            at_work.settle()
            world.nodes.worker(name, "--cpus", "4")
            world.nodes.live(2)


def head_killed(count: Count, times: int) -> None:
    with World() as world:
        for _ in range(times):
            at_work = Round(world.nodes, count)

            def fault() -> None:
                world.nodes.kill9("head")
                world.nodes.head()

            at_work.strike(fault)
            # The driver goes on by itself.
            covey.status()
            count.recovery.append((time.monotonic_ns() - at_work.since) / 1e9)
            world.nodes.live(2)
            at_work.settle()


def stopped(who: str, seconds: int) -> Callable[[Count, int], None]:
    def run(count: Count, times: int) -> None:
        with World() as world:
            for _ in range(times):
                at_work = Round(world.nodes, count, LONG)
                at_work.strike(lambda: world.signal(who, signal.SIGSTOP))
                time.sleep(seconds)
                world.signal(who, signal.SIGCONT)
                at_work.settle()
                eventually(lambda: sum(n["state"] == "live" for n in covey.status()["nodes"]) == 2)

    return run


def twin(count: Count, times: int) -> None:
    with World() as world:
        for _ in range(times):
            at_work = Round(world.nodes, count)
            other = world.nodes.home / f"other-{count.rounds}"
            shutil.copytree(world.nodes.home / "workers", other / "workers")
            token = f"{world.nodes.keys['join_secret']}@{world.nodes.address}"
            env = {**world.nodes.env, "COVEY_HOME": str(other)}

            def fault(token: str = token, env: dict = env) -> None:
                told = subprocess.run(
                    [BIN, "worker", "--join", token, "--name", "w1"], env=env, capture_output=True, text=True, timeout=120
                )
                assert told.returncode == 73, told

            at_work.strike(fault)
            at_work.settle()


def counters(count: Count, times: int) -> None:
    """Calls to virtual actors race the worker that comes back after the head: no count is lost, none is made twice."""
    with World() as world:
        keys, made = [f"k{n}" for n in range(8)], 0
        for _ in range(times):
            made += 1
            before = [Counter.at(key).add.remote().result(60) for key in keys]
            count.lost += sum(n != made for n in before)
            world.nodes.kill9("head")
            since = time.monotonic_ns()
            world.nodes.head()
            made += 1
            after = [call.result(60) for call in [Counter.at(key).add.remote() for key in keys]]
            count.recovery.append((time.monotonic_ns() - since) / 1e9)
            count.lost += sum(n < made for n in after)
            count.doubled += sum(n > made for n in after)
            count.rounds += 1
            world.nodes.live(2)
