"""The good caller, a process of its own: one small request after the other, each on a connection of its own.

    good.py HOST:PORT KEY     until its standard input ends; prints {"took": [seconds], "failed": n}
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time

PAUSE = 0.005


def main() -> None:
    address, key = sys.argv[1:]
    headers = {"Authorization": f"Bearer {key}", "A2A-Version": "1.0", "Content-Type": "application/json"}
    over, took, failed = threading.Event(), [], 0
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while not over.wait(PAUSE):
        body = json.dumps({"message": {"messageId": f"{os.getpid()}-{len(took)}-{failed}", "role": "ROLE_USER", "parts": [{"text": "hi"}]}})
        began = time.perf_counter()
        try:
            connection = http.client.HTTPConnection(address, timeout=30)
            connection.request("POST", "/a2a/echo/message:send", body, headers)
            answer = connection.getresponse()
            answer.read()
            connection.close()
        except (OSError, http.client.HTTPException):
            failed += 1
            continue
        if answer.status == 200:
            took.append(time.perf_counter() - began)
        else:
            failed += 1
    print(json.dumps({"took": took, "failed": failed}))


if __name__ == "__main__":
    main()
