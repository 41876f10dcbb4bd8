"""What both sides of the comparison measure with. Needs nothing but Python, so that it runs in Ray's venv too."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence

RAY_ACTORS = 20  # a process each; more take minutes
COVEY_ACTORS = 1000


def percentile(values: Sequence[float], p: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]


def latency(call: Callable[[], object], name: str, times: int = 1000) -> dict[str, float]:
    """p50 and p99 of one call after the other, milliseconds."""
    for _ in range(100):
        call()
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        took.append(time.perf_counter() - begin)
    return {f"{name}_p50_ms": percentile(took, 50) * 1e3, f"{name}_p99_ms": percentile(took, 99) * 1e3}


def rate(work: Callable[[int], object], at_once: int, total: int) -> float:
    """Per second, in rounds of `at_once`, after one round to warm up."""
    work(min(at_once, 1000))
    begin = time.perf_counter()
    for _ in range(total // at_once):
        work(at_once)
    return total / (time.perf_counter() - begin)


def median_ms(work: Callable[[], object], times: int) -> float:
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        took.append(time.perf_counter() - begin)
    return percentile(took, 50) * 1e3


def processor() -> str:
    """As it names itself."""
    with open("/proc/cpuinfo") as lines:
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_memory() -> int:
    """Bytes the machine could still give."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def find(*words: str) -> list[int]:
    """Processes whose command line has one of `words`, but not this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if any(word in command for word in words):
                found.append(int(name))
    return found


def descendants(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdigit() else None
        if fields:
            children.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_seconds(pid: int | None = None) -> float:
    """CPU time of a process (this one) and its descendants, with those that have ended. The kernel counts it in hundredths."""
    ticks = 0
    for one in descendants(pid or os.getpid()):
        fields = _stat(one)
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks / os.sysconf("SC_CLK_TCK")


class Cost:
    """Rate and CPU of `times` operations: `with Cost(out, "calls_s", 1000): ...` sets `calls_s` and `calls_s.cpu_us`."""

    def __init__(self, out: dict[str, float], key: str, times: int):
        self.out, self.key, self.times = out, key, times

    def __enter__(self) -> None:
        self.cpu, self.begin = cpu_seconds(), time.perf_counter()

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is None:
            took = time.perf_counter() - self.begin
            self.out[self.key] = self.times / took
            self.out[cpu_key(self.key)] = (cpu_seconds() - self.cpu) / self.times * 1e6


def cpu_key(key: str) -> str:
    return f"{key}.cpu_us"


def _stat(pid: int) -> list[str] | None:
    """Fields of `/proc/PID/stat` from the state on: parent at 1, CPU of its own at 11 and 12, of children that ended at 13 and 14."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None


def _ticks(pids: list[int]) -> int:
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        ticks += int(fields[11]) + int(fields[12]) if fields else 0
    return ticks


def busy_percent(pids: list[int], seconds: float) -> float:
    """CPU time of these processes while nothing is asked of them, as percent of one core."""
    before = _ticks(pids)
    time.sleep(seconds)
    return 100 * (_ticks(pids) - before) / os.sysconf("SC_CLK_TCK") / seconds
