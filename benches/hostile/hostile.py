"""What hostile clients cost a head: its memory, and what others wait meanwhile. `make bench-hostile`.

Starts a head and a worker of its own on loopback, attacks it in one way after the other for some seconds each, and asks an echo
all the while as a good caller does. Prints for each attack the growth of the head's memory and the good caller's times.
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = os.environ.get("COVEY_BIN", str(ROOT / ".venv/bin/covey"))
SECONDS = 8


class Cluster:
    def __init__(self, home):
        self.home = pathlib.Path(home)
        self.env = {**os.environ, "COVEY_HOME": home}
        self.log = open(self.home / "log", "wb")
        self.head = self.start("head", "--port", "0")
        path = self.home / "credentials.json"
        while not path.exists():
            time.sleep(0.02)
        self.keys = json.loads(path.read_text())
        self.host, port = self.keys["address"].rsplit(":", 1)
        self.port = int(port)
        token = f"{self.keys['join_secret']}@{self.keys['address']}"
        self.worker = self.start("worker", "--join", token, "--cpus", "2")

    def start(self, *args):
        return subprocess.Popen([BIN, *args], env=self.env, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def stop(self):
        for process in (self.worker, self.head):
            process.terminate()
            process.wait(15)

    def rss(self):
        for line in pathlib.Path(f"/proc/{self.head.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        raise RuntimeError("the head is gone")

    def connections(self):
        return len(os.listdir(f"/proc/{self.head.pid}/fd"))

    def rpc(self, method, params, timeout=30):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        headers = {"Authorization": f"Bearer {self.keys['admin_key']}", "Content-Type": "application/json", "A2A-Version": "1.0"}
        request = urllib.request.Request(f"http://{self.keys['address']}/a2a/echo", body, headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return json.loads(answer.read())

    def ask(self, text="hi", **configuration):
        message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
        return self.rpc("SendMessage", {"message": message, "configuration": configuration})

    def open(self, timeout=20):
        made = socket.create_connection((self.host, self.port), timeout)
        return made


class Good(threading.Thread):
    """One request after the other, with a pause; remembers how long each took."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.times, self.failed, self.over = cluster, [], 0, threading.Event()

    def run(self):
        while not self.over.wait(0.02):
            began = time.monotonic()
            try:
                self.cluster.ask()
                self.times.append(time.monotonic() - began)
            except OSError:
                self.failed += 1

    def result(self):
        self.over.set()
        self.join()
        times = sorted(self.times) or [float("nan")]
        return statistics.median(times) * 1e3, times[int(len(times) * 0.99)] * 1e3, self.failed


def hold(cluster, count, first):
    """Opens so many connections, says `first` on each, and no more."""
    held = []
    for _ in range(count):
        try:
            made = cluster.open(2)
            made.sendall(first)
            held.append(made)
        except OSError:
            break
    return held


def one_byte(cluster, until):
    held = hold(cluster, 2_000, b"P")
    time.sleep(max(0, until - time.monotonic()))
    return f"{len(held)} connections", held


def slow_headers(cluster, until):
    held = hold(cluster, 500, b"POST /a2a/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    while time.monotonic() < until:
        for made in held:
            try:
                made.sendall(b"X-A: 1\r\n")
            except OSError:
                pass
        time.sleep(1)
    return f"{len(held)} connections", held


def slow_body(cluster, until):
    head = f"POST /a2a/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {cluster.keys['admin_key']}\r\nContent-Length: 33000000\r\n\r\n"
    held = hold(cluster, 200, head.encode() + b"{")
    time.sleep(max(0, until - time.monotonic()))
    return f"{len(held)} uploads", held


def idle(cluster, until):
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    held = hold(cluster, min(10_000, limit - 200), b"")
    time.sleep(max(0, until - time.monotonic()))
    return f"{len(held)} connections", held


def long_task(cluster):
    return cluster.ask("word " * 2_000_000, returnImmediately=True)["result"]["task"]["id"]


def read_by_nobody(cluster):
    """The same task to its end: what it takes by itself is not the readers'."""
    task = long_task(cluster)
    while cluster.rpc("GetTask", {"id": task, "historyLength": 0})["result"]["status"]["state"] != "TASK_STATE_COMPLETED":
        time.sleep(1)


def stalled_readers(cluster, until):
    task = long_task(cluster)
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "SubscribeToTask", "params": {"id": task}})
    head = (
        f"POST /a2a/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {cluster.keys['admin_key']}\r\nA2A-Version: 1.0\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )
    held = hold(cluster, 200, head.encode())
    time.sleep(max(0, until - time.monotonic()))
    return f"{len(held)} readers", held


def deep_json(cluster, until):
    count = 0
    while time.monotonic() < until:
        body = b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}"
        post(cluster, body)
        count += 1
    return f"{count} requests", []


def large_body(cluster, until):
    count, body = 0, bytes(100 << 20)
    while time.monotonic() < until:
        post(cluster, body)
        count += 1
    return f"{count} requests", []


def post(cluster, body):
    made = cluster.open()
    head = f"POST /a2a/echo HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {cluster.keys['admin_key']}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        # Not put together: a copy of 100 MB holds Python's lock, for which the good caller would wait.
        made.sendall(head.encode())
        made.sendall(body)
        made.recv(1000)
    except OSError:
        pass
    made.close()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, body=b""):
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


# :method GET, :scheme http, :path / of the static table, :authority as a literal.
REQUEST = b"\x82\x86\x84\x01\x09127.0.0.1"


def rapid_reset(cluster, until):
    count = 0
    while time.monotonic() < until:
        made = cluster.open()
        try:
            made.sendall(PREFACE + frame(4, 0, 0))
            for stream in range(1, 20_000, 2):
                made.sendall(frame(1, 5, stream, REQUEST) + frame(3, 0, stream, b"\0\0\0\x08"))
                count += 1
        except OSError:
            pass
        made.close()
    return f"{count} resets", []


def truncated_frames(cluster, until):
    count = 0
    while time.monotonic() < until:
        made = cluster.open()
        try:
            made.sendall(PREFACE + frame(4, 0, 0) + frame(1, 4, 1, REQUEST)[: 9 + count % len(REQUEST)])
            made.sendall(b"\xff" * 200)
        except OSError:
            pass
        made.close()
        count += 1
    return f"{count} connections", []


def picture_bomb(cluster, until):
    """A PNG of 60,000 by 60,000 points, a kilobyte long."""
    import base64
    import struct
    import zlib

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    body = json.dumps({"model": "paligemma", "messages": [{"role": "user", "content": content}]}).encode()
    return media(cluster, until, "/v1/chat/completions", body, "application/json")


def sound_bomb(cluster, until):
    """A WAV whose head says 4 GB at 768 kHz; what decodes it has two megabytes."""
    import struct

    head = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 768_000, 1_536_000, 2, 16)
    wav = head + b"data" + struct.pack("<I", 0xFFFFFF00) + bytes(2 << 20)
    edge = "----covey"
    body = f'--{edge}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body = body.encode() + wav + f"\r\n--{edge}--\r\n".encode()
    return media(cluster, until, "/v1/audio/transcriptions", body, f"multipart/form-data; boundary={edge}")


def media(cluster, until, path, body, kind):
    count = 0
    while time.monotonic() < until:
        headers = {"Authorization": f"Bearer {cluster.keys['admin_key']}", "Content-Type": kind}
        request = urllib.request.Request(f"http://{cluster.keys['address']}{path}", body, headers)
        try:
            urllib.request.urlopen(request, timeout=30).read()
        except OSError:
            pass
        count += 1
    return f"{count} requests", []


BEFORE = {stalled_readers: read_by_nobody}
ATTACKS = [one_byte, slow_headers, slow_body, idle, stalled_readers, deep_json, large_body, rapid_reset, truncated_frames, picture_bomb, sound_bomb]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="names of attacks, with commas between them")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--check", action="store_true", help="fail when memory grows by more than 100 MiB, or the good caller fails")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wanted = [attack for attack in ATTACKS if not args.only or attack.__name__ in args.only.split(",")]
    wrong = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as home:
        cluster = Cluster(home)
        try:
            for _ in range(300):
                try:
                    cluster.ask()
                    break
                except OSError:
                    time.sleep(0.1)
            good = Good(cluster)
            good.start()
            time.sleep(args.seconds)
            median, quiet, failed = good.result()
            print(f"| attack | what | head grew, MiB | good caller p50, ms | p99, ms | failed |\n|---|---|---|---|---|---|\n| none | | | {median:.1f} | {quiet:.1f} | {failed} |", flush=True)
            for attack in wanted:
                BEFORE.get(attack, lambda _: None)(cluster)
                before, peak = cluster.rss(), 0.0
                good = Good(cluster)
                good.start()
                over = threading.Event()

                def watch(over=over):
                    nonlocal peak
                    while not over.wait(0.1):
                        peak = max(peak, cluster.rss())

                watcher = threading.Thread(target=watch, daemon=True)
                watcher.start()
                what, held = attack(cluster, time.monotonic() + args.seconds)
                median, p99, failed = good.result()
                over.set()
                watcher.join()
                for made in held:
                    made.close()
                grew = max(0.0, peak - before)
                print(f"| {attack.__name__.replace('_', ' ')} | {what} | {grew:.0f} | {median:.1f} | {p99:.1f} | {failed} |", flush=True)
                if grew > 100 or failed:
                    wrong.append(attack.__name__)
                time.sleep(1)
        finally:
            cluster.stop()
    if args.check and wrong:
        sys.exit(f"too much: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
