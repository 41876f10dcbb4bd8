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


def _ticks(pids: list[int]) -> int:
    ticks = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks


def busy_percent(pids: list[int], seconds: float) -> float:
    """CPU time of these processes while nothing is asked of them, as percent of one core."""
    before = _ticks(pids)
    time.sleep(seconds)
    return 100 * (_ticks(pids) - before) / os.sysconf("SC_CLK_TCK") / seconds
