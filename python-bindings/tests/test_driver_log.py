"""What actors print is shown where their driver runs, and can be read when they are over."""

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from conftest import BIN, ROOT, eventually

import covey
from covey import agent


@agent(name="log-talker")
class Talker:
    def __init__(self, greeting=""):
        if greeting:
            print(greeting)

    def say(self, *lines, stderr=False):
        for line in lines:
            print(line, file=sys.stderr if stderr else sys.stdout)

    async def pieces(self, *pieces):
        for piece in pieces:
            print(piece, end="", flush=True)

    def thread(self, line):
        thread = threading.Thread(target=print, args=(line,))
        thread.start()
        thread.join()

    def program(self, line):
        subprocess.run(["echo", line], check=True)

    def many(self, count):
        for n in range(count):
            print(f"line {n}")

    def pid(self):
        return os.getpid()

    def die(self):
        print("last words")
        os._exit(3)


@covey.task
def shout(word):
    print("shouting", word)
    return word.upper()


def test_what_actors_print_reaches_their_driver(cluster, terminal):
    one = Talker.remote("hello from the constructor")
    pid = one.pid.remote().result(30)
    one.say.remote("one", "two\nthree").result(30)
    one.say.remote("a warning", stderr=True).result(30)
    tag = f"(log-talker w1 pid={pid}) "
    terminal.has(f"{tag}hello from the constructor\n", f"{tag}one\n{tag}two\n{tag}three\n")
    terminal.has(f"{tag}a warning\n", err=True)
    assert "a warning" not in terminal.out
    one.pieces.remote("half ", "and ").result(30)
    one.pieces.remote("half\n", "next").result(30)
    terminal.has(f"{tag}half and half\n")
    assert "next" not in terminal.out, "a line is shown when it is whole"
    one.kill()
    terminal.has(f"{tag}next\n")


def test_what_has_no_mark_is_shown_where_one_driver_alone_is_in_the_process(cluster, terminal):
    alone = covey.agent(Talker.__covey_class__, name="log-alone", own_process=True).remote()
    pid = alone.pid.remote().result(30)
    alone.thread.remote("from a thread").result(30)
    alone.program.remote("from a program").result(30)
    terminal.has(f"(log-alone w1 pid={pid}) from a thread\n", f"(log-alone w1 pid={pid}) from a program\n")


def test_functions_and_tasks_are_shown(cluster, terminal):
    assert covey.get([shout.remote(word) for word in ("a", "b")], timeout=30) == ["A", "B"]
    terminal.has("shouting a\n", "shouting b\n")
    assert all(line.startswith("(shout w1 pid=") for line in terminal.out.splitlines() if "shouting" in line)

    def from_a_task():
        covey.submit(Talker, "say", "from a task").result(30)
        return "(log-talker w1 pid=" in (line := next((x for x in terminal.out.splitlines() if "from a task" in x), "")) and line

    assert eventually(from_a_task).endswith(") from a task")
    named = Talker.at("someone")

    def from_a_virtual_actor():
        named.say.remote("from a virtual actor").result(30)
        return "(log-talker/someone w1" in terminal.out

    eventually(from_a_virtual_actor)


def test_a_driver_is_not_shown_what_is_another_drivers(cluster, terminal, tmp_path):
    program = tmp_path / "other.py"
    program.write_text(
        textwrap.dedent("""
        import sys, time, covey

        @covey.agent(name="log-other")
        class Other:
            def say(self, line):
                print(line)

        with covey.connect():
            other = Other.remote()
            for n in range(20):
                other.say.remote(f"of the other {n}").result(30)
        """)
    )
    env = {**cluster.env, "PYTHONPATH": str(ROOT / "python-bindings/python")}
    one = Talker.remote()
    one.say.remote("before").result(30)
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    one.say.remote("after").result(30)
    terminal.has("before\n", "after\n")
    assert "of the other" not in terminal.out
    assert [line.split(") ")[1] for line in done.stdout.splitlines()] == [f"of the other {n}" for n in range(20)], "last lines come, too"


def test_it_can_be_off(shared, terminal, monkeypatch):
    for off in ({"log_to_driver": False}, {}):
        if not off:
            monkeypatch.setenv("COVEY_LOG_TO_DRIVER", "0")
        with covey.connect(shared.address, shared.keys["admin_key"], **off):
            one = Talker.remote()
            one.say.remote("not to be seen").result(30)
            assert "covey-driver-log" not in [thread.name for thread in threading.enumerate()]
            eventually(lambda: "not to be seen" in shared.cli("logs", one._actor).stdout)
    assert "not to be seen" not in terminal.out + terminal.err


def test_more_than_can_be_read_is_left_out_and_said(cluster, terminal):
    one = Talker.remote()
    one.many.remote(20_000).result(60)
    terminal.has("lines that actors printed on w1 are left out", err=True)
    seen = [line for line in terminal.out.splitlines() if "line " in line]
    assert 0 < len(seen) < 20_000
    left_out = sum(int(line.split()[1]) for line in terminal.err.splitlines() if "left out" in line)
    assert left_out + len(seen) <= 20_000
    log = cluster.cli("logs", one._actor).stdout
    assert "line 0\n" in log and "line 19999\n" in log and "\x1e" not in log, "the log has all of them, and no marks"


def test_a_log_is_its_actors(cluster):
    one, other = Talker.at("log-one"), Talker.at("log-other")
    covey.get([one.say.remote("of one"), other.say.remote("of other")], timeout=30)
    log = eventually(lambda: "of one\n" in (r := cluster.cli("logs", "log-talker/log-one").stdout) and r)
    assert "of other" not in log
    assert "of other\n" in cluster.cli("logs", "log-talker/log-other").stdout


def test_logs_of_an_actor_that_is_over(cluster):
    one = covey.agent(Talker.__covey_class__, name="log-mortal", own_process=True).options(name="mortal", max_restarts=0).remote()
    one.say.remote("while it lived").result(30)
    with pytest.raises(covey.ActorDied):
        one.die.remote().result(30)
    eventually(lambda: any(a["id"] == one._actor and a["state"] == "dead" for a in covey.actors()))
    out = eventually(lambda: (r := cluster.cli("logs", one._actor)).returncode == 0 and r)
    assert "while it lived\n" in out.stdout and "last words\n" in out.stdout
    assert cluster.cli("logs", "mortal").stdout == out.stdout, "by its name, too"
    assert cluster.cli("logs", "-f", one._actor).stdout == out.stdout, "following ends"
    assert cluster.cli("logs", "--tail", "5", one._actor).stdout in ("", "last words\n")
    killed = Talker.remote()
    killed.say.remote("said and gone").result(30)
    killed.kill()
    eventually(lambda: "said and gone" in cluster.cli("logs", killed._actor).stdout)


def test_a_log_goes_on_after_a_restart(cluster):
    one = covey.agent(Talker.__covey_class__, name="log-phoenix", own_process=True).remote()
    for life in range(3):
        one.say.remote(f"life {life}").result(30)
        with pytest.raises(covey.ActorDied):
            one.die.remote().result(30)
    one.say.remote("the last one").result(60)
    told = ["life 0", "last words", "life 1", "last words", "life 2", "last words", "the last one"]
    log = eventually(lambda: "the last one\n" in (r := cluster.cli("logs", one._actor).stdout) and r)
    assert [line for line in log.splitlines() if line in told] == told
    tail = cluster.cli("logs", "--tail", "200", one._actor).stdout
    assert tail.endswith("the last one\n") and "life 0" not in tail, "it begins in the right life"
    one.kill()
    eventually(lambda: any(a["id"] == one._actor and a["state"] == "dead" for a in covey.actors()))
    assert cluster.cli("logs", one._actor).stdout == log


def test_a_cluster_of_a_driver_is_found_from_the_command_line(tmp_path):
    program = tmp_path / "train.py"
    program.write_text(
        textwrap.dedent("""
        import sys, covey

        @covey.agent(name="private-one")
        class One:
            def run(self):
                return 1

        with covey.init(cpus=1):
            one = One.remote()
            one.run.remote().result(60)
            print("ready", flush=True)
            sys.stdin.readline()
        """)
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("COVEY_")}
    env |= {"COVEY_HOME": str(tmp_path / "home"), "COVEY_BIN": BIN, "PYTHONPATH": str(ROOT / "python-bindings/python")}

    def cli(*args, **more):
        return subprocess.run([BIN, *args], env={**env, **more}, capture_output=True, text=True, timeout=60)

    drivers = []
    try:
        assert cli("status").returncode == 77
        for _ in range(2):
            driver = subprocess.Popen([sys.executable, program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            drivers.append(driver)
            assert driver.stdout.readline() == "ready\n"
            if len(drivers) == 1:
                assert "private-one · live · node" in cli("actors").stdout
        many = cli("status")
        assert many.returncode == 64 and "2 clusters of drivers" in many.stderr and many.stderr.count("train.py") == 2
        said = drivers[1].stderr.readline()
        home = said.split("COVEY_HOME=")[1].split()[0]
        assert f"COVEY_HOME={home} " in many.stderr and said.strip().endswith("status")
        assert "head 127.0.0.1" in cli("status", COVEY_HOME=home).stdout
        # One whose credentials stay behind, as after `covey up`.
        stale = tmp_path / "home/credentials.json"
        stale.write_text(json.dumps({"address": "127.0.0.1:1", "admin_key": "cva_x", "join_secret": "cvj_x"}))
        gone = cli("status")
        assert gone.returncode == 69 and home in gone.stderr
        stale.unlink()
    finally:
        for driver in drivers:
            driver.stdin.close()
            assert driver.wait(30) == 0
            driver.stdout.close()
            driver.stderr.close()
    assert cli("status").returncode == 77 and not list((tmp_path / "home/private").iterdir())


@pytest.mark.parametrize("on", [True, False])
def test_programs_for_ray_say_whether_it_is_shown(shared, terminal, monkeypatch, on):
    from covey.compat import ray

    monkeypatch.setenv("COVEY_ADDRESS", shared.address)
    monkeypatch.setenv("COVEY_TOKEN", shared.keys["admin_key"])

    @ray.remote
    def greets(name):
        print("greetings,", name)
        return name

    ray.init("auto", log_to_driver=on)
    try:
        assert ray.get(greets.remote("you")) == "you"
        if on:
            terminal.has("greetings, you\n")
            assert "(greets w1 pid=" in terminal.out
    finally:
        ray.shutdown()
    assert ("greetings" in terminal.out) == on
