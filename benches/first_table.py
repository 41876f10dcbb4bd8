"""The first table of `docs/benchmarks.md`: `make bench`. Starts clusters of its own; medians of five runs.

What bounds each row is said beside it; there is no peer in this table yet.
"""

from __future__ import annotations

import asyncio
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile
import time

import measure

import covey
from covey import agent

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = 5


@agent(concurrency=1000)
class Bench:
    async def noop(self, x: int) -> int:
        return x

    async def count(self, n: int):
        for i in range(n):
            yield i


def median(measure) -> float:
    return statistics.median(measure() for _ in range(RUNS))


def startup() -> float:
    """`covey up` to its first accepted call, seconds."""
    begin = time.monotonic()
    with covey.init(models=str(ROOT / "models")):
        covey.remote_agent("counter").add.remote(1).result(30)
        return time.monotonic() - begin


def idle_memory() -> float:
    """Resident memory of an idle head, MiB."""
    home = tempfile.mkdtemp()
    process = subprocess.Popen(
        [os.environ["COVEY_BIN"], "head", "--port", "0"], env={**os.environ, "COVEY_HOME": home}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(2)
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    process.terminate()
    process.wait()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> None:
    rows: list[tuple[str, str, str]] = []
    rows.append(("`covey up` to first call answered", f"{median(startup):.2f} s", "process start, one interpreter probe"))
    rows.append(("idle head, resident memory", f"{idle_memory():.1f} MiB", "binary, SQLite cache"))
    with covey.init(models=str(ROOT / "models")) as session:
        env = {**os.environ, "COVEY_ADDRESS": session.address, "COVEY_TOKEN": session.token}
        binary = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release/covey-bench"
        runs = [json.loads(subprocess.run([binary], env=env, check=True, capture_output=True).stdout) for _ in range(RUNS)]
        rust = {key: statistics.median(r[key] for r in runs) for key in runs[0]}
        limit = "two gRPC hops each way through the head"
        rows.append(("Rust, native actor, one call at a time, p50 / p99", f"{rust['call_p50_us']:.0f} / {rust['call_p99_us']:.0f} µs", limit))
        rows.append(("Rust, native actor, 1,000 in flight", f"{rust['calls_per_s']:,.0f} calls/s", limit))
        rows.append(("Rust, native stream", f"{rust['items_per_s']:,.0f} items/s", limit))

        bench = Bench.remote()
        bench.noop.remote(0).result(30)

        def sync(part: float):
            def once() -> float:
                times = []
                for _ in range(1000):
                    begin = time.perf_counter()
                    bench.noop.remote(1).result()
                    times.append(time.perf_counter() - begin)
                return sorted(times)[int(len(times) * part)] * 1e6

            return once

        def in_flight() -> float:
            begin = time.perf_counter()
            for _ in range(5):
                covey.get([bench.noop.remote(i) for i in range(1000)])
            return 5000 / (time.perf_counter() - begin)

        def gather() -> float:
            async def run() -> float:
                begin = time.perf_counter()
                await asyncio.gather(*[bench.noop.remote(i) for i in range(1000)])
                return 1000 / (time.perf_counter() - begin)

            return asyncio.run(run())

        def items() -> float:
            begin = time.perf_counter()
            count = sum(1 for _ in bench.count.remote(5000))
            return count / (time.perf_counter() - begin)

        def tasks() -> float:
            begin = time.perf_counter()
            made = [covey.submit("echo", "", "x") for _ in range(200)]
            for task in made:
                task.result()
            return 200 / (time.perf_counter() - begin)

        def tokens() -> float:
            begin, stream = time.perf_counter(), covey.llm.stream("Repeat: " + "sun moon star " * 8, max_tokens=128)
            "".join(stream)
            return stream.usage["output"] / (time.perf_counter() - begin)

        gil = "GIL: pickle, asyncio and a socket on both sides"
        rows.append(("Python, async method, one call at a time, p50 / p99", f"{median(sync(0.5)):.0f} / {median(sync(0.99)):.0f} µs", gil))
        rows.append(("Python, async method, 1,000 in flight", f"{median(in_flight):,.0f} calls/s", gil))
        rows.append(("Python, asyncio gather of 1,000", f"{median(gather):,.0f} calls/s", gil))
        rows.append(("Python, async generator to sync reader", f"{median(items):,.0f} items/s", gil))
        rows.append(("durable tasks, submitted one by one from Python", f"{median(tasks):,.0f} tasks/s", "one fsync for each acknowledgement"))
        rows.append(("tiny model, one stream", f"{median(tokens):,.0f} tokens/s", "op overhead: 0.9 M parameters are 4 MB"))
    load = os.getloadavg()[0]
    print(f"{measure.processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load:.1f}, {time.strftime('%Y-%m-%d')}\n")
    print("| what | median of 5 | bounded by |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
