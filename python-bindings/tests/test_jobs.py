"""Jobs: commands that outlive their terminal."""

import json
import signal
import subprocess
import time

import pytest
from conftest import BIN, eventually

SCRIPT = """
import os, sys
import covey
from helper import WORD

covey.connect()
@covey.agent
class Twice:
    def of(self, x):
        return 2 * x
print(WORD, os.environ["MOOD"], Twice.remote().of.remote(21).result(30), sys.argv[1:], flush=True)
print("to stderr", file=sys.stderr)
"""


def jobs(nodes):
    return {j["id"]: j for j in json.loads(nodes.cli("job", "ls", "--json").stdout)}


def test_a_script_with_its_folder_runs_on_the_cluster(cluster, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "sub").mkdir()
    (tmp_path / "helper.py").write_text("WORD = 'moon ä'\n")
    out = cluster.cli("job", "submit", "--working-dir", str(tmp_path), "--env", "MOOD=calm", "--id", "once", "--", "python", "script.py", "a b")
    assert out.returncode == 0, out.stderr
    assert "moon ä calm 42 ['a b']" in out.stdout and "to stderr" in out.stdout
    job = out.stderr.split()[1]
    assert jobs(cluster)[job]["state"] == "completed"
    again = cluster.cli("job", "submit", "--id", "once", "--", "true")
    assert again.stderr.split()[1] == job and "moon" in again.stdout, "the same id is the same job"
    assert cluster.cli("job", "logs", job).stdout == out.stdout
    assert "completed" in cluster.cli("job", "status", job).stdout


def test_jobs_fail_and_stop_and_are_found_out(cluster):
    out = cluster.cli("job", "submit", "--", "sh", "-c", "echo before; exit 3")
    assert out.returncode == 1 and "exit code 3" in out.stderr and "before" in out.stdout
    out = cluster.cli("job", "submit", "--", "no-such-program")
    assert out.returncode == 1 and "no-such-program" in out.stdout and "exit code 127" in out.stderr
    out = cluster.cli("job", "submit", "--timeout-s", "1", "--", "sleep", "60")
    assert out.returncode == 75, "head and worker both watch the time; either tells it first"
    assert cluster.cli("job", "logs", "task-nothing").returncode == 66
    assert cluster.cli("job", "submit", "--working-dir", "/no/such/folder", "--", "true").returncode == 64

    # The client goes, the job stays; another one follows it, and stops it with all that it started.
    mark = f"31{time.time_ns() % 10**9}"
    client = subprocess.Popen(
        [BIN, "job", "submit", "--", "sh", "-c", f"echo here; sleep {mark} & sleep {mark}"],
        env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert client.stdout.readline() == "here\n"
    client.send_signal(signal.SIGINT)
    _, told = client.communicate(timeout=20)
    assert client.returncode == 0 and "goes on" in told
    job = told.split()[1]
    assert jobs(cluster)[job]["state"] == "working" and cluster.cli("job", "logs", job).stdout == "here\n"
    running = lambda: subprocess.run(["pgrep", "-f", mark], capture_output=True).stdout  # noqa: E731
    assert running()
    assert "canceled" in cluster.cli("job", "stop", job).stdout
    eventually(lambda: not running(), timeout=15)
    assert "canceled" in cluster.cli("job", "ls", "--state", "canceled").stdout


@pytest.mark.parametrize("retries", [0, 1])
def test_a_lost_worker_ends_a_job_unless_it_may_run_again(nodes, retries):
    nodes.head()
    nodes.worker("a")
    job = nodes.cli("job", "submit", "--detach", "--retries", str(retries), "--", "sh", "-c", "echo begun; sleep 2; echo done").stdout.strip()
    eventually(lambda: "begun" in nodes.cli("job", "logs", job).stdout)
    nodes.kill9("a")
    nodes.kill9("head")
    nodes.head()
    nodes.worker("b")
    out = nodes.cli("job", "logs", "-f", job)
    if retries:
        assert out.returncode == 0 and out.stdout.endswith("done\n") and out.stdout.count("begun") == 2
    else:
        assert out.returncode == 1 and "was lost" in out.stderr and "done" not in out.stdout


def test_who_follows_a_job_goes_on_when_the_head_is_back(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    script = "import time\nfor n in range(60): print(n, flush=True); time.sleep(0.05)"
    command = [BIN, "job", "submit", "--", "python", "-c", script]
    with subprocess.Popen(command, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follows:
        shown = [follows.stdout.readline() for _ in range(5)]
        nodes.kill9("head")
        nodes.head()
        shown += follows.stdout.readlines()
        assert follows.wait(60) == 0, follows.stderr.read()
    assert shown == [f"{n}\n" for n in range(60)]
