"""Who may do what: every cell of the table of access, and what stolen credentials reach."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grpc
import httpx
import pytest
from conftest import BIN, ROOT, Nodes, eventually

import covey

KINDS = ["join", "worker", "actor", "job", "caller", "caller with models", "admin"]


def table():
    """Path and reach of each kind, as docs/security.md has it; tests in Rust compare that with the router and the .proto files."""
    text = (ROOT / "docs/security.md").read_text().split("<!-- access: begin -->")[1].split("<!-- access: end -->")[0]
    for line in text.strip().splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        yield cells[0].strip("`"), dict(zip(KINDS, cells[1:], strict=True))


def field(number, value):
    """A field of a protobuf message; bytes, text or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(n):
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def ask(nodes, key, path, body=b"", metadata=()):
    """A gRPC call by path; its code and what is said."""
    with grpc.insecure_channel(nodes.keys["address"]) as channel:
        call = channel.unary_stream(path, request_serializer=None, response_deserializer=None)
        sent = [*metadata, *([("authorization", f"Bearer {key}")] if key else [])]
        answers = call(body, metadata=sent, timeout=20)
        try:
            return grpc.StatusCode.OK, next(iter(answers), b"")
        except grpc.RpcError as error:
            return error.code(), error.details()
        finally:
            answers.cancel()


def web(nodes, key, path, method="GET"):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.request(method, f"http://{nodes.keys['address']}{path}", headers=headers, timeout=20)


@covey.agent
class Probe:
    """Code of an agent that tries things."""

    def environment(self):
        return dict(os.environ)

    def pids(self):
        return os.getpid(), os.getppid()

    def read(self, path):
        with open(path, "rb") as file:
            return file.read()

    def write(self, path):
        pathlib.Path(path).write_text("x")
        return pathlib.Path(path).read_text()

    def temporary(self):
        import tempfile

        with tempfile.NamedTemporaryFile("w+") as file:
            file.write("x")
            file.seek(0)
            return file.read()

    def signal(self, pid):
        os.kill(pid, signal.SIGKILL)

    def verb(self, name, body):
        """Asks the worker for a method as the bridge would; what comes back nobody waits for."""
        import socket

        def is_workers(fd):
            try:
                return socket.socket(fileno=os.dup(fd)).getpeername().endswith(".sock")
            except (OSError, AttributeError):
                return False

        fd = next(fd for fd in range(3, 64) if is_workers(fd))
        frame = field(16, field(1, 1 << 60) + field(2, name) + field(3, body))
        batch = field(1, frame)
        os.write(fd, len(batch).to_bytes(4, "big") + batch)


    def make(self):
        return Inner.remote().get.remote().result()


@covey.agent
class Inner:
    def get(self):
        return 7


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A cluster with a worker whose environment holds a secret, a job that runs, and one key of each kind."""
    nodes = Nodes(tmp_path_factory.mktemp("access"))
    nodes.env["STOLEN_API_KEY"] = "sk-worker"
    nodes.env["PASSED_API_KEY"] = "sk-passed"
    nodes.head()
    nodes.worker("w1", "--cpus", "4", "--pass-env", "PASSED_API_KEY")
    nodes.connect()
    nodes.live(1)
    Probe.register()

    def key(*args):
        out = nodes.cli(*args)
        assert out.returncode == 0, out.stderr
        return out.stdout.strip()

    nodes.job = key("job", "submit", "--detach", "--", "sh", "-c", "echo token $COVEY_TOKEN; sleep 600")
    said = eventually(lambda: [line for line in nodes.cli("job", "logs", nodes.job).stdout.splitlines() if line.startswith("token ")])
    nodes.tokens = {
        "join": nodes.keys["join_secret"],
        "worker": json.loads((nodes.home / "workers/w1/credential.json").read_text())["credential"],
        "job": said[0].split()[1],
        "caller": key("key", "add", "alice"),
        "caller with models": key("key", "add", "bob", "--models"),
        "admin": nodes.keys["admin_key"],
    }
    yield nodes
    covey.shutdown()
    nodes.stop()


@pytest.fixture
def mine(house):
    session = house.connect()
    yield house
    session.close()


@pytest.mark.parametrize("kind", ["none", *(kind for kind in KINDS if kind != "actor")])
def test_every_cell_of_the_table(house, kind):
    token, wrong = house.tokens.get(kind, ""), []
    for path, reach in table():
        if path.startswith("/covey.v1.Worker/"):
            continue
        opens = bool(reach.get(kind))
        if path.startswith("/covey.") or "A2AService" in path:
            code, said = ask(house, token, path.replace("{method}", "GetTask"))
            closed = code == grpc.StatusCode.UNAUTHENTICATED or (code == grpc.StatusCode.PERMISSION_DENIED and "closed to the credential" in said)
            if kind == "none":
                closed = code == grpc.StatusCode.UNAUTHENTICATED
        else:
            shown = path.replace("{*rest}", "x/y").replace("{*model}", "x")
            for name in ("agent", "task", "id"):
                shown = shown.replace(f"{{{name}}}", "x")
            answers = [web(house, token, shown, method) for method in ("GET", "POST")]
            closed = all(a.status_code == (401 if kind == "none" else 403) for a in answers)
            code = [a.status_code for a in answers]
        if closed == opens:
            wrong.append((path, reach.get(kind), code))
    assert not wrong


@pytest.mark.parametrize("path", ["/v1/new", "/v1/", "/admin", "/covey.v1.Covey/New", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"])
def test_what_is_in_no_table_is_closed_to_all(house, path):
    for token in house.tokens.values():
        assert web(house, token, path, "POST").status_code == 404


def test_a_workers_own_port_is_closed_without_its_secret(house):
    _, stores = ask(house, house.tokens["admin"], "/covey.v1.Covey/ListStores")
    address = next(part for part in stores.replace(b"\x12", b"\n").split(b"\n") if part.startswith(b"127.0.0.1:", 1))[1:].decode()
    methods = [path for path, _ in table() if path.startswith("/covey.v1.Worker/")]
    assert len(methods) > 4
    port = type("Port", (), {"keys": {"address": address}})
    for token in ("", *house.tokens.values()):
        for method in methods:
            assert ask(port, token, method)[0] == grpc.StatusCode.UNAUTHENTICATED, method


def test_a_join_token_makes_no_keys_and_changes_no_agents(mine):
    token = mine.tokens["join"]
    out = subprocess.run([BIN, "key", "add", "thief"], env={**mine.env, "COVEY_ADDRESS": mine.address, "COVEY_TOKEN": token}, capture_output=True, text=True)
    assert out.returncode == 77 and "join" in out.stderr, out.stderr
    spec = next(a for a in covey.agents() if a["name"] == "Probe")
    body = field(1, json.dumps({**spec, "description": "stolen"}))
    assert ask(mine, token, "/covey.v1.Covey/RegisterAgent", body)[0] == grpc.StatusCode.PERMISSION_DENIED
    # Nor does it enrol in the name of a key that it does not have.
    body = field(1, mine.tokens["join"].encode()[:32].ljust(32, b"x")) + field(2, bytes(64))
    assert ask(mine, token, "/covey.v1.Link/Enroll", body)[0] in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT)
    assert "thief" not in mine.cli("key", "ls").stdout


def test_a_worker_speaks_for_its_own_node_alone(mine):
    token = mine.tokens["worker"]
    mine.worker("w2", "--cpus", "1")
    mine.live(2)
    own, other = (next(n["id"] for n in covey.status()["nodes"] if n["name"] == name) for name in ("w1", "w2"))
    assert token.split(".")[0] == f"cvw_{own}"
    denied = grpc.StatusCode.PERMISSION_DENIED
    assert ask(mine, token, "/covey.v1.Covey/DrainNode", field(1, other))[0] == denied
    assert ask(mine, token, "/covey.v1.Covey/DrainNode", field(1, "w2"))[0] == denied
    assert ask(mine, token, "/covey.v1.Covey/SaveState", field(1, other) + field(2, "a"))[0] == denied
    hello = field(1, other) + field(2, "w2") + field(3, 1) + field(4, "0.1.0") + field(6, "{}")
    assert ask(mine, token, "/covey.v1.Link/Attach", field(1, field(1, hello)))[0] == denied
    # Another's session would end with the stream.
    code, _ = ask(mine, token, "/covey.v1.Covey/Calls", metadata=[("covey-session", "another")])
    assert code == denied
    mine.kill9("w2")


def test_a_worker_sees_no_tasks_of_others_and_replaces_no_agents(mine):
    token = mine.tokens["worker"]
    task = covey.submit("echo", "echo", "hi").id
    for method in ("GetTask", "CancelTask", "SayTask"):
        assert ask(mine, token, f"/covey.v1.Covey/{method}", field(1, task) + field(2, "[]"))[0] == grpc.StatusCode.NOT_FOUND, method
    assert ask(mine, token, "/covey.v1.Covey/Submit", field(1, "covey.job") + field(2, "run") + field(3, "{}"))[0] == grpc.StatusCode.PERMISSION_DENIED
    before = next(a for a in covey.agents() if a["name"] == "Probe")
    ask(mine, token, "/covey.v1.Covey/RegisterAgent", field(1, json.dumps({**before, "description": "stolen"})))
    assert next(a for a in covey.agents() if a["name"] == "Probe") == before


def test_a_workers_credential_opens_a_task_with_its_capability_alone(mine):
    one, other = (covey.submit("echo", "echo", "hi") for _ in range(2))
    one.result(60)
    # ReadEvents, GetTask, SayTask and CancelTask: the task, and the field that has the capability.
    places = {"GetTask": 2, "CancelTask": 3, "SayTask": 4, "ReadEvents": 4}
    capability = one.__reduce__()[1][2]
    worker = mine.tokens["worker"]
    for method, place in places.items():
        ask_for = lambda task, shown, m=method, p=place: ask(mine, worker, f"/covey.v1.Covey/{m}", field(1, task) + (field(2, "[]") if m == "SayTask" else b"") + field(p, shown))  # noqa: E731
        assert ask_for(one.id, capability)[0] != grpc.StatusCode.NOT_FOUND, method
        for task, shown in ((other.id, capability), (one.id, capability[:-1]), (one.id, capability.upper()), (one.id, "")):
            assert ask_for(task, shown)[0] == grpc.StatusCode.NOT_FOUND, (method, task, shown)
    # It opens nothing by itself, and nothing else.
    assert ask(mine, capability, "/covey.v1.Covey/GetTask", field(1, one.id) + field(2, capability))[0] == grpc.StatusCode.UNAUTHENTICATED
    assert ask(mine, mine.tokens["caller"], "/covey.v1.Covey/GetTask", field(1, one.id) + field(2, capability))[0] == grpc.StatusCode.PERMISSION_DENIED


def test_a_token_for_one_node_enrols_one_and_lets_it_come_back(mine):
    token = mine.cli("token", "--once", "--for", "1h").stdout.strip()
    assert token.startswith("cvj_")
    mine.start("once", "worker", "--join", token, "--name", "once", "--cpus", "1")
    live = lambda: any(n["name"] == "once" and n["state"] == "live" for n in covey.status()["nodes"])  # noqa: E731
    eventually(live)
    second = mine.cli("worker", "--join", token, "--name", "second")
    assert second.returncode == 77 and "one node" in second.stderr, second.stderr
    mine.kill9("once")
    eventually(lambda: not live())
    mine.start("once", "worker", "--join", token, "--name", "once", "--cpus", "1")
    eventually(live)
    mine.kill9("once")
    short = mine.cli("token", "--for", "1s").stdout.strip()
    time.sleep(1.1)
    assert mine.cli("worker", "--join", short, "--name", "late").returncode == 77


def test_a_job_has_a_token_of_its_own_while_it_runs(mine):
    out = mine.cli("job", "submit", "--", sys.executable, "-c", "import covey; s = covey.connect(); print(covey.submit('echo', 'echo', 'from a ' + 'job').result())")
    assert "from a job" in out.stdout, out.stderr
    out = mine.cli("job", "submit", "--", "sh", "-c", "echo $COVEY_TOKEN; env")
    token, printed = out.stdout.split()[0], out.stdout
    assert token.startswith("cvt_") and mine.tokens["join"] not in printed and "sk-worker" not in printed
    assert ask(mine, token, "/covey.v1.Covey/Status")[0] == grpc.StatusCode.UNAUTHENTICATED, "the job has ended"
    assert ask(mine, mine.tokens["job"], "/covey.v1.Covey/Status")[0] == grpc.StatusCode.OK


def test_an_actor_has_nothing_of_its_workers(mine):
    probe = Probe.remote()
    seen = probe.environment.remote().result()
    assert "STOLEN_API_KEY" not in seen and "COVEY_HOME" not in seen and "COVEY_TOKEN" not in seen
    assert seen["PASSED_API_KEY"] == "sk-passed" and seen["PATH"]
    _, worker = probe.pids.remote().result()
    assert worker == mine.running["w1"].pid
    for path in (f"/proc/{worker}/environ", f"/proc/{worker}/cmdline", mine.home / "credentials.json", mine.home / "workers/w1/credential.json", mine.home / "workers/w1/identity.key"):
        assert pathlib.Path(path).read_bytes(), "it is there for the user"
        read = probe.read.remote(os.fspath(path))
        with pytest.raises((PermissionError, FileNotFoundError, covey.CoveyError)):
            assert read.result() == b"", path
            raise PermissionError
    with pytest.raises((OSError, covey.CoveyError)):
        probe.read.remote(os.fspath(mine.home / "head/issuer.key")).result()
    with pytest.raises((PermissionError, covey.CoveyError)):
        probe.signal.remote(worker).result()
    with pytest.raises((PermissionError, OSError, covey.CoveyError)):
        probe.write.remote("/etc/covey-was-here").result()
    assert probe.write.remote("/tmp/covey-probe").result() == "x"
    os.unlink("/tmp/covey-probe")
    # What it is for goes on: actors of its own, for its own session.
    assert probe.make.remote().result() == 7


def test_an_actor_asks_for_what_is_in_the_list(mine):
    callers = lambda: [json.loads(line)["caller"] for line in mine.cli("key", "ls", "--json").stdout.splitlines()]  # noqa: E731
    probe, before = Probe.remote(), callers()
    live = lambda: [n["id"] for n in covey.status()["nodes"] if n["state"] == "live"]  # noqa: E731
    node = live()[0]
    probe.verb.remote("AddKey", field(1, "thief")).result()
    probe.verb.remote("RotateKey", field(1, "admin")).result()
    probe.verb.remote("DrainNode", field(1, node)).result()
    probe.verb.remote("CreateActor", field(1, "echo") + field(2, "another-session") + field(3, "stolen")).result()
    # Its own way in still works, so all of these were answered.
    assert probe.make.remote().result() == 7
    assert callers() == before
    assert node in live()
    with pytest.raises(covey.CoveyError):
        covey.get_actor("stolen")


def test_keys_end_and_secrets_are_made_anew(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head()
        nodes.worker("w1", "--cpus", "1")
        nodes.connect()
        nodes.live(1)
        short = nodes.cli("key", "add", "short", "--for", "1s").stdout.strip()
        eventually(lambda: web(nodes, short, "/a2a").status_code == 401)
        # Workers are given new credentials, and stay.
        credential = lambda: json.loads((nodes.home / "workers/w1/credential.json").read_text())["credential"]  # noqa: E731
        before = credential()
        assert nodes.cli("key", "rotate", "workers").returncode == 0
        eventually(lambda: credential() != before)
        assert ask(nodes, before, "/covey.v1.Covey/Status")[0] == grpc.StatusCode.UNAUTHENTICATED
        nodes.live(1)
        old = nodes.keys["admin_key"]
        fresh = nodes.cli("key", "rotate", "admin").stdout.strip()
        assert fresh.startswith("cva_") and json.loads((nodes.home / "credentials.json").read_text())["admin_key"] == fresh
        assert (web(nodes, old, "/v1/cluster").status_code, web(nodes, fresh, "/v1/cluster").status_code) == (401, 200)
        join = nodes.keys["join_secret"]
        nodes.cli("key", "rotate", "join")
        assert ask(nodes, join, "/covey.v1.Link/Enroll")[0] == grpc.StatusCode.UNAUTHENTICATED
    finally:
        covey.shutdown()
        nodes.stop()


def test_strict_actors_have_no_network(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head()
        nodes.worker("w1", "--cpus", "2", "--isolation", "strict")
        nodes.connect()
        nodes.live(1)

        @covey.agent
        class Caller:
            def dial(self, port):
                import socket

                socket.create_connection(("127.0.0.1", port), 5).close()

            def inner(self):
                return Inner.remote().get.remote().result()

        caller = Caller.remote()
        with pytest.raises((OSError, covey.CoveyError)):
            caller.dial.remote(int(nodes.keys["address"].rsplit(":", 1)[1])).result()
        assert caller.inner.remote().result() == 7, "actors are called through the worker"
    finally:
        covey.shutdown()
        nodes.stop()


def health(nodes, service=b"", method="Check"):
    """Asks gRPC's own health protocol, without any credential."""
    request = bytes([10, len(service)]) + service if service else b""
    with grpc.insecure_channel(nodes.keys["address"]) as channel:
        if method == "Watch":
            answers = channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=60)
            return next(answers)
        try:
            return channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=30)
        except grpc.RpcError as error:
            return error.code()


SERVING, NOT_SERVING, UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


def test_health_by_grpc_says_what_readyz_says(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head()
        for service in (b"", b"covey.v1.Covey", b"lf.a2a.v1.A2AService"):
            assert health(nodes, service) == SERVING, service
        assert health(nodes, b"no.such.Service") == grpc.StatusCode.NOT_FOUND
        assert health(nodes, b"no.such.Service", "Watch") == UNKNOWN
        assert ask(nodes, "", "/grpc.health.v1.Health/New")[0] == grpc.StatusCode.UNIMPLEMENTED
        # Whoever watches is told when the head stops, and that it does before its port closes.
        with grpc.insecure_channel(nodes.keys["address"]) as channel:
            answers = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=60)
            assert next(answers) == SERVING
            nodes.running["head"].send_signal(signal.SIGTERM)
            assert next(answers) == NOT_SERVING
        nodes.running.pop("head").wait(20)
    finally:
        nodes.stop()


def test_health_by_grpc_follows_the_disk(tmp_path):
    """The store's own check fails: the folder of the log is gone under the head."""
    nodes = Nodes(tmp_path)
    try:
        nodes.head()
        assert health(nodes) == SERVING
        ready = lambda: httpx.get(f"http://{nodes.keys['address']}/readyz").status_code  # noqa: E731
        assert ready() == 200
        nodes.running["head"].send_signal(signal.SIGSTOP)
        with grpc.insecure_channel(nodes.keys["address"]) as channel, pytest.raises(grpc.RpcError) as late:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=2)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        nodes.running["head"].send_signal(signal.SIGCONT)
        eventually(lambda: health(nodes) == SERVING)
    finally:
        nodes.stop()


@covey.agent
class Summer:
    def total(self, value):
        return sum(value)

    def arrays(self, value):
        return float(value.sum())


def objects_of(nodes):
    """Folders of objects of this cluster's workers."""
    folders = set()
    for process in nodes.running.values():
        folders |= {p for p in pathlib.Path("/dev/shm").glob(f"covey-{process.pid}-*")}
    return folders


@pytest.mark.parametrize("at", [8, 12, 70, -1])
def test_an_object_whose_file_was_changed_is_not_unpickled(mine, at):
    import numpy

    value = numpy.arange(100_000 + at, dtype=numpy.float64)
    ref = covey.put(value)
    name = ref.digest
    [path] = [path for folder in objects_of(mine) for path in folder.glob(f"*/{name}")]
    assert Summer.remote().arrays.remote(ref).result() == float(value.sum())
    body = bytearray(path.read_bytes())
    body[at] ^= 0x41
    path.write_bytes(bytes(body))
    # A process that has not compared it yet: a new driver, and a new process of an actor.
    fresh = Summer.options(own_process=True).remote()
    with pytest.raises(covey.CoveyError, match="object"):
        fresh.arrays.remote(ref).result(timeout=60)
    again = covey.Ref(name, ref.size, ref.node, ref.session)
    with pytest.raises(covey.CoveyError, match="object"):
        again.get()


def test_what_is_lent_to_a_call_is_data_alone(mine):
    """An actor of another agent can change the file: what is unpickled is not in it."""
    import numpy

    from covey import _objects

    seen = []
    before = _objects._write

    def write(folder, body, views, digest=None):
        seen.append(bytes(body))
        return before(folder, body, views, digest)

    _objects._write = write
    try:
        value = numpy.ones(1 << 20)
        assert Summer.remote().arrays.remote(value).result() == float(1 << 20)
        eventually(lambda: Summer.remote().arrays.remote(value).result() and seen)
    finally:
        _objects._write = before
    assert set(seen) == {b""}, "the pickle travels with the call"


NO_NAMESPACES = """
# A filter of the kernel that refuses `unshare`, as on machines that give their users no namespaces.
import ctypes, os, platform, struct, sys
number = {"x86_64": 272, "aarch64": 97}[platform.machine()]
lines = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
zero = ctypes.c_ulong(0)
assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
assert libc.prctl(22, ctypes.c_ulong(2), filter, zero, zero) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("namespaces", [True, False], ids=["namespaces", "no namespaces"])
@pytest.mark.parametrize("place", ["/tmp", ROOT / ".cache"], ids=["temporary", "elsewhere"])
def test_a_home_is_out_of_reach_wherever_it_lies(place, namespaces):
    import shutil
    import tempfile

    pathlib.Path(place).mkdir(exist_ok=True)
    home = pathlib.Path(tempfile.mkdtemp(dir=place))
    nodes = Nodes(home)
    refused = (PermissionError, OSError, covey.CoveyError)
    try:
        nodes.head()
        if not namespaces:
            nodes.inside = {"w1": [sys.executable, "-c", NO_NAMESPACES]}
        nodes.worker("w1", "--cpus", "2")
        nodes.connect()
        nodes.live(1)
        probe = Probe.remote()
        lease = probe.environment.remote().result()["COVEY_LEASE"]
        assert int.from_bytes(pathlib.Path(lease).read_bytes(), "little") > 0
        assert len(probe.read.remote(lease).result()) == 8, "its own watchdog reads it"
        with pytest.raises(refused):
            probe.write.remote(lease).result()
        assert len(pathlib.Path(lease).read_bytes()) == 8
        # A file that is put in the place of another is hidden as that one was.
        assert nodes.cli("key", "rotate", "join").returncode == 0
        nodes.keys = json.loads((nodes.home / "credentials.json").read_text())
        for file in ("credentials.json", "workers/w1/credential.json", "workers/w1/identity.key", "head/issuer.key", "head/covey.db"):
            assert (nodes.home / file).exists()
            with pytest.raises(refused):
                probe.read.remote(os.fspath(nodes.home / file)).result()
        with pytest.raises(refused):
            probe.write.remote(os.fspath(nodes.home / "models")).result()
        assert probe.temporary.remote().result() == "x", "temporary files have a place"
        assert nodes.cli("job", "submit", "--", "sh", "-c", "f=$(mktemp) && echo kept > $f && cat $f && rm $f").stdout == "kept\n"
        # What a worker that was killed left is taken away by the next one.
        folder = pathlib.Path(lease).parent
        nodes.kill9("w1")
        assert folder.exists()
        nodes.worker("w2", "--cpus", "1")
        eventually(lambda: not folder.exists())
    finally:
        covey.shutdown()
        nodes.stop()
        shutil.rmtree(home)


def test_the_audit_log_is_a_chain_that_doctor_follows(tmp_path):
    nodes = Nodes(tmp_path)
    try:
        nodes.head()
        for name in ("alice", "bob", "carol"):
            assert nodes.cli("key", "add", name).returncode == 0
        path = nodes.home / "head/audit.log"
        eventually(lambda: path.read_text().count("AddKey") == 3)
        whole = path.read_text()
        doctor = lambda: nodes.cli("doctor")  # noqa: E731
        good = doctor()
        assert good.returncode == 0 and "records in one chain" in good.stdout, good.stdout + good.stderr
        lines = whole.splitlines(keepends=True)
        middle = len(lines) // 2
        changed = whole.index(lines[middle]) + lines[middle].index("admin")
        path.write_text(whole[:changed] + "A" + whole[changed + 1 :])
        found = doctor()
        assert found.returncode == 70 and f"record {middle + 1} of the audit log is not as it was written" in found.stdout, found.stdout
        path.write_text("".join(lines[:middle] + lines[middle + 1 :]))
        found = doctor()
        assert found.returncode == 70 and f"record {middle + 1} of the audit log does not follow" in found.stdout, found.stdout
        assert any("audit log" in error for error in json.loads(nodes.cli("doctor", "--json").stdout)["errors"])
        path.write_text(whole)
        assert doctor().returncode == 0
    finally:
        nodes.stop()
