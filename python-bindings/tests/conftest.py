"""Clusters of real processes on loopback, for tests of the product as its users meet it."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import covey

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
BIN = os.environ.get("COVEY_BIN", str(ROOT / ".venv/bin/covey"))


def eventually(what, timeout=30):
    """Waits until `what()` is true; the only clock in these tests, and a generous one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class Terminal:
    """What this program shows. pytest puts files in place of its output; `capfd.readouterr` would lose what another thread
    writes while they are read and emptied."""

    @property
    def out(self):
        return self._all(1)

    @property
    def err(self):
        return self._all(2)

    def _all(self, fd):
        return os.pread(fd, os.fstat(fd).st_size, 0).decode()

    def has(self, *texts, err=False, timeout=30):
        """Waits until all of them are there."""
        return eventually(lambda: all(text in (self.err if err else self.out) for text in texts), timeout)


@pytest.fixture
def terminal(capfd):
    return Terminal()


class Nodes:
    """A head and workers in processes of their own."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        """Agents get here; into the cluster's home they do not."""
        self.home = self.folder / "home"
        self.home.mkdir(exist_ok=True)
        self.env = {**os.environ, "COVEY_HOME": str(self.home), "COVEY_PYTHON": sys.executable}
        self.running = {}
        self.port = "0"
        # Where a process runs that is not here: its name, and the command that goes before.
        self.inside = {}

    def start(self, name, *args):
        log = open(self.home / f"{name}.log", "ab")
        command = [*self.inside.get(name, []), BIN, *args]
        self.running[name] = subprocess.Popen(command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        log.close()

    def head(self, *args):
        path = self.home / "credentials.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        self.start("head", "head", "--port", self.port, *args)
        eventually(lambda: path.exists() and path.stat().st_mtime_ns != before)
        self.keys = json.loads(path.read_text())
        # A head that is started again must be found at the same place.
        self.port = self.keys["address"].rsplit(":", 1)[1]
        self.address = self.keys["address"] + (f"#{self.keys['pin']}" if self.keys["pin"] else "")

    def worker(self, name, *args):
        token = f"{self.keys['join_secret']}@{self.address}"
        self.start(name, "worker", "--join", token, "--name", name, "--models", str(ROOT / "models"), *args)

    def connect(self):
        # In the place of the session of another cluster, where a test has two.
        return covey.connect(self.address, self.keys["admin_key"], reinit=True)

    def pair(self):
        """A head and two workers, connected to."""
        self.head()
        self.worker("w1")
        self.worker("w2")
        self.connect()
        self.live(2)

    def live(self, count):
        eventually(lambda: sum(n["state"] == "live" for n in covey.status()["nodes"]) >= count)

    def kill9(self, name):
        self.running[name].send_signal(signal.SIGKILL)
        self.running.pop(name).wait()

    def cli(self, *args, **kwargs):
        return subprocess.run([BIN, *args], env=self.env, capture_output=True, text=True, timeout=60, **kwargs)

    def stop(self):
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def nodes(tmp_path):
    made = Nodes(tmp_path)
    yield made
    covey.shutdown()
    made.stop()


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """One head and one worker that many tests use."""
    made = Nodes(tmp_path_factory.mktemp("shared"))
    made.head("--push-allow", "127.0.0.0/8")
    made.worker("w1", "--cpus", "2")
    yield made
    made.stop()


@pytest.fixture
def cluster(shared):
    session = shared.connect()
    shared.live(1)
    yield shared
    session.close()
