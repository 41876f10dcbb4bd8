"""How much an agent's processes are kept from: what it asks for, what its worker gives, what it may make in turn."""

import os
import pathlib
import platform
import sys

import pytest
from conftest import eventually

import covey
from covey import agent, errors

WITHOUT_NAMESPACES = """
import ctypes, os, struct, sys
# A filter that answers `unshare` with EPERM, as kernels do where namespaces are not allowed.
number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def seen():
    """What this process is kept from, as the kernel says it: fields of its status."""
    lines = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {"seccomp": lines["Seccomp"], "no_new_privs": lines["NoNewPrivs"], "pid": os.getpid()}


def dial(port):
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


class Looks:
    def seen(self):
        return seen()

    def dial(self, port):
        return dial(port)

    def ask(self, other):
        return other.seen.remote().result()


Usual = agent(type("Usual", (Looks,), {}))
Strict = agent(isolation="strict")(type("Strict", (Looks,), {}))
Known = agent(type("Known", (Looks,), {}))


@agent(isolation="strict")
class Maker:
    """Strict code that would like others to be less strict."""

    def unsaid(self):
        return Known.remote().seen.remote().result()

    def fresh(self):
        @agent
        class Fresh(Looks):
            pass

        return Fresh.remote().seen.remote().result()

    def function(self):
        return covey.task(seen).remote().result()

    def mapped(self):
        return list(covey.task(lambda _: seen()).map(range(3)))

    def registers(self, level):
        @agent(isolation=level)
        class Open(Looks):
            pass

        return Open.register()

    def creates(self, level):
        return Known.options(isolation=level).remote().seen.remote().result()

    def function_of(self, level):
        return covey.task(isolation=level)(seen).remote().result()

    def gang_of(self, level):
        [made] = covey.gang([Known.options(isolation=level).bind()])
        return made.seen.remote().result()

    def reaches(self, how):
        if how == "pip":
            agent(pip=["six"])(type("Packed", (Looks,), {})).register()
        else:
            covey.llm_agent("dials", tools=[covey.Mcp(url="http://127.0.0.1:1/mcp")])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A worker of the default level, with which all agents here are."""
    from conftest import Nodes

    nodes = Nodes(tmp_path_factory.mktemp("isolation"))
    nodes.head()
    nodes.worker("w1", "--cpus", "4")
    session = nodes.connect()
    nodes.live(1)
    nodes.head_port = int(nodes.port)
    yield nodes
    session.close()
    nodes.stop()


def test_a_strict_agent_has_no_network_beside_one_that_has(mixed):
    usual, strict = Usual.remote(), Strict.remote()
    has, lacks = usual.seen.remote().result(), strict.seen.remote().result()
    assert (has["seccomp"], lacks["seccomp"]) == ("0", "2"), "the filter is the strict one's"
    assert (has["no_new_privs"], lacks["no_new_privs"]) == ("1", "1")
    assert has["pid"] != lacks["pid"], "they share no process"
    assert usual.dial.remote(mixed.head_port).result() and not strict.dial.remote(mixed.head_port).result()
    # Calls go through its worker.
    assert strict.ask.remote(usual).result()["pid"] == has["pid"]
    # Those of one level share processes, as ever.
    more = [Strict.remote() for _ in range(12)]
    assert len({a.seen.remote().result()["pid"] for a in more}) < len(more)


def test_functions_and_single_actors_ask_for_it_too(mixed):
    assert covey.task(seen).remote().result()["seccomp"] == "0"
    assert covey.task(isolation="strict")(seen).remote().result()["seccomp"] == "2"
    assert covey.task(seen).options(isolation="strict").remote().result()["seccomp"] == "2"
    assert Usual.options(isolation="strict").remote().seen.remote().result()["seccomp"] == "2"
    with pytest.raises(ValueError, match="'none', 'default' or 'strict'"):
        agent(isolation="most")(Looks)
    task = covey.submit(Strict, "seen")
    assert task.result(60)["seccomp"] == "2"


def test_what_a_strict_actor_makes_is_strict(mixed):
    Known.register()
    maker = Maker.remote()
    assert Known.remote().seen.remote().result()["seccomp"] == "0", "as its agent says"
    for name in ("unsaid", "fresh", "function"):
        assert getattr(maker, name).remote().result()["seccomp"] == "2", name
    assert {s["seccomp"] for s in maker.mapped.remote().result()} == {"2"}
    for name in ("creates", "function_of", "gang_of"):
        assert getattr(maker, name).remote("strict").result()["seccomp"] == "2", name


@pytest.mark.parametrize("level", ["default", "none"])
@pytest.mark.parametrize("how", ["registers", "creates", "function_of", "gang_of"])
def test_a_strict_actor_makes_nothing_that_is_less_strict(mixed, how, level):
    Known.register()
    with pytest.raises(errors.CoveyError, match=f"makes nothing whose isolation is `{level}`"):
        getattr(Maker.remote(), how).remote(level).result(60)
    assert "Open" not in [a["name"] for a in covey.agents()]


@pytest.mark.parametrize("how", ["pip", "url"])
def test_a_strict_actor_makes_nothing_that_has_a_network_for_it(mixed, how):
    with pytest.raises(errors.CoveyError, match="code without a network makes no agent"):
        Maker.remote().reaches.remote(how).result(60)


def test_an_agent_that_actors_make_known_is_as_strict_as_it_was_written(mixed):
    @agent(isolation="strict")
    class Written(Looks):
        pass

    @agent
    class Makes:
        def make(self):
            return Written.remote().seen.remote().result()

    assert Makes.remote().make.remote().result()["seccomp"] == "2"


def test_none_is_refused_where_the_worker_does_not_allow_it(mixed):
    why = "needs a worker that was started with `--isolation none`"
    free = agent(isolation="none", schedule_timeout="1s")(type("Free", (Looks,), {}))
    with pytest.warns(RuntimeWarning, match=why):
        free.register()
    with pytest.raises(errors.Unschedulable, match=why):
        free.remote().seen.remote().result(30)
    with pytest.raises(errors.Unschedulable, match=why):
        covey.submit(free, "seen").result(60)


def test_programs_of_a_prompt_agent_are_as_strict_as_it(mixed, tmp_path):
    code = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(pathlib.Path('/proc/self/status').read_text())"
    found = {}
    for level in ("default", "strict"):
        out = tmp_path / level
        covey.llm_agent(f"tool-{level}", isolation=level, tools=[covey.Mcp(sys.executable, "-c", code, str(out))])
        with pytest.raises(errors.CoveyError, match="did not say hello"):
            covey.submit(f"tool-{level}", "", "hi").result(60)
        found[level] = next(line.split()[1] for line in out.read_text().splitlines() if line.startswith("Seccomp:"))

    def look(which: str) -> str:
        return which

    covey.llm_agent("with-functions", isolation="strict", tools=[look])
    assert found == {"default": "0", "strict": "2"}
    spec = next(a for a in covey.agents() if a["name"] == "with-functions-tools")
    assert spec["isolation"] == "strict", "functions that are its tools"


def test_a_job_asks_for_it(mixed):
    strict = mixed.cli("job", "submit", "--isolation", "strict", "--", "grep", "Seccomp:", "/proc/self/status")
    assert strict.stdout.split() == ["Seccomp:", "2"], strict.stderr
    usual = mixed.cli("job", "submit", "--", "grep", "Seccomp:", "/proc/self/status")
    assert usual.stdout.split() == ["Seccomp:", "0"], usual.stderr
    listed = mixed.cli("job", "ls").stdout.splitlines()
    assert len(listed) == 2 and all("grep Seccomp" in line for line in listed)
    job = listed[1].split(" ")[0]
    assert "Seccomp:\t2" in mixed.cli("job", "logs", job).stdout and mixed.cli("job", "status", job).returncode == 0


def test_a_worker_gives_no_less_than_its_own_level(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2", "--isolation", "strict")
    nodes.connect()
    nodes.live(1)
    assert Usual.remote().seen.remote().result()["seccomp"] == "2"
    assert Usual.options(isolation="default").remote().seen.remote().result()["seccomp"] == "2"


def test_a_worker_without_isolation_gives_what_is_asked_for(nodes):
    nodes.head()
    nodes.worker("w1", "--cpus", "2", "--isolation", "none")
    nodes.connect()
    nodes.live(1)
    levels = {level: Usual.options(isolation=level).remote().seen.remote().result() for level in (None, "none", "default", "strict")}
    got = {level: (found["no_new_privs"], found["seccomp"]) for level, found in levels.items()}
    assert got == {None: ("0", "0"), "none": ("0", "0"), "default": ("1", "0"), "strict": ("1", "2")}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="the filter is for these two")
def test_a_worker_that_cannot_isolate_is_no_place_for_it(nodes):
    nodes.head()
    nodes.inside["w1"] = [sys.executable, "-c", WITHOUT_NAMESPACES]
    nodes.worker("w1", "--cpus", "2")
    nodes.connect()
    nodes.live(1)
    assert Usual.remote().seen.remote().result()["no_new_privs"] == "1", "others are there"
    why = "needs a worker that can isolate with `strict`"
    late = agent(isolation="strict", schedule_timeout="1s")(type("Late", (Looks,), {}))
    with pytest.warns(RuntimeWarning, match=f"{why}.*namespace"):
        late.register()
    task = covey.submit(late, "seen")
    with pytest.raises(errors.Unschedulable, match=why):
        task.result(60)
    with pytest.raises(errors.Unschedulable, match=f"schedule timeout.*{why}"):
        late.remote().seen.remote().result(30)
    # It waits for one that can.
    waits = Strict.options(schedule_timeout="5m").remote().seen.remote()
    eventually(lambda: any(why in (a.get("why") or "") for a in covey.status()["actors"]))
    nodes.worker("w2", "--cpus", "2")
    assert waits.result(60)["seccomp"] == "2"
