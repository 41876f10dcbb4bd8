"""What hostile clients cost a head: its memory, and what others wait meanwhile. `make bench-hostile`.

Starts a head and a worker of its own on loopback, attacks it in one way after the other, and has a good caller ask an echo all the while.
The base of each row is the same good caller, at the same head, beside the same attack (as many times a second) on a sink: a server that
reads and throws away. So a row shows what the head does about an attack, and not what the attacker takes of this machine. The good caller,
the attacker (niced: clients elsewhere take no processor time of the machine they attack) and the sink are processes of their own.
"""

import argparse
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BIN = os.environ.get("COVEY_BIN", str(ROOT / ".venv/bin/covey"))
ATTACKS = [
    "one_byte", "slow_headers", "slow_body", "idle", "stalled_readers", "deep_json", "large_body", "rapid_reset", "truncated_frames",
    "picture_bomb", "sound_bomb", "flood", "long_task",
]
GROWTH_MAX_MIB, RATIO_MAX = 100, 1.5
TICKS = os.sysconf("SC_CLK_TCK")


def python(*args):
    return subprocess.Popen([sys.executable, *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Cluster:
    def __init__(self, home):
        self.home = pathlib.Path(home)
        self.env = {**os.environ, "COVEY_HOME": home}
        self.log = open(self.home / "log", "wb")
        self.head = self.start("head", "--port", "0")
        path = self.home / "credentials.json"
        while not path.exists():
            time.sleep(0.02)
        self.admin = json.loads(path.read_text())
        self.address = self.admin["address"]
        self.worker = self.start("worker", "--join", f"{self.admin['join_secret']}@{self.address}", "--cpus", "2")
        self.keys = {name: self.cli("key", "add", name, "--models") for name in ("good", "hostile")}
        while True:
            try:
                self.rpc("good", "SendMessage", {"message": {"messageId": "first", "role": "ROLE_USER", "parts": [{"text": "hi"}]}})
                return
            except OSError:
                time.sleep(0.1)

    def start(self, *args):
        return subprocess.Popen([BIN, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def cli(self, *args):
        said = subprocess.run([BIN, *args], env=self.env, capture_output=True, text=True, check=True)
        return said.stdout.strip()

    def stop(self):
        for process in (self.worker, self.head):
            process.terminate()
            process.wait(15)

    def rss(self):
        for line in pathlib.Path(f"/proc/{self.head.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the head is gone")

    def cpu(self):
        """Seconds that head and worker have computed."""

        def of(process):
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            return (int(fields[11]) + int(fields[12])) / TICKS

        return of(self.head) + of(self.worker)

    def rpc(self, key, method, params, timeout=30):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        headers = {"Authorization": f"Bearer {self.keys[key]}", "Content-Type": "application/json", "A2A-Version": "1.0"}
        request = urllib.request.Request(f"http://{self.address}/a2a/echo", body, headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def long_task(self):
        message = {"messageId": os.urandom(8).hex(), "role": "ROLE_USER", "parts": [{"text": "word " * 2_000_000}]}
        asked = self.rpc("hostile", "SendMessage", {"message": message, "configuration": {"returnImmediately": True}})
        return asked["result"]["task"]["id"]

    def rest(self):
        """Returns when what an attack asked for is done with."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            listed = self.rpc("hostile", "ListTasks", {"status": "TASK_STATE_WORKING", "pageSize": 1})["result"]
            if not listed["tasks"]:
                break
            time.sleep(0.5)
        time.sleep(1)


class Watch(threading.Thread):
    """The most that the head's memory comes to."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.peak, self.over = cluster, cluster.rss(), threading.Event()
        self.before = self.peak

    def run(self):
        while not self.over.wait(0.1):
            self.peak = max(self.peak, self.cluster.rss())

    def grown(self):
        self.over.set()
        self.join()
        return self.peak - self.before


def beside(cluster, name, seconds, address, rate=0.0, task=""):
    """The good caller's times beside an attack on `address`, and what became of both."""
    attack = python(HERE / "attacks.py", name, address, cluster.keys["hostile"], seconds, rate, task)
    assert attack.stdout.readline(), f"{name} did not come up"
    watch = Watch(cluster)
    watch.start()
    good = python(HERE / "good.py", cluster.address, cluster.keys["good"])
    before = cluster.cpu()
    attack.stdin.write("go\n")
    attack.stdin.flush()
    done = json.loads(attack.stdout.readline())
    spent = cluster.cpu() - before
    heard = json.loads(good.communicate()[0])
    attack.communicate()
    took = sorted(heard["took"]) or [math.nan]
    return {
        "p50": statistics.median(took) * 1e3, "p99": took[int(len(took) * 0.99)] * 1e3, "failed": heard["failed"],
        "grew": watch.grown(), "cpu": spent / seconds, **done,
    }


def row(cluster, name, seconds, sink):
    """The attack on the head, and its base."""
    if name == "stalled_readers":
        # What the task takes by itself is not the readers'.
        base = beside(cluster, "nothing", seconds, cluster.address, task=cluster.long_task())
        cluster.rest()
        attacked = beside(cluster, name, seconds, cluster.address, task=cluster.long_task())
    else:
        attacked = beside(cluster, name, seconds, cluster.address)
        cluster.rest()
        base = beside(cluster, name, seconds, sink, attacked["count"] / seconds)
    cluster.rest()
    return base, attacked


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="names of attacks, with commas between them")
    parser.add_argument("--seconds", type=float, default=8, help="of each attack")
    parser.add_argument("--rounds", type=int, default=3, help="of each row; medians are shown, of memory the most")
    parser.add_argument("--sink", required=True, help="the built `covey-sink`")
    parser.add_argument("--check", action="store_true", help=f"fail when memory grows by more than {GROWTH_MAX_MIB} MiB, or the good caller fails")
    args = parser.parse_args()
    wanted = [name for name in ATTACKS if not args.only or name in args.only.split(",")]
    wrong = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as home:
        cluster = Cluster(home)
        sink = subprocess.Popen([args.sink], stdout=subprocess.PIPE, text=True)
        try:
            to_sink = f"127.0.0.1:{sink.stdout.readline().strip()}"
            quiet = beside(cluster, "nothing", args.seconds, to_sink)
            print("| attack | what | head grew, MiB | p50: base, attacked, ms | p99: base, attacked, ms | ratio | CPUs of head and worker: base, attacked | failed |")
            print("|---|---|---|---|---|---|---|---|")
            print(f"| none | | | {quiet['p50']:.1f} | {quiet['p99']:.1f} | | {quiet['cpu']:.2f} | {quiet['failed']} |", flush=True)
            for name in wanted:
                rounds = [row(cluster, name, args.seconds, to_sink) for _ in range(args.rounds)]
                base, attacked = ({key: statistics.median(r[side][key] for r in rounds) for key in ("p50", "p99", "cpu")} for side in (0, 1))
                grew = max(attacked["grew"] for _, attacked in rounds)
                failed = sum(side["failed"] for both in rounds for side in both)
                print(
                    f"| {name.replace('_', ' ')} | {rounds[-1][1]['what']} | {grew:.0f} | {base['p50']:.1f}, {attacked['p50']:.1f} "
                    f"| {base['p99']:.1f}, {attacked['p99']:.1f} | {attacked['p99'] / base['p99']:.2f} | {base['cpu']:.2f}, {attacked['cpu']:.2f} | {failed} |",
                    flush=True,
                )
                if grew > GROWTH_MAX_MIB or failed:
                    wrong.append(name)
        finally:
            sink.kill()
            cluster.stop()
    if args.check and wrong:
        sys.exit(f"too much: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
