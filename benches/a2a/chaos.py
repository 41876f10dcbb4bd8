"""`make chaos-a2a`: `kill -9` of the worker, and of the head, in mid-stream, many times each.

Followers read a task's stream over JSON-RPC and dial again with `Last-Event-ID` when their connection ends. Told for each death:
how long it took until every follower saw the task go on. Anything lost, repeated or out of order ends the run.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python-bindings/tests"), str(pathlib.Path(__file__).resolve().parents[1])]

from conftest import Nodes, eventually  # noqa: E402
from measure import percentile  # noqa: E402
from test_streams import Follower, Ticker  # noqa: E402
from test_turns import made  # noqa: E402

WORDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--followers", type=int, default=4)
    args = parser.parse_args()
    text = "".join(f"{n} " for n in range(WORDS))
    print("| killed | times | until all followers see it go on: p50, p99, longest | lost or repeated |")
    print("| --- | --- | --- | --- |")
    for victim in ("worker", "head"):
        nodes, took = Nodes(tempfile.mkdtemp()), []
        try:
            nodes.pair()
            name = made(Ticker).register()
            for n in range(args.times):
                followers = [Follower(nodes, name, str(WORDS)) for _ in range(args.followers)]
                eventually(lambda: all(len(f.events) > 20 for f in followers))
                seen = [len(f.events) for f in followers]
                began = time.monotonic()
                nodes.kill9("head" if victim == "head" else f"w{1 + n % 2}")
                if victim == "head":
                    nodes.head()
                eventually(lambda: all(len(f.events) > before + 2 for f, before in zip(followers, seen)))
                took.append(time.monotonic() - began)
                if victim == "worker":
                    nodes.worker(f"w{1 + n % 2}")
                for follower in followers:
                    follower.check(text)
            p50, p99, longest = (percentile(took, p) for p in (50, 99, 100))
            print(f"| {victim} | {args.times} | {p50:.2f}, {p99:.2f}, {longest:.2f} s | none |", flush=True)
        finally:
            nodes.stop()


main()
