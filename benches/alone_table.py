"""What has no peer: the Rust client, a million actors, how decisions scale. Part of `make bench-ray`."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import covey


def resident_gib(pid: int) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 2**20


def rust_client(binaries: pathlib.Path, env: dict[str, str]) -> dict[str, float]:
    """Medians of five runs of the Rust client against the cluster that `env` names."""
    run = [str(binaries / "covey-bench")]
    runs = [json.loads(subprocess.run(run, env=env, check=True, capture_output=True, text=True).stdout) for _ in range(5)]
    return {key: statistics.median(r[key] for r in runs) for key in runs[0]}


@contextlib.contextmanager
def cluster_by_tls():
    """The environment of clients of a cluster that speaks nothing but TLS."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "COVEY_HOME": home}
        process = subprocess.Popen([covey._session.find_binary(), "up", "--tls", "--port", "0"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (pathlib.Path(home) / "credentials.json").exists():
                time.sleep(0.01)
            time.sleep(1)
            yield env
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    binaries = pathlib.Path(sys.argv[1])
    with covey.init() as session:
        env = {**os.environ, "COVEY_ADDRESS": session.address, "COVEY_TOKEN": session.token}
        run = lambda *args: subprocess.run([str(a) for a in args], env=env, check=True, capture_output=True, text=True).stdout  # noqa: E731
        rust = rust_client(binaries, env)
        with cluster_by_tls() as private:
            tls = rust_client(binaries, private)
        print("\n| what | measured | aim |\n|---|---|---|")
        print(f"| Rust client, native actor, one at a time, p50 / p99 | {rust['call_p50_us']:.0f} / {rust['call_p99_us']:.0f} µs | ≤ 180 µs |")
        print(f"| the same, 1,000 in flight over one stream | {rust['calls_per_s']:,.0f}/s | ≥ 400,000/s |")
        print(f"| the same, one stream of items | {rust['items_per_s']:,.0f} items/s | |")
        print(f"| by TLS: one at a time, p50 / p99 | {tls['call_p50_us']:.0f} / {tls['call_p99_us']:.0f} µs | |")
        print(f"| by TLS: 1,000 in flight | {tls['calls_per_s']:,.0f}/s | ≥ 250,000/s |")
        before = resident_gib(session._process.pid)
        many = json.loads(run(binaries / "covey-million", 1_000_000, 10_000))
        size = resident_gib(session._process.pid) - before
        print(f"| 1,000,000 native actors on one worker: made | {many['made_per_s']:,}/s | works |")
        print(f"| … memory, head and worker together | {size:.1f} GiB | ≤ 10 GB |")
        print(f"| … 10,000 of them called, 1,000 in flight | {many['calls_per_s']:,}/s, {many['failed']} failed | |")
        print(f"| virtual actors woken by a first call | {many['woken_per_s']:,}/s, {many['not_woken']} failed | |")
    print("\n| nodes | actors | placements/s | µs each | actors of a dead node placed again |\n|---|---|---|---|---|")
    for line in subprocess.run([str(binaries / "covey-scale")], check=True, capture_output=True, text=True).stdout.splitlines():
        r = json.loads(line)
        print(f"| {r['nodes']:,} | {r['actors']:,} | {r['placements_per_s']:,} | {r['us_each']} | {r['placed_again']:,} in {r['again_ms']} ms |")


if __name__ == "__main__":
    main()
