"""Clusters of real processes that something is done to, and what is counted of their tasks."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python-bindings/tests"), str(ROOT / "benches"), str(pathlib.Path(__file__).resolve().parent)]

from agents import Effects, Work  # noqa: E402
from conftest import Nodes, eventually  # noqa: E402

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
    # What the columns do not say.
    remarks: list[str] = field(default_factory=list)

    def is_clean(self) -> bool:
        return not (self.lost or self.doubled or self.gaps or self.stale)


class Round:
    """Tasks that run while something breaks."""

    def __init__(self, nodes: Nodes, count: Count, lines: int = SHORT, path: pathlib.Path | None = None):
        self.nodes, self.count, self.lines = nodes, count, lines
        self.effects = Effects(path or pathlib.Path(tempfile.mkdtemp()) / "effects")
        self.tasks = [covey.submit(Work, "act", str(self.effects.path), n, lines) for n in range(TASKS)]
        eventually(lambda: len(self.effects.begun()) >= 2, timeout=60)

    def strike(self, fault: Callable[[], object]) -> None:
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
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self, *head: str) -> None:
        self.nodes.head(*head)
        for name in ("w1", "w2"):
            self.nodes.worker(name, "--cpus", "4")
        self.connect()

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
