"""The official Rust client, unmodified, over its three bindings."""

import json
import subprocess

import pytest
from conftest import ROOT

CLIENT = ROOT / ".cache/a2a-rust/release/a2a-rust-client"


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
def test_the_official_rust_client(cluster, binding):
    base = f"http://{cluster.keys['address']}/a2a/echo"
    out = subprocess.run([CLIENT, base, binding, cluster.keys["admin_key"]], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert (told["answer"], told["streamed"]) == ("one two three", "four five six")
    assert told["state"] == "TASK_STATE_COMPLETED" and told["states"][-1] == "TASK_STATE_COMPLETED"
    assert told["named"] and told["got"] and told["listed"] == 1 and told["card"] == "echo"
    assert told["late"] and told["closed"] and told["missing"], "what cannot be is an error"
