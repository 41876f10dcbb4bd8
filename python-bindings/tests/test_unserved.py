"""What no worker can run is told so: at registration, in the status, in the task's own status, and it fails in the end."""

import pathlib
import shutil
import sys
import time

import pytest
from conftest import eventually

import covey
from covey import agent, errors


@pytest.fixture
def bare(nodes, tmp_path):
    """A cluster whose Python lacks the package."""
    python = tmp_path / "bare-python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    nodes.env["COVEY_PYTHON"] = str(python)
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    return nodes


def test_a_worker_without_the_package_is_told_of_everywhere(bare):
    why = "needs a worker whose Python has the covey package"

    @agent(schedule_timeout="2s")
    class Hello:
        def run(self) -> str:
            return "hello"

    with pytest.warns(RuntimeWarning, match=why) as warned:
        Hello.register()
    assert warned[0].filename == __file__
    task = covey.submit(Hello, "run")
    seen = eventually(lambda: [e for e in task_events(task) if e["type"] == "status" and why in (e.get("message") or "")])
    assert seen[0]["state"] == "queued"
    pending = covey.status()["pending"]
    assert any(why in p["why"] and "tasks of Hello" in p["what"] for p in pending), pending
    assert why in bare.cli("status").stdout
    with pytest.raises(errors.Unschedulable, match=why):
        task.result(60)
    assert sum(e["type"] == "finished" for e in task_events(task)) == 1
    # Calls wait as long as was said, and the actor is given up then.
    actor = Hello.remote()
    with pytest.raises(errors.Unschedulable, match=f"schedule timeout.*{why}"):
        actor.run.remote().result(30)
    eventually(lambda: any(a["state"] == "dead" and "schedule timeout" in (a.get("why") or "") for a in covey.status()["actors"]))


@pytest.fixture
def other(nodes, tmp_path):
    """Gives a Python whose package has another version, from the moment on that the file that goes with it is there."""
    package = pathlib.Path(covey.__file__).parent
    shutil.copytree(package, tmp_path / "other/covey", ignore=shutil.ignore_patterns("__pycache__"))
    init = tmp_path / "other/covey/__init__.py"
    init.write_text(init.read_text().replace(f'__version__ = "{covey.__version__}"', '__version__ = "9.9.9"'))
    python, changed = tmp_path / "other-python", tmp_path / "changed"
    python.write_text(f'#!/bin/sh\n[ -e {changed} ] && export PYTHONPATH={tmp_path}/other\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    nodes.env["COVEY_PYTHON"] = str(python)
    return changed


def test_a_worker_whose_package_has_another_version_is_told_of_everywhere(nodes, other):
    other.touch()
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)
    why = f"the package `covey` is 9.9.9, the worker is {covey.__version__}"

    @agent(schedule_timeout="2s")
    class Hello:
        def run(self) -> str:
            return "hello"

    assert f"no Python agents: {why}" in nodes.cli("status").stdout
    with pytest.warns(RuntimeWarning, match=why):
        Hello.register()
    task, actor = covey.submit(Hello, "run"), Hello.remote()
    with pytest.raises(errors.Unschedulable, match=why):
        actor.run.remote().result(30)
    with pytest.raises(errors.Unschedulable, match=why):
        task.result(60)
    assert [a["restarts"] for a in covey.actors(agent="Hello")] and not any(a["restarts"] for a in covey.actors(agent="Hello"))


def test_a_package_that_is_changed_under_a_worker_is_told_once(nodes, other):
    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    nodes.connect()
    nodes.live(1)

    @agent(own_process=True)
    class Hello:
        def run(self) -> str:
            return "hello"

    # One process at most is of before when the package changes: the spare one, perhaps still starting.
    # It goes to whoever asks when it is ready, an actor or a task.
    assert [Hello.remote().run.remote().result(30) for _ in range(2)] == ["hello"] * 2
    other.touch()
    why = f"the package `covey` is 9.9.9, the worker is {covey.__version__}"
    actors = [Hello.options(name=f"late-{n}").remote() for n in range(3)]

    def told(waits) -> str | None:
        try:
            waits.result(30)
        except covey.CoveyError as error:
            return str(error)
        return None

    calls = [told(late.run.remote()) for late in actors]
    tasks = [told(covey.submit(Hello, "run")) for _ in range(2)]
    said = [one for one in calls + tasks if one is not None]
    assert len(said) >= 4 and all(why in one for one in said), (calls, tasks)
    late = [a for a in covey.actors(agent="Hello") if (a.get("name") or "").startswith("late-")]
    assert not any(a["restarts"] for a in late) and why in nodes.cli("actors", "--agent", "Hello", "--state", "dead").stdout


def test_calls_fail_at_once_or_wait_for_a_worker_as_long_as_was_said(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)

    @covey.task(resources={"scanner": 1})
    def scan(page: int) -> int:
        return page + 1

    why = "needs scanner=1"
    with pytest.raises(errors.Unschedulable, match=why):
        scan.remote(1).result(30)
    with pytest.raises(errors.Unschedulable, match=f"schedule timeout.*{why}"):
        scan.options(schedule_timeout="500ms").remote(1).result(30)
    waits = scan.options(schedule_timeout="5m").remote(1)
    with pytest.raises(errors.DeadlineExceeded):
        waits.result(1)
    nodes.worker("w2", "--cpus", "1", "--resource", "scanner=1")
    assert waits.result(60) == 2


def task_events(task):
    """What the log says so far."""
    events = []
    try:
        for event in task._until(0, time.monotonic() + 0.5):
            events.append(event["event"])
    except errors.DeadlineExceeded:
        pass
    return events


def test_a_busy_cluster_is_no_reason_to_fail(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "1")
    nodes.connect()
    nodes.live(1)

    @agent(cpus=1, schedule_timeout="200ms")
    class Takes:
        def run(self) -> int:
            return 1

    first = Takes.remote()
    assert first.run.remote().result(30) == 1
    second = Takes.remote()
    waiting = second.run.remote()
    with pytest.raises(errors.DeadlineExceeded):
        waiting.result(1.5)
    first.stop()
    assert waiting.result(30) == 1
