"""The official JavaScript client, unmodified, by every binding of both versions."""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT
from test_turns import Painter, made

CLIENT = ROOT / ".cache/a2a-js"


@pytest.mark.skipif(not shutil.which("node") or not CLIENT.exists(), reason="no node here, or `make a2a-clients` found none")
@pytest.mark.parametrize(
    ("binding", "version"),
    [("JSONRPC", "1.0"), ("HTTP+JSON", "1.0"), ("GRPC", "1.0"), ("JSONRPC", "0.3"), ("HTTP+JSON", "0.3")],
)
def test_a2a_js_streams_and_converses(cluster, binding, version):
    name = made(Painter).register()
    url = f"http://{cluster.keys['address']}/a2a/{name}"
    command = ["node", str(ROOT / "python-bindings/tests/a2a_js_client.mjs"), url, cluster.keys["admin_key"], binding, version, str(CLIENT)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    got = json.loads(out.stdout)
    working, asks, completed = 2, 6, 3  # as the proto file numbers states
    assert got["first"]["questions"] == ["which color?"] and got["first"]["states"] == [working, asks]
    assert got["second"]["questions"] == ["how many coats?"] and got["second"]["states"][-1] == asks
    assert got["third"]["words"] == ["red x 3"] and got["third"]["states"][-1] == completed
    assert (got["history"], got["artifact"]) == (5, "red x 3")
