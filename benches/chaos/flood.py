"""One caller of the overload row, a process of its own: its work is not in the way of what is measured.

    flood.py HOST:PORT KEY BYTES quiet COUNT     one request after the other; prints {"took": [seconds], "lost": n} when done
    flood.py HOST:PORT KEY BYTES loud THREADS    as fast as they are taken, until its standard input ends; prints {"acknowledged": n, "refused": n}
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time

PATH = "/a2a/echo/message:send"


class Caller:
    def __init__(self, address: str, key: str, size: int):
        self.connection = http.client.HTTPConnection(address, timeout=60)
        self.headers = {"Authorization": f"Bearer {key}", "A2A-Version": "1.0", "Content-Type": "application/json"}
        self.size = size
        self.name = f"{os.getpid()}-{threading.get_ident()}"
        self.number = 0

    def send(self) -> int:
        """The status of one request, 0 where there was no answer."""
        self.number += 1
        parts = b'{"text":"' + b"x" * self.size + b'"}'
        body = b'{"message":{"messageId":"%s-%d","role":"ROLE_USER","parts":[%s]}}' % (self.name.encode(), self.number, parts)
        try:
            self.connection.request("POST", PATH, body, self.headers)
            answer = self.connection.getresponse()
            answer.read()
            return answer.status
        except (OSError, http.client.HTTPException):
            self.connection.close()
            return 0


def quiet(caller: Caller, count: int) -> None:
    took, lost = [], 0
    for _ in range(count):
        began = time.perf_counter()
        status = caller.send()
        took.append(time.perf_counter() - began)
        lost += status != 200
    print(json.dumps({"took": took, "lost": lost}))


def loud(address: str, key: str, size: int, threads: int) -> None:
    # Who floods from elsewhere takes no processor time of this machine. What it costs the head is a row of `make bench-hostile` too.
    os.nice(19)
    over, seen = threading.Event(), []

    def run() -> None:
        caller = Caller(address, key, size)
        while not over.is_set():
            status = caller.send()
            seen.append(status)
            if status != 200:
                time.sleep(0.02)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in running:
        thread.join()
    print(json.dumps({"acknowledged": seen.count(200), "refused": seen.count(429) + seen.count(503)}))


if __name__ == "__main__":
    at, token, bytes_each, how, number = sys.argv[1:]
    if how == "quiet":
        quiet(Caller(at, token, int(bytes_each)), int(number))
    else:
        loud(at, token, int(bytes_each), int(number))
