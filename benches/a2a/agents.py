"""`make bench-agents`: what many agents on one head cost: memory, cards, requests, as their number grows.

The limit: an agent is a row and a map's entry of some kilobytes; a card and a request look one up.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import sys
import tempfile
import time
import uuid

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python-bindings/tests"), str(pathlib.Path(__file__).resolve().parents[1])]

from conftest import Nodes  # noqa: E402
from measure import percentile  # noqa: E402
from test_streams import memory  # noqa: E402

REQUESTS = 1_000


def main() -> None:
    print("| agents | registered, ms each | head, MiB | card p50, p99, ms | send p50, p99, ms | catalogue, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    nodes = Nodes(tempfile.mkdtemp())
    try:
        nodes.head()
        nodes.worker("w1")
        session = nodes.connect()
        nodes.live(1)
        host, port = nodes.keys["address"].rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port))
        connection.connect()
        # What is measured is the head, not how the kernel waits.
        connection.sock.setsockopt(6, 1, 1)
        headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "Content-Type": "application/json", "A2A-Version": "1.0"}

        def ask(method: str, path: str, body: dict | None = None) -> tuple[float, bytes]:
            began = time.perf_counter()
            connection.request(method, path, body and json.dumps(body), headers)
            answer = connection.getresponse().read()
            return (time.perf_counter() - began) * 1000, answer

        def send(agent: str) -> float:
            message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "hello"}]}
            took, answer = ask("POST", f"/a2a/{agent}", {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message}})
            assert b"TASK_STATE_COMPLETED" in answer, answer
            return took

        known = 0
        for count in (1, 10, 100, 1_000, 10_000):
            began, before = time.perf_counter(), known
            while known < count:
                spec = {"name": f"agent-{known}", "description": "Says it again. " * 8, "kind": {"type": "native", "implementation": "echo"}, "concurrency": 64}
                session.client.register(json.dumps(spec), b"")
                known += 1
            each = (time.perf_counter() - began) * 1000 / (known - before)
            # Whoever is asked first wakes up.
            agent = f"agent-{known // 2}"
            for _ in range(50):
                send(agent)
            cards = [ask("GET", f"/a2a/agent-{n * known // REQUESTS}/.well-known/agent-card.json")[0] for n in range(REQUESTS)]
            sends = [send(agent) for _ in range(REQUESTS)]
            listed = min(ask("GET", "/a2a")[0] for _ in range(5))
            ms = lambda all, p: f"{percentile(all, p):.2f}"  # noqa: E731
            row = [count, f"{each:.1f}", memory(nodes.running["head"].pid), f"{ms(cards, 50)}, {ms(cards, 99)}", f"{ms(sends, 50)}, {ms(sends, 99)}", f"{listed:.1f}"]
            print("| " + " | ".join(map(str, row)) + " |", flush=True)
    finally:
        nodes.stop()


main()
