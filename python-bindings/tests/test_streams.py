"""Streams that lose nothing: long ones, many at once, slow readers, cut connections, workers and heads that die."""

import asyncio
import http.client
import json
import random
import socket
import threading
import uuid

import pytest
from conftest import eventually
from test_turns import made

import covey

WORDS = 10_000
TEXT = " ".join(f"w{n}" for n in range(WORDS))


def request(agent, text, method="SendStreamingMessage", **params):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
    params = params or {"message": message}
    return f"/a2a/{agent}", json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


class Stream:
    """One reader of server-sent events over a socket of its own."""

    def __init__(self, nodes, path, body, seen=None, buffer=None):
        host, port = nodes.keys["address"].rsplit(":", 1)
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.connection.connect()
        if buffer:
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "Content-Type": "application/json", "A2A-Version": "1.0"}
        if seen:
            headers["Last-Event-ID"] = seen
        self.connection.request("POST", path, body, headers)
        self.response = self.connection.getresponse()
        self.rest = b""

    def events(self, limit=None):
        """Events as (id, data), up to about so many bytes."""
        read = 0
        while limit is None or read < limit:
            piece = self.response.read1(65536 if limit is None else min(limit - read, 4096))
            if not piece:
                return
            read += len(piece)
            self.rest += piece
            *whole, self.rest = self.rest.split(b"\n\n")
            for event in whole:
                fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if not line.startswith(b":"))
                if b"data" in fields:
                    yield fields[b"id"].decode(), json.loads(fields[b"data"])["result"]

    def close(self):
        self.connection.close()


def texts(events):
    """The words of the answer, as a client puts them together."""
    words = []
    for event in events:
        if "artifactUpdate" in event:
            update = event["artifactUpdate"]
            if not update.get("append"):
                words.clear()
            words += [part["text"] for part in update["artifact"]["parts"]]
    return words


def place(id):
    seq, _, more = id.partition(".")
    return int(seq), int(more or 0)


def state(event):
    return event.get("statusUpdate", {}).get("status", {}).get("state")


def test_ten_thousand_chunks_come_whole_and_in_order(cluster):
    stream = Stream(cluster, *request("echo", TEXT))
    events = list(stream.events())
    assert "".join(texts(e for _, e in events)) == TEXT and len(texts(e for _, e in events)) == WORDS
    places = [place(id) for id, _ in events]
    assert places == sorted(set(places)) and state(events[-1][1]) == "TASK_STATE_COMPLETED"


def test_two_hundred_cuts_leave_no_trace(cluster):
    dice = random.Random(7)
    path, body = request("echo", TEXT)
    stream = Stream(cluster, path, body)
    events, cuts = [], 0
    while not events or state(events[-1][1]) != "TASK_STATE_COMPLETED":
        events += stream.events(limit=dice.randrange(1, 25_000) if cuts < 200 else None)
        stream.close()
        cuts += 1
        # The same message again joins the task that it made.
        stream = Stream(cluster, path, body, seen=events[-1][0] if events else None)
    assert cuts > 200
    task = events[0][1]["task"]["id"]
    undisturbed = Stream(cluster, *request("echo", "", "SubscribeToTask", id=task), seen="0")
    assert list(undisturbed.events()) == events


def memory(pid):
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmRSS"))


def test_readers_that_sleep_cost_bounded_memory(cluster):
    path, body = request("echo", TEXT)
    first = list(Stream(cluster, path, body).events())
    task, pid = first[0][1]["task"]["id"], cluster.running["head"].pid
    before = memory(pid)
    sleeping = [Stream(cluster, *request("echo", "", "SubscribeToTask", id=task), seen="0", buffer=131_072) for _ in range(60)]
    for stream in sleeping:
        next(stream.events(limit=200_000))  # the task, with what was asked
    # Each of them has some 4 MiB to come.
    assert memory(pid) - before < 120, "MiB"
    rest = list(sleeping[0].events())
    assert state(rest[-1][1]) == "TASK_STATE_COMPLETED"
    for stream in sleeping:
        stream.close()


async def test_a_thousand_streams_at_once(cluster):
    host, port = cluster.keys["address"].rsplit(":", 1)

    async def one(n):
        path, body = request("echo", f"stream {n} " + " ".join(f"x{i}" for i in range(20)))
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {cluster.keys['admin_key']}\r\nA2A-Version: 1.0\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        raw = (await reader.read()).decode()
        writer.close()
        events = [json.loads(line[6:])["result"] for line in raw.splitlines() if line.startswith("data: ")]
        assert state(events[-1]) == "TASK_STATE_COMPLETED"
        assert "".join(texts(events)) == f"stream {n} " + " ".join(f"x{i}" for i in range(20))

    await asyncio.gather(*(one(n) for n in range(1_000)))


class Ticker:
    async def run(self, text: str):
        for n in range(int(text)):
            yield f"{n} "
            await asyncio.sleep(0.01)


class Follower:
    """Follows a task from its first event to its end, whatever happens to the connection."""

    def __init__(self, nodes, agent, text):
        self.nodes, self.path, self.body = nodes, *request(agent, text)
        self.events = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while not self.events or state(self.events[-1][1]) not in ("TASK_STATE_COMPLETED", "TASK_STATE_FAILED"):
            try:
                stream = Stream(self.nodes, self.path, self.body, seen=self.events[-1][0] if self.events else None)
                for event in stream.events():
                    self.events.append(event)
            except (OSError, http.client.HTTPException):
                pass

    def check(self, text):
        self.thread.join(60)
        assert not self.thread.is_alive()
        places = [place(id) for id, _ in self.events]
        assert places == sorted(set(places)), "no number twice, none out of order"
        assert state(self.events[-1][1]) == "TASK_STATE_COMPLETED"
        assert "".join(texts(e for _, e in self.events)) == text


@pytest.mark.parametrize("victim", ["w1", "head"])
def test_followers_see_a_task_go_on_when_a_machine_dies(nodes, victim):
    nodes.pair()
    name = made(Ticker).register()
    for _ in range(3):
        followers = [Follower(nodes, name, "150") for _ in range(4)]
        eventually(lambda: all(len(f.events) > 20 for f in followers))
        nodes.kill9(victim)
        if victim == "head":
            nodes.head()
        else:
            nodes.worker("w1")
        for follower in followers:
            follower.check("".join(f"{n} " for n in range(150)))
    if victim == "head":
        covey.shutdown()
