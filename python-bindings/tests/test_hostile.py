"""Clients that mean no good: what they hold, and for how long."""

import json
import os
import pathlib
import re
import select
import socket
import threading
import uuid

import httpx
import pytest
from conftest import Nodes, eventually

import covey


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("hostile"))
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    yield nodes
    nodes.stop()


def dial(nodes, first=b"", small=False):
    host, port = nodes.keys["address"].rsplit(":", 1)
    made = socket.socket()
    if small:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect((host, int(port)))
    made.sendall(first)
    return made


def is_closed(made):
    """Whether the other side has closed or reset it; what it said is thrown away."""
    while select.select([made], [], [], 0)[0]:
        try:
            if not made.recv(65536):
                return True
        except OSError:
            return True
    return False


def bearer(nodes):
    return f"Authorization: Bearer {nodes.keys['admin_key']}\r\n"


def ask(nodes, text, key=None, **configuration):
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": text}]}
    body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {"message": message, "configuration": configuration}}
    headers = {"Authorization": f"Bearer {key or nodes.keys['admin_key']}", "A2A-Version": "1.0"}
    return httpx.post(f"http://{nodes.keys['address']}/a2a/echo", json=body, headers=headers, timeout=60).json()["result"]["task"]


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"


def test_who_is_slow_is_cut_off(house):
    upload = f"POST /a2a/echo HTTP/1.1\r\nHost: localhost\r\n{bearer(house)}Content-Length: 1000\r\n\r\n{{".encode()
    kinds = {
        "nothing": b"",
        "one byte": b"P",
        "half a preface": PREFACE[:12],
        "half a head": b"GET / HTTP/1.1\r\nHost: loc",
        "no request": PREFACE + SETTINGS,
        "half a body": upload,
    }
    held = {name: [dial(house, first) for _ in range(20)] for name, first in kinds.items()}
    assert not any(is_closed(made) for made in held["one byte"])
    for name, all in held.items():
        eventually(lambda all=all: all.__setitem__(slice(None), [m for m in all if not is_closed(m)]) or not all, 90)
        assert not all, name
    assert ask(house, "still here")["status"]["state"] == "TASK_STATE_COMPLETED"


def test_a_reader_that_does_not_read_is_cut_off_and_goes_on_where_it_was(house):
    task = ask(house, "word " * 400_000, returnImmediately=True)["id"]
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "SubscribeToTask", "params": {"id": task}})
    head = f"POST /a2a/echo HTTP/1.1\r\nHost: localhost\r\n{bearer(house)}A2A-Version: 1.0\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    readers = [dial(house, request, small=True) for _ in range(20)]
    # One of them reads some of it before it stops.
    got = b""
    while got.count(b"\nid: ") < 3:
        got += readers[0].recv(65536)
    last = re.findall(rb"\nid: (\S+)\r?\n", got)[-1].decode()
    pid = house.running["head"].pid

    def theirs():
        """Connections that the head has to them."""
        ports = {f":{made.getsockname()[1]:04X}" for made in readers}
        lines = pathlib.Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
        own = f":{int(house.keys['address'].rsplit(':', 1)[1]):04X}"
        at = [(line.split()[1][-5:], line.split()[2][-5:], line.split()[3]) for line in lines]
        return sum(local == own and remote in ports and state == "01" for local, remote, state in at)

    eventually(lambda: theirs() == 20)
    eventually(lambda: theirs() == 0, 90)
    with httpx.stream("POST", f"http://{house.keys['address']}/a2a/echo", content=body, timeout=60, headers={"Authorization": f"Bearer {house.keys['admin_key']}", "A2A-Version": "1.0", "Content-Type": "application/json", "Last-Event-ID": last}) as again:
        first = next(line for line in again.iter_lines() if line.startswith("id: "))
    assert [int(n) for n in first[4:].split(".")] > [int(n) for n in last.split(".")]


def test_a_removed_key_ends_what_it_has_open(house):
    key = house.cli("key", "add", "dora").stdout.strip()
    told = []

    class Receiver(__import__("http.server", fromlist=["x"]).BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = __import__("http.server", fromlist=["x"]).ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hook = {"url": f"http://127.0.0.1:{server.server_port}/", "id": "h"}
    task = ask(house, "word " * 200_000, key, returnImmediately=True, taskPushNotificationConfig=hook)["id"]
    ended = threading.Event()

    def read():
        body = {"jsonrpc": "2.0", "id": 1, "method": "SubscribeToTask", "params": {"id": task}}
        try:
            with httpx.stream("POST", f"http://{house.keys['address']}/a2a/echo", json=body, headers={"Authorization": f"Bearer {key}", "A2A-Version": "1.0"}, timeout=60) as stream:
                for _ in stream.iter_lines():
                    pass
        except httpx.HTTPError:
            pass
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    eventually(lambda: told)
    assert house.cli("key", "rm", "dora").returncode == 0
    assert ended.wait(10)
    import covey

    house.connect()
    eventually(lambda: not any(covey.status()["tasks"].get(state) for state in ("submitted", "working")))
    count = len(told)
    hooks = httpx.get(f"http://{house.keys['address']}/v1/push-notifications", headers={"Authorization": f"Bearer {key}"})
    assert hooks.status_code == 401
    server.shutdown()
    assert len(told) <= count + 1, "one may have been on its way"
    assert not any("CANCELED" in json.dumps(news) for news in told)


def test_what_is_asked_for_as_a_key_goes_ends_with_it(house):
    import asyncio

    import covey

    house.connect()

    @covey.agent(concurrency=64)
    class Sleeps:
        async def run(self, text):
            await asyncio.sleep(600)

    Sleeps.register()
    unfinished = lambda: sum(covey.status()["tasks"].get(state, 0) for state in ("submitted", "working"))  # noqa: E731

    def sends(key):
        """Until the key opens nothing."""
        message = {"role": "ROLE_USER", "parts": [{"text": "sleep"}]}
        headers = {"Authorization": f"Bearer {key}", "A2A-Version": "1.0"}
        with httpx.Client(base_url=f"http://{house.keys['address']}", headers=headers, timeout=60) as client:
            while True:
                params = {"message": {**message, "messageId": uuid.uuid4().hex}, "configuration": {"returnImmediately": True}}
                try:
                    answer = client.post("/a2a/Sleeps", json={"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params})
                except httpx.HTTPError:
                    continue
                if answer.status_code == 401:
                    return

    for number in range(4):
        key = house.cli("key", "add", f"eve{number}").stdout.strip()
        threads = [threading.Thread(target=sends, args=(key,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        eventually(lambda: unfinished() > 20)
        assert house.cli("key", "rm", f"eve{number}").returncode == 0
        for thread in threads:
            thread.join(60)
        eventually(lambda: unfinished() == 0)


def test_another_host_is_not_this_head(house):
    for path in ("/livez", "/a2a", "/.well-known/jwks.json"):
        headers = {"Authorization": f"Bearer {house.keys['admin_key']}", "Host": "evil.example"}
        assert httpx.get(f"http://{house.keys['address']}{path}", headers=headers).status_code == 403, path


def test_cards_are_signed_where_the_head_is(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head("--origin", "https://agents.example")
        key = {"Authorization": f"Bearer {nodes.keys['admin_key']}"}

        def card(**headers):
            return httpx.get(f"http://{nodes.keys['address']}/a2a/echo/.well-known/agent-card.json", headers={**key, **headers}).json()

        assert card()["signatures"] and card()["url"].startswith(f"http://{nodes.keys['address']}")
        assert card(**{"Host": "agents.example", "X-Forwarded-Proto": "https"})["signatures"]
        assert not card(**{"Host": "agents.example"}).get("signatures"), "without TLS it is another origin"
        assert not card(**{"X-Forwarded-Proto": "https"}).get("signatures")
    finally:
        nodes.stop()


def test_a_key_does_not_go_in_the_clear_beyond_loopback(house):
    env = {**house.env, "COVEY_ADDRESS": "192.0.2.1:7420", "COVEY_TOKEN": house.keys["admin_key"]}
    import subprocess

    from conftest import BIN

    out = subprocess.run([BIN, "status"], env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode != 0 and "in the clear" in out.stderr and "fingerprint" in out.stderr
    out = subprocess.run([BIN, "worker", "--join", f"{house.keys['join_secret']}@192.0.2.1:7420"], env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode != 0 and "in the clear" in out.stderr


def test_what_the_head_keeps_is_its_users_alone(house):
    wrong = []
    for folder, names, files in os.walk(house.home):
        for name in [*names, *files]:
            path = pathlib.Path(folder) / name
            if path.name.endswith(".log") and path.parent == house.home:
                continue  # made by the test
            if path.lstat().st_mode & 0o077 and not path.is_symlink():
                wrong.append((str(path.relative_to(house.home)), oct(path.lstat().st_mode)))
    assert not wrong


def test_the_second_signal_stops_at_once(tmp_path):
    import signal

    nodes = Nodes(tmp_path)
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(tmp_path / "notify"))
        nodes.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        nodes.head()
        assert sock.recv(100) == b"READY=1"
        head = nodes.running.pop("head")
        head.send_signal(signal.SIGSTOP)
        head.send_signal(signal.SIGTERM)
        head.send_signal(signal.SIGCONT)
        assert sock.recv(100) == b"STOPPING=1"
        head.send_signal(signal.SIGTERM)
        assert head.wait(10) in (0, 143)
    finally:
        nodes.stop()


def peak(nodes):
    """MiB of memory that the head has had at most."""
    status = pathlib.Path(f"/proc/{nodes.running['head'].pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) >> 10


def written(nodes, method, params):
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    return (
        f"POST /a2a/echo HTTP/1.1\r\nHost: {nodes.keys['address']}\r\n{bearer(nodes)}A2A-Version: 1.0\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def test_answers_that_nobody_reads_have_so_much_room_and_no_more(house):
    """A caller asks for a large task by many connections and reads nothing; the head's memory and others do not feel it."""
    task = ask(house, "x" * (7 << 20), returnImmediately=True)["id"]
    before = peak(house)
    request = written(house, "GetTask", {"id": task})
    made = [dial(house, request, small=True) for _ in range(150)]
    # All that are refused are told so, and at once those that find room are answered as far as the kernel takes it.
    eventually(lambda: len(select.select(made, [], [], 0)[0]) == len(made), 60)
    # 150 × 7 MiB would be 1 GB, each several times over while it is made.
    assert peak(house) - before < 500, (before, peak(house))
    told = [one.recv(300) for one in made]
    assert sum(b'"error"' in text for text in told) > 100, told[:3]
    for one in made:
        one.close()
    eventually(lambda: "x" * 100 in rpc(house, "GetTask", {"id": task}).text)
    # Larger than most of the room, and read.
    assert len(rpc(house, "GetTask", {"id": task}).content) > 7 << 20


def test_who_waits_for_an_answer_to_a_message_holds_no_answer(house):
    """The same of messages that were taken before: their answers wait for those before them to be read, and have no memory until then."""
    message = {"messageId": uuid.uuid4().hex, "role": "ROLE_USER", "parts": [{"text": "x" * (7 << 20)}]}
    assert "result" in rpc(house, "SendMessage", {"message": message}).json()
    message["parts"] = [{"text": "the same"}]
    before = peak(house)
    request = written(house, "SendMessage", {"message": message})
    waiting = [dial(house, request, small=True) for _ in range(60)]
    read = 0
    while waiting:
        ready = select.select(waiting, [], [], 60)[0]
        assert ready, (read, len(waiting))
        for one in ready:
            one.settimeout(60)
            text, more = bytearray(), one.recv(1 << 20)
            length = None
            while more:
                text += more
                if length is None and b"\r\n\r\n" in text:
                    head = bytes(text).partition(b"\r\n\r\n")[0]
                    length = len(head) + 4 + int(re.search(rb"content-length: (\d+)", head)[1])
                if length is not None and len(text) >= length:
                    break
                more = one.recv(1 << 20)
            assert b"TASK_STATE_COMPLETED" in text and text.count(b"x" * 1000) >= 14 << 10
            waiting.remove(one)
            one.close()
            read += 1
    assert peak(house) - before < 700, (before, peak(house))


def test_a_page_of_large_tasks_ends_early(house):
    ids = {ask(house, f"{n} " + "x" * (5 << 20))["id"] for n in range(6)}
    before, found, token, pages = peak(house), [], "", 0
    while True:
        page = rpc(house, "ListTasks", {"includeArtifacts": True, "pageToken": token}).json()["result"]
        assert len(json.dumps(page)) < 30 << 20
        found += [task["id"] for task in page["tasks"]]
        token, pages = page["nextPageToken"], pages + 1
        if not token:
            break
    assert ids <= set(found) and len(found) == len(set(found)) == page["totalSize"] and pages > 5
    plain = rpc(house, "ListTasks", {}).json()["result"]
    assert plain["nextPageToken"] and 1 < len(plain["tasks"]) < 6
    assert ids <= {task.id for task in covey.tasks(agent="echo", limit=50)}
    assert peak(house) - before < 400, (before, peak(house))


def rpc(nodes, method, params):
    headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "A2A-Version": "1.0"}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return httpx.post(f"http://{nodes.keys['address']}/a2a/echo", json=body, headers=headers, timeout=60)
