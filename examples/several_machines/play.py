"""Plays a cluster of several machines on one: a head that speaks TLS, two workers and a driver, each with a home of its own."""

import os
import pathlib
import subprocess
import tempfile

import covey
from covey import Actor, agent

HOST = "127.0.0.2"  # on real machines 0.0.0.0, or the head's own address


@agent(schedule_timeout="30s")  # so long it waits for a worker that is not there yet
class Archive(Actor):
    """Lives on one machine."""

    @covey.method
    def keep(self, data: bytes) -> int:
        return len(data)


@agent(schedule_timeout="30s")
class Camera(Actor):
    """Lives on another machine."""

    @covey.method
    async def shoot(self, archive: Archive) -> int:
        # This call goes straight from one worker to the other.
        return await archive.keep.remote(bytes(1_000_000))


class Machine:
    """A home of its own on this machine: its programs know of the cluster what they are told, and no more."""

    def __init__(self, folder: pathlib.Path, name: str, **environment: str) -> None:
        told = {name: value for name, value in os.environ.items() if name not in ("COVEY_ADDRESS", "COVEY_TOKEN")}
        self.environment = {**told, "COVEY_HOME": str(folder / name), **environment}

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["covey", *command], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def output(self, *command: str) -> str:
        done = subprocess.run(["covey", *command], env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()


def main(folder: pathlib.Path, running: list[subprocess.Popen[str]]) -> None:
    first = Machine(folder, "first")
    running.append(first.start("head", "--host", HOST, "--port", "0", "--tls"))  # beyond loopback it is TLS without a word
    assert running[0].stdout
    running[0].stdout.readline()  # "covey head on …": it is ready

    for name in ("left", "right"):
        # A token for one worker and one hour. It carries the head's fingerprint, so the worker knows that it is this head.
        worker = Machine(folder, name, COVEY_JOIN=first.output("token", "--once", "--for", "1h"))
        running.append(worker.start("worker", "--name", name, "--cpus", "1"))

    # A driver elsewhere is given an address with the fingerprint, and a key.
    address, key = first.output("token", "--address"), first.output("token", "--admin")
    with covey.connect(address, key):
        camera, archive = Camera.options(node="left").remote(), Archive.options(node="right").remote()
        print("bytes from left to right:", camera.shoot.remote(archive).result(timeout=60))
        names = {node["id"]: node["name"] for node in covey.status()["nodes"]}
        places = {actor["agent"]: names[actor.get("node", "")] for actor in covey.actors()}
        print(places)
        assert places == {"Camera": "left", "Archive": "right"}

    # Another head at this address would have another fingerprint.
    try:
        covey.connect(address.partition("#")[0] + "#" + "0" * 64, key)
    except covey.ConnectionLost as error:
        print("refused:", error)
    else:
        raise AssertionError("a stranger was believed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        processes: list[subprocess.Popen[str]] = []
        try:
            main(pathlib.Path(home), processes)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()
