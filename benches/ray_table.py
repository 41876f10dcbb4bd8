"""Covey beside Ray: `make bench-ray`. Interleaved rounds on one machine, medians, ratios; prints a Markdown table.

Ray lives in a venv of its own (`.cache/ray`), made by the Makefile. Both sides do the same work (`ray_side.py`,
`covey_side.py`); rates are measured over enough work for half a second or more.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys

import measure

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROUNDS = int(os.environ.get("ROUNDS", "5"))

# key, what, unit, "more" or "less" is better, aim as a ratio in our favour
ROWS = [
    ("call_p50_ms", "1:1 sync actor call, p50", "ms", "less", 4),
    ("call_p99_ms", "1:1 sync actor call, p99", "ms", "less", 4),
    ("in_flight_async_s", "1:1, 1,000 in flight, async actor", "/s", "more", 30),
    ("in_flight_sync_s", "1:1, 1,000 in flight, sync actor", "/s", "more", 30),
    ("gather_s", "asyncio driver, gather of 1,000", "/s", "more", 30),
    ("stream_sync_s", "stream, sync generator, 1 reader", "items/s", "more", 30),
    ("stream_async_1_s", "stream, async generator, 1 reader", "items/s", "more", 30),
    ("stream_async_10_s", "10 streams at once", "items/s", "more", 30),
    ("stream_async_100_s", "100 streams at once", "items/s", "more", 30),
    ("paced_p99_ms", "50 streams at 50 items/s: yield → reader, p99 (aim ≤ 5 ms)", "ms", "less", 1),
    ("tasks_s", "10,000 no-op tasks, submit and gather", "/s", "more", 30),
    ("actors_s", "create Python actors and call each once (1,000; Ray 20)", "/s", "more", 100),
    ("actor_kib", "memory of one idle Python actor", "KiB", "less", 100),
    ("put_1mb_ms", "put a 1 MB array", "ms", "less", 3),
    ("get_1mb_ms", "get a 1 MB array", "ms", "less", 1),
    ("put_100mb_ms", "put a 100 MB array", "ms", "less", 1),
    ("get_100mb_ms", "get a 100 MB array", "ms", "less", 1),
    ("call_1mb_ms", "actor call with 1 MB by value", "ms", "less", 3),
    ("up_s", "cluster up from Python", "s", "less", 10),
    ("connect_s", "driver joins a running cluster", "s", "less", 10),
    ("idle_cpu_percent", "idle cluster, CPU (aim ≤ 0.5 %)", "% of a core", "less", 1),
    ("back_s", "actor answers again after kill -9 of its process", "s", "less", 5),
]


def one(python: pathlib.Path, script: str) -> dict[str, float]:
    done = subprocess.run([python, script], cwd=ROOT / "benches", capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    ray_python = pathlib.Path(sys.argv[1])
    ours, theirs = [], []
    for turn in range(ROUNDS):
        print(f"round {turn + 1} of {ROUNDS}", file=sys.stderr)
        ours.append(one(pathlib.Path(sys.executable), "covey_side.py"))
        theirs.append(one(ray_python, "ray_side.py"))
    version = subprocess.run([ray_python, "-c", "import ray; print(ray.__version__)"], capture_output=True, text=True).stdout.strip()
    print(f"{os.cpu_count()} × {measure.processor()}; Ray {version}, Python {platform.python_version()}; medians of {ROUNDS} rounds; load {os.getloadavg()[0]:.1f}\n")
    print("| what | Covey | Ray | ratio | aim |\n|---|---|---|---|---|")
    for key, what, unit, better, aim in ROWS:
        mine, other = (statistics.median(run[key] for run in runs) for runs in (ours, theirs))
        # CPU time is counted in hundredths of a second: nothing at all is less than one of them.
        ratio = other / max(mine, 1e-3) if better == "less" else mine / other
        mark = "" if ratio >= aim else " (missed)"
        if key == "paced_p99_ms":
            mark = "" if mine <= 5 else " (missed)"
        if key == "idle_cpu_percent":
            mark = "" if mine <= 0.5 else " (missed)"
        print(f"| {what} | {number(mine)} {unit} | {number(other)} {unit} | {number(ratio)} × | ≥ {aim} ×{mark} |")


if __name__ == "__main__":
    main()
