"""Conversations with tasks: questions and answers, messages in mid-task, files, artifacts, earlier turns."""

import base64
import os
import uuid

import httpx
import pytest
from conftest import eventually
from test_clients import client_1_3

import covey
from covey import Context, File, Message, Reply, agent


def made(cls, **options):
    """An agent under a name of its own, so that no other test has its actors."""
    return agent(name=f"{cls.__name__}-{uuid.uuid4().hex[:6]}", **options)(cls)


class Painter:
    """Paints a wall."""

    async def run(self, text: str, ctx: Context) -> str:
        if text == "now":
            return "painted at once"
        color = await ctx.ask("which color?", options=["red", "blue"])
        coats = await ctx.ask("how many coats?", schema={"type": "integer"})
        return f"{color} x {coats.data}"

    def slowly(self, text: str, ctx: Context) -> str:
        return f"{text} in {ctx.ask('which color?').result()}"

    async def hasty(self, text: str, ctx: Context) -> str:
        try:
            return await ctx.ask("which color?", timeout=0.2)
        except covey.DeadlineExceeded:
            return "grey, as nobody said anything"

    async def impatient(self, text: str, ctx: Context) -> str:
        import asyncio

        try:
            await asyncio.wait_for(ctx.ask("which color?"), 0.2)
        except asyncio.TimeoutError:
            ctx.status("not waiting")
            return await ctx.ask("and now?")

    async def secret(self, text: str, ctx: Context) -> str:
        return f"token {await ctx.authorize('log in', url='https://login.example')}"

    async def two(self, text: str, ctx: Context) -> list:
        import asyncio

        return await asyncio.gather(ctx.ask("first?"), ctx.ask("second?"))

    async def listen(self, text: str, ctx: Context):
        yield "listening"
        while (said := await ctx.receive(timeout=20)) != "stop":
            yield f" {said}"


def question(task, number=1):
    """The task's question of this number, once it waits for its answer; a run after a lost one asks again."""
    prompt = None
    for event in task.events():
        body = event["event"]
        if body["type"] == "interrupt_raised":
            number -= 1
            prompt = body["prompt"]
        elif body["type"] == "status" and body["state"] == "waiting" and number <= 0:
            return prompt
    raise AssertionError("the task asks nothing more")


def test_a_task_asks_and_its_turn_is_others_meanwhile(cluster):
    painter = made(Painter, pool=1)
    first = covey.submit(painter, "run", "a wall")
    assert question(first) == "which color?"
    # One actor with one turn; the task that waits does not hold it.
    assert covey.submit(painter, "run", "now").result(timeout=20) == "painted at once"
    first.send("red", message_id="m1")
    first.send("red", message_id="m1")
    assert question(first, 2) == "how many coats?"
    first.send("1", message_id="m1")  # the same message is taken once
    first.send("2")
    assert first.result(timeout=20) == "red x 2"
    for say in (first.send, first.answer):
        with pytest.raises(covey.errors.FailedPrecondition, match=f"task `{first.id}` has ended"):
            say("more")


def test_questions_of_sync_methods_logins_and_deadlines(cluster):
    painter = made(Painter, pool=1)
    slowly = covey.submit(painter, "slowly", "a door")
    assert question(slowly) == "which color?"
    assert covey.submit(painter, "hasty", "x").result(timeout=20) == "grey, as nobody said anything"
    slowly.send("green")
    assert slowly.result(timeout=20) == "a door in green"
    impatient = covey.submit(painter, "impatient", "x")
    assert question(impatient, 2) == "and now?"
    impatient.send("grey")
    assert impatient.result(timeout=20) == "grey"
    secret = covey.submit(painter, "secret", "x")
    eventually(lambda: secret.state() == "auth-required")
    secret.send("abc")
    assert secret.result(timeout=20) == "token abc"
    two = covey.submit(painter, "two", "x")
    assert question(two) == "first?"
    two.send("1")
    two.send("2")
    assert two.result(timeout=20) == ["1", "2"]
    stopped = covey.submit(painter, "slowly", "x")
    question(stopped)
    stopped.cancel()
    with pytest.raises(covey.Cancelled):
        stopped.result()
    assert covey.submit(painter, "run", "now").result(timeout=20) == "painted at once"


def test_a_message_to_a_working_task_reaches_its_method(cluster):
    task = covey.submit(made(Painter), "listen", "x")
    for word in ("one", "two", "stop"):
        task.send(word)
    assert task.result(timeout=20) == "listening one two"


def test_a_plain_call_cannot_ask(cluster):
    with pytest.raises(covey.errors.FailedPrecondition, match="only a task can ask"):
        made(Painter).remote().run.remote("a wall").result(timeout=20)


def test_answers_outlive_the_worker_and_the_head(nodes):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    task = covey.submit(made(Painter, pool=1), "run", "a wall")
    assert question(task) == "which color?"
    for lost in range(1, 7):  # more often than a task may fail
        nodes.kill9("w1")
        nodes.worker("w1")
        assert question(task, lost + 1) == "which color?"
    task.send("blue")
    assert question(task, 8) == "how many coats?"
    nodes.kill9("head")
    nodes.head()
    nodes.live(1)
    nodes.connect()
    task = covey.Task.from_id(task.id)
    assert task.state() == "input-required"
    nodes.kill9("w1")
    # Nobody runs it now; what is said is kept for the run to come.
    task.send("3")
    nodes.worker("w1")
    assert task.result(timeout=30) == "blue x 3"


class Studio:
    """Takes and makes all kinds of things."""

    async def run(self, text: str, ctx: Context, files: list[File]):
        ctx.status(f"got {len(files)} files")
        yield f"{text}:"
        for file in files:
            yield File(file.read()[::-1], name=f"not-{file.name}", mime=file.mime)
        yield {"count": len(files)}
        ctx.artifact("log", "one line\n", name="log.txt", last=False)
        ctx.artifact("log", "another\n", append=True, last=True)
        ctx.artifact("link", File(url="https://example.com/big.bin", name="big.bin"))

    async def one(self, text: str) -> File:
        return File(text, name="note.txt")

    async def refuse(self, text: str):
        raise covey.Rejected("not on Sundays")

    async def say(self, text: str):
        return Reply(f"you said {text}")

    async def before(self, text: str, ctx: Context) -> str:
        return " / ".join(f"{turn['role']}: {turn['content']}" for turn in ctx.history)

    async def parts(self, ctx: Context) -> dict:
        return {"text": ctx.message, "data": ctx.message.data, "files": [f.name for f in ctx.message.files]}


def test_files_and_data_go_in_and_out_of_python(cluster):
    studio = made(Studio)
    name = studio.register()
    task = covey.submit(name, "run", "look", File(b"abc", name="a.bin"))
    assert task.result(timeout=20) == ["look:", File(b"cba", name="not-a.bin"), {"count": 1}]
    assert covey.submit(name, "one", "hi").result(timeout=20) == [File(b"hi", name="note.txt", mime="text/plain")]
    reply = covey.submit(name, "say", "hi").result(timeout=20)
    assert isinstance(reply, Message) and reply == "you said hi"
    with pytest.raises(covey.Rejected, match="not on Sundays"):
        covey.submit(name, "refuse", "x").result(timeout=20)
    parts = covey.submit(name, "parts", "a", {"b": 1}, File(url="https://example.com/c.png")).result(timeout=20)
    assert parts == {"text": "a", "data": {"b": 1}, "files": [None]}
    covey.submit(name, "one", "first", context_id="talk-1").result(timeout=20)
    covey.submit(name, "say", "second", context_id="talk-1").result(timeout=20)
    before = covey.submit(name, "before", "third", context_id="talk-1").result(timeout=20)
    assert before == "user: first / assistant: [note.txt] / user: second / assistant: you said second"


async def ask(client, text, skill=None, **about):
    """Sends a message and gives what streams back."""
    from a2a.types import Message as Sent
    from a2a.types import Part, Role, SendMessageRequest
    from google.protobuf.struct_pb2 import Struct

    parts = about.pop("parts", None) or [Part(text=text)]
    metadata = Struct()
    if skill:
        metadata.update({"skill": skill})
    sent = Sent(message_id=uuid.uuid4().hex, role=Role.ROLE_USER, parts=parts, metadata=metadata, **about)
    return [event async for event in client.send_message(SendMessageRequest(message=sent))]


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_a_conversation_over_a2a(cluster, binding):
    from a2a.types import GetTaskRequest, TaskState

    name = made(Painter, pool=1).register()
    async with client_1_3(cluster, f"/a2a/{name}", binding) as client:
        events = await ask(client, "a wall")
        last = events[-1].status_update.status
        assert last.state == TaskState.TASK_STATE_INPUT_REQUIRED
        assert last.message.parts[0].text == "which color?"
        about = last.message.parts[1].data.struct_value
        assert [option["id"] for option in about["options"]] == ["red", "blue"]
        task = events[0].task.id
        events = await ask(client, "red", task_id=task)
        assert events[0].task.id == task, "a follow-up begins with the task as it stands"
        last = events[-1].status_update.status
        assert (last.state, last.message.parts[0].text) == (TaskState.TASK_STATE_INPUT_REQUIRED, "how many coats?")
        events = await ask(client, "3", task_id=task)
        assert events[-1].status_update.status.state == TaskState.TASK_STATE_COMPLETED
        whole = await client.get_task(GetTaskRequest(id=task))
        said = [(message.role, message.parts[0].text) for message in whole.history]
        assert said == [(1, "a wall"), (2, "which color?"), (1, "red"), (2, "how many coats?"), (1, "3")]
        assert whole.artifacts[0].parts[0].text == "red x 3"


async def test_all_modalities_over_a2a(cluster):
    from a2a.types import GetTaskRequest, Part, TaskState

    name = made(Studio).register()
    async with client_1_3(cluster, f"/a2a/{name}") as client:
        image = Part(raw=b"\x89PNG123", media_type="image/png", filename="p.png")
        events = await ask(client, "", parts=[Part(text="see"), image])
        told = [e.status_update.status.message.parts[0].text for e in events if e.status_update.status.message.parts]
        assert told == ["got 1 files"]
        task = await client.get_task(GetTaskRequest(id=events[0].task.id))
        answer, log, link = task.artifacts
        assert answer.parts[0].text == "see:" and answer.parts[2].data.struct_value["count"] == 1
        assert (answer.parts[1].raw, answer.parts[1].media_type, answer.parts[1].filename) == (b"321GNP\x89", "image/png", "not-p.png")
        assert (log.name, log.parts[0].text) == ("log.txt", "one line\nanother\n")
        assert link.parts[0].url == "https://example.com/big.bin"
        chunks = [e.artifact_update for e in events if e.artifact_update.artifact.artifact_id == log.artifact_id]
        assert [(c.append, c.last_chunk) for c in chunks] == [(False, False), (True, True)]
        refused = (await ask(client, "x", skill="refuse"))[-1].status_update.status
        assert (refused.state, refused.message.parts[0].text) == (TaskState.TASK_STATE_REJECTED, "not on Sundays")
        said = (await ask(client, "hi", skill="say"))[-1].status_update.status
        assert (said.state, said.message.parts[0].text) == (TaskState.TASK_STATE_COMPLETED, "you said hi")


async def test_an_agent_may_answer_with_a_mere_message(cluster):
    name = made(Studio, a2a={"messages": True, "version": "7.1"}).register()
    async with client_1_3(cluster, f"/a2a/{name}") as client:
        events = await ask(client, "hi", skill="say")
        assert [e.WhichOneof("payload") for e in events] == ["message"]
        assert events[0].message.parts[0].text == "you said hi"
        events = await ask(client, "hi", skill="one")
        assert [e.WhichOneof("payload") for e in events] == ["task", "status_update", "artifact_update", "status_update"]


def test_old_clients_converse_too(cluster):
    name = made(Painter).register()
    headers = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    with httpx.Client(base_url=f"http://{cluster.keys['address']}", headers=headers, timeout=30) as http:

        def send(text, **about):
            message = {"kind": "message", "messageId": os.urandom(8).hex(), "role": "user", "parts": [{"kind": "text", "text": text}], **about}
            body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
            return http.post(f"/a2a/{name}", json=body).json()["result"]

        task = send("a wall")
        assert task["status"]["state"] == "input-required"
        assert task["status"]["message"]["parts"][0] == {"kind": "text", "text": "which color?"}
        assert send("blue", taskId=task["id"])["status"]["state"] == "input-required"
        done = send("1", taskId=task["id"])
        assert done["status"]["state"] == "completed" and done["artifacts"][0]["parts"][0]["text"] == "blue x 1"
        file = {"kind": "file", "file": {"bytes": base64.b64encode(b"xyz").decode(), "mimeType": "audio/wav", "name": "a.wav"}}
        studio = made(Studio).register()
        message = {"kind": "message", "messageId": "m", "role": "user", "parts": [{"kind": "text", "text": "hear"}, file]}
        body = {"jsonrpc": "2.0", "id": 1, "method": "message/send", "params": {"message": message}}
        answer = http.post(f"/a2a/{studio}", json=body).json()["result"]["artifacts"][0]
        assert base64.b64decode(answer["parts"][1]["file"]["bytes"]) == b"zyx"
        assert answer["parts"][1]["file"]["mimeType"] == "audio/wav"
