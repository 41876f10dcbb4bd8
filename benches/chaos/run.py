"""`make chaos`: real processes are killed, stopped, cut off and doubled while durable tasks run; what is promised is counted.

Each fault is a round: tasks run, the fault comes, and every task must end once and whole. Counted from a client's own history
and from what tasks did outside (a line each 20 ms in a file): tasks lost, ended twice, events with gaps, and effects of an
older run after a newer one of the same task began. All four must be 0, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python-bindings/tests"), str(ROOT / "benches"), str(pathlib.Path(__file__).resolve().parent)]

from agents import Counter, Effects, Work  # noqa: E402
from conftest import Nodes, eventually  # noqa: E402
from measure import percentile  # noqa: E402

import covey  # noqa: E402

TASKS = 4
# A worker that is silent this long is dead, seconds.
LEASE = 10
# Lines of a task: it must be at work when the fault comes, and when the fault is over.
SHORT, LONG = 100, 1_200


@dataclass
class Count:
    rounds: int = 0
    lost: int = 0
    doubled: int = 0
    gaps: int = 0
    stale: int = 0
    recovery: list[float] = field(default_factory=list)

    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.gaps or self.stale)


class Round:
    """Tasks that run while something breaks."""

    def __init__(self, nodes: Nodes, count: Count, lines: int = SHORT):
        self.nodes, self.count, self.lines = nodes, count, lines
        self.effects = Effects(pathlib.Path(tempfile.mkdtemp()) / "effects")
        self.tasks = [covey.submit(Work, "act", str(self.effects.path), n, lines) for n in range(TASKS)]
        eventually(lambda: len(self.effects.begun()) >= 2, timeout=60)

    def strike(self, fault: Callable[[], None]) -> None:
        self.since = time.monotonic_ns()
        fault()

    def settle(self) -> None:
        """Waits for every task, and counts."""
        count = self.count
        count.rounds += 1
        for number, task in enumerate(self.tasks):
            whole = "".join(f"{number}.{n} " for n in range(self.lines))
            try:
                answer = task.result(180)
            except Exception as error:  # noqa: BLE001 - whatever it is, the task is lost
                print(f"  task {task.id}: {type(error).__name__}: {error}", file=sys.stderr)
                answer = None
            count.lost += answer != whole
            events = list(task.events())
            count.gaps += [e["seq"] for e in events] != list(range(1, len(events) + 1))
            count.doubled += sum(e["event"]["type"] == "finished" for e in events) != 1
        count.stale += self.effects.stale()
        count.recovery += self.effects.again(self.since)


class World:
    """A head and two workers on loopback."""

    def __init__(self) -> None:
        self.nodes = Nodes(tempfile.mkdtemp())

    def __enter__(self) -> World:
        self.nodes.head()
        for name in ("w1", "w2"):
            self.nodes.worker(name, "--cpus", "4")
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        covey.shutdown()
        for process in self.nodes.running.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
        self.nodes.stop()

    def connect(self) -> None:
        self.nodes.connect()
        self.nodes.live(2)

    def signal(self, name: str, number: int) -> None:
        self.nodes.running[name].send_signal(number)


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
            world.connect()
            count.recovery.append((time.monotonic_ns() - at_work.since) / 1e9)
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
                from conftest import BIN

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
            world.nodes.connect()
            made += 1
            after = [call.result(60) for call in [Counter.at(key).add.remote() for key in keys]]
            count.recovery.append((time.monotonic_ns() - since) / 1e9)
            count.lost += sum(n < made for n in after)
            count.doubled += sum(n > made for n in after)
            count.rounds += 1
            world.nodes.live(2)


# What is done, how often in the long form and in the short one.
FAULTS: list[tuple[str, Callable[[Count, int], None], int, int]] = [
    ("Python processes killed", python_killed, 30, 5),
    ("worker killed", worker_killed, 30, 5),
    ("head killed", head_killed, 30, 5),
    ("head killed, calls to virtual actors race the workers", counters, 20, 3),
    ("worker stopped for 12 s", stopped("w1", LEASE + 2), 3, 1),
    ("worker stopped for 30 s", stopped("w1", 30), 1, 0),
    ("head stopped for 12 s", stopped("head", LEASE + 2), 3, 1),
    ("a second worker of the same name", twin, 1, 0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three minutes instead of fifteen")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    args = parser.parse_args()
    print("| fault | rounds | lost | doubled | gaps | stale effects | recovery p50, p99 |")
    print("|---|---|---|---|---|---|---|")
    clean = True
    for name, run, many, few in FAULTS:
        times = few if args.short else many
        if not times or args.only not in name:
            continue
        count = Count()
        run(count, times)
        told = "–"
        if count.recovery:
            told = f"{percentile(count.recovery, 50):.2f}, {percentile(count.recovery, 99):.2f} s"
        print(f"| {name} | {count.rounds} | {count.lost} | {count.doubled} | {count.gaps} | {count.stale} | {told} |", flush=True)
        clean &= count.is_clean()
    sys.exit(0 if clean else 1)


main()
