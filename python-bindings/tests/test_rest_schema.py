"""What schemathesis makes of the HTTP+JSON surface: right and wrong requests of every operation; no answer is a server's error,
and every one has the form that the protocol says."""

import json
import subprocess

from conftest import ROOT
from openapi import DOCUMENT

TOOL = ROOT / ".cache/schemathesis/bin/schemathesis"


def test_right_and_wrong_requests_are_answered_as_the_protocol_says(cluster, tmp_path):
    document = tmp_path / "a2a.json"
    document.write_text(json.dumps(DOCUMENT))
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,negative_data_rejection"
    out = subprocess.run(
        [
            TOOL, "run", document, "--url", f"http://{cluster.keys['address']}/a2a/echo", "--checks", checks,
            "-H", f"Authorization: Bearer {cluster.keys['admin_key']}", "-H", "A2A-Version: 1.0",
            "--max-examples", "60", "--seed", "1", "--mode", "all", "--no-color", "--suppress-health-check", "all",
        ],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert out.returncode == 0, out.stdout[-6000:] + out.stderr[-2000:]
