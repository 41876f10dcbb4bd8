"""One round of the comparison on Covey's side; prints one JSON object. Run by `ray_table.py`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import measure
import numpy

import covey
from covey import agent


@agent
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


@agent(concurrency=1000)
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


@agent(own_process=True)
class Mortal:
    def pid(self):
        return os.getpid()


@covey.task
def noop(x):
    return x


def main() -> None:
    begin = time.perf_counter()
    session = covey.init()
    out = {"up_s": time.perf_counter() - begin}
    sync, anew = Sync.remote(), Async.remote()
    covey.get([sync.noop.remote(0), anew.noop.remote(0)])
    covey.get([noop.remote(i) for i in range(200)])

    with measure.Cost(out, "call_s", 1100):
        out |= measure.latency(lambda: sync.noop.remote(1).result(), "call")
    out[measure.cpu_key("call_p50_ms")] = out.pop(measure.cpu_key("call_s"))

    def rate(key: str, work: Callable[[int], object], at_once: int, total: int) -> None:
        """Per second, in rounds of `at_once`, after one round to warm up."""
        work(min(at_once, 1000))
        with measure.Cost(out, key, total):
            for _ in range(total // at_once):
                work(at_once)

    rate("in_flight_async_s", lambda n: covey.get([anew.noop.remote(i) for i in range(n)]), 1000, 50000)
    rate("in_flight_sync_s", lambda n: covey.get([sync.noop.remote(i) for i in range(n)]), 1000, 50000)

    async def gather(n: int, of: int) -> None:
        for _ in range(n // of):
            await asyncio.gather(*[anew.noop.remote(i) for i in range(of)])

    with measure.Cost(out, "gather_s", 50000):
        asyncio.run(gather(50000, 1000))

    def read(stream):
        for _ in stream:
            pass

    rate("stream_sync_s", lambda n: read(sync.items.remote(n)), 100000, 100000)

    async def read_all(streams: int, each: int) -> None:
        async def one():
            async for _ in anew.items.remote(each):
                pass

        await asyncio.gather(*[one() for _ in range(streams)])

    for streams, each in ((1, 100000), (10, 10000), (100, 1000)):
        with measure.Cost(out, f"stream_async_{streams}_s", streams * each):
            asyncio.run(read_all(streams, each))

    async def paced() -> list[float]:
        lags: list[float] = []

        async def one():
            async for made in anew.paced.remote(100, 50):
                lags.append(time.time() - made)

        await asyncio.gather(*[one() for _ in range(50)])
        return lags

    out["paced_p99_ms"] = measure.percentile(asyncio.run(paced()), 99) * 1e3
    rate("tasks_s", lambda n: covey.get([noop.remote(i) for i in range(n)]), 10000, 50000)

    small, large = numpy.zeros(1 << 17), numpy.zeros(100 << 17)
    if hasattr(covey, "put"):
        for name, array, times in (("1mb", small, 50), ("100mb", large, 5)):
            # Different contents: the same ones are kept once.
            refs, arrays = [], [array + i for i in range(times)]
            out[f"put_{name}_ms"] = measure.median_ms(lambda a=arrays, r=refs: r.append(covey.put(a.pop())), times)
            left = list(refs)
            out[f"get_{name}_ms"] = measure.median_ms(lambda left=left: covey.get(left.pop()), len(left))
            del refs, left
    out["call_1mb_ms"] = measure.median_ms(lambda: sync.size.remote(small).result(), 50)

    back = Mortal.remote()
    times = []
    for _ in range(3):
        os.kill(back.pid.remote().result(), signal.SIGKILL)
        begin = time.perf_counter()
        back.pid.options(retries=10).remote().result()
        times.append(time.perf_counter() - begin)
        time.sleep(0.2)
    out["back_s"] = sorted(times)[1]

    before = measure.available_memory()
    with measure.Cost(out, "actors_s", measure.COVEY_ACTORS):
        actors = [Sync.remote() for _ in range(measure.COVEY_ACTORS)]
        covey.get([a.noop.remote(1) for a in actors])
    out["actor_kib"] = (before - measure.available_memory()) / len(actors) / 1024
    for actor in actors:
        actor.stop()
    time.sleep(2)
    # Only the cluster's own processes: others on this machine may be clusters too.
    cluster = [pid for pid in measure.descendants(os.getpid()) if pid != os.getpid()]
    out["idle_cpu_percent"] = measure.busy_percent(cluster, 10)
    code = f"import covey, time; t=time.perf_counter(); covey.connect('{session.address}', '{session.token}'); print(time.perf_counter()-t)"
    out["connect_s"] = float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])
    session.close()
    print(json.dumps(out))


if __name__ == "__main__":
    main()
