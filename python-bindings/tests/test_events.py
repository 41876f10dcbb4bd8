"""The log of a task: what turns of every kind write into it, and who reads it."""

import asyncio
import json
import os
import re
import uuid

import httpx
import pytest
from conftest import ROOT, eventually
from test_clients import client_1_3
from test_llm_agents import serving
from test_turns import made, question

import covey
from covey import Context
from covey._patch import apply

PAGE = (ROOT / "docs/protocols.md").read_text()
KINDS = re.findall(r"^\| `(\w+)`", PAGE, re.MULTILINE)
EXTENSION = "urn:covey:a2a:events:v1"


class Worker:
    """Does everything that can be seen."""

    async def run(self, text: str, ctx: Context):
        ctx.plan(["look", {"text": "answer", "status": "in_progress", "priority": "high"}])
        ctx.think("let me ")
        ctx.think("see")
        yield "before "
        async with ctx.tool("search", {"q": text}, title="Search") as call:
            call.progress("half", content={"found": 1}, done=1, total=2)
            call.done({"hits": [1, 2]})
        with pytest.raises(ZeroDivisionError), ctx.tool("divide", {"by": 0}):
            1 / 0
        grown = ctx.tool("grown")
        grown.argument('{"a":')
        grown.argument(" 1}")
        grown.done("text")
        ctx.state.set({"done": 0, "left": ["x"]})
        ctx.state.patch([{"op": "replace", "path": "/done", "value": 1}, {"op": "remove", "path": "/left/0"}])
        assert ctx.state.value == {"done": 1, "left": []}
        wild = ctx.tool("wild")
        wild.argument('{"a": NaN}')
        with pytest.raises(ValueError, match="whole number"):
            wild.progress(done=-1)
        wild.done()
        with pytest.raises(TypeError, match="have names"):
            ctx.tool("wrong", [1])
        with pytest.raises(ValueError, match="no 'gone' in it"):
            ctx.state.patch([{"op": "remove", "path": "/gone"}])
        ctx.ui({"uri": "ui://board", "text": "<b>hi</b>"})
        ctx.cite("https://example.org", {"title": "A page"})
        ctx.custom("weather", {"sun": True})
        ctx.artifact("notes", "line\n")
        ctx.status("nearly")
        yield {"n": 1}
        yield covey.File(b"x", name="x.bin")
        yield "after"

    async def guarded(self, text: str, ctx: Context) -> dict:
        decided = await ctx.approve("delete", {"path": text}, prompt=f"delete {text}?", timeout=60)
        if decided:
            with decided.call:
                decided.call.done("gone")
        return {"approved": bool(decided), "reason": decided.reason, "with": decided.arguments}

    def guarded_by_thread(self, text: str, ctx: Context) -> bool:
        return bool(ctx.approve("delete", {"path": text}).result())

    async def hurried(self, text: str, ctx: Context) -> str:
        try:
            await ctx.approve("delete", {"path": text}, timeout=0.2)
        except covey.DeadlineExceeded:
            return "nobody decided"

    async def leaves_open(self, text: str, ctx: Context):
        ctx.tool("search", {"q": text})
        yield "half"
        raise ValueError("no")

    async def dies_once(self, text: str, ctx: Context) -> str:
        ctx.tool("search", {"q": text})
        ctx.think("hm")
        if not os.path.exists(text):
            open(text, "w").close()
            await asyncio.sleep(0.3)
            os._exit(3)
        return "done"

    async def deep(self, text: str, ctx: Context) -> str:
        value: list = []
        for _ in range(70):
            value = [value]
        call = ctx.tool("deep")
        ctx.conversation.emit({"type": "tool_call_done", "call": call.id, "message": "", "outcome": {"is": "ok", "content": [{"data": value}]}})
        await asyncio.sleep(20)
        return "it was taken"

    async def babbles(self, text: str, ctx: Context) -> str:
        while True:
            ctx.think("x" * 4_000_000)
            await asyncio.sleep(0)

    async def large(self, text: str, ctx: Context) -> str:
        for _ in range(20):
            ctx.think("x" * 4_000_000)
            await asyncio.sleep(0.05)
        return "said"

    async def counts(self, text: str, ctx: Context) -> str:
        for number in range(100):
            ctx.conversation.emit({"type": "usage", "provider": "x", "model": f"m{number}", "usage": {"input": 1}})
        await asyncio.sleep(20)
        return "it was taken"

    async def fickle(self, text: str, ctx: Context) -> bool:
        again = os.path.exists(text)
        decided = await ctx.approve("delete", {"path": "second" if again else "first"})
        if not again:
            open(text, "w").close()
            os._exit(3)
        return bool(decided)

    async def forges(self, text: str, ctx: Context) -> str:
        ctx.conversation.emit(json.loads(text))
        await asyncio.sleep(20)
        return "it was taken"

    async def plain(self, ctx: Context) -> str:
        ctx.think("hm")
        ctx.plan(["x"])
        ctx.state.set(1)
        with ctx.tool("search", {}) as call:
            call.progress("x")
        return "fine"


def kinds(task):
    return [event.type for event in task.events()]


def of(task, kind):
    return [event.data for event in task.events() if event.type == kind]


def test_a_turn_tells_of_its_work_and_its_answer_is_apart(cluster):
    task = covey.submit(made(Worker), "run", "cats")
    value = task.result(60)
    assert value[:2] == ["before ", {"n": 1}] and value[3] == "after", value
    log = list(task.events())
    assert [event.number for event in log] == list(range(1, len(log) + 1))
    opened, ready, done = (of(task, f"tool_call_{kind}") for kind in ("opened", "ready", "done"))
    assert [(call["name"], call.get("title")) for call in opened] == [("search", "Search"), ("divide", None), ("grown", None), ("wild", None)]
    ids = [call["call"] for call in opened]
    assert len(set(ids)) == 4 and all(id.startswith(task.id) for id in ids)
    assert [(call["call"], call.get("args")) for call in ready] == list(zip(ids, [{"q": "cats"}, {"by": 0}, {"a": 1}, None]))
    outcomes = [call["outcome"] for call in done]
    assert outcomes[0] == {"is": "ok", "content": [{"data": {"hits": [1, 2]}}], "structured": {"hits": [1, 2]}}
    assert outcomes[1] == {"is": "error", "message": "division by zero"}
    assert outcomes[2] == {"is": "ok", "content": [{"text": "text"}]}
    assert of(task, "tool_call_progress") == [{"call": ids[0], "status": "half", "content": {"found": 1}, "progress": [1, 2]}]
    thoughts = [part["part"] for part in of(task, "part_opened") if part["kind"]["is"] == "reasoning"]
    assert len(thoughts) == 1
    assert "".join(delta["text"] for delta in of(task, "thought_delta") if delta["part"] == thoughts[0]) == "let me see"
    assert [entry["text"] for entry in of(task, "plan_updated")[0]["entries"]] == ["look", "answer"]
    assert of(task, "custom") == [{"name": "weather", "value": {"sun": True}}]
    # Whoever looks at the answer alone sees no thoughts in it.
    assert list(task.chunks())[0] == "before "


def test_a_plain_call_has_no_log_and_runs_the_same(cluster):
    assert made(Worker).remote().plain.remote().result(30) == "fine"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("approve", {"approved": True, "reason": "", "with": {"path": "/x"}}),
        ("Deny: it is needed", {"approved": False, "reason": "it is needed", "with": {"path": "/x"}}),
        ({"approved": True, "arguments": {"path": "/y"}}, {"approved": True, "reason": "", "with": {"path": "/y"}}),
        ({"approved": False, "reason": "no"}, {"approved": False, "reason": "no", "with": {"path": "/x"}}),
    ],
)
def test_a_tool_call_is_approved_or_denied(cluster, said, expected):
    task = covey.submit(made(Worker), "guarded", "/x")
    # Whoever decides sees what of.
    assert question(task) == 'delete /x?\ndelete {"path": "/x"}'
    raised = of_now(task, "interrupt_raised")[0]
    assert raised["kind"] == {"is": "approval", "call": of_now(task, "tool_call_opened")[0]["call"]}
    assert [(option["id"], option["kind"]) for option in raised["options"]] == [("approve", "allow_once"), ("deny", "reject_once")]
    task.send("perhaps")
    asked = eventually(lambda: (q := task.question) and q.refused and q)
    assert "neither" in asked.refused
    task.send(said)
    assert task.result(30) == expected
    outcome = of(task, "tool_call_done")[0]["outcome"]
    assert outcome["is"] == ("ok" if expected["approved"] else "denied")


def of_now(task, kind):
    """Events so far of a task that goes on."""
    found = []
    for event in task.events():
        if event.type == kind:
            found.append(event.data)
        if event.type == "status" and event.data["state"] == "waiting":
            return found
    return found


def test_approvals_from_threads_and_late_ones(cluster):
    worker = made(Worker)
    task = covey.submit(worker, "guarded_by_thread", "/x")
    question(task)
    task.answer("yes")
    assert task.result(30) is True
    late = covey.submit(worker, "hurried", "/x")
    assert late.result(30) == "nobody decided"
    assert of(late, "tool_call_done")[0]["outcome"] == {"is": "denied", "reason": "nobody decided in time"}


def test_what_a_turn_leaves_open_is_closed(cluster, tmp_path):
    worker = made(Worker)
    task = covey.submit(worker, "leaves_open", "x")
    with pytest.raises(ValueError):
        task.result(30)
    log = kinds(task)
    assert of(task, "tool_call_done")[0]["outcome"]["is"] == "error"
    assert log.index("tool_call_done") < log.index("message_closed") < log.index("finished") == len(log) - 1


def test_what_a_lost_attempt_leaves_open_is_closed_by_the_head(script_cluster, tmp_path):
    task = covey.submit(made(Worker), "dies_once", str(tmp_path / "flag"))
    assert task.result(60) == "done"
    ids = [call["call"] for call in of(task, "tool_call_opened")]
    assert ids == [f"{task.id}-c1.1", f"{task.id}-c2.1"]
    assert [call["call"] for call in of(task, "tool_call_done")] == ids
    log = kinds(task)
    assert log.index("tool_call_done") < log.index("step_reset")


@pytest.mark.parametrize(
    "event",
    [
        {"type": "started", "agent": "other", "context": "c", "skill": "s", "protocol": "a2a"},
        {"type": "step_reset", "step": 1},
        {"type": "interrupt_resolved", "id": "x", "decision": {"is": "accept", "payload": 1}, "by": "the owner"},
        {"type": "steered", "parts": [{"text": "x"}], "by": "the owner"},
        {"type": "finished", "outcome": {"is": "completed", "finish": "stop"}},
        {"type": "part_delta", "part": "x", "delta": {"text": "y"}},
        {"type": "part_opened", "message": "m", "part": "x", "kind": {"is": "text"}},
        {"type": "finished", "outcome": {"is": "completed", "finish": "message", "result": 5}},
        {"type": "usage", "provider": "x", "model": "m" * 5000, "usage": {"input": 1}},
        {"type": "nonsense"},
    ],
)
def test_a_turn_does_not_write_what_is_not_its_own(cluster, event):
    task = covey.submit(made(Worker, max_restarts=0), "forges", json.dumps(event))
    with pytest.raises(covey.CoveyError):
        task.result(30)
    assert kinds(task).count("started") == 1 and "steered" not in kinds(task)


def test_what_the_log_cannot_keep_ends_the_task_with_the_reason(cluster):
    task = covey.submit(made(Worker, max_restarts=0), "deep", "x")
    with pytest.raises(covey.CoveyError, match="64 levels"):
        task.result(30)
    assert of(task, "tool_call_done")[0]["outcome"]["is"] == "error", "the call was open still, and is closed"


def test_a_log_of_large_events_is_read_in_any_way(cluster):
    task = covey.submit(made(Worker), "large", "x")
    # Together they are more than one message may be.
    assert task.result(60) == "said" and [len(event["text"]) for event in of(task, "thought_delta")] == [4_000_000] * 20
    assert task.done() and len(list(task.chunks())) == 0


def test_a_turn_that_writes_without_end_is_ended(cluster):
    task = covey.submit(made(Worker, max_restarts=0), "babbles", "x")
    eventually(task.done, 120)
    with pytest.raises(covey.CoveyError, match="MiB of events"):
        task.result(60)
    task = covey.submit(made(Worker, max_restarts=0), "counts", "x")
    with pytest.raises(covey.CoveyError, match="64 models"):
        task.result(30)


def test_an_approval_is_of_what_was_shown(script_cluster, tmp_path):
    """A run after a lost one that asks for something else is asked about that."""
    task = covey.submit(made(Worker), "fickle", str(tmp_path / "flag"))
    assert "first" in question(task)
    task.answer("approve")
    asked = eventually(lambda: (q := task.question) and "second" in q.prompt and q)
    assert asked.prompt == 'may this be done?\ndelete {"path": "second"}'
    task.answer("deny")
    assert task.result(60) is False


def lines(response):
    """Server-sent events of a stream: id, kind and data."""
    fields = {}
    for line in response.iter_lines():
        if not line and "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}
        elif line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


def test_the_log_is_read_over_http_from_any_place(cluster):
    task = covey.submit(made(Worker), "run", "cats")
    task.result(60)
    known = [(event.number, event.type, event.record) for event in task.events()]
    url = f"http://{cluster.keys['address']}/v1/tasks/{task.id}/events"
    admin = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    with httpx.stream("GET", url, headers=admin) as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert list(lines(response)) == known
    with httpx.stream("GET", url, headers={**admin, "Last-Event-ID": "5"}) as response:
        assert list(lines(response)) == known[5:]
    with httpx.stream("GET", f"{url}?after=7", headers=admin) as response:
        assert list(lines(response)) == known[7:]
    for wrong in ("x", "-1", str(2**63), str(2**64 - 1)):
        assert httpx.get(f"{url}?after={wrong}", headers=admin).status_code == 400, wrong
    for behind in (len(known), len(known) + 5):
        assert httpx.get(f"{url}?after={behind}", headers=admin).status_code == 204
    assert httpx.get(url).status_code == 401
    other = cluster.cli("key", "add", f"other-{uuid.uuid4().hex[:6]}").stdout.strip()
    refused = httpx.get(url, headers={"Authorization": f"Bearer {other}"})
    assert refused.status_code == 404 and refused.json()["error"]["kind"] == "not_found"


def test_a_log_is_followed_while_it_grows(cluster):
    task = covey.submit(made(Worker), "guarded", "/x")
    url = f"http://{cluster.keys['address']}/v1/tasks/{task.id}/events"
    admin = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    question(task)
    assert httpx.get(f"{url}?after=1000", headers=admin).status_code == 400
    with httpx.stream("GET", url, headers=admin, timeout=60) as response:
        seen = []
        for _, kind, entry in lines(response):
            seen.append(kind)
            if kind == "interrupt_raised":
                task.answer("approve")
        assert seen[-1] == "finished" and "interrupt_resolved" in seen


def test_the_terminal_prints_the_log(cluster):
    name = made(Worker).register()
    said = cluster.cli("submit", name, "\x1b[2Jcats \u202e", "--events")
    assert said.returncode == 0, said.stderr
    assert not {"\x1b", "\u202e"} & set(said.stdout)
    log = [json.loads(line) for line in said.stdout.splitlines()]
    assert [entry["seq"] for entry in log] == list(range(1, len(log) + 1))
    assert log[-1]["event"]["type"] == "finished"
    ready = next(entry["event"] for entry in log if entry["event"]["type"] == "tool_call_ready")
    assert ready["args"] == {"q": "\x1b[2Jcats \u202e"}


async def test_a2a_shows_what_it_can_and_the_rest_to_who_declares_the_extension(cluster):
    from a2a.client.client import ClientCallContext
    from a2a.types import Message, Part, Role, SendMessageRequest

    name = made(Worker).register()
    logs = {}
    for declared in (False, True):
        async with client_1_3(cluster, f"/a2a/{name}") as client:
            assert EXTENSION in [e.uri for e in client._card.capabilities.extensions]
            message = Message(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=[Part(text="cats")])
            context = ClientCallContext(service_parameters={"A2A-Extensions": EXTENSION} if declared else {})
            events = [event async for event in client.send_message(SendMessageRequest(message=message), context=context)]
        logs[declared] = events
    updates = {declared: [e.status_update for e in events if e.HasField("status_update")] for declared, events in logs.items()}
    said = [u.status.message.parts[0].text for u in updates[False] if u.status.message.parts]
    assert said[0] == "[pending] look\n[in_progress] answer"
    assert said[1:] == ["calls `search`", "calls `divide`", "calls `grown`", "calls `wild`", "nearly"]
    assert not any(EXTENSION in u.metadata for u in updates[False])
    entries = [u.metadata[EXTENSION]["event"]["type"] for u in updates[True] if EXTENSION in u.metadata]
    assert {"tool_call_opened", "tool_call_done", "tool_call_progress", "state_snapshot", "state_delta", "custom"} <= set(entries)
    # The rest is the same.
    shape = lambda events: [e.WhichOneof("payload") for e in events if not (e.HasField("status_update") and EXTENSION in e.status_update.metadata)]
    assert shape(logs[True]) == shape(logs[False])


def test_a_prompt_agent_tells_its_thoughts_tools_and_tokens(script_cluster):
    script = script_cluster

    @covey.agent(name="halver")
    class Halver:
        """Halves."""

        def run(self, message: str):
            yield "it is "
            yield str(int(message) // 2)

    Halver.register()
    asker = covey.llm_agent("asker", model="script", system="Ask.", tools=[Halver])
    asker.register()
    script.answers[:] = [{"think": ["so ", "hm"], "calls": [("halver", {"message": "8"})]}, "it is four"]
    task = covey.submit("asker", "", "half of 8?")
    assert task.result(30) == "it is four"
    log = list(task.events())
    order = [event.type for event in log if event.type.startswith(("tool", "sub", "usage"))]
    assert order == [
        "tool_call_opened", "tool_call_args_delta", "tool_call_args_delta", "usage", "tool_call_ready",
        "sub_run_started", "tool_call_progress", "tool_call_progress", "sub_run_finished", "tool_call_done", "usage",
    ]  # fmt: skip
    opened = of(task, "tool_call_opened")[0]
    assert (opened["name"], opened["provider_call"]) == ("halver", "c0")
    assert of(task, "tool_call_ready")[0]["args"] == {"message": "8"}
    assert [p["content"] for p in of(task, "tool_call_progress")] == ["it is ", "4"]
    assert of(task, "tool_call_done")[0]["outcome"] == {"is": "ok", "content": [{"text": "it is 4"}]}
    started = of(task, "sub_run_started")[0]
    assert (started["agent"], started["via"]) == ("halver", f"tool:{opened['call']}")
    assert of(task, "sub_run_finished")[0]["outcome"] == "success"
    thoughts = [part["part"] for part in of(task, "part_opened") if part["kind"]["is"] == "reasoning"]
    assert "".join(d["text"] for d in of(task, "thought_delta") if d["part"] in thoughts) == "so hm"
    used = of(task, "usage")
    assert [(u["model"], u["usage"]) for u in used] == [("script", {"input": 30, "output": 10})] * 2
    assert log[-1].data["usage"] == {"script": {"input": 60, "output": 20}}


@pytest.fixture(scope="module")
def scripted_nodes(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("events"), "--isolation", "none") as served:
        yield served


@pytest.fixture
def script_cluster(scripted_nodes):
    """A model whose answers are written down beforehand; the session is this cluster's."""
    nodes, script = scripted_nodes
    session = nodes.connect()
    nodes.live(1)
    yield script
    session.close()


def test_python_counts_the_tokens_of_its_requests(script_cluster):
    @covey.agent(name=f"thinker-{uuid.uuid4().hex[:6]}", model="script")
    class Thinker:
        async def run(self, text: str, ctx: Context) -> str:
            return await ctx.llm.complete(text)

    script_cluster.answers[:] = ["well"]
    task = covey.submit(Thinker, "run", "hm")
    assert task.result(30) == "well"
    assert [(u["model"], u["usage"]) for u in of(task, "usage")] == [("script", {"input": 30, "output": 10})]
    assert of(task, "finished")[0]["usage"] == {"script": {"input": 30, "output": 10}}


def test_every_kind_of_event_is_written_by_somebody(script_cluster, tmp_path):
    """With the test of the prompt agent (sub-runs, arguments as they grow) and that of tokens, all kinds that the page names."""
    seen = {"sub_run_started", "sub_run_finished", "usage"}
    worker = made(Worker)
    tasks = [covey.submit(worker, "run", "x"), covey.submit(worker, "guarded", "/x")]
    question(tasks[1])
    tasks[1].answer("approve")
    tasks.append(covey.submit(made(Worker), "dies_once", str(tmp_path / "flag")))
    for task in tasks:
        task.result(60)
        seen |= set(kinds(task))
    assert seen == set(KINDS) and len(KINDS) == 31


@pytest.mark.parametrize(
    ("value", "patch", "expected"),
    [
        ({"a": 1}, [{"op": "add", "path": "/b", "value": [1]}, {"op": "add", "path": "/b/-", "value": 2}], {"a": 1, "b": [1, 2]}),
        ([1, 2], [{"op": "add", "path": "/1", "value": 9}], [1, 9, 2]),
        ({"a/b": {"~": 1}}, [{"op": "replace", "path": "/a~1b/~0", "value": 2}], {"a/b": {"~": 2}}),
        ({"a": {"b": 1}}, [{"op": "move", "from": "/a/b", "path": "/c"}, {"op": "copy", "from": "/c", "path": "/d"}], {"a": {}, "c": 1, "d": 1}),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": 1}, {"op": "replace", "path": "", "value": 3}], 3),
        ({"a": 1}, [{"op": "test", "path": "/a", "value": True}], ValueError),
        ([1], [{"op": "add", "path": "/01", "value": 1}], ValueError),
        ([1], [{"op": "remove", "path": "/1"}], ValueError),
        ([1], [{"op": "remove", "path": "/-"}], ValueError),
        ({"a": {}}, [{"op": "move", "from": "/a", "path": "/a/b"}], ValueError),
        ({}, [{"op": "add", "path": "x", "value": 1}], ValueError),
        ({}, [{"op": "jump", "path": ""}], ValueError),
        ({}, [{"op": "add", "path": "/x"}], ValueError),
        ({}, {"op": "add"}, TypeError),
    ],
)
def test_a_patch_does_what_rfc_6902_says(value, patch, expected):
    before = json.dumps(value)
    if isinstance(expected, type):
        with pytest.raises(expected):
            apply(value, patch)
    else:
        assert apply(value, patch) == expected
    assert json.dumps(value) == before
