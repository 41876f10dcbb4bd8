"""Agents of the chaos run, and what is known of them from outside."""

from __future__ import annotations

import pathlib

from covey import agent


@agent(name="ChaosWork", pool=4)
class Work:
    """Does something outside every 20 ms, and notices nothing of what goes on around it."""

    def act(self, path: str, number: int, times: int):
        import os
        import time
        import uuid

        run = uuid.uuid4().hex
        # One write a line, so that lines of several processes do not mix.
        out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for n in range(times):
            os.write(out, f"{number} {run} {os.getpid()} {time.monotonic_ns()}\n".encode())
            yield f"{number}.{n} "
            time.sleep(0.02)


@agent(name="ChaosCounter", idle="10m")
class Counter:
    """Keeps its count in memory alone while it is awake."""

    def __init__(self, key=""):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

    def __snapshot__(self):
        return self.n

    def __restore__(self, n):
        self.n = n


class Effects:
    """The lines that tasks wrote."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def read(self) -> list[tuple[int, str, int, int]]:
        """Task, run, process, nanoseconds of the machine's monotonic clock; in the order of the times."""
        if not self.path.exists():
            return []
        rows = [line.split() for line in self.path.read_text().splitlines()]
        return sorted(((int(task), run, int(pid), int(ns)) for task, run, pid, ns in rows), key=lambda row: row[3])

    def pids(self, number: int) -> list[int]:
        return [pid for task, _, pid, _ in self.read() if task == number]

    def begun(self) -> dict[int, list[tuple[str, int]]]:
        """For each task its runs, and when each began."""
        runs: dict[int, dict[str, int]] = {}
        for task, run, _, ns in self.read():
            runs.setdefault(task, {}).setdefault(run, ns)
        return {task: sorted(of.items(), key=lambda item: item[1]) for task, of in runs.items()}

    def stale(self) -> int:
        """Lines of a run that came after the first line of a later run of the same task."""
        begun, count = self.begun(), 0
        for task, run, _, ns in self.read():
            order = [name for name, _ in begun[task]]
            count += any(ns > began for name, began in begun[task][order.index(run) + 1 :])
        return count

    def again(self, since_ns: int) -> list[float]:
        """Seconds from `since_ns` until each task that began again after it did so."""
        later = (runs[1:] for runs in self.begun().values())
        return [(ns - since_ns) / 1e9 for runs in later for _, ns in runs[:1] if ns > since_ns]
