"""Agents elsewhere that speak A2A, as agents of the cluster: on a2a-sdk 1.3.0 and 0.3, and on another Covey."""

import json
import os
import pathlib
import random
import socket
import subprocess
import sys
import threading
import urllib.request
import uuid

import pytest
from conftest import Nodes, eventually
from test_clients import CACHE
from test_turns import made

import covey
from covey import Context, File

SERVERS = pathlib.Path(__file__).parent / "servers"
TEXT = " ".join(f"word{n}" for n in range(300))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A server of somebody else in a process of its own."""

    def __init__(self, script, *args, path=None):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        env = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
        self.process = subprocess.Popen([sys.executable, str(SERVERS / script), str(self.port), *args], env=env)
        eventually(self.is_up)

    def is_up(self):
        assert self.process.poll() is None, "it ended"
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module", params=["1.3 JSONRPC streams", "1.3 HTTP+JSON streams", "1.3 JSONRPC whole", "0.3"])
def sdk(request):
    if request.param == "0.3":
        server = Server("sdk_0_3.py", path=CACHE / "a2a-0.3")
    else:
        _, binding, streams = request.param.split()
        server = Server("sdk_1_3.py", binding, streams)
    server.streams, server.old = "whole" not in request.param, request.param == "0.3"
    yield server
    server.stop()


def until(task, text):
    """Reads a task's log up to an event that has this."""
    next(event for event in task.events() if text in str(event))


def connected(url, **options):
    return covey.connect_a2a(url, name=f"far-{uuid.uuid4().hex[:6]}", **options)


def test_an_agent_on_the_official_sdk_is_an_agent_like_any_other(cluster, sdk):
    far = connected(sdk.url)
    answer = far.run.remote(TEXT)
    assert (answer.text() if sdk.streams else answer.result(30)) == TEXT
    assert covey.submit(far, "", TEXT).result(30) == TEXT
    spec = next(a for a in covey.agents() if a["name"] == str(far))
    assert spec["description"] == "Paints." and [s["id"] for s in spec["skills"]] == ["run", "paint"]


def test_what_it_asks_is_asked_here(cluster, sdk):
    far = connected(sdk.url)
    task = covey.submit(far, "", "ask")
    eventually(lambda: task.state() == "input-required")
    task.send("blue")
    assert task.result(30) == "painted blue"
    call = far.run.remote("ask")
    with pytest.raises(covey.CoveyError, match="which color"):
        call.text() if sdk.streams else call.result(30)


@pytest.fixture(scope="module")
def sdk_1_3():
    server = Server("sdk_1_3.py", "JSONRPC", "streams")
    yield server
    server.stop()


def test_its_ends_are_ends_here(cluster, sdk_1_3):
    far = connected(sdk_1_3.url)
    assert far.run.remote("message").text() == "only a message"
    assert far.run.remote("status").text() == "said in the status"
    with pytest.raises(covey.CoveyError, match="no paint left"):
        far.run.remote("fail").text()
    task = covey.submit(far, "", "fail")
    with pytest.raises(covey.CoveyError, match="no paint left"):
        task.result(30)


def test_who_leaves_stops_the_work_there(cluster, sdk_1_3):
    far = connected(sdk_1_3.url)
    count = lambda: far.run.remote("stopped").text().count("one")  # noqa: E731
    before = count()
    task = covey.submit(far, "", "wait")
    until(task, "at it")
    task.cancel()
    eventually(lambda: count() > before)


def test_its_name_is_its_cards(cluster, sdk_1_3):
    assert str(covey.connect_a2a(sdk_1_3.url)) == "Painter-of-1.3"
    # The same again is the same; another of that name must be named.
    assert str(covey.connect_a2a(sdk_1_3.url)) == "Painter-of-1.3"
    other = Server("sdk_1_3.py", "JSONRPC", "streams")
    with pytest.raises(covey.CoveyError, match="another agent is named"):
        covey.connect_a2a(other.url)
    other.stop()


class Far:
    """Lives in another cluster."""

    async def run(self, text: str, ctx: Context):
        for word in text.split(" "):
            yield word + " "

    async def count(self, n: int):
        for n in range(n):
            yield f"w{n} "

    async def rich(self, text: str, ctx: Context):
        ctx.status("mixing")
        ctx.artifact("plan", "first, ", name="plan.txt")
        ctx.artifact("plan", "second")
        yield {"n": 1}
        yield File(b"\x00\x01", name="x.bin", mime="application/octet-stream")
        login = await ctx.authorize("log in")
        yield f"as {login}"

    async def listen(self, text: str, ctx: Context):
        yield "listening"
        while (said := await ctx.receive(timeout=20)) != "stop":
            yield f" {said}"

    async def add(self, a: int, b: int) -> int:
        return a + b

    async def choose(self, text: str, ctx: Context) -> str:
        color = await ctx.ask("which color?", options=["red", "blue"])
        coats = await ctx.ask("how many coats?", schema={"type": "integer"})
        login = await ctx.authorize("log in", url="https://login.example")
        return f"{color} x {coats.data} by {login}"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Another cluster with one agent, and what opens it."""
    nodes = Nodes(tmp_path_factory.mktemp("elsewhere"))
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    session = nodes.connect()
    nodes.live(1)
    name = made(Far).register()
    session.close()
    nodes.url = f"http://{nodes.keys['address']}/a2a/{name}"
    yield nodes
    nodes.stop()


def test_an_agent_of_another_covey(cluster, elsewhere):
    token = elsewhere.keys["admin_key"]
    with pytest.raises(covey.Unauthenticated):
        connected(elsewhere.url)
    far = connected(elsewhere.url, token=token)
    assert far.run.remote(TEXT).text() == TEXT + " "
    assert covey.submit(far, "add", {"a": 1, "b": 2}).result(30) == 3
    # Nobody is told what opens it, and a restarted head still knows.
    assert token not in json.dumps(covey.agents())


def test_everything_an_agent_says_passes_through(cluster, elsewhere):
    far = connected(elsewhere.url, token=elsewhere.keys["admin_key"])
    task = covey.submit(far, "rich", "go")
    eventually(lambda: task.state() == "auth-required")
    task.send("me")
    events = list(task.events())
    kinds = str(events)
    assert "mixing" in kinds and "plan.txt" in kinds and "first, " in kinds and "second" in kinds
    result = task.result(30)
    assert "as me" in kinds and "x.bin" in kinds and "'n': 1" in kinds, result


def test_a_question_there_is_the_same_question_here(cluster, elsewhere):
    far = connected(elsewhere.url, token=elsewhere.keys["admin_key"])
    task = covey.submit(far, "choose", "go")

    def asked(prompt):
        return eventually(lambda: (question := task.question) and question.prompt == prompt and question)

    assert asked("which color?").options == ["red", "blue"]
    task.answer("green")
    assert asked("which color?\n('green' is none of red, blue)").options == ["red", "blue"]
    task.answer("red")
    assert asked("how many coats?").schema == {"type": "integer"}
    task.answer(2)
    assert asked("log in").options == []
    eventually(lambda: task.state() == "auth-required")
    task.answer("me")
    assert task.result(30) == "red x 2 by me"
    kinds = [event.data["kind"] for event in task.events() if event.type == "interrupt_raised"]
    assert kinds[-1] == {"is": "auth", "url": "https://login.example"}


def test_words_reach_a_task_that_works_there(cluster, elsewhere):
    far = connected(elsewhere.url, token=elsewhere.keys["admin_key"])
    task = covey.submit(far, "listen", "go")
    until(task, "listening")
    task.send("one")
    until(task, " one")
    task.send("stop")
    assert task.result(30) == "listening one"


class Proxy:
    """Between a cluster and an agent: cuts connections after some bytes."""

    def __init__(self, port, dice):
        self.target, self.dice, self.cuts, self.whole = port, dice, 0, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.carry, args=(near,), daemon=True).start()

    def carry(self, near):
        far = socket.create_connection(("127.0.0.1", self.target))

        def out():
            while data := near.recv(65536):
                far.sendall(data)

        threading.Thread(target=lambda: _quietly(out), daemon=True).start()
        _quietly(lambda: self.back(near, far, self.dice.randrange(2_000, 60_000)))
        for s in (near, far):
            _quietly(lambda s=s: s.shutdown(socket.SHUT_RDWR))
            s.close()

    def back(self, near, far, left):
        while data := far.recv(4096):
            near.sendall(data if self.whole else data[:left])
            if not self.whole:
                left -= len(data)
                if left <= 0:
                    self.cuts += 1
                    return


def _quietly(work):
    try:
        work()
    except OSError:
        pass


def test_a_stream_that_is_cut_goes_on_where_it_was(cluster, elsewhere):
    host, port = elsewhere.keys["address"].rsplit(":", 1)
    proxy = Proxy(int(port), random.Random(5))
    proxy.whole = True
    url = elsewhere.url.replace(elsewhere.keys["address"], f"127.0.0.1:{proxy.port}")
    far = connected(url, token=elsewhere.keys["admin_key"])
    text = "".join(f"w{n} " for n in range(5_000))
    assert far.run.remote("warm").text() == "warm "
    proxy.whole = False
    for _ in range(5):
        assert far.count.remote(5_000).text() == text
    assert proxy.cuts > 50
    proxy.listener.close()


def test_a_lost_worker_is_made_up_for(nodes, elsewhere):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.worker("w2", "--cpus", "1")
    nodes.connect()
    nodes.live(2)
    far = connected(elsewhere.url, token=elsewhere.keys["admin_key"])
    task = covey.submit(far, "listen", "go")
    until(task, "listening")
    for name in ("w1", "w2"):
        nodes.kill9(name)
    nodes.worker("w3", "--cpus", "1")
    task.send("one")
    task.send("stop")
    assert task.result(60) == "listening one"


def test_a_card_is_looked_through(cluster, elsewhere):
    token = elsewhere.keys["admin_key"]
    base = f"http://{elsewhere.keys['address']}"
    keys = f"{base}/.well-known/jwks.json"
    assert connected(elsewhere.url, token=token, keys=keys).run.remote("signed").text() == "signed "
    with pytest.raises(covey.CoveyError, match="not to be trusted"):
        connected(elsewhere.url, token=token, keys={"keys": []})
    with pytest.raises(covey.CoveyError, match="http"):
        connected("ftp://127.0.0.1/")
    with pytest.raises(covey.CoveyError, match="no agent card"):
        connected(f"{base}/a2a/nobody", token=token)
    with pytest.raises(covey.CoveyError, match="not reached"):
        connected(f"http://127.0.0.1:{free_port()}")


def test_a_declared_agent_is_found_when_it_comes_up(nodes, elsewhere, tmp_path):
    agents = tmp_path / "agents"
    agents.mkdir()
    (agents / "far.toml").write_text(f'name = "far"\nkind = "a2a"\nurl = "{elsewhere.url}"\ntoken_env = "FAR_TOKEN"\n')
    out = nodes.cli("head", "--port", "0", "--agents", str(agents))
    assert out.returncode != 0 and "FAR_TOKEN" in out.stderr
    nodes.env["FAR_TOKEN"] = elsewhere.keys["admin_key"]
    nodes.head("--agents", str(agents))
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    eventually(lambda: any(a["name"] == "far" and a["description"] == "Lives in another cluster." for a in covey.agents()))
    assert covey.submit("far", "", "hello there").result(30) == "hello there "
    # Through this cluster's own face, as clients see it.
    url = f"http://{nodes.keys['address']}/a2a/far/.well-known/agent-card.json"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {nodes.keys['admin_key']}"})
    with urllib.request.urlopen(request) as response:
        assert "add" in [skill["id"] for skill in json.load(response)["skills"]]
