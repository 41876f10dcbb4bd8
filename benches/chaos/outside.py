"""Networks, clocks, disks and callers that do what they should not."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import httpx
from world import LONG, TASKS, Count, Round, World  # it says where the rest is
from agents import Effects
from conftest import BIN, ROOT, Nodes, eventually
from measure import percentile
from test_durability import Disk, client, send
from test_fencing import SILENT
from test_mesh import Net

import covey

# `cargo build --release -p covey-store --example flips`
FLIPS = os.environ.get("COVEY_FLIPS", str(ROOT / "target/release/examples/flips"))


def silent(seconds: int) -> Callable[[Count, int], None]:
    """Packets of a worker are dropped and nothing is closed. The driver is beside the head, in a process of its own."""

    def run(count: Count, times: int) -> None:
        for _ in range(times):
            net, nodes = Net(), Nodes(tempfile.mkdtemp())
            try:
                for name, address in (("head", "10.99.0.2"), ("w1", "10.99.0.21"), ("w2", "10.99.0.22")):
                    net.machine(name, address)
                    nodes.inside[name] = net.inside(name)
                nodes.env["COVEY_MACHINE"] = "each its own"
                nodes.head("--host", "0.0.0.0")
                for name in ("w1", "w2"):
                    nodes.worker(name, "--cpus", "4")
                effects = nodes.folder / "effects"
                env = {**nodes.env, "COVEY_ADDRESS": nodes.address, "COVEY_TOKEN": nodes.keys["admin_key"]}
                command = [*net.inside("head"), sys.executable, __file__, str(effects)]
                driver = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert driver.stdout.readline() == "at work\n"
                since = time.monotonic_ns()
                net.run("net", "nft", "-f", "-", text=SILENT)
                time.sleep(seconds)
                net.run("net", "nft", "delete", "table", "bridge", "cut")
                told, _ = driver.communicate("\n", timeout=300)
                for name, value in json.loads(told).items():
                    setattr(count, name, getattr(count, name) + value)
                count.recovery += Effects(effects).again(since)
            finally:
                nodes.stop()
                net.close()

    return run


def beside_the_head(path: pathlib.Path) -> None:
    """The driver of `silent`: tells when its tasks are at work, and at the end what it counted."""
    with covey.connect(os.environ["COVEY_ADDRESS"], os.environ["COVEY_TOKEN"]):
        live = lambda: sum(n["state"] == "live" for n in covey.status()["nodes"]) == 2
        eventually(live)
        count = Count()
        at_work = Round(Nodes(path.parent), count, 3 * LONG, path)
        print("at work", flush=True)
        at_work.strike(sys.stdin.readline)
        at_work.settle()
        eventually(live, timeout=60)
        columns = ("rounds", "lost", "doubled", "gaps", "stale")
        print(json.dumps({name: getattr(count, name) for name in columns}))


@contextlib.contextmanager
def faked(world: World) -> Iterator[Callable[[str], None]]:
    """The head's wall clock shows what is said; gives who says it."""
    now = world.nodes.home / "now"
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))

    def shows(offset: str) -> None:
        fresh = now.with_suffix(".new")
        fresh.write_text(offset)
        fresh.rename(now)

    shows("+0")
    plain = world.nodes.env
    world.nodes.env = {
        **plain,
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    yield shows
    world.nodes.env = plain


def clocks(count: Count, times: int) -> None:
    world = World()
    with contextlib.ExitStack() as stack:
        stack.push(world.__exit__)
        with faked(world) as shows:
            world.nodes.head()
        for name in ("w1", "w2"):
            world.nodes.worker(name, "--cpus", "4")
        world.connect()
        for _ in range(times):
            at_work = Round(world.nodes, count, 400)
            at_work.strike(lambda: None)
            for offset in ("+3600s", "-3600s", "+0"):
                shows(offset)
                time.sleep(1.5)
                dead = [n["name"] for n in covey.status()["nodes"] if n["state"] != "live"]
                count.lost += len(dead)
                if dead:
                    count.remarks.append(f"{dead} dead at {offset}")
            world.nodes.kill9("head")
            with faked(world):
                shows("+365d")
                world.nodes.head()
            world.nodes.live(2)
            at_work.settle()
            shows("+0")


def disk_full(count: Count, times: int) -> None:
    world = World()
    disk = Disk(world.nodes.home / "disk", "64m")
    try:
        world.nodes.inside["head"] = disk.inside
        world.start("--data", str(disk.at))
        for _ in range(times):
            at_work = Round(world.nodes, count, 400)
            at_work.strike(disk.fill)
            time.sleep(3)
            disk.empty()
            at_work.settle()
    finally:
        world.__exit__()
        disk.close()


def fsync_fails(file: str) -> Callable[[Count, int], None]:
    """The head ends rather than acknowledge what may not be on disk; another one goes on."""

    def run(count: Count, times: int) -> None:
        for _ in range(times):
            world = World()
            try:
                world.nodes.head()
                world.nodes.kill9("head")
                path = world.nodes.home / "head" / file
                trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", "trace=fsync,fdatasync"]
                world.nodes.inside["head"] = [*trace, "-e", "inject=fsync,fdatasync:error=EIO:when=40+"]
                world.start()
                at_work = Round(world.nodes, count, 400)
                at_work.strike(lambda: None)
                # The tables are written when the log has grown.
                over = threading.Event()
                noise = threading.Thread(target=loud, args=(world.nodes, over, []))
                noise.start()
                code = world.nodes.running["head"].wait(120)
                over.set()
                noise.join()
                if code != 70:
                    count.remarks.append(f"the head ended with {code}")
                    count.lost += 1
                del world.nodes.running["head"], world.nodes.inside["head"]
                since = time.monotonic()
                world.nodes.head()
                covey.status()
                count.recovery.append(time.monotonic() - since)
                at_work.settle()
            finally:
                world.__exit__()

    return run


def loud(nodes: Nodes, over: threading.Event, acknowledged: list[str]) -> None:
    """Sends echoes until `over` is set or nobody answers."""
    with client(nodes) as web:
        number = 0
        while not over.is_set():
            number += 1
            with contextlib.suppress(httpx.HTTPError):
                answer = send(web, f"{threading.get_ident()}-{number}", {"text": "x" * 20_000})
                if answer.status_code == 200:
                    acknowledged.append(answer.json()["task"]["id"])
                elif answer.status_code == 429:
                    time.sleep(0.02)
                continue
            if nodes.running["head"].poll() is not None:
                return


def bits_flipped(file: str) -> Callable[[Count, int], None]:
    """What opens a file with one wrong bit has every acknowledged task; else it refuses and names the place, or names the task.

    Most flips are opened by the head's own code in one process (`crates/store/examples/flips.rs`), some by heads. Every page of
    the tables has a sum: the doctor names a flip wherever it lies."""

    def run(count: Count, times: int) -> None:
        nodes = Nodes(tempfile.mkdtemp())
        try:
            nodes.head()
            nodes.worker("w1", "--cpus", "2")
            with client(nodes) as web:
                # Half of them have ended, and half of them wait.
                told = [send(web, number).json()["task"]["id"] for number in range(60)]
                eventually(lambda: web.get("/v1/cluster").json()["tasks"].get("completed") == 60)
                nodes.kill9("w1")
                told += [send(web, number).json()["task"]["id"] for number in range(60, 120)]
            nodes.kill9("head")
            if file == "covey.db":
                # A start brings everything into SQLite's log, and whoever closes that last into the tables.
                nodes.head()
                ended = nodes.running.pop("head")
                ended.send_signal(signal.SIGTERM)
                ended.wait(30)
                with contextlib.closing(sqlite3.connect(nodes.home / "head" / file)) as db:
                    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            whole = nodes.home / "whole"
            shutil.copytree(nodes.home / "head", whole)
            (nodes.home / "acknowledged").write_text("\n".join(told))
            flipped_in_one_process(count, times, whole, file, nodes.home / "acknowledged")
            flipped_for_heads(count, min(times, 20), nodes, whole, file)
        finally:
            nodes.stop()

    return run


def flipped_in_one_process(count: Count, times: int, whole: pathlib.Path, file: str, acknowledged: pathlib.Path) -> None:
    since = time.monotonic()
    command = [FLIPS, whole, file, str(times), "7", acknowledged]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    count.rounds += times
    count.lost += len(found["silent"])
    count.remarks += found["silent"][:20]
    count.remarks.append(
        f"{times} flips among {found['bytes']} bytes, {found['tasks']} tasks, {time.monotonic() - since:.0f} s: {found['refused']} were refused "
        f"with the place named, of {found['named']} a task was named, {found['whole']} cost nothing; the doctor found {found['doctor']}"
    )
    if file == "covey.db":
        count.lost += times - found["doctor"]


def flipped_for_heads(count: Count, times: int, nodes: Nodes, whole: pathlib.Path, file: str) -> None:
    body = (whole / file).read_bytes()
    used = len(body.rstrip(b"\0"))
    dice = random.Random(7)
    refused = set_aside = 0
    for _ in range(times):
        shutil.rmtree(nodes.home / "head")
        shutil.copytree(whole, nodes.home / "head")
        hurt = bytearray(body)
        hurt[dice.randrange(used)] ^= 1 << dice.randrange(8)
        (nodes.home / "head" / file).write_bytes(hurt)
        path = nodes.home / "credentials.json"
        before = path.stat().st_mtime_ns
        nodes.start("probe", "head", "--port", "0")
        probe = nodes.running.pop("probe")
        eventually(lambda probe=probe, before=before: probe.poll() is not None or path.stat().st_mtime_ns != before)
        found = None
        if probe.poll() is None:
            nodes.keys = json.loads(path.read_text())
            try:
                with client(nodes) as web:
                    found = web.get("/v1/cluster").json()["tasks"]
            except httpx.TransportError:
                # It has credentials before it has read its tasks, which is where it may be refused too.
                probe.wait(30)
        if found is not None:
            gone = 120 - sum(many for state, many in found.items() if state != "failed")
            # A task that cannot be read fails with its reason and is set aside; it is not gone without a word.
            named = min(gone, found.get("failed", 0))
            set_aside += named
            count.lost += gone - named
            probe.kill()
            probe.wait()
        else:
            refused += 1
            if probe.returncode != 70:
                count.lost += 1
                count.remarks.append(f"the head ended with {probe.returncode}")
        count.rounds += 1
    count.remarks.append(f"{refused} of {times} starts of a head were refused with the place named, {set_aside} tasks were set aside")


def overload(count: Count, times: int) -> None:
    """What one caller's flood costs another: the same echo, one at a time, alone and beside it."""
    nodes = Nodes(tempfile.mkdtemp())
    try:
        nodes.head()
        nodes.worker("w1", "--cpus", "2")
        nodes.connect()
        nodes.live(1)
        keys = [nodes.cli("key", "add", name).stdout.strip() for name in ("loud", "quiet")]

        def caller(key: str, size: int, how: str, number: int) -> subprocess.Popen[str]:
            command = [sys.executable, pathlib.Path(__file__).with_name("flood.py"), nodes.keys["address"], key, str(size), how, str(number)]
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def quiet() -> list[float]:
            said = json.loads(caller(keys[1], 5, "quiet", 300).communicate()[0])
            count.lost += said["lost"]
            return said["took"]

        for _ in range(times):
            alone = quiet()
            flood = caller(keys[0], 1 << 20, "loud", 8)
            time.sleep(1)
            beside = quiet()
            said = json.loads(flood.communicate()[0])
            ends = lambda: covey.status()["tasks"].get("completed", 0) >= said["acknowledged"]
            eventually(ends, timeout=300)
            count.rounds += 1
            count.remarks.append(
                f"another caller's p50 and p99: {percentile(alone, 50) * 1e3:.1f}, {percentile(alone, 99) * 1e3:.1f} ms alone, "
                f"{percentile(beside, 50) * 1e3:.1f}, {percentile(beside, 99) * 1e3:.1f} ms beside {said['acknowledged']} messages of 1 MB, "
                f"{said['refused']} refused"
            )
    finally:
        covey.shutdown()
        nodes.stop()


if __name__ == "__main__":
    beside_the_head(pathlib.Path(sys.argv[1]))
