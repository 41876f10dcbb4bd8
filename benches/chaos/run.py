"""`make chaos`: real processes are killed, stopped, cut off and doubled while durable tasks run; what is promised is counted.

Each fault is a round: tasks run, the fault comes, and every task must end once and whole. Counted from a client's own history
and from what tasks did outside (a line each 20 ms in a file): tasks lost, ended twice, events with gaps, and effects of an
older run after a newer one of the same task began. All four must be 0, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from world import LEASE, Count
from faults import counters, head_killed, python_killed, stopped, twin, worker_killed
from measure import percentile
from outside import bits_flipped, clocks, disk_full, fsync_fails, overload, silent

# What is done, how often in the long form and in the short one.
FAULTS: list[tuple[str, Callable[[Count, int], None], int, int]] = [
    ("Python processes killed", python_killed, 30, 3),
    ("worker killed", worker_killed, 30, 3),
    ("head killed", head_killed, 30, 3),
    ("head killed, calls to virtual actors race the workers", counters, 20, 2),
    ("worker stopped for 12 s", stopped("w1", LEASE + 2), 2, 1),
    ("worker stopped for 30 s", stopped("w1", 30), 1, 0),
    ("worker stopped for 60 s", stopped("w1", 60), 1, 0),
    ("head stopped for 12 s", stopped("head", LEASE + 2), 2, 1),
    ("head stopped for 30 s", stopped("head", 30), 1, 0),
    ("head stopped for 60 s", stopped("head", 60), 1, 0),
    ("silent link of a worker for 60 s", silent(60), 1, 0),
    ("a second worker of the same name", twin, 1, 0),
    ("clock of the head jumps ± 1 h, starts a year ahead", clocks, 3, 1),
    ("disk of log and tables full for 3 s", disk_full, 5, 1),
    ("fsync of the log fails", fsync_fails("covey.db-log0"), 3, 1),
    ("fsync of the tables fails", fsync_fails("covey.db"), 1, 0),
    ("one bit of the log flipped", bits_flipped("covey.db-log0"), 1000, 20),
    ("one bit of the tables flipped", bits_flipped("covey.db"), 1000, 20),
    ("one caller sends 10 x what fits", overload, 1, 0),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="three minutes instead of fifteen")
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    args = parser.parse_args()
    print("| fault | rounds | lost | doubled | gaps | stale effects | recovery p50, p99 |")
    print("|---|---|---|---|---|---|---|")
    clean, remarks = True, []
    for name, run, many, few in FAULTS:
        times = few if args.short else many
        if not times or args.only not in name:
            continue
        count, began = Count(), time.monotonic()
        run(count, times)
        told = "–"
        if count.recovery:
            told = f"{percentile(count.recovery, 50):.2f}, {percentile(count.recovery, 99):.2f} s"
        print(f"| {name} | {count.rounds} | {count.lost} | {count.doubled} | {count.gaps} | {count.stale} | {told} |", flush=True)
        print(f"  {name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        remarks += [f"{name}: {remark}" for remark in count.remarks]
        clean &= count.is_clean()
    for remark in remarks:
        print(f"- {remark}")
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
