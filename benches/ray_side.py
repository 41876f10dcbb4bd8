"""One round of the comparison on Ray's side; prints one JSON object. Run by `ray_table.py` in a venv that has Ray."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
import measure
import numpy
import ray

CPUS = 8  # logical: Ray places nothing beyond it


@ray.remote(num_cpus=0)
class Sync:
    def noop(self, x):
        return x

    def pid(self):
        return os.getpid()

    def items(self, n):
        for i in range(n):
            yield i

    def size(self, array):
        return array.nbytes


@ray.remote(num_cpus=0)
class Async:
    async def noop(self, x):
        return x

    async def items(self, n):
        for i in range(n):
            yield i

    async def paced(self, n, per_second):
        for i in range(n):
            yield time.time()
            await asyncio.sleep(1 / per_second)


@ray.remote
def noop(x):
    return x


def main() -> None:
    begin = time.perf_counter()
    import logging

    ray.init(num_cpus=CPUS, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, object_store_memory=2 << 30)
    out = {"up_s": time.perf_counter() - begin}
    sync, anew = Sync.remote(), Async.remote()
    ray.get([sync.noop.remote(0), anew.noop.remote(0)])
    ray.get([noop.remote(i) for i in range(200)])
    address = ray.get_runtime_context().gcs_address

    out |= measure.latency(lambda: ray.get(sync.noop.remote(1)), "call")
    out["in_flight_async_s"] = measure.rate(lambda n: ray.get([anew.noop.remote(i) for i in range(n)]), 1000, 5000)
    out["in_flight_sync_s"] = measure.rate(lambda n: ray.get([sync.noop.remote(i) for i in range(n)]), 1000, 5000)

    async def gather(n: int, of: int) -> None:
        async def one(i):
            return await anew.noop.remote(i)

        for _ in range(n // of):
            await asyncio.gather(*[one(i) for i in range(of)])

    begin = time.perf_counter()
    asyncio.run(gather(5000, 1000))
    out["gather_s"] = 5000 / (time.perf_counter() - begin)

    def read(stream):
        for item in stream:
            ray.get(item)

    out["stream_sync_s"] = measure.rate(lambda n: read(sync.items.options(num_returns="streaming").remote(n)), 10000, 10000)

    async def read_all(streams: int, each: int) -> None:
        async def one():
            async for item in anew.items.options(num_returns="streaming").remote(each):
                await item

        await asyncio.gather(*[one() for _ in range(streams)])

    for streams, each in ((1, 3000), (10, 300), (100, 30)):
        begin = time.perf_counter()
        asyncio.run(read_all(streams, each))
        out[f"stream_async_{streams}_s"] = streams * each / (time.perf_counter() - begin)

    async def paced() -> list[float]:
        lags: list[float] = []

        async def one():
            async for item in anew.paced.options(num_returns="streaming").remote(100, 50):
                made = await item
                lags.append(time.time() - made)

        await asyncio.gather(*[one() for _ in range(50)])
        return lags

    out["paced_p99_ms"] = measure.percentile(asyncio.run(paced()), 99) * 1e3
    out["tasks_s"] = measure.rate(lambda n: ray.get([noop.remote(i) for i in range(n)]), 10000, 10000)

    small, large = numpy.zeros(1 << 17), numpy.zeros(100 << 17)
    for name, array, times in (("1mb", small, 50), ("100mb", large, 5)):
        refs = []
        out[f"put_{name}_ms"] = measure.median_ms(lambda a=array, r=refs: r.append(ray.put(a)), times)
        left = list(refs)
        out[f"get_{name}_ms"] = measure.median_ms(lambda left=left: ray.get(left.pop()), len(left))
        del refs, left
    out["call_1mb_ms"] = measure.median_ms(lambda: ray.get(sync.size.remote(small)), 50)

    back = Sync.options(max_restarts=-1, max_task_retries=-1).remote()
    times = []
    for _ in range(3):
        os.kill(ray.get(back.pid.remote()), signal.SIGKILL)
        begin = time.perf_counter()
        ray.get(back.pid.remote())
        times.append(time.perf_counter() - begin)
        time.sleep(0.2)
    out["back_s"] = sorted(times)[1]

    before = measure.available_memory()
    begin = time.perf_counter()
    actors = [Sync.remote() for _ in range(measure.RAY_ACTORS)]
    ray.get([a.noop.remote(1) for a in actors])
    out["actors_s"] = len(actors) / (time.perf_counter() - begin)
    out["actor_kib"] = (before - measure.available_memory()) / len(actors) / 1024
    for actor in actors:
        ray.kill(actor)
    time.sleep(2)
    out["idle_cpu_percent"] = measure.busy_percent(measure.find("ray::", "/ray/"), 10)
    code = f"import ray, time; t=time.perf_counter(); ray.init('{address}', logging_level=40, log_to_driver=False); print(time.perf_counter()-t)"
    import subprocess

    out["connect_s"] = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])
    print(json.dumps(out))


if __name__ == "__main__":
    main()
