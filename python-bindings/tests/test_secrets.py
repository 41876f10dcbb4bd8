"""Secrets: set once, used by name, seen nowhere else."""

import http.server
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest
from conftest import BIN, Nodes, eventually

import covey

# Text that stands nowhere by chance.
VALUE = "s3cr3t-v4lue-5a1f"
SHARED = "sh4red-v4lue-77b2"


@covey.agent(env_vars={"API_KEY": "secret://API_KEY", "PLAIN": "plain"})
class Keyed:
    def key(self):
        return os.environ["API_KEY"], os.environ["PLAIN"]


@covey.agent(env_vars={"API_KEY": "secret://NOT_SET"})
class Unset:
    def key(self):
        return os.environ["API_KEY"]


@covey.agent
class Thief:
    async def register(self):
        """Has an agent of its own started with the cluster's secrets."""

        @covey.agent(env_vars={"STOLEN": "secret://API_KEY"})
        class Stolen:
            def key(self):
                return os.environ["STOLEN"]

        try:
            return await Stolen.remote().key.remote()
        except covey.CoveyError as error:
            return f"refused: {error}"

    def read(self, name):
        from covey import _bridge

        try:
            return repr(_bridge.BackendRef().raw("ReadSecret", bytes([10, len(name)]) + name.encode()))
        except Exception as error:
            return repr(error)


class Receiver(http.server.ThreadingHTTPServer):
    """Keeps the headers of whatever is sent to it."""

    def __init__(self):
        self.seen = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(handler):  # noqa: N802, N805
                self.seen.append({name.lower(): value for name, value in handler.headers.items()})
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                handler.send_response(401 if self.refuse else 200)
                handler.end_headers()
                handler.wfile.write(b"{}")

            do_GET = do_POST

            def log_message(handler, *_):  # noqa: N805
                pass

        self.refuse = False
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def set_secret(nodes, name, value, *args):
    out = nodes.cli("secret", "set", name, *args, input=value + "\n")
    assert out.returncode == 0, out.stderr


@pytest.fixture
def house(tmp_path):
    nodes = Nodes(tmp_path)
    upstream = Receiver()
    (tmp_path / "upstreams.toml").write_text(
        "".join(
            f'[[upstream]]\nname = "{name}"\nurl = "{upstream.url}/v1"\nmodel = "x"\napi_key = "secret://{secret}"\n'
            for name, secret in [("shared", "SHARED"), ("closed", "API_KEY")]
        )
    )
    nodes.upstream = upstream
    nodes.head("--push-allow", "127.0.0.0/8")
    nodes.worker("w1", "--cpus", "4", "--upstreams", str(tmp_path / "upstreams.toml"))
    nodes.connect()
    nodes.live(1)
    set_secret(nodes, "API_KEY", VALUE)
    yield nodes
    covey.shutdown()
    nodes.stop()
    upstream.shutdown()


def arguments(nodes):
    """What `ps` shows of every process of the cluster, and of its children."""
    own, shown = {p.pid for p in nodes.running.values()}, {}
    for path in pathlib.Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
                shown[int(path.name)] = (int(fields[1]), (path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except (OSError, IndexError):
                continue
    grown = True
    while grown:
        more = {pid for pid, (parent, _) in shown.items() if parent in own} - own
        own |= more
        grown = bool(more)
    return {pid: shown[pid][1] for pid in own if pid in shown}


def test_secrets_are_set_listed_and_taken_away(house):
    set_secret(house, "OTHER", SHARED, "--workers")
    listed = house.cli("secret", "ls")
    assert listed.stdout.split(" · ")[0] == "API_KEY" and "OTHER · workers" in listed.stdout
    assert VALUE not in listed.stdout and SHARED not in listed.stdout + house.cli("secret", "ls", "--json").stdout
    assert [json.loads(line)["name"] for line in house.cli("secret", "ls", "--json").stdout.splitlines()] == ["API_KEY", "OTHER"]
    assert house.cli("secret", "rm", "OTHER").returncode == 0
    assert house.cli("secret", "rm", "OTHER").returncode == 66
    assert house.cli("secret", "set", "a/b", input="x").returncode == 64
    assert house.cli("secret", "set", "EMPTY", input="").returncode == 64
    # There is no flag for a value.
    assert house.cli("secret", "set", "NAME", "value", input="x").returncode == 64
    kept = house.home / "head/secrets.json"
    assert kept.stat().st_mode & 0o777 == 0o600 and VALUE in kept.read_text()
    audit = (house.home / "head/audit.log").read_text()
    assert "/covey.v1.Covey/SetSecret" in audit and "/covey.v1.Covey/RemoveSecret" in audit


def test_agents_and_jobs_have_the_secret_and_nothing_else_shows_it(house):
    actor = Keyed.remote()
    assert actor.key.remote().result() == (VALUE, "plain")
    out = house.cli("job", "submit", "--detach", "--env", "API_KEY=Bearer secret://API_KEY", "--", "sh", "-c", "printf '%s' \"$API_KEY\" | tr a-z A-Z; sleep 600")
    job = out.stdout.strip()
    eventually(lambda: f"BEARER {VALUE.upper()}" in house.cli("job", "logs", job).stdout)
    task = covey.submit("Keyed", "key")
    assert task.result() == [VALUE, "plain"]
    task_file = house.cli("status", "--json").stdout
    # Processes: arguments of all of them.
    ps = arguments(house)
    assert any("covey._host" in line for line in ps.values()) and any("sleep 600" in line for line in ps.values())
    secrets = [VALUE, house.keys["admin_key"], json.loads((house.home / "workers/w1/credential.json").read_text())["credential"]]
    for line in ps.values():
        assert not any(secret in line for secret in secrets), line
    assert VALUE not in task_file
    assert VALUE not in json.dumps(covey.agents()) and "secret://API_KEY" in json.dumps(covey.agents())
    house.cli("job", "stop", job)
    covey.shutdown()
    house.stop()
    for path in house.home.rglob("*"):
        if path.is_file() and path.name != "secrets.json":
            body = path.read_bytes()
            # What the task gave back is its result, and it is what the agent said; the name of the variable is not.
            told = b"covey.db" in path.name.encode() or "log" in path.name and path.parent.name == "head"
            assert VALUE.encode() not in body or told, path


def test_what_is_not_set_is_named_and_comes_when_it_is(house):
    with pytest.raises(covey.CoveyError, match="no secret `NOT_SET`"):
        Unset.remote().key.remote().result(timeout=30)
    set_secret(house, "NOT_SET", "now")
    assert Unset.remote().key.remote().result(timeout=30) == "now"
    # What is set anew is there for what starts from then on.
    set_secret(house, "NOT_SET", "later")
    assert Unset.remote().key.remote().result(timeout=30) == "later"


def test_code_of_agents_gets_no_secret_that_it_was_not_given(house):
    thief = Thief.remote()
    said = thief.register.remote().result(timeout=60)
    assert said.startswith("refused") and "owner" in said, said
    assert VALUE not in thief.read.remote("API_KEY").result()


def test_upstreams_read_those_that_are_for_workers(house):
    set_secret(house, "SHARED", SHARED, "--workers")
    house.upstream.refuse = True
    headers = {"Authorization": f"Bearer {house.keys['admin_key']}"}

    def chat(model):
        body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
        return httpx.post(f"http://{house.keys['address']}/v1/chat/completions", json=body, headers=headers, timeout=60)

    eventually(lambda: chat("shared").status_code != 404)
    seen = [h.get("authorization") for h in house.upstream.seen]
    assert f"Bearer {SHARED}" in seen
    answer = chat("closed")
    assert "not for workers" in answer.text and answer.status_code == 403, answer.text
    assert not any(VALUE in str(h) for h in house.upstream.seen)


def test_webhooks_of_the_owner_refer_to_secrets_and_those_of_callers_do_not(house):
    receiver = Receiver()
    key = house.cli("key", "add", "alice").stdout.strip()

    def send(key, message):
        headers = {"Authorization": f"Bearer {key}", "A2A-Version": "1.0"}
        hook = {"url": receiver.url + "/hook", "token": "secret://API_KEY", "authentication": {"scheme": "Basic", "credentials": "secret://API_KEY"}}
        params = {
            "message": {"role": "ROLE_USER", "parts": [{"text": "x"}], "messageId": message},
            "configuration": {"taskPushNotificationConfig": hook},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": params}
        return httpx.post(f"http://{house.keys['address']}/a2a/echo", json=body, headers=headers, timeout=60).json()

    refused = send(key, "m1")
    assert "only the owner" in json.dumps(refused), refused
    made = send(house.keys["admin_key"], "m2")
    assert "result" in made and VALUE not in json.dumps(made), made
    eventually(lambda: receiver.seen)
    assert all(h["a2a-notification-token"] == VALUE and h["authorization"] == f"Basic {VALUE}" for h in receiver.seen)
    hooks = httpx.get(f"http://{house.keys['address']}/v1/push-notifications", headers={"Authorization": f"Bearer {house.keys['admin_key']}"})
    assert VALUE not in hooks.text
    receiver.shutdown()


def test_agents_elsewhere_are_opened_by_a_secret(house):
    receiver = Receiver()
    receiver.refuse = True
    with pytest.raises(covey.CoveyError) as refused:
        covey.connect_a2a(receiver.url, token="secret://API_KEY", headers={"X-Key": "k secret://API_KEY"})
    assert VALUE not in str(refused.value)
    assert receiver.seen and all(h.get("x-key") == f"k {VALUE}" for h in receiver.seen)
    with pytest.raises(covey.CoveyError, match="no secret `NONE`"):
        covey.connect_a2a(receiver.url, token="secret://NONE")
    receiver.shutdown()


SERVER = """
import os, sys, json
for line in sys.stdin:
    ask = json.loads(line)
    if "id" not in ask:
        continue
    if ask["method"] == "initialize":
        result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
    elif ask["method"] == "tools/list":
        open(os.environ["TOLD"], "w").write(os.environ.get("KEY", ""))
        result = {"tools": []}
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": ask["id"], "result": result}), flush=True)
"""


def test_mcp_servers_have_the_secret(house):
    told = pathlib.Path("/tmp") / f"covey-told-{os.getpid()}"
    told.unlink(missing_ok=True)
    command = [sys.executable, "-c", SERVER]
    agent = covey.llm_agent("with-key", model="tiny", tools=[covey.Mcp(*command, env={"KEY": "secret://API_KEY", "TOLD": str(told)})])
    "".join(covey.remote_agent(agent).run.remote("hi"))
    assert told.read_text() == VALUE
    told.unlink()


def test_a_join_token_is_read_from_where_nobody_else_reads_it(house, tmp_path):
    token = house.cli("token").stdout.strip()
    shown = house.cli("worker", "--join", token.replace("cvj_", "cvj_x"), "--name", "shown")
    assert "argument list" in shown.stderr, shown.stderr
    (tmp_path / "join").write_text(token + "\n")
    command = [BIN, "worker", "--join", "-", "--name", "piped", "--cpus", "1"]
    with open(house.home / "piped.log", "wb") as log:
        process = subprocess.Popen(command, env=house.env, stdin=subprocess.PIPE, stdout=log, stderr=log)
    house.running["piped"] = process
    process.stdin.write(token.encode() + b"\n")
    process.stdin.close()
    house.start("filed", "worker", "--join", f"@{tmp_path / 'join'}", "--name", "filed", "--cpus", "1")
    eventually(lambda: {"piped", "filed"} <= {n["name"] for n in covey.status()["nodes"] if n["state"] == "live"})
    assert "argument list" not in (house.home / "piped.log").read_text() + (house.home / "filed.log").read_text()
    for name in ("piped", "filed"):
        assert house.keys["join_secret"] not in pathlib.Path(f"/proc/{house.running[name].pid}/cmdline").read_text()


def test_a_worker_tells_systemd_once_it_has_joined(tmp_path):
    nodes = Nodes(tmp_path)
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(tmp_path / "notify"))
    try:
        nodes.head()
        nodes.running["head"].send_signal(signal.SIGSTOP)
        nodes.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        nodes.worker("w1", "--cpus", "1")
        told.settimeout(2)
        with pytest.raises(TimeoutError):
            told.recv(100)
        nodes.running["head"].send_signal(signal.SIGCONT)
        told.settimeout(60)
        assert told.recv(100) == b"READY=1"
    finally:
        nodes.running["head"].send_signal(signal.SIGCONT)
        nodes.stop()
        told.close()
