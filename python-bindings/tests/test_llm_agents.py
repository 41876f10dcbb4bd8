"""Agents that are a prompt around a model and call tools: Python functions, other agents, MCP servers."""

import contextlib
import http.server
import json
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Annotated, Literal

import pytest
from conftest import eventually

import covey
from covey._schema import of_parameters

SERVER = textwrap.dedent("""
    import asyncio, os, sys
    from mcp.server.fastmcp import FastMCP

    server = FastMCP("numbers", port=int(sys.argv[1]) if len(sys.argv) > 1 else 8000)

    @server.tool()
    def twice(x: int) -> str:
        "Doubles a number."
        return f"{2 * x} {os.environ.get('GIVEN', '')}{os.environ.get('COVEY_SECRET_OF_MINE', '')}"

    @server.tool()
    def fails() -> str:
        "Never works."
        raise ValueError("not today")

    @server.tool()
    async def never() -> str:
        "Never answers."
        await asyncio.sleep(3600)
        return "late"

    server.run("streamable-http" if len(sys.argv) > 1 else "stdio")
""")


class Silence:
    """A request that is taken and not answered."""

    def __init__(self):
        self.is_over = threading.Event()


class Script(http.server.ThreadingHTTPServer):
    """An OpenAI-compatible server elsewhere whose answers are written down beforehand."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.answers, self.asked = [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        said = self.server.answers.pop(0)
        if isinstance(said, Silence):
            said.is_over.wait(60)
            return
        if isinstance(said, str):
            deltas, finish = [{"content": said[:3]}, {"content": said[3:]}], "stop"
        else:
            thoughts, said = (said["think"], said["calls"]) if isinstance(said, dict) else ([], said)
            calls = [{"index": i, "id": f"c{i}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for i, (n, a) in enumerate(said)]
            deltas, finish = [*({"reasoning_content": thought} for thought in thoughts), {"tool_calls": calls}], "tool_calls"
            if thoughts:
                # As models write them: the arguments grow.
                whole = calls[0]["function"]["arguments"]
                calls[0]["function"]["arguments"] = whole[:4]
                deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": whole[4:]}}]})
        chunks = [{"choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}], "usage": {"prompt_tokens": 30, "completion_tokens": 10}})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(folder, *options, silent=False):
    """A cluster with a model `script`, whose answers are written down beforehand, and where it is wanted `silent`, which gives up soon."""
    from conftest import Nodes

    script = Script()
    nodes = Nodes(folder)
    nodes.head()
    upstreams = nodes.home / "upstreams.toml"
    there = f'url = "http://127.0.0.1:{script.server_port}/v1"\nmodel = "m"\n'
    upstreams.write_text(f'[[upstream]]\nname = "script"\n{there}' + (f'[[upstream]]\nname = "silent"\nsilence_s = 2\n{there}' if silent else ""))
    nodes.env["COVEY_SECRET_OF_MINE"] = "secret"
    nodes.worker("w1", "--cpus", "4", "--upstreams", str(upstreams), *options)
    yield nodes, script
    nodes.stop()
    script.shutdown()


@pytest.fixture(scope="module")
def scripted(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("scripted"), silent=True) as (nodes, script):
        session = nodes.connect()
        nodes.live(1)
        yield nodes, script
        session.close()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def run(name, text="go"):
    return "".join(covey.remote_agent(name).run.remote(text))


def last_said(script):
    """What the tools said to the calls of the answer before the last."""
    return [m["content"] for m in script.asked[-1]["messages"] if m["role"] == "tool"]


def test_a_real_model_calls_a_python_function(cluster):
    def weather(city: str) -> str:
        """Tells the weather."""
        (home / city).write_text("asked")
        return f"{city}: rain"

    home = cluster.folder
    name = covey.llm_agent("forecaster", model="tiny", tools=[weather], steps=2, max_tokens=60)
    run(name, "weather in Oslo")
    assert (home / "Oslo").exists(), "the model called the function with the right argument"


def test_functions_agents_and_mcp_servers_run_side_by_side(scripted, tmp_path):
    nodes, script = scripted
    (tmp_path / "server.py").write_text(SERVER)
    gate = tmp_path / "gate"

    def slow(which: Annotated[str, "a name"], kind: Literal["a", "b"] = "a") -> str:
        """Waits for the other one."""
        (gate.parent / f"here-{which}").touch()
        end = time.monotonic() + 20
        while not all((gate.parent / f"here-{n}").exists() for n in ("x", "y")):
            if time.monotonic() > end:
                raise TimeoutError("alone")
            time.sleep(0.01)
        return f"{which} met the other"

    async def broken(n: int) -> str:
        raise ValueError(f"no {n} here")

    @covey.agent
    class Library:
        """Knows books."""

        def find(self, title: str) -> dict:
            return {"title": title, "shelf": 3}

        def pages(self, n: int):
            yield from (f"p{i} " for i in range(n))

    port = free_port()
    with subprocess.Popen([sys.executable, tmp_path / "server.py", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            eventually(lambda: listens(port))
            tools = [
                slow, broken, Library,
                covey.Mcp(sys.executable, str(tmp_path / "server.py"), env={"GIVEN": "given"}),
            ]  # fmt: skip
            name = covey.llm_agent("worker-bee", model="script", system="Be busy.", tools=tools, temperature=0.5)
            script.answers[:] = [
                [("slow", {"which": "x"}), ("slow", {"which": "y", "kind": "b"})],
                [("broken", {"n": 7}), ("Library_find", {"title": "Emma"}), ("Library_pages", {"n": 2}), ("twice", {"x": 21}), ("fails", {}), ("none", {})],
                "All done.",
            ]
            assert run(name) == "All done."
            declared = {t["function"]["name"]: t["function"] for t in script.asked[0]["tools"]}
            assert list(declared) == ["slow", "broken", "Library_find", "Library_pages", "twice", "fails", "never"]
            assert declared["slow"]["parameters"]["properties"] == {"which": {"type": "string", "description": "a name"}, "kind": {"enum": ["a", "b"]}}
            assert declared["twice"]["description"] == "Doubles a number."
            assert [m["role"] for m in script.asked[1]["messages"]] == ["system", "user", "assistant", "tool", "tool"]
            assert last_said(script)[:2] == ["x met the other", "y met the other"], "they ran at the same time, told in order"
            said = last_said(script)[2:]
            assert "no 7 here" in said[0] and said[0].startswith("error:")
            assert json.loads(said[1]) == {"title": "Emma", "shelf": 3} and said[2] == "p0 p1 "
            assert said[3] == "42 given", "a server's process sees what it was given and none of the worker's secrets"
            assert "not today" in said[4] and "no tool" in said[5]
            # The same server by HTTP, and of its tools one only.
            name = covey.llm_agent("far", model="script", tools=[covey.Mcp(url=f"http://127.0.0.1:{port}/mcp", only=["twice"])])
            script.answers[:] = [[("twice", {"x": 4})], "ok"]
            assert run(name) == "ok" and last_said(script)[0].startswith("8") and len(script.asked[-1]["tools"]) == 1
        finally:
            server.kill()


def test_what_is_never_answered_is_given_up(scripted, tmp_path):
    nodes, script = scripted
    (tmp_path / "server.py").write_text(SERVER)
    server = covey.Mcp(sys.executable, str(tmp_path / "server.py"), only=["never"], timeout=1)
    name = covey.llm_agent("patient", model="script", tools=[server])
    script.answers[:] = [[("never", {})], "It is silent."]
    assert run(name) == "It is silent."
    assert "did not answer: 1 s are over" in last_said(script)[0]
    for never in (0, -1, "0s"):
        with pytest.raises(ValueError, match="needs some time"):
            covey.Mcp("server", timeout=never)
    # A model elsewhere that takes the request and says nothing.
    script.answers[:] = [silence := Silence()]
    with pytest.raises(covey.CoveyError, match="said nothing for 2 s"):
        run(covey.llm_agent("unheard", model="silent"))
    silence.is_over.set()


def test_agents_call_agents_and_budgets_end_them(scripted):
    nodes, script = scripted
    script.answers[:] = [[("helper", {"message": "what?"})], "Helped.", "The end."]
    covey.llm_agent("helper", model="script", system="You help.")
    boss = covey.llm_agent("boss", model="script", tools=["helper"])
    assert run(boss) == "The end."
    assert script.asked[-2]["messages"][-1] == {"role": "user", "content": "what?"} and last_said(script) == ["Helped."]

    def again(x: int) -> int:
        return x + 1

    endless = covey.llm_agent("endless", model="script", tools=[again], steps=3)
    script.answers[:] = [[("again", {"x": 1})], [("again", {"x": 2})], "I must stop."]
    assert run(endless) == "I must stop."
    assert script.asked[-2].get("tool_choice") is None and script.asked[-1]["tool_choice"] == "none"
    poor = covey.llm_agent("poor", model="script", tools=[again], tokens=70)
    script.answers[:] = [[("again", {"x": 1})], [("again", {"x": 2})]]
    with pytest.raises(covey.CoveyError, match="70 tokens"):
        run(poor)

    def forever() -> str:
        time.sleep(600)

    hasty = covey.llm_agent("hasty", model="script", tools=[forever], time="500ms")
    script.answers[:] = [[("forever", {})]]
    with pytest.raises(covey.DeadlineExceeded, match="budget of time"):
        run(hasty)
    with pytest.raises(TypeError, match="a tool is"):
        covey.llm_agent("wrong", tools=[3])
    with pytest.raises(ValueError, match="by a command or by a url"):
        covey.Mcp()
    covey.llm_agent("lost", model="script", tools=[covey.Mcp("no-such-program-here")])
    with pytest.raises(covey.CoveyError, match="`no-such-program-here` could not be started: it is no file"):
        run("lost")


def test_the_python_face_has_the_model_s_whole_answer(scripted):
    nodes, script = scripted
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]
    called = covey.llm.chat("weather in Oslo", tools=tools)
    assert called.finish == "tool_calls" and json.loads(called.calls[0]["arguments"]) == {"city": "Oslo"}
    assert covey.llm.complete("Which way?", choice=["north", "south"], temperature=1.3, seed=2) in ("north", "south")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["n"]}
    assert isinstance(json.loads(covey.llm.complete("x", json_schema=schema))["n"], int)
    with pytest.raises(TypeError, match="known: max_tokens"):
        covey.llm.complete("x", max_token=3)
    with pytest.raises(TypeError, match="only one"):
        covey.llm.complete("x", regex="a", choice=["b"])


def test_schemas_of_parameters():
    def f(a: int, b: list[str], c: dict[str, float] | None = None, *args: int, d: Literal[1, 2] = 1): ...

    assert of_parameters(f) == {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "array", "items": {"type": "string"}},
            "c": {"anyOf": [{"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}]},
            "d": {"enum": [1, 2]},
        },
        "required": ["a", "b"],
    }


def test_a_prompt_is_an_agent_like_any_other(cluster):
    parrot = covey.llm_agent("one-parrot", model="tiny")
    assert isinstance(parrot, covey.Agent) and parrot.name == str(parrot) == f"{parrot}" == "one-parrot"
    assert parrot.submit("Repeat: sun moon").result(30) == "sun moon"
    stream = parrot.stream("Repeat: sun moon star", deadline="1m")
    pieces = list(stream)
    assert len(pieces) > 1 and "".join(pieces) == "sun moon star" and stream.task.state() == "completed"
    actor = parrot.remote()
    assert actor.run.remote("Repeat: blue").text() == "blue"
    assert parrot.run.remote("Repeat: red").text() == "red"
    assert covey.submit(parrot, "", "Repeat: green").result(30) == "green"
    assert pickle.loads(pickle.dumps(parrot)).submit("Repeat: stone").result(30) == "stone"
    boss = covey.llm_agent("parrots-boss", model="tiny", tools=[parrot])
    assert {"agent": {"agent": "one-parrot"}} in boss.spec()[0]["kind"]["tools"]
    with pytest.raises(TypeError, match="unknown option 'dead'; there are: .*deadline"):
        parrot.submit("x", dead=1)
    with pytest.raises(TypeError, match="submit"):
        parrot.pool(2)
    with pytest.raises(TypeError, match="unknown sampling option 'temprature'"):
        covey.llm_agent("x", temprature=1)


async def test_a_stream_is_read_in_a_loop_and_raises(cluster):
    parrot = covey.llm_agent("loop-parrot", model="tiny")
    assert "".join([piece async for piece in parrot.stream("Repeat: sun moon")]) == "sun moon"
    with pytest.raises(covey.CoveyError, match="nonsense"):
        [piece async for piece in covey.llm_agent("no-parrot", model="nonsense").stream("hi")]


@covey.agent(name="plain-agent")
class Plain:
    def add(self, a, b=1):
        return a + b

    def count(self, n):
        yield from ({"n": i} for i in range(n))

    def breaks(self):
        yield 1
        raise ValueError("half way")


def test_a_class_is_submitted_and_streamed(cluster):
    assert Plain.submit(2).result(30) == 3 and Plain.submit(2, 5, method="add").result(30) == 7
    assert list(Plain.stream(3, method="count")) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert list(Plain.stream(2)) == [3], "what it returns, where it yields nothing"
    got = []
    with pytest.raises(ValueError, match="half way"):
        for item in Plain.stream(method="breaks"):
            got.append(item)
    assert got == [1]
    assert Plain.submit(1, message_id="plain-1").id == Plain.submit(1, message_id="plain-1").id
    with pytest.raises(TypeError, match=r"unknown option 'b'; .* covey.submit\(agent, method, …\)"):
        Plain.submit(1, b=2)
    for wrong in (lambda: Plain.options(cpu=1), lambda: covey.agent(cpu=1), lambda: covey.task(cpu=1), lambda: covey.Executor(cpu=1)):
        with pytest.raises(TypeError, match="unknown option 'cpu'; there are: .*cpus"):
            wrong()
