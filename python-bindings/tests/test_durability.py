"""What was accepted can be read again; damage is named; a full disk refuses and does not stop; a failed fsync does."""

import contextlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import threading
import time

import httpx
import pytest
from conftest import BIN, eventually

import covey
from covey import agent


@agent
class Nest:
    """Returns, or yields, lists in lists."""

    def returns(self, levels: int):
        return nested(levels)

    async def yields(self, levels: int):
        yield nested(levels)
        yield "after"

    async def asks(self, levels: int, ctx: covey.Context):
        return (await ctx.ask("how?", schema={"enum": [nested(levels - 2)]})).text

    def asks_and_waits(self, levels: int, ctx: covey.Context):
        return ctx.ask("how?", schema={"enum": [nested(levels - 2)]}).result().text


def nested(levels):
    value = "bottom"
    for _ in range(levels):
        value = [value]
    return value


def client(nodes):
    headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}", "A2A-Version": "1.0"}
    return httpx.Client(base_url=f"http://{nodes.keys['address']}", headers=headers, timeout=60)


def message(number, *parts, **more):
    parts = list(parts) or [{"text": f"word {number}"}]
    return {"message": {"messageId": f"m{number}", "role": "ROLE_USER", "parts": parts}, **more}


def send(web, number, *parts):
    """A task that is acknowledged and not waited for."""
    body = message(number, *parts, configuration={"returnImmediately": True})
    return web.post("/a2a/echo/message:send", json=body)


def stored(nodes):
    return nodes.home / "head" / "covey.db"


def test_what_is_too_deep_is_refused_at_every_door_and_what_is_taken_is_there_after_kill_9(nodes):
    nodes.head()
    with client(nodes) as web:
        for levels, good in ((64, True), (65, False), (122, False), (127, False), (5_000, False)):
            # Written by hand: Python's own encoder gives up before we do.
            data = "[" * levels + "1" + "]" * levels
            body = json.dumps(message(levels, {"data": "@"}, configuration={"returnImmediately": True})).replace('"@"', data)
            rest = web.post("/a2a/echo/message:send", content=body, headers={"Content-Type": "application/json"})
            assert (rest.status_code == 200) == good, (levels, rest.text)
            rpc = '{"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": ' + body.replace(f"m{levels}", f"r{levels}") + "}"
            rpc = web.post("/a2a/echo", content=rpc, headers={"Content-Type": "application/json"}).json()
            assert ("result" in rpc) == good, (levels, rpc)
        before = web.get("/a2a/echo/tasks").json()["totalSize"]
    nodes.kill9("head")
    nodes.head()
    with client(nodes) as web:
        assert web.get("/a2a/echo/tasks").json()["totalSize"] == before == 2
        assert send(web, 7).status_code == 200


def test_what_an_agent_says_too_deep_fails_its_task_with_the_reason(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    assert covey.submit(Nest, "returns", 64).result() == nested(64)
    # A question that nobody could be asked is not waited for: its turn would be taken for good.
    for method in ("returns", "yields", "asks", "asks_and_waits"):
        for levels in (65, 200):
            task = covey.submit(Nest, method, levels)
            with pytest.raises(covey.CoveyError, match="nested|recursion"):
                task.result(timeout=60)
    # The worker's link goes on.
    assert covey.submit(Nest, "returns", 1).result() == nested(1)
    nodes.kill9("head")
    nodes.head()
    nodes.connect()
    assert covey.status()["tasks"] == {"completed": 2, "failed": 8}


def started(nodes, *args):
    """A head that is expected not to start: its exit code and what it said."""
    done = subprocess.run([BIN, "head", "--port", nodes.port, *args], env=nodes.env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_damage_of_what_was_acknowledged_is_named_and_a_missing_file_too(nodes):
    nodes.head()
    with client(nodes) as web:
        for number in range(40):
            assert send(web, number).status_code == 200
    nodes.kill9("head")
    log = nodes.home / "head" / "covey.db-log0"
    whole = log.read_bytes()
    used = len(whole.rstrip(b"\0"))
    assert used > 2_000
    copy = nodes.home / "copy"
    shutil.copytree(nodes.home / "head", copy)
    refused = 0
    for at in range(600, used, used // 12):
        hurt = bytearray(whole)
        hurt[at] ^= 4
        shutil.rmtree(nodes.home / "head")
        shutil.copytree(copy, nodes.home / "head")
        log.write_bytes(hurt)
        code, said = "started", ""
        nodes.start("probe", "head", "--port", "0")
        probe = nodes.running.pop("probe")
        path = nodes.home / "credentials.json"
        before = path.stat().st_mtime_ns
        eventually(lambda: probe.poll() is not None or path.stat().st_mtime_ns != before)
        if probe.poll() is None:
            nodes.keys = json.loads(path.read_text())
            with client(nodes) as web:
                assert web.get("/a2a/echo/tasks").json()["totalSize"] == 40, at
            probe.kill()
            probe.wait()
        else:
            refused += 1
            assert probe.returncode == 70
            assert "covey.db-log0` is damaged at byte" in (nodes.home / "probe.log").read_text()
    shutil.rmtree(nodes.home / "head")
    shutil.copytree(copy, nodes.home / "head")
    (nodes.home / "head" / "covey.db-log1").unlink()
    code, said = started(nodes)
    assert code == 70 and "covey.db-log1` is missing" in said
    # What was not hurt starts.
    shutil.rmtree(nodes.home / "head")
    shutil.copytree(copy, nodes.home / "head")
    nodes.head()
    with client(nodes) as web:
        assert web.get("/a2a/echo/tasks").json()["totalSize"] == 40
    assert refused > 0


class Disk:
    """A small file system of its own, seen by what runs inside."""

    def __init__(self, at, size):
        self.at = at
        at.mkdir()
        command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size={size} none {at} && echo ready && exec sleep 1000"]
        self.holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "ready\n":
            self.holder.wait()
            pytest.skip(f"no file system can be mounted here: {self.holder.stderr.read()}")
        self.inside = ["nsenter", "-t", str(self.holder.pid), "-m"]
        self.root = f"/proc/{self.holder.pid}/root{at}"

    def fill(self):
        with open(f"{self.root}/filler", "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while True:
                        file.write(b"\1" * size)
                        file.flush()
                except OSError:
                    pass

    def empty(self):
        os.unlink(f"{self.root}/filler")

    def close(self):
        self.holder.kill()
        self.holder.wait()


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("nsenter"):
        pytest.skip("a file system of its own takes root, unshare and nsenter")
    made = Disk(tmp_path / "disk", "64m")
    yield made
    made.close()


def test_a_full_disk_refuses_what_is_new_and_all_works_again_when_there_is_room(nodes, disk):
    nodes.inside["head"] = disk.inside
    data = ["--data", str(disk.at)]
    nodes.head(*data)
    with client(nodes) as web:
        task = send(web, 0).json()["task"]["id"]
        disk.fill()
        # What is ahead of the log is used up first.
        large = {"text": "x" * 200_000}
        taken = 1
        while (answer := send(web, taken, large)).status_code == 200:
            taken += 1
            assert taken < 200
        assert answer.status_code == 503 and "disk" in answer.text, answer.text
        rpc = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": message("rpc")}
        error = web.post("/a2a/echo", json=rpc).json()["error"]
        assert error["data"][0]["reason"] == "STORAGE_FULL", error
        assert web.get("/readyz").status_code == 503 and web.get("/livez").status_code == 200
        key = nodes.cli("key", "add", "alice")
        assert key.returncode == 75 and "make room" in key.stderr, key.stderr
        assert web.get(f"/a2a/echo/tasks/{task}").json()["id"] == task
        assert covey_status(nodes)["tasks"] == {"submitted": taken}
        # A head that is started on a full disk can be read, and refuses too.
        nodes.running["head"].kill()
        nodes.running.pop("head").wait()
        subprocess.run([*disk.inside, "pkill", "-9", "-f", f"{BIN} head --port {nodes.port} --data {disk.at}"], check=False)
        nodes.head(*data)
    with client(nodes) as web:
        assert web.get(f"/a2a/echo/tasks/{task}").json()["id"] == task
        assert covey_status(nodes)["tasks"] == {"submitted": taken}
        disk.fill()
        eventually(lambda: send(web, "again", large).status_code == 503)
        disk.empty()
        eventually(lambda: send(web, "after").status_code == 200)
        eventually(lambda: web.get("/readyz").status_code == 200)
        assert web.get(f"/a2a/echo/tasks/{task}").json()["id"] == task


def test_a_task_is_stopped_though_the_disk_is_full(nodes, disk):
    @agent
    class Works:
        def work(self, folder: str, ctx: covey.Context):
            import pathlib
            import time

            at = pathlib.Path(folder)
            (at / "begun").touch()
            try:
                while not ctx.cancelled:
                    time.sleep(0.02)
            finally:
                (at / "stopped").touch()

    nodes.inside["head"] = disk.inside
    nodes.head("--data", str(disk.at))
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    task = covey.submit(Works, "work", str(nodes.folder))
    eventually(lambda: (nodes.folder / "begun").exists())
    disk.fill()
    with client(nodes) as web:
        n = 0
        while send(web, n, {"text": "x" * 200_000}).status_code == 200:
            n += 1
            assert n < 200
    with pytest.raises(covey.StorageFull, match="its worker is told to stop it"):
        task.cancel()
    eventually(lambda: (nodes.folder / "stopped").exists())
    disk.empty()
    eventually(lambda: task.state() == "canceled")


def test_tasks_of_a_key_that_ends_while_the_disk_is_full_end_when_there_is_room(nodes, disk):
    nodes.inside["head"] = disk.inside
    nodes.head("--data", str(disk.at))
    made = nodes.cli("key", "add", "alice", "--for", "8s")
    assert made.returncode == 0, made.stderr
    alice = {"Authorization": f"Bearer {re.search('cvk_[A-Za-z0-9_-]+', made.stdout)[0]}", "A2A-Version": "1.0"}
    with client(nodes) as web:
        body = {"jsonrpc": "2.0", "id": 1, "method": "SendMessage", "params": {**message("alice"), "configuration": {"returnImmediately": True}}}
        task = web.post("/a2a/echo", json=body, headers=alice).json()["result"]["task"]["id"]
        disk.fill()
        n = 0
        while send(web, n, {"text": "x" * 200_000}).status_code == 200:
            n += 1
            assert n < 200
        eventually(lambda: web.get(f"/a2a/echo/tasks/{task}", headers=alice).status_code == 401)
        assert covey_status(nodes)["tasks"] == {"submitted": n + 1}
        # What it was refused once is not forgotten: several looks lie behind us.
        time.sleep(3)
        disk.empty()
        eventually(lambda: covey_status(nodes)["tasks"] == {"submitted": n, "canceled": 1})


def test_what_a_task_says_while_the_disk_is_full_is_there_for_good(nodes, disk):
    """SQLite takes back a transaction that found no room; those after it must not be lost with it."""

    @agent
    class Talks:
        def talk(self, times: int):
            import time

            for n in range(times):
                yield f"{n} "
                time.sleep(0.02)

    nodes.inside["head"] = disk.inside
    data = ["--data", str(disk.at)]
    nodes.head(*data)
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    whole = "".join(f"{n} " for n in range(300))
    task = covey.submit(Talks, "talk", 300)
    eventually(lambda: len(list(zip(range(20), task.chunks(), strict=False))) == 20)
    disk.fill()
    import time

    # The tables find no room more than once.
    time.sleep(3)
    disk.empty()
    assert task.result(60) == whole
    for _ in range(2):
        events = list(task.events())
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        assert "".join(task.chunks()) == whole
        nodes.kill9("head") if nodes.running.get("head") else None
        subprocess.run([*disk.inside, "pkill", "-9", "-f", f"{BIN} head --port {nodes.port} --data {disk.at}"], check=False)
        nodes.head(*data)
        nodes.live(1)


def test_a_disk_that_is_full_for_longer_than_a_lease_costs_no_actor(nodes, disk):
    """The head holds what a task says until there is room; the beats of its worker come behind that, and are answered all the same."""

    @agent
    class Talks:
        def talk(self, times: int):
            import time

            for n in range(times):
                yield f"{n} " + "x" * 20_000
                time.sleep(0.02)

    @agent
    class Counts:
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

    nodes.inside["head"] = disk.inside
    nodes.head("--data", str(disk.at))
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    counter = Counts.remote()
    assert counter.add.remote().result(30) == 1
    task = covey.submit(Talks, "talk", 300)
    eventually(lambda: len(list(zip(range(20), task.chunks(), strict=False))) == 20)
    disk.fill()
    import time

    full = time.monotonic()
    calls = 1
    # Longer than the lease of 10 s, after which a worker that nobody answers stops everything.
    while time.monotonic() < full + 16:
        calls += 1
        assert counter.add.remote().result(30) == calls, "the actor has lost what it had in memory"
        time.sleep(0.2)
    disk.empty()
    assert counter.add.remote().result(30) == calls + 1
    assert len(list(task.chunks())) == 300
    assert task.info().attempt == 1
    assert "fenced" not in (nodes.home / "w1.log").read_text()


def covey_status(nodes):
    with client(nodes) as web:
        return web.get("/v1/cluster").json()


@pytest.mark.parametrize("file", ["covey.db-log0", "covey.db"])
def test_a_failed_fsync_ends_the_head(nodes, file):
    if not shutil.which("strace"):
        pytest.skip("strace makes the fsync fail")
    path = nodes.home / "head" / file
    nodes.head()
    nodes.kill9("head")
    nodes.inside["head"] = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", str(path), "-e", "trace=fsync,fdatasync"]
    nodes.inside["head"] += ["-e", "inject=fsync,fdatasync:error=EIO:when=3+"]
    try:
        nodes.head()
    except AssertionError:
        pytest.skip("nothing can be traced here")
    head = nodes.running.pop("head")
    acknowledged = []

    def work():
        with client(nodes) as web:
            for number in range(100_000):
                try:
                    answer = send(web, number, {"text": "x" * 20_000})
                except httpx.HTTPError:
                    return
                if answer.status_code == 200:
                    acknowledged.append(answer.json()["task"]["id"])

    thread = threading.Thread(target=work)
    thread.start()
    assert head.wait(120) == 70
    thread.join()
    del nodes.inside["head"]
    nodes.head()
    with client(nodes) as web:
        assert acknowledged
        for task in acknowledged[-20:]:
            assert web.get(f"/a2a/echo/tasks/{task}").json()["id"] == task


def test_the_same_message_makes_one_task_also_long_after_it_has_ended(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    with client(nodes) as web:
        first = web.post("/a2a/echo/message:send", json=message("once")).json()["task"]["id"]
        assert web.post("/a2a/echo/message:send", json=message("once")).json()["task"]["id"] == first
        assert len(first) > 40, "128 random bits"
    nodes.kill9("head")
    nodes.head()
    with client(nodes) as web:
        again = web.post("/a2a/echo/message:send", json=message("once")).json()["task"]
        assert again["id"] == first and again["status"]["state"] == "TASK_STATE_COMPLETED"
    assert covey_status(nodes)["tasks"] == {"completed": 1}


def test_a_backup_of_a_running_head_is_restored_elsewhere_and_the_doctor_finds_both_sound(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    with client(nodes) as web:
        tasks = [web.post("/a2a/echo/message:send", json=message(n)).json()["task"]["id"] for n in range(20)]
        waiting = send(web, "waits").json()["task"]["id"]
    made = nodes.cli("backup", str(tmp_path / "backup"))
    assert made.returncode == 0, made.stderr
    assert nodes.cli("doctor").returncode == 0
    nodes.kill9("w1")
    nodes.kill9("head")
    assert nodes.cli("restore", str(tmp_path / "backup")).returncode == 73, "there is a store"
    other = tmp_path / "other"
    assert nodes.cli("restore", str(tmp_path / "backup"), "--data", str(other)).returncode == 0
    nodes.head("--data", str(other))
    with client(nodes) as web:
        for task in [*tasks, waiting]:
            assert web.get(f"/a2a/echo/tasks/{task}").json()["id"] == task
    checked = nodes.cli("doctor", "--data", str(other), "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout)["errors"] == []
    # A backup that was hurt is refused, and a store that was hurt is found.
    copy = tmp_path / "backup" / "covey.db"
    body = bytearray(copy.read_bytes())
    body[len(body) // 2] ^= 1
    copy.write_bytes(body)
    refused = nodes.cli("restore", str(tmp_path / "backup"), "--data", str(tmp_path / "third"))
    assert refused.returncode == 65 and "covey.db" in refused.stderr
    # Another program that reads, and brings the write-ahead log into the tables, leaves them sound.
    with contextlib.closing(sqlite3.connect(stored(nodes))) as db:
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (21,)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert nodes.cli("doctor").returncode == 0
    body = bytearray(stored(nodes).read_bytes())
    at = body.index(tasks[7].encode())
    body[at] ^= 1
    stored(nodes).write_bytes(body)
    page = f"page {at // 4096 + 1} is not as it was written"
    hurt = nodes.cli("doctor")
    assert hurt.returncode == 70 and page in hurt.stdout, hurt.stdout
    assert str(tmp_path / "backup") in hurt.stderr, "it names the backup"
    refused = nodes.cli("backup", str(tmp_path / "second"))
    assert refused.returncode == 70 and page in refused.stderr, refused.stderr


def test_a_head_does_not_start_on_tables_with_a_damaged_page_that_it_needs(nodes, tmp_path):
    nodes.head()
    with client(nodes) as web:
        tasks = [send(web, n).json()["task"]["id"] for n in range(20)]
    assert nodes.cli("backup", str(tmp_path / "backup")).returncode == 0
    nodes.kill9("head")
    with contextlib.closing(sqlite3.connect(stored(nodes))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    body = bytearray(stored(nodes).read_bytes())
    at = body.index(tasks[7].encode())
    body[at] ^= 1
    stored(nodes).write_bytes(body)
    refused = nodes.cli("head", "--port", "0")
    assert refused.returncode == 70, refused.stderr
    for told in ("covey.db` are damaged", f"page {at // 4096 + 1} is not as it was written", str(tmp_path / "backup")):
        assert told in refused.stderr, refused.stderr


