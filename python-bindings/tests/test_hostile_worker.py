"""What somebody reaches who has taken a worker, a credential of one, or a process of an agent: every method is tried, and what was
placed there is all there is. `test_access` has the cells of the table; here are things that are another's."""

import base64
import json
import os
import pathlib
import re
import socket
import ssl

import grpc
import httpx
import pytest
from conftest import Nodes, eventually
from test_access import ask, field, table

import covey

DENIED, MISSING, OVER = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ABORTED
METHODS = [path.rsplit("/", 1)[1] for path, _ in table() if path.startswith("/covey.v1.Covey/")]


def fields(body):
    """Numbers and values of a protobuf message."""
    at = 0

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = body[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(body):
        key = number()
        if key & 7 == 0:
            yield key >> 3, number()
        else:
            assert key & 7 == 2, key
            length = number()
            yield key >> 3, body[at : at + length]
            at += length


@covey.agent(own_process=True)
class Hostile:
    """Speaks to its worker as it likes: its methods hold the loop, so nobody else reads what comes back."""

    async def verbs(self, asks):
        """Each method with its request; what kind of failure comes back and its words, or the reply."""
        import select

        def is_workers(fd):
            try:
                return socket.socket(fileno=os.dup(fd)).getpeername().endswith(".sock")
            except (OSError, AttributeError):
                return False

        fd = next(fd for fd in range(3, 64) if is_workers(fd))

        def take(count):
            got = b""
            while len(got) < count:
                select.select([fd], [], [])
                got += os.read(fd, count - len(got))
            return got

        answers = []
        for number, (name, body) in enumerate(asks, 1 << 61):
            batch = field(1, field(16, field(1, number) + field(2, name) + field(3, body)))
            os.write(fd, len(batch).to_bytes(4, "big") + batch)
            answer = None
            while answer is None:
                frames = take(int.from_bytes(take(4), "big"))
                for _, frame in fields(frames):
                    for kind, reply in fields(frame):
                        told = dict(fields(reply)) if kind == 8 else {}
                        if told.get(1) == number:
                            failure = dict(fields(told.get(3, b"")))
                            words = failure.get(2, b"").decode()
                            answer = (failure.get(1, b"").decode(), words, told.get(2, b""))
            answers.append(answer)
        return answers


@covey.agent
class Plain:
    def __init__(self):
        self.count = 0

    def add(self):
        self.count += 1
        return self.count

    def __snapshot__(self):
        return self.count

    def __restore__(self, count):
        self.count = count


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A head and two workers; on the second is an actor with a secret and a state, and that agent is for there alone."""
    nodes = Nodes(tmp_path_factory.mktemp("hostile"))
    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    nodes.worker("w2", "--cpus", "4")
    session = nodes.connect()
    nodes.live(2)
    for name, more in (("API_KEY", ()), ("UPSTREAM_KEY", ("--workers",))):
        assert nodes.cli("secret", "set", name, *more, input="hush-hush").returncode == 0
    nodes.ids = {n["name"]: n["id"] for n in covey.status()["nodes"]}
    held = lambda name: json.loads((nodes.home / f"workers/{name}/credential.json").read_text())  # noqa: E731
    nodes.credential = held("w1")["credential"]
    nodes.pinned = covey.agent(name="Pinned", node="w2", env_vars={"API_KEY": "secret://API_KEY"})(Plain.__covey_class__)
    nodes.there = nodes.pinned.options(name="there").remote()
    assert nodes.there.add.remote().result() == 1
    nodes.spec = next(a for a in covey.agents() if a["name"] == "Pinned")
    nodes.task = covey.submit("echo", "echo", "hi").id
    yield nodes
    session.close()
    nodes.stop()


def rpc(house, method, body=b""):
    return ask(house, house.credential, f"/covey.v1.Covey/{method}", body)


def closed(answer, method):
    return answer[0] == "permission_denied" and f"do not ask for {method}" in answer[1]


def test_a_process_is_answered_what_the_table_says(house):
    hostile = Hostile.options(node="w1").remote()
    opens = {path.rsplit("/", 1)[1]: reach["actor"] for path, reach in table() if path.startswith("/covey.v1.Covey/")}
    others = ["", "Attach", "Enroll", "../Link/Attach", "Covey/AddKey", "addkey", "AddKey ", "ReadLogs", "PutObject"]
    names = [*METHODS, *others]
    answers = dict(zip(names, hostile.verbs.remote([(name, b"") for name in names]).result(120), strict=True))
    wrong = [(name, opens.get(name), answer) for name, answer in answers.items() if closed(answer, name) == bool(opens.get(name))]
    assert not wrong
    assert all(answer[2] == b"" for name, answer in answers.items() if not opens.get(name)), "nothing is told"


def test_a_process_reaches_nothing_of_others(house):
    hostile, spec = Hostile.options(node="w1").remote(), house.spec
    actor = lambda agent, session="", more=b"": field(1, agent) + field(2, session) + more  # noqa: E731
    stolen = field(6, json.dumps({"labels": {"node": "w1"}}))
    tried = [
        ("CreateActor", actor("echo", "another-session")),
        ("CreateActor", actor("covey.job")),
        ("CreateActor", actor("covey.job.strict")),
        ("CreateActor", actor("Pinned", more=stolen)),
        ("CreateActor", actor("Hostile", more=field(6, json.dumps({"isolation": "none"})) + field(8, "none"))),
        ("CreateGang", field(1, actor("echo", "another-session")) + field(2, "pack")),
        ("RegisterAgent", field(1, json.dumps({**spec, "name": "Mine", "isolation": "none"}))),
        ("RegisterAgent", field(1, json.dumps({**spec, "name": "Mine"}))),
        ("Submit", field(1, "covey.job") + field(2, "run") + field(3, "{}")),
        ("Submit", field(1, "covey.job.none") + field(2, "run") + field(3, "{}")),
        ("SetReminder", field(1, house.there._actor) + field(2, "mine") + field(5, "add")),
        ("ForgetReminder", field(1, house.there._actor) + field(2, "mine")),
    ]
    tasks = [(name, field(1, house.task)) for name in ("GetTask", "CancelTask", "ReadEvents")]
    tasks.append(("SayTask", field(1, house.task) + field(2, "[]")))
    answers = hostile.verbs.remote([*tried, *tasks]).result(120)
    wrong = [(ask, answer) for ask, answer in zip(tried, answers, strict=False) if answer[0] != "permission_denied"]
    assert not wrong
    assert [answer[0] for answer in answers[len(tried) :]] == ["not_found"] * len(tasks)
    # Another's definition stays as it is.
    [answer] = hostile.verbs.remote([("RegisterAgent", field(1, json.dumps({**spec, "description": "stolen"})))]).result(60)
    assert next(a for a in covey.agents() if a["name"] == "Pinned") == spec
    # Secrets of workers' ports are for their callers.
    [(kind, _, stores)] = hostile.verbs.remote([("ListStores", b"")]).result(60)
    ports = [dict(fields(dict(fields(store))[2])) for _, store in fields(stores)]
    assert kind == "" and len(ports) == 2 and all(port[1] and not port.get(2) for port in ports)


def test_a_workers_credential_keeps_no_state_of_what_is_elsewhere(house):
    actor = house.there._actor
    for epoch in range(8):
        body = field(1, house.ids["w1"]) + field(2, actor) + field(3, epoch) + field(4, field(1, 2) + field(2, "99"))
        assert rpc(house, "SaveState", body)[0] == OVER, epoch
    assert house.there.add.remote().result() > 1


def test_a_workers_credential_reads_no_code_and_no_secret_that_was_not_for_it(house):
    digest = house.spec["kind"]["code"]["digest"]
    assert rpc(house, "GetBlob", field(1, digest))[0] == MISSING
    assert ask(house, house.keys["admin_key"], "/covey.v1.Covey/GetBlob", field(1, digest))[0] == grpc.StatusCode.OK, "it is there"
    assert rpc(house, "GetBlob")[0] == MISSING
    assert rpc(house, "ReadSecret", field(1, "API_KEY"))[0] == DENIED
    assert rpc(house, "ReadSecret", field(1, "UPSTREAM_KEY")) == (grpc.StatusCode.OK, field(1, "hush-hush"))
    for method in ("ListSecrets", "SetSecret", "RemoveSecret", "ListKeys", "AddJoinToken", "RotateKey", "ListTasks", "Subscribe"):
        assert rpc(house, method)[0] == DENIED, method


def test_a_workers_credential_reads_the_folder_of_a_job_while_that_is_there(house, tmp_path):
    (tmp_path / "hello.txt").write_text("from the folder")
    out = house.cli("job", "submit", "--working-dir", str(tmp_path), "--", "sh", "-c", "cat hello.txt")
    assert "from the folder" in out.stdout, out.stderr
    job = json.loads(house.cli("job", "ls", "--json").stdout)[0]
    call = base64.b64decode(job["input"]["call"]).decode(errors="replace")
    digest = re.search(r'"dir":\s*"([0-9a-f]{64})"', call).group(1)
    assert ask(house, house.keys["admin_key"], "/covey.v1.Covey/GetBlob", field(1, digest))[0] == grpc.StatusCode.OK
    assert rpc(house, "GetBlob", field(1, digest))[0] == MISSING, "it has ended"


def test_a_workers_credential_draws_nothing_to_itself_that_is_for_another(house):
    for labels in ({"node": "w1"}, {"node_id": house.ids["w1"], "node": "w1"}):
        steered = field(1, "Pinned") + field(6, json.dumps({"labels": labels}))
        code, said = rpc(house, "CreateActor", steered)
        assert code == DENIED and "only where the label node is w2" in said
        code, said = rpc(house, "CreateGang", field(1, steered) + field(2, "pack"))
        assert code == DENIED
    # What is said beside them, or taken away, leaves them in force.
    code, made = rpc(house, "CreateActor", field(1, "Pinned") + field(6, json.dumps({"labels": {}})))
    assert code == grpc.StatusCode.OK
    actor = dict(fields(made))[1].decode()
    [where] = eventually(lambda: [a["node"] for a in covey.status()["actors"] if a["id"] == actor and a.get("node")])
    assert where == house.ids["w2"]
    # A driver is its owner's: it may.
    moved = house.pinned.options(node="w1").remote()
    assert moved.add.remote().result() == 1


def test_what_is_on_disk_of_the_cluster_is_no_process_of_agents(house):
    """Files that hold credentials, by any name that a process may know."""
    found = []
    for folder, _, files in os.walk(house.home):
        found += [pathlib.Path(folder) / name for name in files if name in ("credentials.json", "credential.json", "identity.key", "secrets.json", "callers.json")]
    assert len(found) >= 5

    @covey.agent
    class Reads:
        def read(self, paths):
            seen = []
            for path in paths:
                try:
                    with open(path, "rb") as file:
                        if file.read(1):
                            seen.append(path)
                except OSError:
                    pass
            return seen

    assert Reads.remote().read.remote([os.fspath(path) for path in found]).result() == []


def test_a_workers_credential_is_for_its_own_connection(tmp_path):
    """By TLS a worker is its certificate: what was copied of another's opens nothing."""
    nodes = Nodes(tmp_path)
    try:
        nodes.head("--tls")
        for name in ("w1", "w2"):
            nodes.worker(name, "--cpus", "1")
        nodes.connect()
        nodes.live(2)

        def shown(name):
            """A connection with the certificate of this worker."""
            trusted = ssl.create_default_context(cafile=str(nodes.home / "head/authority.pem"))
            if name:
                held = json.loads((nodes.home / f"workers/{name}/credential.json").read_text())
                key = dict(fields((nodes.home / f"workers/{name}/identity.key").read_bytes()))[2][:32]
                pem = lambda what, der: f"-----BEGIN {what}-----\n{base64.encodebytes(der).decode()}-----END {what}-----\n"  # noqa: E731
                both = pem("PRIVATE KEY", bytes.fromhex("302e020100300506032b657004220420") + key) + pem("CERTIFICATE", bytes(held["certificate"]))
                path = tmp_path / f"{name}.pem"
                path.write_text(both)
                trusted.load_cert_chain(path)
            return httpx.Client(base_url=f"https://localhost:{nodes.port}", verify=trusted, timeout=20)

        credential = json.loads((nodes.home / "workers/w1/credential.json").read_text())["credential"]
        for certificate, known in ((None, False), ("w2", False), ("w1", True)):
            with shown(certificate) as client:
                for path, reach in table():
                    if not path.startswith("/covey.") or path.startswith("/covey.v1.Worker/") or not reach["worker"]:
                        continue
                    headers = {"authorization": f"Bearer {credential}", "content-type": "application/grpc", "te": "trailers"}
                    said = client.post(path, headers=headers).headers
                    refused = said.get("grpc-status") == "7" and "certificate" in said.get("grpc-message", "")
                    assert refused != known, (path, certificate, dict(said))
        # A certificate is no credential.
        with shown("w1") as client:
            assert client.post("/covey.v1.Covey/Status", headers={"content-type": "application/grpc"}).headers["grpc-status"] == "16"
            assert client.get("/v1/cluster").status_code == 401
    finally:
        covey.shutdown()
        nodes.stop()
