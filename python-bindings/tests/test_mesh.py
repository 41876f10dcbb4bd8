"""Nodes that cannot dial each other: two workers behind NATs of their own, and one that finds its head by itself.

Each machine is a network namespace; the NATs are the kernel's.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import BIN, eventually

import covey

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("nft")),
    reason="network namespaces want root, `ip` and `nft`",
)

# A home router: what comes from outside and answers nothing is dropped without a word.
NAT = """
table ip nat {
  chain post { type nat hook postrouting priority 100
    oifname "eth0" masquerade
  }
}
table ip guard {
  chain input { type filter hook input priority 0
    iifname "eth0" ct state new drop
  }
  chain forward { type filter hook forward priority 0
    iifname "eth0" ct state new drop
  }
}
"""
# The routers' packets to each other are lost; both still reach the head.
APART = """
table bridge cut {
  chain apart { type filter hook forward priority 0
    ip saddr 10.99.0.11 ip daddr 10.99.0.12 drop
  }
}
"""


class Net:
    """Machines on one network, some with a network of their own behind them."""

    def __init__(self):
        self.mark = f"cv{os.getpid()}"
        self.spaces = []
        self.space("net")
        self.run("net", "ip", "link", "add", "bridge", "type", "bridge")
        self.run("net", "ip", "link", "set", "bridge", "up")

    def inside(self, name):
        return ["ip", "netns", "exec", f"{self.mark}-{name}"]

    def run(self, name, *command, text=None):
        subprocess.run([*self.inside(name), *command], input=text, check=True, text=True, timeout=10)

    def space(self, name):
        subprocess.run(["ip", "netns", "add", f"{self.mark}-{name}"], check=True)
        self.spaces.append(name)
        self.run(name, "ip", "link", "set", "lo", "up")

    def cable(self, name, to, there, address):
        self.run(to, "ip", "link", "add", there, "type", "veth", "peer", "name", "eth0", "netns", f"{self.mark}-{name}")
        self.run(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.run(name, "ip", "link", "set", "eth0", "up")
        self.run(to, "ip", "link", "set", there, "up")

    def machine(self, name, address):
        self.space(name)
        self.cable(name, "net", f"to-{name}", address)
        self.run("net", "ip", "link", "set", f"to-{name}", "master", "bridge")
        self.run(name, "ip", "route", "add", "default", "dev", "eth0")

    def behind(self, name, router, network):
        self.space(name)
        self.cable(name, router, "inside", f"{network}.2")
        self.run(router, "ip", "address", "add", f"{network}.1/24", "dev", "inside")
        self.run(router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.run(router, "nft", "-f", "-", text=NAT)
        self.run(name, "ip", "route", "add", "default", "via", f"{network}.1")

    def close(self):
        for name in self.spaces:
            subprocess.run(["ip", "netns", "delete", f"{self.mark}-{name}"], check=False)


@pytest.fixture
def net(nodes):
    net = Net()
    net.machine("head", "10.99.0.2")
    nodes.inside["head"] = net.inside("head")
    # Without it, two namespaces would look like one machine, whose workers share their objects' folder.
    nodes.env["COVEY_MACHINE"] = "each its own"
    yield net
    nodes.stop()
    net.close()


@pytest.fixture
def homes(nodes, net):
    """A head, and two workers, each behind a NAT."""
    for name, outside, network in (("a", "10.99.0.11", "10.1.0"), ("b", "10.99.0.12", "10.2.0")):
        net.machine(f"nat-{name}", outside)
        net.behind(name, f"nat-{name}", network)
        nodes.inside[name] = net.inside(name)
    nodes.head("--host", "0.0.0.0")
    return nodes


def workers(nodes):
    for name in "ab":
        nodes.env["COVEY_MACHINE"] = name
        nodes.worker(name, "--no-listen", "--cpus", "1")
        eventually(lambda name=name: "reach this node through the head" in log(nodes, name))


def log(nodes, name):
    return (nodes.home / f"{name}.log").read_text()


def drive(nodes, net, part):
    """Runs one of the drivers below next to the head."""
    env = {**nodes.env, "COVEY_MACHINE": "head", "COVEY_ADDRESS": nodes.address, "COVEY_TOKEN": nodes.keys["admin_key"]}
    # What it prints is read line by line here.
    env["COVEY_LOG_TO_DRIVER"] = "0"
    return subprocess.Popen(
        [*net.inside("head"), sys.executable, __file__, part], env=env, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def test_a_hole_is_punched_through_two_nats(homes, net):
    workers(homes)
    driver = drive(homes, net, "across")
    assert driver.stdout.readline() == "well\n"
    for name in "ab":
        eventually(lambda name=name: "a direct way was opened" in log(homes, name))
    driver.stdin.write("\n")
    driver.stdin.flush()
    assert driver.stdout.readline() == "started\n"
    # Calls go on while the head sleeps, which only brought the two together.
    path = homes.folder / "went-on"
    assert not path.exists()
    homes.running["head"].send_signal(signal.SIGSTOP)
    eventually(path.exists)
    assert path.read_text() == "100"
    homes.running["head"].send_signal(signal.SIGCONT)
    driver.kill()
    # A head that comes again is entered again.
    homes.kill9("head")
    homes.head("--host", "0.0.0.0")
    for name in "ab":
        eventually(lambda name=name: log(homes, name).count("reach this node through the head") == 2)


def test_where_no_hole_can_be_punched_the_head_carries_it(homes, net):
    net.run("net", "nft", "-f", "-", text=APART)
    workers(homes)
    driver = drive(homes, net, "across")
    assert driver.stdout.readline() == "well\n"
    for name in "ab":
        assert "no direct way" in log(homes, name)
    driver.kill()


def test_a_worker_finds_its_head_on_the_local_network(nodes, net):
    net.machine("lan", "10.99.0.3")
    nodes.inside["lan"] = net.inside("lan")
    nodes.head("--host", "0.0.0.0")
    fingerprint = nodes.address.split("#")[1]
    # The token's address is of no use: that head moved.
    nodes.address = f"10.99.0.77:1#{fingerprint}"
    nodes.worker("lan", "--discover", "--cpus", "1")
    nodes.address = f"10.99.0.2:{nodes.port}#{fingerprint}"
    driver = drive(nodes, net, "here")
    assert driver.stdout.readline() == "well\n"
    driver.kill()
    refused = nodes.cli("worker", "--discover", "--join", f"{nodes.keys['join_secret']}@10.99.0.2:7420")
    assert refused.returncode == 64 and "fingerprint" in refused.stderr


@covey.agent
class Far:
    def add(self, x, by=1):
        return x + by

    def say(self, text):
        print(text, flush=True)

    def total(self, array):
        return int(array.sum())


@covey.agent
class Near:
    async def chain(self, far, count):
        x = 0
        for _ in range(count):
            x = await far.add.remote(x)
        return x

    async def share(self, far, size):
        return await far.total.remote(covey.put(np.ones(size, dtype=np.int64)))

    async def go_on(self, far, path):
        import asyncio
        import pathlib

        x = 0
        for _ in range(100):
            x = await far.add.remote(x)
            await asyncio.sleep(0.02)
        draft = pathlib.Path(path + ".draft")
        draft.write_text(str(x))
        draft.rename(path)


def across():
    with covey.connect():
        near, far = Near.options(node="a", cpus=0.5).remote(), Far.options(node="b", cpus=0.5, name="far").remote()
        assert near.chain.remote(far, 300).result(60) == 300
        # An object goes from worker to worker, by the same way.
        assert near.share.remote(far, 400_000).result(60) == 400_000
        # So does one from here, and what an actor's process prints comes back.
        assert far.total.remote(covey.put(np.ones(300_000, dtype=np.int64))).result(60) == 300_000
        far.say.remote("heard behind the NAT").result(60)
        logs = subprocess.run([BIN, "logs", "far"], capture_output=True, text=True, timeout=60)
        assert "heard behind the NAT" in logs.stdout, logs.stderr
        print("well", flush=True)
        sys.stdin.readline()
        began = near.go_on.remote(far, os.path.join(os.path.dirname(os.environ["COVEY_HOME"]), "went-on"))
        time.sleep(0.2)
        print("started", flush=True)
        began.result(60)


def here():
    with covey.connect():
        assert Far.remote().add.remote(1).result(60) == 2
        print("well", flush=True)


if __name__ == "__main__":
    {"across": across, "here": here}[sys.argv[1]]()
