"""What a change costs: this checkout beside another one, in one run.

    python benches/versions.py OTHER_CHECKOUT [--rounds 5] [--model FILE.gguf] [--only calls,a2a,tokens]

Both are built before (`make build`; for tokens also `cargo build --release -p covey-benches`). Rounds of both are interleaved; each cell is
a median, and the spread is what rounds of one side differ by. CPU is user and system time of all processes (driver, cluster and
actors; of A2A the cluster alone) for one operation: on a machine that others use too it says more than the rate does. Calls are the
rows of `ray_table.py`, A2A is one node without a peer (left out where wrk is missing), tokens need a model.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable

import measure
import ray_table

HERE = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "benches/a2a"))
import bench  # noqa: E402

A2A = [(f"A2A requests, {c} connections", "SendMessage", 1, c) for c in (1, 16, 64)]
A2A += [(f"A2A chunks, {c} streams of 100", "SendStreamingMessage", 100, c) for c in (1, 100)]
ENGINE = [("decode, 1 sequence", ["decode", "1", "64", "64"]), ("decode, 8 sequences", ["decode", "8", "64", "64"]), ("prefill of 512", ["prefill", "512"])]


def calls(checkout: pathlib.Path) -> dict[str, float]:
    return ray_table.one(checkout / ".venv/bin/python", "covey_side.py")


def a2a(checkout: pathlib.Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = bench.covey(folder, str(checkout / ".venv/bin/covey"))
        try:
            bench.load(server, "SendMessage", 1, 16, 2)
            got = {}
            for name, method, words, connections in A2A:
                done = bench.load(server, method, words, connections, 5)
                got[name] = done["per_s"] * words
                got[measure.cpu_key(name)] = done["cpu_ms"] * 1000 / words
            return got
        finally:
            server.stop()


def tokens(model: str) -> Callable[[pathlib.Path], dict[str, float]]:
    def run(checkout: pathlib.Path) -> dict[str, float]:
        got = {}
        for name, args in ENGINE:
            command = [checkout / "target/release/engine", model, str(os.cpu_count()), *args]
            out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
            got[name] = out.get("decode") or out["prefill"]
        return got

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model")
    parser.add_argument("--only", default="calls,a2a,tokens")
    args = parser.parse_args()
    rows = [(key, what, unit, better) for key, what, unit, better, _ in ray_table.ROWS]
    rows += [(name, name, "/s", "more") for name, *_ in A2A] + [(name, name, "tokens/s", "more") for name, _ in ENGINE]
    work: dict[str, Callable[[pathlib.Path], dict[str, float]]] = {"calls": calls}
    if shutil.which("wrk"):
        work["a2a"] = a2a
    elif "a2a" in args.only.split(","):
        print("A2A is left out: wrk is missing (apt-get install wrk)", file=sys.stderr)
    if args.model:
        work["tokens"] = tokens(args.model)
    sides = {"before": args.other.resolve(), "now": HERE}
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(args.rounds):
        for side, checkout in sides.items():
            print(f"round {turn + 1} of {args.rounds}: {side}", file=sys.stderr, flush=True)
            runs[side].append({key: value for name in args.only.split(",") if name in work for key, value in work[name](checkout).items()})
    names = [subprocess.run(["git", "-C", sides[s], "log", "-1", "--format=%h"], capture_output=True, text=True).stdout.strip() for s in sides]
    print(f"{os.cpu_count()} × {measure.processor()}; {names[0]} and {names[1]}, Python {platform.python_version()}; medians of {args.rounds} rounds\n")
    print("| what | before | now | ratio | spread of a side | CPU of one before | now | ratio | spread |\n|---|---|---|---|---|---|---|---|---|")
    for key, what, unit, better in rows:
        cells = compared([[run[key] for run in runs[side] if key in run] for side in sides], unit, better)
        if cells:
            cpu = measure.cpu_key(key)
            costs = compared([[run[cpu] for run in runs[side] if cpu in run] for side in sides], "µs", "less")
            print("| " + " | ".join([what, *cells, *(costs or [""] * 4)]) + " |")


def compared(values: list[list[float]], unit: str, better: str) -> list[str]:
    """Both medians, how much better the second one is, and how far the rounds of one side lie apart."""
    if not all(values):
        return []
    old, new = map(statistics.median, values)
    ratio = old / max(new, 1e-3) if better == "less" else new / max(old, 1e-3)
    spread = max((max(side) - min(side)) / max(abs(statistics.median(side)), 1e-3) for side in values)
    return [f"{ray_table.number(old)} {unit}", f"{ray_table.number(new)} {unit}", f"{ratio:.2f} ×", f"{spread:.0%}"]


if __name__ == "__main__":
    main()
