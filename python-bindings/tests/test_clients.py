"""Unmodified third-party clients: a2a-sdk 1.3.0, 0.3.26 and 0.2.16, and openai."""

import contextlib
import json
import os
import subprocess
import sys
import time

import grpc.aio
import httpx
import pytest
from conftest import ROOT
from openai import BadRequestError, NotFoundError, OpenAI

CACHE = ROOT / ".cache"


@pytest.fixture
def http(cluster):
    headers = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    with httpx.Client(base_url=f"http://{cluster.keys['address']}", headers=headers, timeout=30) as client:
        yield client


def run_client(cluster, version, code):
    """Runs a script against another version of a2a-sdk; it prints one JSON line."""
    env = {**os.environ, "ADDRESS": f"http://{cluster.keys['address']}", "KEY": cluster.keys["admin_key"]}
    env["PYTHONPATH"] = str(CACHE / f"a2a-{version}")
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def with_key(details, key):
    """A call's details with a bearer key in its metadata."""
    metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", f"Bearer {key}"))
    return details._replace(metadata=metadata)


class KeyOnCalls(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, key):
        self.key = key

    async def intercept_unary_unary(self, continuation, details, request):
        return await continuation(with_key(details, self.key), request)


class KeyOnStreams(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, key):
        self.key = key

    async def intercept_unary_stream(self, continuation, details, request):
        return await continuation(with_key(details, self.key), request)


@contextlib.asynccontextmanager
async def client_1_3(cluster, path, binding="JSONRPC"):
    from a2a.client import ClientConfig, create_client

    key = cluster.keys["admin_key"]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
        config = ClientConfig(
            streaming=True,
            httpx_client=http,
            supported_protocol_bindings=[binding],
            grpc_channel_factory=lambda url: grpc.aio.insecure_channel(url, interceptors=[KeyOnCalls(key), KeyOnStreams(key)]),
        )
        yield await create_client(f"http://{cluster.keys['address']}{path}", config)


async def stream_1_3(cluster, path, text, binding="JSONRPC"):
    from a2a.types import Message, Part, Role, SendMessageRequest, TaskState

    async with client_1_3(cluster, path, binding) as client:
        message = Message(message_id=os.urandom(8).hex(), role=Role.ROLE_USER, parts=[Part(text=text)])
        words, states, times = [], [], []
        async for event in client.send_message(SendMessageRequest(message=message)):
            if event.HasField("artifact_update"):
                words.append(event.artifact_update.artifact.parts[0].text)
                times.append(time.monotonic())
            if event.HasField("status_update"):
                states.append(TaskState.Name(event.status_update.status.state))
        return words, states, times


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_a2a_sdk_1_3_streams_word_by_word_as_they_are_made(cluster, binding):
    words, states, times = await stream_1_3(cluster, "/a2a/echo", "slow: one two three", binding)
    assert words == ["one ", "two ", "three"]
    assert states == ["TASK_STATE_WORKING", "TASK_STATE_COMPLETED"]
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert all(gap > 0.25 for gap in gaps), f"words came in bursts: {gaps}"


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_a2a_sdk_1_3_gets_cancels_subscribes_and_is_told_what_is_wrong(cluster, binding):
    from a2a.types import CancelTaskRequest, GetTaskRequest, Message, Part, Role, SendMessageRequest, SubscribeToTaskRequest, TaskState
    from a2a.utils.errors import TaskNotCancelableError, TaskNotFoundError, UnsupportedOperationError

    async with client_1_3(cluster, "/a2a/echo", binding) as client:
        part = Part(text="slow: " + "x " * 40)
        message = Message(message_id=os.urandom(8).hex(), role=Role.ROLE_USER, parts=[part])
        stream = client.send_message(SendMessageRequest(message=message))
        task = (await anext(stream)).task
        assert task.history[0].parts[0].text == part.text
        running = await client.get_task(GetTaskRequest(id=task.id, history_length=0))
        assert running.status.state in (TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING) and not running.history
        late = client.subscribe(SubscribeToTaskRequest(id=task.id))
        assert (await anext(late)).task.id == task.id
        assert (await client.cancel_task(CancelTaskRequest(id=task.id))).status.state == TaskState.TASK_STATE_CANCELED
        for events in (stream, late):
            last = [event async for event in events][-1]
            assert last.status_update.status.state == TaskState.TASK_STATE_CANCELED
        with pytest.raises(TaskNotCancelableError):
            await client.cancel_task(CancelTaskRequest(id=task.id))
        with pytest.raises(TaskNotFoundError):
            await client.get_task(GetTaskRequest(id="task-none"))
        with pytest.raises(UnsupportedOperationError):
            await anext(client.subscribe(SubscribeToTaskRequest(id=task.id)))


@pytest.mark.parametrize("binding", ["JSONRPC", "HTTP+JSON", "GRPC"])
async def test_a2a_sdk_1_3_lists_tasks_page_by_page(cluster, binding):
    from a2a.types import ListTasksRequest, Message, Part, Role, SendMessageRequest, TaskState
    from a2a.utils.errors import InvalidParamsError

    context = f"list-{binding}-{os.urandom(4).hex()}"
    async with client_1_3(cluster, "/a2a/echo", binding) as client:
        for i in range(5):
            message = Message(message_id=os.urandom(8).hex(), context_id=context, role=Role.ROLE_USER, parts=[Part(text=f"n {i}")])
            async for _ in client.send_message(SendMessageRequest(message=message)):
                pass
        found, token = [], ""
        while True:
            page = await client.list_tasks(ListTasksRequest(context_id=context, page_size=2, page_token=token))
            assert page.total_size == 5 and page.page_size == 2 and len(page.tasks) <= 2
            found += page.tasks
            if not (token := page.next_page_token):
                break
        texts = [task.history[0].parts[0].text for task in found]
        assert texts == [f"n {i}" for i in range(4, -1, -1)], "newest change first, each once"
        assert all(task.status.state == TaskState.TASK_STATE_COMPLETED and not task.artifacts for task in found)
        whole = await client.list_tasks(ListTasksRequest(context_id=context, include_artifacts=True, history_length=0))
        assert [task.artifacts[0].parts[0].text for task in whole.tasks] == texts and not whole.tasks[0].history
        after = found[2].status.timestamp
        assert len((await client.list_tasks(ListTasksRequest(context_id=context, status_timestamp_after=after))).tasks) >= 3
        assert not (await client.list_tasks(ListTasksRequest(context_id=context, status=TaskState.TASK_STATE_WORKING))).tasks
        with pytest.raises(InvalidParamsError):
            await client.list_tasks(ListTasksRequest(page_size=101))


async def test_an_agent_that_raises_in_mid_stream_ends_in_failed(cluster):
    words, states, _ = await stream_1_3(cluster, "/a2a/echo", "fail: one two")
    assert words == ["one ", "two"] and states[-1] == "TASK_STATE_FAILED"


# 0.3's gRPC names no agent: it gets to the default one.
@pytest.mark.parametrize("transport,path", [("JSONRPC", "/a2a/echo"), ("HTTP+JSON", "/a2a/echo"), ("HTTP+JSON", ""), ("GRPC", "")])
def test_a2a_sdk_0_3_streams(cluster, transport, path):
    code = """
import asyncio, json, os, grpc, httpx
from a2a.client import ClientConfig, ClientFactory, A2ACardResolver, create_text_message_object
KEY = "Bearer " + os.environ["KEY"]
class Keyed(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation, details, request):
        metadata = grpc.aio.Metadata(*(details.metadata or ()), ("authorization", KEY))
        return await continuation(details._replace(metadata=metadata), request)
async def main():
    transport, path = "TRANSPORT", "PATH"
    text = "a b c" if path else "Repeat: sun moon"
    async with httpx.AsyncClient(headers={"Authorization": KEY}, timeout=30) as http:
        card = await A2ACardResolver(http, os.environ["ADDRESS"] + path).get_agent_card()
        channel = lambda url: grpc.aio.insecure_channel(url, interceptors=[Keyed()])
        config = ClientConfig(streaming=True, httpx_client=http, supported_transports=[transport], grpc_channel_factory=channel)
        client = ClientFactory(config).create(card)
        words, state = [], None
        async for task, update in client.send_message(create_text_message_object(content=text)):
            if update is not None and update.kind == "artifact-update":
                words.append(update.artifact.parts[0].root.text)
            state = task.status.state.value
        print(json.dumps([words, state]))
asyncio.run(main())
"""
    words, state = run_client(cluster, "0.3", code.replace("TRANSPORT", transport).replace("PATH", path))
    assert state == "completed"
    assert words == ["a ", "b ", "c"] if path else "".join(words) == "sun moon"


def test_a2a_sdk_0_2_tutorial_client_finds_the_default_agent(cluster):
    code = """
import asyncio, json, os, uuid, httpx
from a2a.client import A2ACardResolver, A2AClient
from a2a.types import MessageSendParams, SendStreamingMessageRequest, SendMessageRequest
async def main():
    headers = {"Authorization": "Bearer " + os.environ["KEY"]}
    async with httpx.AsyncClient(headers=headers) as http:
        card = await A2ACardResolver(httpx_client=http, base_url=os.environ["ADDRESS"]).get_agent_card()
        client = A2AClient(httpx_client=http, agent_card=card)
        payload = {"message": {"role": "user", "parts": [{"kind": "text", "text": "Repeat: sun moon"}], "messageId": uuid.uuid4().hex}}
        text, kinds = "", []
        async for chunk in client.send_message_streaming(SendStreamingMessageRequest(id="1", params=MessageSendParams(**payload))):
            result = chunk.root.result
            kinds.append(result.kind)
            if result.kind == "artifact-update":
                text += result.artifact.parts[0].root.text
        payload["message"]["messageId"] = uuid.uuid4().hex
        sent = await client.send_message(SendMessageRequest(id="2", params=MessageSendParams(**payload)))
        print(json.dumps([text, kinds[0], kinds[-1], sent.root.result.status.state.value]))
asyncio.run(main())
"""
    assert run_client(cluster, "0.2", code) == ["sun moon", "task", "status-update", "completed"]


def rpc(http, method, params, path="/a2a/echo", **headers):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    return http.post(path, json=body, headers=headers).json()


def message(text, new=False, **more):
    part = {"text": text} if new else {"kind": "text", "text": text}
    return {"message": {"messageId": os.urandom(8).hex(), "role": "ROLE_USER" if new else "user", "parts": [part], **more}}


def frames(http, method, params, path="/a2a/echo", **headers):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    out = []
    with http.stream("POST", path, json=body, headers=headers) as response:
        number = None
        for line in response.iter_lines():
            if line.startswith("id:"):
                number = int(line[3:])
            elif line.startswith("data:"):
                out.append((number, json.loads(line[5:])["result"]))
    return out


def test_get_cancel_subscribe_in_both_versions(http):
    for new in (False, True):
        send, get, cancel, subscribe = (
            ("SendMessage", "GetTask", "CancelTask", "SubscribeToTask") if new else ("message/send", "tasks/get", "tasks/cancel", "tasks/resubscribe")
        )
        done = rpc(http, send, message("a b", new))["result"]
        task = done["task"] if new else done
        assert task["status"]["state"] == ("TASK_STATE_COMPLETED" if new else "completed")
        assert rpc(http, get, {"id": task["id"]})["result"]["artifacts"][0]["parts"][0]["text"] == "a b"
        assert rpc(http, cancel, {"id": task["id"]})["error"]["code"] == -32002
        assert rpc(http, subscribe, {"id": task["id"]})["error"]["code"] == -32004
        assert rpc(http, get, {"id": "task-none"})["error"]["code"] == -32001
        configuration = {"returnImmediately": True} if new else {"blocking": False}
        slow = rpc(http, send, {**message("slow: " + "x " * 50, new), "configuration": configuration})["result"]
        slow = slow["task"] if new else slow
        assert slow["status"]["state"] not in ("completed", "TASK_STATE_COMPLETED")
        ended = rpc(http, cancel, {"id": slow["id"]})["result"]
        assert ended["status"]["state"] == ("TASK_STATE_CANCELED" if new else "canceled")


def test_a_stream_resumes_from_its_last_event_id_without_loss(http):
    sent = message("one two three four", messageId="resume-me")
    whole = frames(http, "message/stream", sent)
    assert [n for n, _ in whole] == sorted({n for n, _ in whole})
    # The same message again is the same task, and a cursor skips what was seen.
    cut = whole[2][0]
    rest = frames(http, "message/stream", sent, **{"Last-Event-ID": str(cut)})
    assert rest == [f for f in whole if f[0] > cut]


def test_a_subscriber_who_comes_late_gets_the_task_and_then_the_rest(http):
    for new in (False, True):
        send, subscribe = ("SendMessage", "SubscribeToTask") if new else ("message/send", "tasks/resubscribe")
        configuration = {"returnImmediately": True} if new else {"blocking": False}
        made = rpc(http, send, {**message("slow: one two three", new), "configuration": configuration})["result"]
        task = made["task"] if new else made
        got = [f for _, f in frames(http, subscribe, {"id": task["id"]})]
        first, last = (got[0]["task"], got[-1]["statusUpdate"]) if new else (got[0], got[-1])
        assert first["id"] == task["id"]
        assert last["status"]["state"] == ("TASK_STATE_COMPLETED" if new else "completed")
        text = "".join(p["text"] for a in first.get("artifacts", []) for p in a["parts"])
        updates = [f.get("artifactUpdate", {}) if new else f for f in got[1:]]
        text += "".join(u["artifact"]["parts"][0]["text"] for u in updates if "artifact" in u)
        assert text == "one two three"


def test_all_agents_are_in_the_catalogue(http):
    found = {agent["name"]: agent for agent in http.get("/a2a").json()["agents"]}
    card = http.get(found["echo"]["card"]).json()
    assert card["name"] == "echo" and card["supportedInterfaces"][0]["url"] == found["echo"]["url"]
    links = http.get("/.well-known/api-catalog")
    assert links.headers["content-type"] == "application/linkset+json"
    assert {link["anchor"] for link in links.json()["linkset"]} == {agent["url"] for agent in found.values()}


def test_cards_are_cached_by_tag_and_by_time(http):
    path = "/a2a/echo/.well-known/agent-card.json"
    card = http.get(path)
    tag, since = card.headers["etag"], card.headers["last-modified"]
    for headers in ({"If-None-Match": tag}, {"If-None-Match": f'"x", W/{tag}'}, {"If-Modified-Since": since}):
        again = http.get(path, headers=headers)
        assert again.status_code == 304 and again.headers["etag"] == tag and not again.content, headers
    for headers in ({"If-None-Match": '"x"'}, {"If-Modified-Since": "Thu, 01 Jan 2015 00:00:00 GMT"}):
        assert http.get(path, headers=headers).status_code == 200


def test_malformed_requests_get_their_codes(http):
    assert http.post("/a2a/echo", content=b"{").json()["error"]["code"] == -32700
    for wrong in ({"jsonrpc": "1.0"}, [{"jsonrpc": "2.0", "id": 1, "method": "GetTask"}], [], 1, "x", True):
        assert http.post("/a2a/echo", json=wrong).json()["error"]["code"] == -32600
    assert rpc(http, "no/such", {})["error"]["code"] == -32601
    assert rpc(http, "message/send", {})["error"]["code"] == -32602
    assert rpc(http, "SendMessage", message("x", True), **{"A2A-Version": "9.0"})["error"]["code"] == -32009
    assert http.post("/a2a/nobody", json={}).status_code == 404
    assert http.get("/a2a/echo/.well-known/agent-card.json").json()["name"] == "echo"
    card = http.get("/.well-known/agent.json")
    assert http.get("/.well-known/agent-card.json", headers={"If-None-Match": card.headers["etag"]}).status_code == 304


def test_nothing_answers_without_credentials(cluster):
    base = f"http://{cluster.keys['address']}"
    assert httpx.get(f"{base}/livez").text == "ok"
    for path in ("/.well-known/agent-card.json", "/v1/models", "/v1/cluster", "/a2a/echo/.well-known/agent-card.json", "/"):
        assert httpx.get(base + path).status_code == 401, path
    key = {"Authorization": f"Bearer {cluster.keys['admin_key']}"}
    assert httpx.get(f"{base}/v1/models", headers={**key, "Host": "evil.example"}).status_code == 403
    assert httpx.get(f"{base}/v1/models", headers={**key, "Origin": "https://evil.example"}).status_code == 403
    join = {"Authorization": f"Bearer {cluster.keys['join_secret']}"}
    assert httpx.get(f"{base}/v1/models", headers=join).status_code == 403


@pytest.fixture
def openai(cluster):
    return OpenAI(base_url=f"http://{cluster.keys['address']}/v1", api_key=cluster.keys["admin_key"], max_retries=0)


def test_openai_chat_completions_and_models(openai):
    asked = [{"role": "user", "content": [{"type": "text", "text": "Repeat: sun moon star"}]}]
    whole = openai.chat.completions.create(model="tiny", messages=asked)
    assert whole.choices[0].message.content == "sun moon star" and whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens > 0
    stream = list(openai.chat.completions.create(model="tiny", messages=asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "sun moon star"
    assert stream[-1].usage.total_tokens == whole.usage.total_tokens
    short = openai.chat.completions.create(model="tiny", messages=asked, max_tokens=1)
    assert short.choices[0].finish_reason == "length"
    done = openai.completions.create(model="tiny", prompt="<|user|>Repeat: blue<|end|><|assistant|>")
    assert done.choices[0].text == "blue"
    assert "tiny" in [m.id for m in openai.models.list()] and openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(NotFoundError):
        openai.models.retrieve("no/such")


def test_openai_choices_logprobs_and_token_prompts(openai):
    asked = [{"role": "user", "content": "Repeat: sun moon star"}]
    warm = dict(model="tiny", messages=asked, n=3, seed=7, temperature=4.0, max_tokens=30)
    whole = openai.chat.completions.create(**warm)
    assert [c.index for c in whole.choices] == [0, 1, 2] and len({c.message.content for c in whole.choices}) > 1
    alone = openai.chat.completions.create(**{**warm, "n": 1, "seed": 8})
    assert alone.choices[0].message.content == whole.choices[1].message.content
    texts, ends = ["", "", ""], {}
    for chunk in openai.chat.completions.create(**warm, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends.update({choice.index: choice.finish_reason} if choice.finish_reason else {})
    assert texts == [c.message.content for c in whole.choices]
    assert ends == {c.index: c.finish_reason for c in whole.choices}
    told = openai.chat.completions.create(model="tiny", messages=asked, logprobs=True, top_logprobs=2).choices[0]
    assert "".join(t.token for t in told.logprobs.content).strip() == "sun moon star"
    assert all(t.logprob <= 0 and t.top_logprobs[0].logprob == t.logprob for t in told.logprobs.content)
    prompts = ["<|user|>Repeat: blue<|end|><|assistant|>", "<|user|>Repeat: red<|end|><|assistant|>"]
    both = openai.completions.create(model="tiny", prompt=prompts, logprobs=1)
    assert [c.text for c in both.choices] == ["blue", "red"] and both.choices[0].logprobs.text_offset[0] == 0
    assert openai.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=2).usage.prompt_tokens == 3
    with pytest.raises(BadRequestError, match="vocabulary"):
        openai.completions.create(model="tiny", prompt=[10**6])


def test_openai_structured_output(openai):
    from pydantic import BaseModel

    class Place(BaseModel):
        name: str
        rivers: list[int]

    asked = [{"role": "user", "content": "Where does the river run?"}]
    parsed = openai.beta.chat.completions.parse(model="tiny", messages=asked, response_format=Place, max_tokens=200, temperature=1.2, seed=4)
    if parsed.choices[0].finish_reason == "stop":
        assert isinstance(parsed.choices[0].message.parsed, Place)
    free = openai.chat.completions.create(
        model="tiny", messages=asked, temperature=1.5, seed=1, extra_body={"guided_choice": ["north", "south"]}
    )
    assert free.choices[0].message.content in ("north", "south")
    with pytest.raises(BadRequestError, match="constraint is wrong"):
        openai.chat.completions.create(model="tiny", messages=asked, extra_body={"guided_regex": "("})


def function(name, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": parameters}}


TOOLS = [function("weather", city={"type": "string"}), function("timer", minutes={"type": "integer"})]


def test_openai_tools_whole_and_streamed(openai):
    asked = [{"role": "user", "content": "weather in Oslo"}]
    whole = openai.chat.completions.create(model="tiny", messages=asked, tools=TOOLS).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    (call,) = whole.message.tool_calls
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "weather", {"city": "Oslo"})
    chunks = list(openai.chat.completions.create(model="tiny", messages=asked, tools=TOOLS, stream=True))
    pieces = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
    assert pieces[0].id and pieces[0].function.name == "weather" and len(pieces) > 1
    assert json.loads("".join(p.function.arguments for p in pieces)) == {"city": "Oslo"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # What the tool says goes back in; this model was not taught what to make of it.
    asked += [whole.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    assert openai.chat.completions.create(model="tiny", messages=asked, tools=TOOLS, max_tokens=5).choices[0]
    named = {"type": "function", "function": {"name": "timer"}}
    forced = openai.chat.completions.create(model="tiny", messages=asked[:1], tools=TOOLS, tool_choice=named, max_tokens=60)
    assert isinstance(json.loads(forced.choices[0].message.tool_calls[0].function.arguments)["minutes"], int)
    for wrong, why in [
        (dict(tool_choice={"type": "function", "function": {"name": "none"}}), "not among"),
        (dict(tools=[{"type": "web_search"}]), "not served"),
        (dict(tools=TOOLS + TOOLS), "twice"),
        (dict(tools=[], tool_choice="required"), "no `tools`"),
    ]:
        with pytest.raises(BadRequestError, match=why):
            openai.chat.completions.create(**{**dict(model="tiny", messages=asked[:1], tools=TOOLS), **wrong})


def test_openai_responses(openai):
    first = openai.responses.create(model="tiny", input="Repeat: sun moon star")
    assert first.output_text == "sun moon star" and first.status == "completed" and first.usage.output_tokens > 0
    assert openai.responses.retrieve(first.id).output_text == "sun moon star"
    assert [i.content[0].text for i in openai.responses.input_items.list(first.id)] == ["Repeat: sun moon star"]
    cut = openai.responses.create(model="tiny", input="Repeat: sun moon star", max_output_tokens=1, store=False)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"
    with pytest.raises(NotFoundError):
        openai.responses.retrieve(cut.id)
    with openai.responses.stream(model="tiny", input=[{"role": "user", "content": "Repeat: red blue"}]) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_response().output_text == "red blue"
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    assert {"response.output_item.added", "response.output_text.delta", "response.output_text.done"} <= set(kinds)
    # Functions are flat here, and what was said before is remembered.
    flat = [{"type": "function", **t["function"], "strict": True} for t in TOOLS]
    called = openai.responses.create(model="tiny", input="weather in Oslo", tools=flat)
    (call,) = called.output
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Oslo"})
    back = [{"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    after = openai.responses.create(model="tiny", input=back, previous_response_id=called.id, tools=flat, max_output_tokens=5)
    assert after.usage.input_tokens > called.usage.input_tokens
    forced = {"type": "function", "name": "timer"}
    events = list(openai.responses.create(model="tiny", input="x", tools=flat, tool_choice=forced, stream=True, max_output_tokens=60))
    done = next(e for e in events if e.type == "response.function_call_arguments.done")
    assert "minutes" in json.loads(done.arguments) and [e.sequence_number for e in events] == list(range(len(events)))
    openai.responses.delete(first.id)
    for wrong, why in [
        (dict(previous_response_id=first.id), "no response"),
        (dict(background=True), "background"),
        (dict(tools=[{"type": "web_search"}]), "not served"),
        (dict(input=[]), "input"),
    ]:
        with pytest.raises((BadRequestError, NotFoundError), match=why):
            openai.responses.create(**{**dict(model="tiny", input="x"), **wrong})

    from pydantic import BaseModel

    class Place(BaseModel):
        good: bool

    parsed = openai.responses.parse(model="tiny", input="Where?", text_format=Place, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Place)


def test_openai_errors_have_their_shape(openai):
    with pytest.raises(NotFoundError) as caught:
        openai.chat.completions.create(model="none", messages=[{"role": "user", "content": "x"}])
    assert caught.value.code == "model_not_found"
    with pytest.raises(BadRequestError):
        openai.chat.completions.create(model="tiny", messages=[])
    with pytest.raises(BadRequestError):
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}], n=1000)


def test_an_upstream_is_a_model_like_any_other(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1")
    nodes.connect()
    nodes.live(1)
    # The cluster's own endpoint stands for a server elsewhere.
    upstreams = tmp_path / "upstreams.toml"
    url = f"http://{nodes.keys['address']}/v1"
    upstreams.write_text(f'[[upstream]]\nname = "mirror"\nurl = "{url}"\nmodel = "tiny"\napi_key_env = "MIRROR_KEY"\n')
    nodes.env["MIRROR_KEY"] = nodes.keys["admin_key"]
    nodes.worker("w2", "--upstreams", str(upstreams))
    nodes.live(2)
    client = OpenAI(base_url=url, api_key=nodes.keys["admin_key"], max_retries=0)
    asked = [{"role": "user", "content": "Repeat: sun moon"}]
    stream = client.chat.completions.create(model="mirror", messages=asked, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "sun moon"


def test_openai_embeddings_with_the_real_minilm(nodes, tmp_path):
    nodes.head()
    nodes.worker("w1", "--models", str(CACHE / "models"))
    nodes.connect()
    nodes.live(1)
    client = OpenAI(base_url=f"http://{nodes.keys['address']}/v1", api_key=nodes.keys["admin_key"], max_retries=0)
    texts = ["a cat sits on the mat", "a kitten rests on a rug", "the stock market fell today"]
    plain = client.embeddings.create(model="minilm", input=texts, encoding_format="float")
    packed = client.embeddings.create(model="minilm", input=texts)
    vectors = [d.embedding for d in plain.data]
    assert [len(v) for v in vectors] == [384] * 3
    assert max(abs(a - b) for a, b in zip(vectors[0], packed.data[0].embedding)) < 1e-6
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))  # noqa: E731
    assert abs(dot(vectors[0], vectors[0]) - 1) < 1e-4
    assert dot(vectors[0], vectors[1]) > 0.5 > dot(vectors[0], vectors[2])
    short = client.embeddings.create(model="minilm", input=texts, dimensions=32, encoding_format="float").data[0].embedding
    assert len(short) == 32 and abs(dot(short, short) - 1) < 1e-4
    with pytest.raises(BadRequestError, match="384"):
        client.embeddings.create(model="minilm", input=texts, dimensions=999)
    headers = {"Authorization": f"Bearer {nodes.keys['admin_key']}"}
    asked = {"model": "minilm", "query": texts[0], "documents": [texts[2], {"text": texts[1]}], "top_n": 1, "return_documents": True}
    ranked = httpx.post(f"http://{nodes.keys['address']}/v1/rerank", json=asked, headers=headers).json()["results"]
    assert [(r["index"], r["document"]["text"]) for r in ranked] == [(1, texts[1])] and ranked[0]["relevance_score"] > 0.5
