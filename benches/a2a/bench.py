"""`make bench-a2a`: Covey beside an echo agent on a2a-sdk with uvicorn and one on the official Rust server crate.

The same client for all, wrk with one thread; the same echo: each word of the message is a chunk of the one artifact. Ours
is durable: an answer is given once the task and its events are on disk. The others keep tasks in memory. What wrk takes of
the machine is taken from all.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A process and its children, with what they use."""

    def __init__(self, name: str, command: list[str], port: int, path: str = "/", key: str = "", env: dict[str, str] | None = None):
        self.name, self.port, self.path, self.key = name, port, path, key
        self.process = subprocess.Popen(command, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.05)
        raise SystemExit(f"{name} did not start")

    def tree(self) -> list[int]:
        pids = [self.process.pid]
        for pid in pids:
            try:
                children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                continue
            pids += [int(child) for child in children]
        return pids

    def cpu(self) -> float:
        """Seconds."""
        total = 0
        for pid in self.tree():
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def memory(self) -> int:
        """MiB."""
        text = "".join(pathlib.Path(f"/proc/{pid}/status").read_text() for pid in self.tree())
        return sum(int(kib) for kib in re.findall(r"VmRSS:\s+(\d+)", text)) >> 10

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def load(server: Server, method: str, words: int, connections: int, seconds: int) -> dict[str, float]:
    """One run of wrk."""
    text = "hello" if words == 1 else " ".join(["chunk"] * words)
    env = {**os.environ, "KEY": server.key, "AT": server.path, "METHOD": method, "TEXT": text}
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(HERE / "load.lua")]
    before = server.cpu()
    out = subprocess.run([*command, f"http://127.0.0.1:{server.port}"], env=env, capture_output=True, text=True, check=True).stdout
    used = server.cpu() - before
    counted = json.loads(out.splitlines()[-1])
    done = counted["good"]
    if not done:
        return {"failed": counted["bad"]}
    return {
        "per_s": done / counted["seconds"],
        "p50": counted["p50"] / 1000,
        "p99": counted["p99"] / 1000,
        "cpu_ms": used / done * 1000,
        "failed": counted["bad"],
    }


def covey(folder: str, binary: str = os.environ.get("COVEY_BIN", str(ROOT / ".venv/bin/covey"))) -> Server:
    port = free_port()
    env = {"COVEY_HOME": folder}
    server = Server("Covey, durable", [binary, "up", "--port", str(port)], port, "/a2a/echo", env=env)
    credentials = pathlib.Path(folder) / "credentials.json"
    while not credentials.exists():
        time.sleep(0.05)
    server.key = json.loads(credentials.read_text())["admin_key"]
    time.sleep(1.5)  # until its worker is there
    return server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--peer", help="the built Rust peer", required=True)
    parser.add_argument("--python", help="an interpreter with a2a-sdk and uvicorn[standard]", required=True)
    args = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("wrk is missing: apt-get install wrk")
    runs = [("send", "SendMessage", 1, c) for c in (1, 16, 64)]
    runs += [(f"stream {n}", "SendStreamingMessage", n, c) for n in (20, 100, 1000) for c in (1, 100)]
    rows: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    memory = {}
    with tempfile.TemporaryDirectory() as folder:
        makers = [
            lambda: covey(folder),
            lambda: Server("a2a-server-lf 0.5.3, memory", [args.peer, str(port := free_port())], port),
            lambda: Server("a2a-sdk 1.3.0, memory", [args.python, str(HERE / "sdk_side.py"), str(port := free_port())], port),
        ]
        names = []
        for make in makers:
            server = make()
            names.append(server.name)
            load(server, "SendMessage", 1, 16, 2)
            idle = server.memory()
            for what, method, words, connections in runs:
                got = load(server, method, words, connections, args.seconds)
                rows.setdefault((what, connections), {})[server.name] = got
                print(server.name, what, connections, got, file=sys.stderr, flush=True)
            memory[server.name] = (idle, server.memory())
            server.stop()
    show(names, runs, rows, memory)


def show(names: list[str], runs: list, rows: dict, memory: dict) -> None:
    print("| workload (connections) | " + " | ".join(names) + " | ours / Rust | ours / SDK |")
    print("| --- |" + " --- |" * (len(names) + 2))
    for what, _, words, connections in runs:
        row, cells = rows[what, connections], []
        streams = what.startswith("stream")
        for name in names:
            got = row[name]
            if "per_s" not in got:
                cells.append("fails")
                continue
            rate = got["per_s"] * (words if streams else 1)
            cpu = got["cpu_ms"] / (words / 1000 if streams else 1)
            unit = ("chunks/s", "ms CPU per 1,000") if streams else ("/s", "ms CPU")
            lost = f", {got['failed']} failed" if got["failed"] else ""
            cells.append(f"{rate:,.0f} {unit[0]}, {got['p50']:.1f}/{got['p99']:.1f} ms, {cpu:.3g} {unit[1]}{lost}")
        ours = row[names[0]].get("per_s", 0)
        ratios = [f"{ours / row[name]['per_s']:.3g} x" if "per_s" in row[name] else "-" for name in names[1:]]
        print(f"| {what} ({connections}) | " + " | ".join(cells + ratios) + " |")
    print("| memory, begun and at the end, MiB | " + " | ".join(f"{memory[n][0]}, {memory[n][1]}" for n in names) + " | | |")


if __name__ == "__main__":
    main()
