"""What whoever comes to the wrong door is told: routes that are none, ports that are no head, pipes that nobody reads."""

import http.server
import pathlib
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time

import httpx
import pytest
from conftest import BIN, ROOT, eventually

import covey


def ask(cluster, method, path, **headers):
    headers = {"authorization": f"Bearer {cluster.keys['admin_key']}", **headers}
    return httpx.request(method, f"http://{cluster.keys['address']}{path}", headers=headers)


def test_paths_that_are_none_say_so_in_json(cluster):
    for path in ("/v1/batches", "/nothing", "/v1/audio/speech", "/a2a/v1/foo", "/lf.a2a.v1.A2AService/Nope", "/covey.v1.Covey/Status", "/grpc.health.v1.Health/Nope"):  # fmt: skip
        for method in ("GET", "POST"):
            answer = ask(cluster, method, path)
            assert answer.status_code == 404 and answer.headers["content-type"] == "application/json", (method, path, answer)
            assert answer.json()["error"]["message"], path
    answer = ask(cluster, "GET", "/v1/chat/completions")
    assert answer.status_code == 405 and "GET" in answer.json()["error"]["message"] and answer.headers["allow"] == "POST"


def test_openais_client_says_what_is_not_here(cluster):
    import openai

    client = openai.OpenAI(base_url=f"http://{cluster.keys['address']}/v1", api_key=cluster.keys["admin_key"], max_retries=0)
    with pytest.raises(openai.NotFoundError, match="nothing at this path"):
        client.batches.list()
    with pytest.raises(openai.NotFoundError, match="nothing at this path"):
        client.files.list()


COMMANDS = [
    ["status"], ["status", "--json"], ["agents"], ["actors"], ["model", "ls"], ["token"], ["top", "--once"], ["job", "ls"], ["key", "ls"],
    ["dead-letters"], ["submit", "echo", "hello"], ["doctor"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_whose_reader_has_gone_ends_quietly(cluster, command):
    reader, writer = socket.socketpair()
    reader.close()
    done = subprocess.run([BIN, *command], env=cluster.env, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    writer.close()
    assert done.returncode == 0 and "panicked" not in done.stderr, done.stderr


def test_a_head_whose_readers_have_gone_serves(nodes):
    reader, writer = socket.socketpair()
    reader.close()
    nodes.running["head"] = subprocess.Popen([BIN, "head", "--port", "0"], env=nodes.env, stdin=subprocess.DEVNULL, stdout=writer, stderr=writer)
    writer.close()
    eventually(lambda: nodes.cli("status").returncode == 0)


class _Web(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def ports():
    """Ports that are no head: a web server's, and one where nobody says a word."""
    web = http.server.HTTPServer(("127.0.0.1", 0), _Web)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    silent = socket.create_server(("127.0.0.1", 0))
    yield {"web": web.server_port, "silent": silent.getsockname()[1]}
    web.shutdown()
    silent.close()


@pytest.mark.parametrize("kind", ["web", "silent"])
def test_a_port_that_is_no_head_is_told_as_that(nodes, ports, kind):
    nodes.env |= {"COVEY_ADDRESS": f"127.0.0.1:{ports[kind]}", "COVEY_TOKEN": "cva_x"}
    out = nodes.cli("status")
    assert out.returncode == 69 and f"127.0.0.1:{ports[kind]}" in out.stderr and "no head" in out.stderr, out.stderr


def test_the_port_of_a_worker_is_no_head(cluster):
    pids = [str(p.pid) for name, p in cluster.running.items() if name == "w1"]
    listening = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True).stdout if pathlib.Path("/usr/bin/ss").exists() else ""
    address = next((line.split()[3] for line in listening.splitlines() if f"pid={pids[0]}," in line), None)
    if address is None:
        pytest.skip("wants ss")
    env = {**cluster.env, "COVEY_ADDRESS": address, "COVEY_TOKEN": "cva_x"}
    out = subprocess.run([BIN, "status"], env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode == 69 and address in out.stderr and "no head" in out.stderr, out.stderr


def test_a_head_without_a_way_out_warns(nodes):
    alone = ["unshare", "--net", "--map-root-user", "--user"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("wants user namespaces")
    log = open(nodes.home / "head.log", "wb")
    command = [*alone, BIN, "head", "--host", "0.0.0.0", "--port", "7420"]
    nodes.running["head"] = subprocess.Popen(command, env=nodes.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    text = eventually(lambda: "add a worker" in (t := (nodes.home / "head.log").read_text()) and t)
    text = eventually(lambda: (t := (nodes.home / "head.log").read_text()) and "--advertise-head" in t and t)
    assert "no route to a network" in text
    told = nodes.cli("token")
    assert told.returncode == 0 and "@127.0.0.1:7420#" in told.stdout and "--advertise-head" in told.stderr, told


def fenced(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_the_readmes_snippets_run_anywhere(nodes, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    env = {k: v for k, v in nodes.env.items() if not k.startswith("COVEY_MODELS")}
    env |= {"COVEY_BIN": BIN, "PYTHONPATH": str(ROOT / "python-bindings/python")}
    (script,) = fenced((ROOT / "README.md").read_text(), "python")
    (tmp_path / "elsewhere/readme.py").write_text(script)
    done = subprocess.run([sys.executable, "readme.py"], cwd=tmp_path / "elsewhere", env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "blue" in done.stdout and "sun moon" in done.stdout


def test_the_tiny_model_comes_with_the_command(nodes, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    nodes.head()
    token = f"{nodes.keys['join_secret']}@{nodes.address}"
    log = open(nodes.home / "w.log", "wb")
    nodes.running["w"] = subprocess.Popen([BIN, "worker", "--join", token], cwd=elsewhere, env=nodes.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    nodes.connect()
    nodes.live(1)
    chat = subprocess.run([BIN, "chat"], cwd=elsewhere, env=nodes.env, input="Repeat: sun moon\n", capture_output=True, text=True, timeout=60)
    assert chat.stdout == "sun moon\n", chat.stderr
    listed = subprocess.run([BIN, "model", "ls"], cwd=elsewhere, env=nodes.env, capture_output=True, text=True, timeout=60)
    assert "tiny · qwen3" in listed.stdout


def test_every_metric_has_a_help_of_its_own(cluster):
    page = ask(cluster, "GET", "/metrics").text
    helps = dict(line.removeprefix("# HELP ").split(" ", 1) for line in page.splitlines() if line.startswith("# HELP"))
    types = dict(line.removeprefix("# TYPE ").split(" ", 1) for line in page.splitlines() if line.startswith("# TYPE"))
    assert helps.keys() == types.keys()
    for name, text in helps.items():
        assert text.endswith(".") and not text.startswith("Of them"), (name, text)
        assert not name.endswith("_total") or types[name] == "counter", name
    assert len(set(helps.values())) == len(helps)
    assert "have ended" in helps["covey_tasks"], "completed ones are among them"


@covey.agent
class Kept:
    def __init__(self):
        self.count = 0

    def add(self, by=1):
        self.count += by
        return self.count

    def long(self, seconds):
        time.sleep(seconds)
        return "done"

    async def ticks(self):
        import asyncio

        while True:
            yield 1
            await asyncio.sleep(0.05)

    def __snapshot__(self):
        return self.count

    def __restore__(self, count):
        self.count = count


def moving():
    return [a for a in covey.status()["actors"] if a["state"] == "moving"]


def test_a_drained_node_keeps_no_moving_actors(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "2")
    with nodes.connect():
        nodes.live(1)
        actors = [Kept.options(cpus=0).remote() for _ in range(4)]
        covey.get([a.add.remote() for a in actors], timeout=60)
        stream = iter(actors[0].ticks.remote())
        next(stream)
        longer = actors[1].long.remote(3)
        nodes.worker("b", "--cpus", "2")
        nodes.live(2)
        assert nodes.cli("drain", "a", "--no-wait", "--grace-s", "5").returncode == 0
        assert longer.result(30) == "done"
        eventually(lambda: not moving(), timeout=40)
        names = {n["id"]: n["name"] for n in covey.status()["nodes"]}
        assert covey.get([a.add.remote() for a in actors], timeout=30) == [2] * 4
        assert {names[a["node"]] for a in covey.status()["actors"] if a["state"] == "live"} == {"b"}


class Holds:
    def hold(self, path):
        import pathlib

        while not pathlib.Path(path).exists():
            time.sleep(0.01)


def test_drain_says_what_it_waits_for_and_what_it_ended(nodes, tmp_path):
    nodes.head()
    nodes.worker("a", "--cpus", "2")
    with nodes.connect():
        nodes.live(1)
        ticker = Kept.options(cpus=0, name="ticker").remote()
        stream = iter(ticker.ticks.remote())
        next(stream)
        task = covey.submit(covey.agent(Holds, name="cli-holds"), "hold", str(tmp_path / "go"))
        eventually(lambda: task.state() == "working")
        nodes.worker("b", "--cpus", "2")
        nodes.live(2)
        command = [BIN, "drain", "a", "--grace-s", "1"]
        drain = subprocess.Popen(command, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = [drain.stderr.readline()]
        assert "1 actor to move: ticker; their calls have 1 s" in said[0] and "1 durable task of cli-holds" in said[0], said
        while "1 s are over" not in said[-1]:
            said.append(drain.stderr.readline())
            assert said[-1], said
        assert "calls that still ran are ended, of ticker" in said[-1]
        last = drain.stderr.readline()
        assert "1 durable task of cli-holds, without a bound of time" in last and "ticker" not in last
        (tmp_path / "go").touch()
        assert drain.wait(60) == 0 and drain.stdout.read() == "a is empty\n"
        assert task.result(30) is None
        drain.stderr.close()
        drain.stdout.close()


class Forgetful:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count


def test_a_move_without_state_counts_as_a_restart(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "2")
    with nodes.connect():
        nodes.live(1)
        again = covey.agent(cpus=0, name="again")(Forgetful).options(name="again").remote()
        once = covey.agent(cpus=0, name="once")(Forgetful).options(name="once", max_restarts=0).remote()
        assert covey.get([again.add.remote(), once.add.remote()], timeout=60) == [1, 1]
        nodes.worker("b", "--cpus", "2")
        nodes.live(2)
        assert nodes.cli("drain", "a").returncode == 0
        assert again.add.remote().result(30) == 1
        with pytest.raises(covey.ActorDied, match="moved without its state: `once` has no `__snapshot__`"):
            once.add.remote().result(30)
        actors = {a["name"]: a for a in covey.status()["actors"]}
        assert actors["again"]["restarts"] == 1 and "moved without its state" in actors["again"]["why"]
        assert actors["once"]["state"] == "dead"


def test_a_drained_node_that_is_gone_is_dead(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "1")
    with nodes.connect():
        nodes.live(1)
        assert nodes.cli("drain", "a", "--no-wait").returncode == 0
        eventually(lambda: [n["state"] for n in covey.status()["nodes"]] == ["draining"])
        nodes.kill9("a")
        eventually(lambda: [n["state"] for n in covey.status()["nodes"]] == ["dead"], timeout=60)


def test_a_drained_last_node_says_what_its_actors_wait_for(nodes):
    nodes.head()
    nodes.worker("a", "--cpus", "2")
    with nodes.connect():
        nodes.live(1)
        one = Kept.options(cpus=0).remote()
        one.add.remote().result(30)
        nodes.cli("drain", "a", "--no-wait")
        found = eventually(lambda: [a for a in covey.status()["actors"] if a["state"] == "pending"])
        assert "being emptied" in found[0]["why"] or "no live" in found[0]["why"] or "0 nodes" in found[0]["why"], found
        nodes.worker("b", "--cpus", "2")
        assert one.add.remote().result(30) == 2


@pytest.mark.parametrize("args", [["--name", "w1\nnode fake · live"], ["--name", "\x1b[2J"], ["--name", "w2", "--label", "zone=a\x1b]0;b\x07"], ["--name", "w3", "--resource", "r\x1b[31m=1"]])
def test_a_worker_whose_name_does_things_to_a_terminal_is_refused(nodes, args):
    nodes.head()
    token = f"{nodes.keys['join_secret']}@{nodes.address}"
    ran = nodes.cli("worker", "--join", token, *args)
    assert ran.returncode and "control characters" in ran.stderr and "\x1b" not in ran.stderr, ran
    assert "fake" not in nodes.cli("status").stdout
