"""TLS: the token's fingerprint, certificates at join, and what strangers get."""

import hashlib
import ssl
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import BIN

import covey


@covey.agent
class Echo:
    def back(self, x):
        return x

    async def ask(self, other, x):
        return await other.back.remote(x)


def test_a_cluster_by_tls(nodes, monkeypatch, tmp_path):
    nodes.head("--tls")
    nodes.worker("a", "--label", "at=a")
    nodes.worker("b", "--label", "at=b")
    # Objects must travel although both run on this machine.
    monkeypatch.setenv("COVEY_MACHINE", "elsewhere")
    with nodes.connect():
        nodes.live(2)
        here, there = (Echo.options(labels={"at": at}).remote() for at in "ab")
        assert covey.get([here.back.remote(i) for i in range(100)], timeout=30) == list(range(100))
        assert here.ask.remote(there, "across").result(30) == "across"
        array = np.arange(300_000)
        assert (here.back.remote(covey.put(array)).result(30) == array).all()
    assert "across" in nodes.cli("submit", "echo", "across").stdout

    port = nodes.port
    trusted = ssl.create_default_context(cafile=str(nodes.home / "head" / "authority.pem"))
    assert urllib.request.urlopen(f"https://localhost:{port}/livez", context=trusted, timeout=10).read() == b"ok"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=10)
    assert refused.value.code == 400 and b"TLS" in refused.value.read()
    with pytest.raises(covey.errors.ConnectionLost, match="fingerprint"):
        covey.connect(f"127.0.0.1:{port}#{'ab' * 32}", nodes.keys["admin_key"])
    with pytest.raises(covey.errors.ConnectionLost) as plain:
        covey.connect(f"127.0.0.1:{port}", nodes.keys["admin_key"])
    assert "covey token --address" in plain.value.hint
    with pytest.raises(covey.errors.InvalidArgument, match="64 hexadecimal"):
        covey.connect(f"127.0.0.1:{port}#abc", nodes.keys["admin_key"])

    wrong = f"cvj_{'0' * 48}@{nodes.address}"
    refused = subprocess.run([BIN, "worker", "--join", wrong], env=nodes.env, capture_output=True, text=True, timeout=30)
    assert refused.returncode == 77 and "credentials" in refused.stderr


def test_a_worker_may_come_before_its_head_and_a_head_may_come_again(nodes):
    nodes.head("--tls")
    nodes.worker("early")
    with nodes.connect():
        nodes.live(1)
    nodes.kill9("early")
    nodes.kill9("head")
    nodes.worker("early")
    nodes.head("--tls")
    with nodes.connect():
        nodes.live(1)
        assert Echo.remote().back.remote(7).result(30) == 7


def test_plain_and_tls_share_a_port_on_loopback(nodes):
    nodes.head()
    pem = (nodes.home / "head" / "authority.pem").read_text()
    pin = hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    nodes.worker("plain")
    nodes.address += f"#{pin}"
    nodes.worker("private")
    with nodes.connect():
        nodes.live(2)
        both = [Echo.options(strategy="spread").remote() for _ in range(4)]
        assert covey.get([e.back.remote(i) for i, e in enumerate(both)], timeout=30) == [0, 1, 2, 3]
